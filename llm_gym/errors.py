"""The one error that users of llm_gym can cause."""

from __future__ import annotations


class LLMGymError(ValueError):
    """A mistake in what the user asked for, told in one line with the remedy.

    The command line prints the message and exits with a non-zero status; nothing half-written is left behind.
    """
