"""The environment that a command's flags ask for."""

from __future__ import annotations

import argparse
from typing import Any


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
