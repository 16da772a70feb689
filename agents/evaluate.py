"""Evaluating a policy: which one, on which documents, and what it wrote there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode

from agents.best_of_n import BestOfN, RandomAgent
from agents.policy import LLMPolicy
from agents.q_policy import QPolicy
from agents.reference import ReferenceAgent
from agents.rollout import Agent, play
from llm_gym.data.files import whole_path
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback import Composite, Score, build
from llm_gym.feedback.rules import copied_share, words
from llm_gym.models.load import load_tokenizer, pick_device
from llm_gym.registration import find_task
from llm_gym.statistics import evenly_spaced

HELD_OUT = 48  # documents of a report: few enough to write in a minute, enough for an interval
TEXTS = 2  # for each of them: what one sampled text happens to be worth says little of its policy
CONFIG, ADAPTER, MODEL = "config.json", "adapter", "model"
AGENTS = ("reference", "random")
"""Policies without a model: one says what a person wrote, one draws tokens."""
RUN_FORMAT = 1
"""Value of `llm_gym_run` in a run's config; its presence tells a run folder from a model's."""


@dataclass(frozen=True)
class PolicySource:
    """Where a policy comes from.

    Attributes:
        model: Name of the base model; a local folder as an absolute path.
        adapter: Folder of the adapter on it, or None.
        config: The config of the run that it comes from, or None.
        agent: `reference` if it says what a person wrote, `random` if it draws tokens; `model` then names the
            tokenizer alone. None for a language model.
        temperature: Of sampling: the run's, or 1.
    """

    model: str
    adapter: str | None = None
    config: dict[str, Any] | None = None
    agent: str | None = None
    temperature: float = 1.0


def find_policy(name: str) -> PolicySource:
    """Return what `name` stands for: a run folder, a model folder, a model's name, or one of `AGENTS`.

    Raises:
        LLMGymError: A run folder without an adapter, or written by another version.
    """
    folder = Path(name)
    if name in AGENTS:
        return PolicySource("smollm2-135m", agent=name)
    if not folder.is_dir():
        return PolicySource(name)
    config = _read_json(folder / CONFIG)
    if not isinstance(config, dict) or "llm_gym_run" not in config:
        if (folder / "metrics.jsonl").exists():
            raise LLMGymError(f"the run in {folder} has no {CONFIG} that can be read; train again with another --out")
        return PolicySource(str(folder.absolute()))
    if config["llm_gym_run"] != RUN_FORMAT:
        raise LLMGymError(f"{folder} was written by another version of llm_gym; train again, or use that version")
    settings = config["policy"]
    if (folder / MODEL / "config.json").is_file():
        return PolicySource(str((folder / MODEL).absolute()), config=config, temperature=settings["temperature"])
    if not (folder / ADAPTER / "adapter_config.json").is_file():
        raise LLMGymError(
            f"the run in {folder} has no adapter: it did not finish; go on with 'llm-gym train --resume {folder}'"
        )
    return PolicySource(
        settings["model"], str((folder / ADAPTER).absolute()), config, temperature=settings["temperature"]
    )


def trained_on(source: PolicySource) -> set[str]:
    """Return the real paths of the data that the run of a source, and those it goes on from, were trained on."""
    found: set[str] = set()
    config: Any = source.config
    while isinstance(config, dict) and "llm_gym_run" in config:
        if data := config["env_kwargs"]["data"]:
            found.add(os.path.realpath(data))
        begun = config["policy"]["adapter"] or config["policy"]["model"]
        config = _read_json(Path(begun).parent / CONFIG) if os.path.isabs(begun) else None
    return found


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def environment_arguments(
    env_id: str,
    source: PolicySource,
    data: str | None = None,
    columns: dict[str, str] | None = None,
    feedback: str | dict[str, Any] | None = None,
    partner: str | None = None,
    instruction: str | None = None,
) -> dict[str, Any]:
    """Return the environment's arguments, complete and JSON: those of the source's run, changed by what is given.

    Args:
        env_id: The environment.
        source: Whose tokenizer it is to speak.
        data: File of examples.
        columns: The task's column names mapped to the file's.
        feedback: Spec of the training feedback.
        partner: Who answers in a conversation.
        instruction: What the policy is asked to do.

    Raises:
        LLMGymError: An unknown environment, model or scorer.
    """
    task = find_task(env_id)
    run = source.config if source.config and source.config["env"] == env_id else None
    arguments: dict[str, Any] = {"data": None, "columns": None, "feedback": task.feedback}
    arguments.update(run["env_kwargs"] if run else {})
    if data is not None:
        arguments.update(data=whole_path(data), columns=None)
    if columns:
        arguments["columns"] = dict(columns)
    given = {"partner": partner, "instruction": instruction}
    arguments.update({name: value for name, value in given.items() if value is not None})
    arguments["feedback"] = build(arguments["feedback"] if feedback is None else feedback).spec
    arguments["tokenizer"] = source.model
    arguments["template"] = "chat" if load_tokenizer(source.model).chat_template else "plain"
    return arguments


def make_envs(env_id: str, num_envs: int, split: str, arguments: dict[str, Any]) -> Any:
    """Return a text vector environment without autoreset, as `play` needs it."""
    envs = gym.make_vec(
        env_id, num_envs=num_envs, autoreset_mode=AutoresetMode.DISABLED.value, split=split, **arguments
    )
    return envs.unwrapped


def load_policy(source: PolicySource, envs: Any, best_of: int = 1, seed: int = 0) -> Agent:
    """Return the policy on the best device, ready to write in `envs`.

    Args:
        source: Which policy.
        envs: From `make_envs`.
        best_of: How many texts it writes for each that it says (`BestOfN`).
        seed: Of what the random agent draws.

    Raises:
        LLMGymError: The best of several is asked of an agent that has but one.
    """
    if source.agent and best_of > 1:
        raise LLMGymError(f"the best of {best_of} is for language models; the {source.agent} agent takes no --best-of")
    if source.agent:
        return ReferenceAgent(envs) if source.agent == "reference" else RandomAgent(envs, seed)
    kind, acting = _acting(source.config)
    policy = kind(
        envs.single_observation_space,
        envs.single_action_space,
        lambda _: 0.0,
        model=source.model,
        lora=None,
        adapter=source.adapter,
        temperature=source.temperature,
        **acting,
    )
    policy.to(pick_device("auto"))
    return policy if best_of == 1 else BestOfN(policy, envs, best_of)


def _acting(config: dict[str, Any] | None) -> tuple[type[LLMPolicy], dict[str, Any]]:
    """Return the class of the policy that a run trained, and what it acts by beside its weights."""
    if config is None or config["algo"] != "dqn":
        return LLMPolicy, {}
    settings, start = config["settings"], config["policy"]
    guide = (start["model"], start["adapter"])
    return QPolicy, {"top_k": settings["top_k"], "epsilon": settings["exploration_final_eps"], "guide": guide}


def held_out(ids: Sequence[str], count: int = HELD_OUT) -> list[str]:
    """Return at most `count` of `ids`, evenly spaced: the same ones each time.

    >>> held_out(["a", "b", "c", "d", "e"], 3)
    ['a', 'c', 'e']
    """
    return evenly_spaced(ids, count)


@dataclass
class Evaluation:
    """What a policy wrote for some documents, and how it was judged.

    Attributes:
        episodes: Scored by the training feedback: one for each document, then a second for each, and so on.
        judged: The second judge's scores, None where a document has no reference or no judge was asked.
        texts: Texts for each document.
    """

    episodes: list[Episode]
    judged: list[Score | None]
    texts: int = 1

    @property
    def firsts(self) -> list[Episode]:
        """The first text for each document, for reading."""
        return self.episodes[: len(self.episodes) // self.texts]

    def to_jsonl(self) -> str:
        """Return a line of JSON for each text: its record, and what the second judge gave it.

        `from_jsonl` brings it back.
        """
        rows = zip(self.episodes, self.judged, strict=True)
        return "".join(
            json.dumps(
                {"episode": e.to_record(), "judge": s and {"value": s.value, "parts": s.parts}},
                ensure_ascii=False,
            )
            + "\n"
            for e, s in rows
        )

    @classmethod
    def from_jsonl(cls, lines: str, texts: int) -> Evaluation:
        """Rebuild what `to_jsonl` returned."""
        rows = [json.loads(line) for line in lines.splitlines()]
        episodes = [Episode.from_record(row["episode"]) for row in rows]
        return cls(episodes, [row["judge"] and Score(**row["judge"]) for row in rows], texts)

    def columns(self) -> dict[str, np.ndarray]:
        """Return every measure, float64 `(documents,)`, the mean over a document's texts; NaN where it does not apply.

        Keys are `feedback`, `feedback/<part>`, `judge`, `judge/<part>`, `copied_share` and `words`.
        """
        measures = {"feedback": [np.nan if e.reward is None else e.reward for e in self.episodes]}
        for name in next((e.parts for e in self.episodes if e.parts), {}):
            measures[f"feedback/{name}"] = [e.parts.get(name, np.nan) for e in self.episodes]
        first = next((score for score in self.judged if score is not None), None)
        if first is not None:
            measures["judge"] = [np.nan if s is None else s.value for s in self.judged]
            for name in first.parts:
                measures[f"judge/{name}"] = [np.nan if s is None else s.parts[name] for s in self.judged]
        measures["copied_share"] = [copied_share(e.text, e.source) for e in self.episodes]
        measures["words"] = [float(len(words(e.text))) for e in self.episodes]
        return {name: np.reshape(values, (self.texts, -1)).mean(0, np.float64) for name, values in measures.items()}


def evaluate(
    policy: Agent,
    envs: Any,
    ids: Sequence[str],
    deterministic: bool = False,
    seed: int = 0,
    judge: Composite | None = None,
    texts: int = 1,
) -> Evaluation:
    """Let the policy write about each document and have it judged.

    Args:
        policy: Who writes; its own random numbers are left as they were.
        envs: From `make_envs`; its feedback is the training feedback.
        ids: The documents.
        deterministic: Take the likeliest token each time.
        seed: Of sampling.
        judge: The second judge; it reads only documents that have a reference.
        texts: How many for each document.

    Returns:
        The episodes in the order of `ids`, as often as there are texts, with their scores; where the feedback abstained
        from a text, its episode's reward is None.
    """
    with sampling_from(policy, seed):
        episodes = play(policy, envs, [*ids] * texts, deterministic, abstaining=True) or []
    return Evaluation(episodes, judged_by(judge, episodes), texts)


def judged_by(judge: Composite | None, episodes: Sequence[Episode]) -> list[Score | None]:
    """Return the second judge's scores, None for episodes without a reference to compare with."""
    judged: list[Score | None] = [None] * len(episodes)
    places = [i for i, episode in enumerate(episodes) if episode.reference] if judge is not None else []
    if judge is not None and places:
        for place, score in zip(places, judge([episodes[i] for i in places]), strict=True):
            judged[place] = score
    return judged


@contextmanager
def sampling_from(agent: Agent, seed: int) -> Iterator[None]:
    """Sample from `seed` inside the block, so that measuring does not change what training draws."""
    policy = agent.policy if isinstance(agent, BestOfN) else agent
    if not isinstance(policy, LLMPolicy):
        yield
        return
    kept = policy._generator
    policy._generator = torch.Generator(policy.device).manual_seed(seed)
    try:
        yield
    finally:
        policy._generator = kept
