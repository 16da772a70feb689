"""Dialogue-v0: serve a partner who wants several things, over several turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from llm_gym.data.hub import HubData
from llm_gym.feedback.rules import says
from llm_gym.tasks.base import Task

WORDS = ("want", "ask", "again", "answer")
GOALS = 3  # questions taken from a public conversation: with two turns for one of them, they fit into five turns


class Progress(NamedTuple):
    """How far a conversation has come.

    Attributes:
        met: For each goal that is settled, whether it was met.
        asked: How often the goal in question has been asked without success.
    """

    met: tuple[bool, ...]
    asked: int


def progress(goals: Sequence[dict[str, Any]], turns: Sequence[dict[str, str]]) -> Progress:
    """Return how far the agent's `turns` have brought the partner's `goals`.

    A goal is met by the turn that answers it, if all of its key words are in it. After two turns without them the
    partner gives it up and goes on to the next.

    >>> goals = [{"key": ["21:40"]}, {"key": ["platform 2"]}]
    >>> progress(goals, [{"role": "agent", "text": "It leaves at 21:40."}])
    Progress(met=(True,), asked=0)
    """
    met: list[bool] = []
    asked = 0
    for turn in turns:
        if turn["role"] != "agent" or len(met) == len(goals):
            continue
        found = says(turn["text"], goals[len(met)]["key"])
        if found or asked:
            met.append(found)
            asked = 0
        else:
            asked = 1
    return Progress(tuple(met), asked)


def from_questions(row: dict[str, Any]) -> dict[str, Any] | None:
    """Return the columns that a conversation of CoQA gives: its questions are the goals, its story is the briefing.

    A goal's key words are the annotated answer, so that only questions are taken whose answer says something.
    """
    asked = zip(row["questions"], row["answers"]["input_text"], strict=True)
    goals = [
        {
            "want": f"to learn: {ask}",
            "ask": ask,
            "again": f"I asked: {ask}",
            "answer": answer,
            "key": [answer.rstrip(".")],
        }
        for ask, answer in asked
        if ask.strip() and answer.rstrip(".").strip() and answer.lower().rstrip(".") != "unknown"
    ][:GOALS]
    if not goals:
        return None
    return {
        "situation": "Somebody who has not read it asks about a text.",
        "role": "You have read the text.",
        "briefing": [row["story"]],
        "partner": "somebody who is curious about the text",
        "manner": "brief",
        "goals": goals,
        "closing": "Thank you.",
    }


class Dialogue(Task):
    """Serve a partner who wants several things, over several turns.

    ## Description
    The agent plays a role (a clerk, a librarian, a landlord) and has a briefing; the partner comes with goals, raises
    them one after the other, asks once more where an answer did not help, and leaves when all are settled. The bundled
    corpus has 104 scenarios written for this project. The partner follows a script, or speaks through a language model
    (`partner="smollm2-135m"`); it never sees the agent's instruction or briefing, and what it wants next is decided by
    its goals and by what was answered, never by what the agent tells it to do.

    ## Action Space
    `Discrete(V)`: the id of the next token, V = `len(tokenizer)`.

    ## Observation Space
    | key | space | what |
    |---|---|---|
    | `input_ids` | `Box(0, V-1, (C,), int32)` | prompt, earlier turns and what was written, padded on the right |
    | `roles` | `Box(0, 2, (C,), int8)` | 0 padding, 1 given (the partner's turns too), 2 written by the agent |
    | `tokens_left` | `Box(0, max_new_tokens, (1,), int32)` | tokens that may still be written in this turn |

    C = `max_prompt_tokens + 5 * max_new_tokens + 4 * 64`, for five turns and four replies.

    ## Starting State
    The prompt: the role, the situation, the briefing and the partner's first line, of a scenario drawn from the split
    or of the one that `reset(options={"example": id})` names.

    ## Rewards
    0 within a turn; when a turn ends, the feedback's value for it, divided by the most turns there can be (five). By
    default a turn costs what it lacks (likelihood, completeness) and what it repeats or reads off the briefing, so that
    a perfect turn is worth 0 and talking longer earns nothing; when the conversation is over, the share of goals met
    counts.

    ## Episode End
    Terminated when all goals are settled or after five turns (`finish_reason` `stop` or `length`, of the last turn), or
    when the next turn would not fit into the context (`context`). Never truncated.

    ## Information
    On reset `example` (its id) and `words_cut` (words of the briefing that did not fit into the prompt). When a turn
    ends `text`, `finish_reason`, `score`, `parts`, `example`, and `reply`, what the
    partner says to it: an answer, thanks at the end if all goals were met, or nothing.

    ## Arguments
    `partner` (`script`, a model's name, or `ADDRESS#MODEL`), `tokenizer`, `data`, `split`, `columns`, `feedback`,
    `instruction`, `template`, `max_prompt_tokens`, `max_new_tokens`, `render_mode`; see
    `llm_gym.envs.vector_env.TextVectorEnv`. Data
    columns: `situation`, `role`, `briefing`, `partner`, `manner`, `facts`, `goals` (each with `want`, `ask`, `again`,
    `answer` and `key`), `closing`; JSONL or Parquet.

    `data` also takes `coqa` (`stanfordnlp/coqa`) where the hub can be reached: the story is the briefing, the first
    three questions that have an answer are the goals, the annotated answers their key words; stories are longer than
    the bundled briefings, so raise `max_prompt_tokens`. Questions are asked again in the same words. QuAC is of the
    same shape, but on the hub it is a program, which is not run. Transcripts of task-oriented dialogue or chat
    (MultiWOZ, DailyDialog, PersonaChat) have no row with what a partner wants and the key words of an answer, and none
    is made up for them.

    ## References
    Budzianowski et al. 2018, MultiWOZ (goals of a user); Reddy et al. 2019, CoQA; Abdulhai et al. 2023, LMRL-Gym (turns
    as actions).

    ## Version History
    - v0: first version.
    """

    name = "dialogue"
    corpus = "dialogue"
    required = ("situation", "role", "briefing", "partner", "manner", "goals", "closing")
    optional = ("kind", "facts")
    instruction = "{role} {situation} Answer the other person in one short, friendly sentence, using what you know."
    public = {"coqa": HubData("stanfordnlp/coqa", convert=from_questions)}
    max_prompt_tokens = 224
    max_new_tokens = 40
    max_turns = 5
    max_reply_tokens = 64
    feedback = {
        "goals": {"weight": 30.0},
        "likelihood": {"weight": 1.0, "ceiling": -2.0, "prompt": "{source}\n\n{said}\n\nAnswer:"},
        "complete": {"weight": 2.0},
        "copying": {"weight": -0.5, "run": 6},
        "repetition": {"weight": -3.0},
    }
    judge = {
        "reference_similarity": {"weight": 1 / 2},
        "chrf": {"weight": 1 / 2},
    }

    def check(self, example: dict[str, Any]) -> str | None:
        """Return what is wrong with the goals, or None."""
        for number, goal in enumerate(example["goals"], 1):
            for name in WORDS:
                if not isinstance(goal.get(name), str) or not goal[name].strip():
                    return f"goal {number} must have {name!r}, a string, not {goal.get(name)!r}"
            keys = goal.get("key")
            if not isinstance(keys, list) or not keys or not all(isinstance(key, str) and key.strip() for key in keys):
                return f"goal {number} must have 'key', a list of strings, not {keys!r}"
        return None

    def source(self, example: dict[str, Any]) -> str:
        """Return the briefing."""
        return " ".join(example["briefing"])

    def messages(self, instruction: str, source: str, example: dict[str, Any]) -> list[dict[str, str]]:
        """Return the chat that opens an episode: the agent's orders, and the partner's first line."""
        return [
            {"role": "system", "content": f"{instruction}\n\nWhat you know: {source}"},
            {"role": "user", "content": example["goals"][0]["ask"]},
        ]

    def plain(self, instruction: str, source: str, example: dict[str, Any]) -> str:
        """Return the prompt for a base model that has no chat template."""
        return f"{instruction}\n\nWhat you know: {source}\n\nPartner: {example['goals'][0]['ask']}\n\nYou:"

    def opening(self, example: dict[str, Any]) -> list[dict[str, str]]:
        """Return the partner's first line, which asks for the first goal."""
        return [{"role": "partner", "text": example["goals"][0]["ask"]}]

    def reply(self, example: dict[str, Any], turns: list[dict[str, str]]) -> str | None:
        """Return the partner's next line by the script, or None where all goals are settled."""
        goals = example["goals"]
        met, asked = progress(goals, turns)
        if len(met) == len(goals):
            return None
        if asked:
            return goals[len(met)]["again"]
        return goals[len(met)]["ask"] if met[-1] else f"Never mind. {goals[len(met)]['ask']}"

    def farewell(self, example: dict[str, Any], turns: list[dict[str, str]]) -> list[dict[str, str]]:
        """Return the partner's thanks, if all goals were met."""
        met, _ = progress(example["goals"], turns)
        content = len(met) == len(example["goals"]) and all(met)
        return [{"role": "partner", "text": example["closing"]}] if content else []

    def reference(self, example: dict[str, Any]) -> str:
        """Return the answers of the scenario's author."""
        return " ".join(goal["answer"] for goal in example["goals"])

    def reference_turn(self, example: dict[str, Any], turns: list[dict[str, str]]) -> str:
        """Return the author's answer to what the partner asked last."""
        goals = example["goals"]
        return goals[min(len(progress(goals, turns).met), len(goals) - 1)]["answer"]
