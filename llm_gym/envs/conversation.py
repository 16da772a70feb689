"""The tokens that stand between two turns of an agent."""

from __future__ import annotations

from typing import Any

import numpy as np

from llm_gym.envs.prompts import special_tokens
from llm_gym.errors import LLMGymError

PLAIN = "\n\nPartner: {reply}\n\nYou:"


class ReplyTemplate:
    """Renders a partner's reply as the ids that follow an agent's turn and open its next one.

    What was said is never rendered again: the ids are only appended, so that no token ever moves.

    Args:
        tokenizer: A Hugging Face tokenizer.
        template: `chat` takes the words around a reply from the tokenizer's chat template, `plain` from `PLAIN`.

    Raises:
        LLMGymError: A chat template that renders no conversation of several turns.
    """

    def __init__(self, tokenizer: Any, template: str) -> None:
        self.tokenizer = tokenizer
        self.before, _, self.after = PLAIN.partition("{reply}")
        if template == "chat":
            self.before, self.after = _around_a_reply(tokenizer)
        self._special = special_tokens(tokenizer)

    def __call__(self, reply: str, last: int) -> np.ndarray:
        """Return ids int32 `(n,)`.

        Args:
            reply: What the partner says; special tokens written out in it are dropped.
            last: The agent's last token. A turn that was cut by its cap is closed as the template closes one.
        """
        text = self.before + self._special.sub(" ", reply) + self.after
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return np.asarray(ids[1:] if ids[0] == last else ids, np.int32)


def _around_a_reply(tokenizer: Any) -> tuple[str, str]:
    """Return what a chat template writes between an assistant's words and a user's, and after these."""
    said = [("user", "FIRSTLINE"), ("assistant", "SECONDLINE"), ("user", "THIRDLINE")]
    chat = [{"role": role, "content": words} for role, words in said]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    _, found, rest = text.partition("SECONDLINE")
    before, again, after = rest.partition("THIRDLINE")
    if not found or not again:
        raise LLMGymError(
            f"the chat template of {tokenizer.name_or_path!r} leaves out earlier turns; pass template='plain'"
        )
    return before, after
