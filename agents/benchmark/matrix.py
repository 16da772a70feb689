"""What a benchmark runs: agents by environments by seeds, and what the name of an agent stands for."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from agents.algorithms import ALGORITHMS
from agents.benchmark.own import find_class
from agents.evaluate import AGENTS, PolicySource, environment_arguments, find_policy
from agents.recorder import MINUTES
from agents.speaker import EndpointAgent
from llm_gym.data.files import write_aside
from llm_gym.errors import LLMGymError
from llm_gym.models.load import load_tokenizer
from llm_gym.registration import find_task

PLAN = "benchmark.json"
FORMAT = 1
UNTRAINED, REFERENCE, GREEDY = "untrained", "reference", "greedy"
BASELINES = (UNTRAINED, REFERENCE)
"""The agents whose scores are 0 and 1: they are part of every benchmark."""
BEST_OF = re.compile(r"best-of-([1-9]\d*)")


@dataclass(frozen=True)
class Plan:
    """What a benchmark was asked to do.

    Attributes:
        agents: Their names; see `find_contestant`. `BASELINES` are among them.
        envs: Environment ids.
        seeds: How many runs an agent makes in each environment, unless it would do the same each time.
        policy: Model or run that training starts from, and that the untrained agents are.
        minutes: Minutes of training in a cell, or None.
        tokens: Tokens written in training in a cell, or None.
    """

    agents: tuple[str, ...]
    envs: tuple[str, ...]
    seeds: int = 3
    policy: str = "smollm2-135m"
    minutes: float | None = None
    tokens: int | None = None

    def cells(self, out: Path) -> Iterator[Cell]:
        """Yield the cells, seed by seed, so that a benchmark that was broken off has something of everything."""
        once = {agent for agent in self.agents if find_contestant(agent, self.policy).deterministic}
        for seed in range(self.seeds):
            for env in self.envs:
                for agent in self.agents:
                    if seed == 0 or agent not in once:
                        yield Cell(env, agent, seed, out / slug(env.rpartition(":")[2]) / f"{slug(agent)}-{seed}")


@dataclass(frozen=True)
class Cell:
    """One agent with one seed in one environment; `folder` holds what came of it."""

    env: str
    agent: str
    seed: int
    folder: Path

    @property
    def title(self) -> str:
        """What a person reads."""
        return f"{self.env.rpartition(':')[2]} · {self.agent} · seed {self.seed}"


@dataclass(frozen=True)
class Contestant:
    """What the name of an agent stands for.

    Attributes:
        name: The name.
        kind: `trained` by an algorithm of ours, `own` for a class of the user's, `endpoint`, or `policy` for what
            writes without being trained here.
        source: Which model, and whose tokenizer the environment speaks.
        greedy: Whether the likeliest token is taken each time.
        best_of: How many texts are written for each that is said.
    """

    name: str
    kind: str
    source: PolicySource
    greedy: bool = False
    best_of: int = 1

    @property
    def deterministic(self) -> bool:
        """Whether another seed would change nothing."""
        return self.greedy or self.source.agent == REFERENCE

    @property
    def model(self) -> PolicySource:
        """The model and adapter alone: what their run was trained with and judged by does not count here."""
        return replace(self.source, config=None)

    def env_kwargs(self, env: str) -> dict[str, Any]:
        """Return the arguments of an environment: the task's own data and feedback, the same for all agents."""
        return environment_arguments(env, self.model)


def find_contestant(name: str, policy: str) -> Contestant:
    """Return what a name stands for.

    Args:
        name: An algorithm (it is trained); `untrained`, `greedy`, `best-of-N` (the policy as it is); `random`,
            `reference`; `http://host/v1#model` (an endpoint that is asked); `module:Class`
            (see `agents.benchmark.own`); else a run folder, a model folder or a model's name.
        policy: The model or run that training starts from.
    """
    source = find_policy(policy)
    if name in ALGORITHMS:
        return Contestant(name, "trained", source)
    if name in AGENTS:
        return Contestant(name, "policy", replace(find_policy(name), model=source.model))
    if name in (UNTRAINED, GREEDY):
        return Contestant(name, "policy", source, greedy=name == GREEDY)
    if best := BEST_OF.fullmatch(name):
        return Contestant(name, "policy", source, best_of=int(best[1]))
    if "://" in name:
        return Contestant(name, "endpoint", PolicySource(source.model))
    if ":" in name and not Path(name).exists():
        return Contestant(name, "own", PolicySource(source.model))
    return Contestant(name, "policy", find_policy(name))


def make_plan(agents: Sequence[str], envs: Sequence[str], **settings: Any) -> Plan:
    """Return a plan, with the baselines; where no length is given, ten minutes of training.

    Raises:
        LLMGymError: An agent, an environment or a model is unknown.
    """
    if settings.get("minutes") is None and settings.get("tokens") is None:
        settings["minutes"] = MINUTES
    plan = Plan(_once((*BASELINES, *agents)), _once(envs), **settings)
    for env in plan.envs:
        find_task(env)
    for agent in plan.agents:
        _check(find_contestant(agent, plan.policy))
    return plan


def _check(contestant: Contestant) -> None:
    """See to it that a slip in a name is told before anything runs."""
    try:
        load_tokenizer(contestant.source.model)
    except LLMGymError as error:
        hint = f"; algorithms are {', '.join(ALGORITHMS)}" if contestant.source.model == contestant.name else ""
        raise LLMGymError(f"agent {contestant.name!r}: {error}{hint}") from error
    if contestant.kind == "own":
        find_class(contestant.name)
    if contestant.kind == "endpoint":
        EndpointAgent(None, contestant.name)


def joined(old: Plan, new: Plan) -> Plan:
    """Return the plan of a benchmark that grows: what was asked before, and what is asked now.

    Raises:
        LLMGymError: Cells of the two could not be compared.
    """
    for name in ("policy", "minutes", "tokens"):
        before, now = getattr(old, name), getattr(new, name)
        if before != now:
            raise LLMGymError(
                f"the benchmark was begun with {name}={before}, not {now}, and its cells would not be comparable; "
                "leave it out, or pass another --out"
            )
    return replace(
        new,
        agents=_once((*old.agents, *new.agents)),
        envs=_once((*old.envs, *new.envs)),
        seeds=max(old.seeds, new.seeds),
    )


def read_plan(out: Path) -> Plan:
    """Return the plan of a benchmark's folder.

    Raises:
        LLMGymError: It is none.
    """
    try:
        stored = json.loads((out / PLAN).read_text(encoding="utf-8"))
        if stored.pop("llm_gym_benchmark") != FORMAT:
            raise LLMGymError(f"{out} was written by another version of llm_gym; run it again with another --out")
        return Plan(**{**stored, "agents": tuple(stored["agents"]), "envs": tuple(stored["envs"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, LLMGymError):
            raise
        raise LLMGymError(f"{out} is no benchmark: its {PLAN} cannot be read ({error})") from error


def write_plan(out: Path, plan: Plan) -> None:
    """Keep a plan in a benchmark's folder."""
    out.mkdir(parents=True, exist_ok=True)
    write_aside(out / PLAN, json.dumps({"llm_gym_benchmark": FORMAT, **asdict(plan)}, indent=2) + "\n")


def slug(name: str) -> str:
    """Return a name as that of a folder; one that had to be changed has a digest, so that no two are the same.

    >>> slug("best-of-4"), slug("my_module:MyAgent")
    ('best-of-4', 'my_module-MyAgent-bbae')
    """
    plain = re.sub(r"[^\w.-]+", "-", name).strip("-.")
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:4]}"


def _once(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
