"""The errors that users of llm_gym can cause."""

from __future__ import annotations


class LLMGymError(ValueError):
    """A mistake in what the user asked for, told in one line with the remedy.

    The command line prints the message and exits with a non-zero status; nothing half-written is left behind.
    """


class RenderModeError(LLMGymError, TypeError):
    """An unknown render mode.

    A `TypeError` too: SB3's `make_vec_env` asks for `rgb_array` first, and only a `TypeError` makes it ask again.
    """
