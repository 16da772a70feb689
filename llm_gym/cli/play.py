"""A person, or an agent that a person watches, in an environment."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from llm_gym.cli.environment import DEFAULT_POLICY, environment_asked
from llm_gym.envs.render import WIDTH, printable
from llm_gym.errors import LLMGymError


def play_command(arguments: argparse.Namespace) -> None:
    """Let a person write and see the score and its parts; with `--policy`, watch an agent instead."""
    from agents import evaluate as evaluation
    from llm_gym.registration import find_task

    find_task(arguments.id)
    if arguments.policy and arguments.tokenizer:
        raise LLMGymError("--tokenizer is for writing yourself: a policy speaks its own; leave it out with --policy")
    source = evaluation.find_policy(arguments.policy or arguments.tokenizer or DEFAULT_POLICY)
    env_kwargs = environment_asked(arguments, source)
    watching = arguments.policy is not None
    shown = watching and not arguments.json
    envs = evaluation.make_envs(
        arguments.id, 1, arguments.split, {**env_kwargs, "render_mode": "human" if shown else None}
    )
    envs.reset(options={"example": arguments.example or envs.example_ids[arguments.seed % len(envs.example_ids)]})
    tell = _tell_json if arguments.json else _tell
    if watching:
        policy = evaluation.load_policy(source, envs, seed=arguments.seed)
        with evaluation.sampling_from(policy, arguments.seed):
            _watch(policy, envs, tell)
    else:
        _converse(envs, tell, arguments.json)
    if not arguments.json:
        _tell_episode(envs.episodes[0])


def _watch(policy: Any, envs: Any, tell: Callable[[Any, str | None], None]) -> None:
    """Show an agent's text, on a terminal every token as it comes, coloured by its log-probability."""
    while not envs.done[0]:
        tokens, log_probs = policy.write(envs.observation(), np.array([0]), 1)
        ended = envs.write(np.array([0]), tokens[:, 0], log_probs[:, 0])
        if envs.render_mode and (len(ended) or sys.stdout.isatty()):
            envs.render()
        if len(ended):
            _end_turn(envs, tell)


def _converse(envs: Any, tell: Callable[[Any, str | None], None], quiet: bool) -> None:
    """Ask a person for a text a turn, until the episode ends."""
    if not quiet:
        ids = envs.observation()["input_ids"][0, : envs.length(0)]
        print(printable(envs.tokenizer.decode(ids, skip_special_tokens=True)).strip())
    while not envs.done[0]:
        if not quiet:
            print(f"── your turn, at most {envs.max_new_tokens} tokens ".ljust(WIDTH, "─"))
        for token in _tokens(envs, _ask(quiet)):
            if len(envs.write(np.array([0]), np.array([token]))):
                break
        _end_turn(envs, tell)


def _end_turn(envs: Any, tell: Callable[[Any, str | None], None]) -> None:
    envs.end_turns(np.array([0]))
    for _, turn in envs.score():
        tell(turn, envs.reply(0))


def _ask(quiet: bool) -> str:
    asked_aloud = sys.stdin.isatty() and not quiet
    if asked_aloud:
        print("> ", end="", flush=True)
    line = sys.stdin.readline()
    if not line:
        raise LLMGymError("the input ended before the episode did; write a line for each turn")
    if not asked_aloud and not quiet:
        print(f"> {line.rstrip()}")
    return line.strip()


def _tokens(envs: Any, text: str) -> list[int]:
    """Return a person's text as tokens: ended, or cut at the cap as an agent's would be."""
    return [*envs.encode(0, text), envs.single_action_space.stop_ids[0]][: envs.max_new_tokens]


def _tell(turn: Any, reply: str | None) -> None:
    parts = " · ".join(f"{name} {value:+.3f}" for name, value in turn.parts.items())
    print(f"score {turn.reward:+.3f} · {parts}")
    if reply is not None:
        print(f"\npartner: {printable(reply)}")


def _tell_json(turn: Any, reply: str | None) -> None:
    row = {
        "example": turn.example["id"],
        "text": turn.text,
        "finish_reason": turn.finish_reason,
        "score": turn.reward,
        "parts": turn.parts,
        "over": turn.over,
        "reply": reply,
    }
    print(json.dumps(row, ensure_ascii=False, allow_nan=False), flush=True)


def _tell_episode(episode: Any) -> None:
    if len(episode.turns) > 1:
        print(f"── episode · {episode.finish_reason} ".ljust(WIDTH, "─"))
        _tell(episode, None)
    if episode.reference:
        print(f"a person wrote: {printable(episode.reference)}")
