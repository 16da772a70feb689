"""One real example of every environment, with a good and a bad reply and what the feedback says of them.

    python benchmarks/gallery.py > docs/gallery.md

The good reply is a person's: the reference, in a conversation the author's turns. The bad one is the reference of
another example. Both are the first of the test split, so nobody picked them.
"""

from __future__ import annotations

from typing import Any

from agents.evaluate import make_envs
from agents.report import cut
from agents.rollout import play
from llm_gym.episode import Episode
from llm_gym.registration import ENVIRONMENTS, find_task
from references import Writes, writers

WORDS = 120  # of a source that are shown
HEAD = """# Gallery

One example of every environment, the first of its test split, with a person's reply and the reply to another example.
Scores and their parts (before weights) are those of the default feedback. Made by `python benchmarks/gallery.py`.
"""


def main() -> None:
    """Print the page."""
    print(HEAD)
    for env_id in ENVIRONMENTS:
        print("\n".join(section(env_id)))


def section(env_id: str) -> list[str]:
    """Return the lines about one environment."""
    envs = make_envs(env_id, 1, "test", {"template": "plain"})  # of the prompt, the task's words alone
    told = writers(envs, cheat=False)
    first = envs.examples[0]["id"]
    lines = [f"## {env_id}", "", (find_task(env_id).__doc__ or "").partition("\n")[0], ""]
    lines += [f"`{first}`, as the agent reads it:", "", *quoted(cut(prompt(envs, first), WORDS)), ""]
    for title, name in (("A person's reply", "reference"), ("The reply to another", "another example's reference")):
        (episode,) = play(Writes(envs, told[name]), envs, [first]) or []
        lines += [f"**{title}**: {episode.reward:+.2f}", "", *transcript(episode), "", parts(episode), ""]
    return lines


def prompt(envs: Any, example: str) -> str:
    """Return what the agent is given, as text."""
    observation, _ = envs.reset(options={"example": example})
    ids = observation["input_ids"][0][: envs.length(0)]
    return envs.tokenizer.decode(ids, skip_special_tokens=True)


def transcript(episode: Episode) -> list[str]:
    """Return what was said, as a quotation."""
    if len(episode.turns) < 2:
        return quoted(episode.text or "(nothing)")
    return [
        line for turn in episode.turns for line in [*quoted(f"**{turn['role']}** {turn['text'] or '(nothing)'}"), ">"]
    ]


def quoted(text: str) -> list[str]:
    """Return Markdown lines of a quotation."""
    return [f"> {line}".rstrip() + "  " for line in text.replace("<", "&lt;").splitlines()]


def parts(episode: Episode) -> str:
    """Return the parts of the score."""
    return " · ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in episode.parts.items())


if __name__ == "__main__":
    main()
