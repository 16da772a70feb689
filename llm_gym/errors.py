"""The errors that users of llm_gym can cause."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


class LLMGymError(ValueError):
    """A mistake in what the user asked for, told in one line with the remedy.

    The command line prints the message and exits with a non-zero status; nothing half-written is left behind.
    """


class RenderModeError(LLMGymError, TypeError):
    """An unknown render mode.

    A `TypeError` too: SB3's `make_vec_env` asks for `rgb_array` first, and only a `TypeError` makes it ask again.
    """


def number(name: str, value: Any, above_zero: bool = False) -> float:
    """Return `value` if it is a finite number, and positive where it has to be.

    Raises:
        LLMGymError: It is not; the message calls it `name`.
    """
    known = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not known or (above_zero and value <= 0):
        raise LLMGymError(f"{name}={value!r} must be a {'positive' if above_zero else 'finite'} number")
    return float(value)


def positive(name: str, value: Any) -> int:
    """Return `value` if it is a positive integer.

    Raises:
        LLMGymError: It is not; the message calls it `name`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise LLMGymError(f"{name}={value!r} must be a positive integer")
    return int(value)
