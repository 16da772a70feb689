"""A readable view of an episode for the terminal."""

from __future__ import annotations

import textwrap

from llm_gym.episode import Episode

WIDTH = 88


def render_text(prompt: str, text: str, tokens_left: int, episode: Episode | None) -> str:
    """Return prompt, text so far and, once it is finished, the score with its parts.

    >>> print(render_text("Say hello.", "Hello", 3, None))
    ── prompt ──────────────────────────────────────────────────────────────────────────────
    Say hello.
    ── text · 3 tokens left ────────────────────────────────────────────────────────────────
    Hello
    """
    lines = [_rule("prompt"), _wrap(prompt)]
    if episode is None:
        return "\n".join([*lines, _rule(f"text · {tokens_left} tokens left"), _wrap(text)])
    lines += [_rule(f"text · {episode.finish_reason}"), _wrap(text), _rule(f"score {episode.reward:+.3f}")]
    lines += [f"{name:<24}{value:+.3f}" for name, value in episode.parts.items()]
    return "\n".join(lines)


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
