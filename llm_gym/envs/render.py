"""A readable view of an episode for the terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from llm_gym.episode import Episode

WIDTH = 88
COLOURS = ((-0.5, "32"), (-2.0, "33"), (-4.0, "38;5;208"), (-math.inf, "31"))


def render_text(prompt: str, text: str, tokens_left: int, episode: Episode | None, coloured: str | None = None) -> str:
    """Return prompt, text so far and, once it is finished, the score with its parts.

    Args:
        prompt: What was given.
        text: What was written.
        tokens_left: Tokens that may still be written.
        episode: The record, once there is one.
        coloured: The text as `colour` returns it, to be shown in its place.

    >>> print(render_text("Say hello.", "Hello", 3, None))
    ── prompt ──────────────────────────────────────────────────────────────────────────────
    Say hello.
    ── text · 3 tokens left ────────────────────────────────────────────────────────────────
    Hello
    """
    shown = _wrap(text) if coloured is None else coloured
    lines = [_rule("prompt"), _wrap(prompt)]
    if episode is None:
        return "\n".join([*lines, _rule(f"text · {tokens_left} tokens left"), shown])
    lines += [_rule(f"text · {episode.finish_reason}"), shown, _rule(f"score {episode.reward:+.3f}")]
    lines += [f"{name:<24}{value:+.3f}" for name, value in episode.parts.items()]
    return "\n".join(lines)


def colour(pieces: Sequence[str], log_probs: Sequence[float]) -> str:
    r"""Return the pieces of a text in the colours of their log-probabilities, as a terminal shows them.

    Green from -0.5 nats, yellow from -2, orange from -4, red below; uncoloured where it is not known (NaN).

    >>> colour(["It", " rained"], [-0.1, float("nan")])
    '\x1b[32mIt\x1b[0m rained'
    """
    return "".join(_coloured(printable(piece), value) for piece, value in zip(pieces, log_probs, strict=True))


def _coloured(piece: str, log_prob: float) -> str:
    if log_prob != log_prob:
        return piece
    code = next(code for least, code in COLOURS if log_prob >= least)
    return f"\033[{code}m{piece}\033[0m"


def printable(text: str) -> str:
    r"""Return `text` with control characters replaced: a model may write any byte, also a terminal's commands.

    >>> printable("red: \x1b[31m")
    'red: �[31m'
    """
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def _rule(title: str) -> str:
    return f"── {title} ".ljust(WIDTH, "─")


def _wrap(text: str) -> str:
    return "\n".join(textwrap.fill(line, WIDTH) for line in printable(text.strip().expandtabs()).splitlines())
