"""The environment that a command's flags ask for."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from llm_gym.errors import LLMGymError

DEFAULT_POLICY = "smollm2-135m"


def environment_asked(arguments: argparse.Namespace, source: Any) -> dict[str, Any]:
    """Return the arguments of the environment: those of the run of `source`, changed by the flags that were given."""
    from agents.evaluate import environment_arguments

    return environment_arguments(
        arguments.id,
        source,
        arguments.data,
        dict(arguments.columns),
        arguments.feedback,
        arguments.partner,
        arguments.instruction,
    )


def at_temperature(source: Any, temperature: float | None, greedy: bool = False) -> Any:
    """Return the source of a policy that samples at the temperature that was asked for.

    Raises:
        LLMGymError: It does not sample.
    """
    if temperature is None:
        return source
    if greedy or source.agent:
        raise LLMGymError("--temperature is for sampling a model; leave it out with --greedy, reference and random")
    return replace(source, temperature=temperature)
