"""From a data row to prompt ids: template, guard against special tokens, cutting of long sources."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

from llm_gym.errors import LLMGymError
from llm_gym.tasks import Task

TEMPLATES = ("chat", "plain")


class Prompt(NamedTuple):
    """A prompt: int32 ids `(P,)`, and how many words of the source were cut to make it fit."""

    ids: np.ndarray
    words_cut: int


class PromptBuilder:
    """Renders a task's prompt and keeps it within `max_tokens` by cutting the source, never the template.

    Args:
        task: The task.
        tokenizer: A Hugging Face tokenizer.
        instruction: What the agent is asked to do.
        template: `chat` renders the tokenizer's chat template, `plain` the task's plain text.
        max_tokens: The longest prompt.

    Raises:
        LLMGymError: Unknown template, or `chat` with a tokenizer that has none.
    """

    def __init__(self, task: Task, tokenizer: Any, instruction: str, template: str, max_tokens: int) -> None:
        if template not in TEMPLATES:
            raise LLMGymError(f"template={template!r} is unknown; expected 'chat' or 'plain'")
        if template == "chat" and not tokenizer.chat_template:
            raise LLMGymError(f"the tokenizer {tokenizer.name_or_path!r} has no chat template; pass template='plain'")
        self.task, self.tokenizer, self.instruction = task, tokenizer, instruction
        self.template, self.max_tokens = template, max_tokens
        self._special = special_tokens(tokenizer)

    def instructed(self, instruction: str, max_tokens: int) -> PromptBuilder:
        """Return a builder of prompts that ask for something else, or are longer."""
        return PromptBuilder(self.task, self.tokenizer, instruction, self.template, max_tokens)

    def __call__(self, example: dict[str, Any]) -> Prompt:
        """Return the prompt of `example`.

        Raises:
            LLMGymError: Not even an empty source fits into `max_tokens`.
        """
        example = self._cleaned(example)
        source = self.task.source(example)
        ids = self._encode(source, example)
        if len(ids) <= self.max_tokens:
            return Prompt(ids, 0)
        ends = [match.end() for match in re.finditer(r"\S+", source)]
        low, high = 0, len(ends) - 1  # the largest number of words that fits lies in [low, high]
        if (bare := len(self._encode("", example))) > self.max_tokens:
            raise LLMGymError(
                f"max_prompt_tokens={self.max_tokens} is too small: the prompt takes {bare} tokens without a source"
            )
        while low < high:
            middle = (low + high + 1) // 2
            fits = len(self._encode(source[: ends[middle - 1]], example)) <= self.max_tokens
            low, high = (middle, high) if fits else (low, middle - 1)
        return Prompt(self._encode(source[: ends[low - 1]] if low else "", example), len(ends) - low)

    def messages(self, example: dict[str, Any]) -> list[dict[str, str]]:
        """Return the chat that opens an episode, with as much of the source as the prompt has."""
        return self.task.messages(*self._shown(example))

    def given(self, example: dict[str, Any]) -> str | list[dict[str, str]]:
        """Return what the prompt is rendered from, its source cut as there: the chat, or the plain text."""
        return self.task.plain(*self._shown(example)) if self.template == "plain" else self.messages(example)

    def _shown(self, example: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
        """Return instruction, source and row as the prompt has them."""
        words_cut, example = self(example).words_cut, self._cleaned(example)
        source = self.task.source(example)
        if words_cut:
            ends = [0, *(match.end() for match in re.finditer(r"\S+", source))]
            source = source[: ends[-1 - words_cut]]
        return self.task.instruct(self.instruction, example), source, example

    def _cleaned(self, value: Any) -> Any:
        """Return a data row, or a value in it, without special tokens."""
        if isinstance(value, str):
            return self._special.sub(" ", value)
        if isinstance(value, list):
            return [self._cleaned(item) for item in value]
        return {key: self._cleaned(item) for key, item in value.items()} if isinstance(value, dict) else value

    def _encode(self, source: str, example: dict[str, Any]) -> np.ndarray:
        instruction = self.task.instruct(self.instruction, example)
        if self.template == "plain":
            ids = self.tokenizer(self.task.plain(instruction, source, example))["input_ids"]
            ids = _without_trailing_eos(ids, self.tokenizer)
        else:
            text = self.tokenizer.apply_chat_template(
                self.task.messages(instruction, source, example), add_generation_prompt=True, tokenize=False
            )
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return np.asarray(ids, np.int32)


def special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Return a pattern of the tokenizer's special tokens written out.

    A document or a partner must not be able to end its own turn: they are taken out of whatever is given.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
    return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "(?!)")


def _without_trailing_eos(ids: list[int], tokenizer: Any) -> list[int]:
    """T5-style tokenizers close every text with EOS; a prompt is there to be continued."""
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids
