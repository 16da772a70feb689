"""Likelihood under a language model: of the text given the source, and of the source given the text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError, number, positive
from llm_gym.feedback.base import Scorer
from llm_gym.feedback.memory import Memory
from llm_gym.feedback.rules import WORD, words
from llm_gym.models.version import one_a_model, version

PROMPT = "Text:\n{source}\n\nSummary:"
REVERSE_PROMPT = "Summary: {text}\n\nText:\n"
FLOOR = -8.0  # nats per token: about what a shuffled text has, and what an empty one gets


class LanguageModel:
    """Mean log-probability of continuations, remembered by text.

    Args:
        model: Name of a causal language model.
    """

    def __init__(self, model: str = "smollm2-135m") -> None:
        self.model = model
        self._known = Memory(f"likelihood/{version(model)}")

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return for each `(context, text)` the mean natural log-probability of the text's tokens.

        What contexts have in common at their beginning is read once for all of them. Special tokens written out in a
        text are read as plain characters.
        """
        known = {pair: self._known[pair] for pair in pairs if pair in self._known}
        new = sorted({pair for pair in pairs if pair not in known}, key=lambda pair: (pair[0], len(pair[1]), pair[1]))
        for pair, value in zip(new, self._score(new), strict=True):
            known[pair] = self._known[pair] = value
        return [known[pair] for pair in pairs]

    def encode(self, text: str) -> np.ndarray:
        """Return the tokens of a context or a text, int `(T,)`."""
        from llm_gym.models.load import load_tokenizer

        tokenizer = load_tokenizer(self.model)
        return np.asarray(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"], int)

    def _score(self, pairs: list[tuple[str, str]]) -> Iterator[float]:
        """Run what neighbouring pairs begin with once, with a row full of the rest at a time; nothing is padded."""
        from llm_gym.models.packing import Segment, read

        contexts = {context: self.encode(context) for context, _ in pairs}
        texts = [self.encode(text) for _, text in pairs]
        if any(not len(text) for text in texts):
            raise LLMGymError("the likelihood of an empty text is undefined; score it by a rule instead")
        heads = [contexts[context] for context, _ in pairs]
        for start, end, shared in _alike(heads):
            segments = [
                Segment(head[:shared], np.concatenate([head[shared:], text]), _last(len(head) - shared, len(text)))
                for head, text in zip(heads[start:end], texts[start:end], strict=True)
            ]
            for text, told in zip(texts[start:end], read(self.model, segments), strict=True):
                yield (told[np.arange(len(text)), text] - told.logsumexp(-1)).mean().item()


def _alike(heads: list[np.ndarray]) -> Iterator[tuple[int, int, int]]:
    """Cut a list into stretches of sequences that begin alike, each for at least half of its length.

    >>> list(_alike([np.array(ids) for ids in ([1, 2, 3, 4], [1, 2, 3, 5], [7, 8])]))
    [(0, 2, 3), (2, 3, 2)]
    """
    start = 0
    while start < len(heads):
        shared, end = len(heads[start]), start + 1
        while end < len(heads) and 2 * (common := _common(heads[start][:shared], heads[end])) >= len(heads[end]):
            shared, end = common, end + 1
        yield start, end, shared
        start = end


def _common(left: np.ndarray, right: np.ndarray) -> int:
    """Return how many elements both begin with."""
    size = min(len(left), len(right))
    differs = left[:size] != right[:size]
    return int(differs.argmax()) if differs.any() else size


def _last(before: int, count: int) -> np.ndarray:
    return np.arange(before + count) >= before


@one_a_model
def language_model(model: str) -> LanguageModel:
    """Return the process-wide scorer behind a model's name, so that parts of one score share its memory."""
    return LanguageModel(model)


def filled(prompt: str, source: str, said: str) -> str:
    """Return a prompt with what `{source}` and `{said}` stand for."""
    # The parts are put together, not replaced one after the other: a source may contain "{said}".
    parts = re.split(r"(\{source\}|\{said\})", prompt)
    return "".join({"{source}": source, "{said}": said}.get(part, part) for part in parts)


class _Likelihood(Scorer):
    """What the likelihood scorers share: a model and a prompt.

    `{source}` in the prompt stands for the source, `{said}` for what the partner of a conversation said last.
    """

    def __init__(self, model: str = "smollm2-135m", prompt: str = PROMPT) -> None:
        if "{source}" not in prompt:
            raise LLMGymError(f"prompt={prompt!r} must contain '{{source}}', where the source text goes")
        self.lm, self.prompt = language_model(model), prompt

    def given_source(self, episodes: Sequence[Episode]) -> list[float]:
        return self.lm([(self._context(e, e.source), f" {e.text}") for e in episodes])

    def given_nothing(self, episodes: Sequence[Episode]) -> list[float]:
        return self.lm([(self._context(e, ""), f" {e.text}") for e in episodes])

    def _context(self, episode: Episode, source: str) -> str:
        return filled(self.prompt, source, episode.said)


class Likelihood(_Likelihood):
    """Mean log-probability per token of the text given the source, in nats, between `FLOOR` and `ceiling`.

    An empty text gets `FLOOR`.

    Args:
        model: Name of a causal language model.
        prompt: `{source}` in it stands for the source, `{said}` for what the partner of a conversation said last.
        ceiling: Takes away the reward for being more predictable than good prose is, which copying and platitudes are.
        length_penalty: The power of the number of tokens by which the sum of their log-probabilities is divided, as in
            beam search (Wu et al. 2016). 1 is the mean, which favours long texts: the further a text has come, the
            easier it is to go on with. 0 is the sum, which favours short ones.
        long: From how many tokens on this is so; a shorter text has the mean.
    """

    def __init__(
        self,
        model: str = "smollm2-135m",
        prompt: str = PROMPT,
        ceiling: float = 0.0,
        length_penalty: float = 1.0,
        long: int = 1,
    ) -> None:
        super().__init__(model, prompt)
        self.ceiling = number("ceiling", ceiling)
        self.length_penalty, self.long = number("length_penalty", length_penalty), positive("long", long)

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return nats per token; of long texts, times how many times longer than `long` to 1 - `length_penalty`."""
        written = [e for e in episodes if e.text.strip()]
        values = iter(self.given_source(written))
        return [
            float(np.clip(next(values), FLOOR, self.ceiling)) * self._times(e.text) if e.text.strip() else FLOOR
            for e in episodes
        ]

    def _times(self, text: str) -> float:
        if self.length_penalty == 1:
            return 1.0
        return float(max(1, len(self.lm.encode(f" {text}")) / self.long) ** (1 - self.length_penalty))


class Grounding(_Likelihood):
    """How much the source helps to predict the text: log p(text | source) - log p(text), in nats per token.

    The pointwise mutual information of text and source. What could be said of any source gains nothing, what
    contradicts it loses. Clipped to `[-limit, limit]`; an empty text gets 0.
    """

    def __init__(self, model: str = "smollm2-135m", prompt: str = PROMPT, limit: float = 3.0) -> None:
        super().__init__(model, prompt)
        if not prompt.replace("{source}", "").strip():
            raise LLMGymError(f"prompt={prompt!r} must say something besides '{{source}}', e.g. {PROMPT!r}")
        self.limit = number("limit", limit, above_zero=True)

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return nats per token."""
        written = [e for e in episodes if e.text.strip()]
        gains = (a - b for a, b in zip(self.given_source(written), self.given_nothing(written), strict=True))
        return [float(np.clip(next(gains), -self.limit, self.limit)) if e.text.strip() else 0.0 for e in episodes]


def own_words(text: str, source: str) -> str:
    """Return `text` without the words that stand in `source`.

    >>> own_words("The interpreter zögerte, denn", "The interpreter hesitated.")
    'zögerte, denn'
    """
    borrowed = set(words(source))
    kept = re.sub(WORD, lambda word: "" if word[0].lower() in borrowed else word[0], text)
    return " ".join(kept.split()) if words(kept) else ""


class Coverage(Scorer):
    """How much the text helps to predict the source: log p(source | text) - log p(source), nats per source token.

    It reads the whole source once for each text, which makes it the dearest of the likelihood scorers. A copy of
    the source predicts it best of all, and a few of its words do much; hence the options.

    Args:
        model: Name of a causal language model.
        prompt: `{text}` in it stands for the text; the source follows.
        limit: The value is clipped to `[-limit, limit]`.
        own_words: Take the words that stand in the source out of the text first, as for a translation: to leave a word
            as it is is not to translate it.
    """

    def __init__(
        self,
        model: str = "smollm2-135m",
        prompt: str = REVERSE_PROMPT,
        limit: float | None = None,
        own_words: bool = False,
    ) -> None:
        if "{text}" not in prompt:
            raise LLMGymError(f"prompt={prompt!r} must contain '{{text}}', where the written text goes")
        if not prompt.replace("{text}", "").strip():
            raise LLMGymError(f"prompt={prompt!r} must say something besides '{{text}}', e.g. {REVERSE_PROMPT!r}")
        self.lm, self.prompt, self.own_words = language_model(model), prompt, own_words
        self.limit = np.inf if limit is None else number("limit", limit, above_zero=True)

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return nats per token of the source."""
        texts = [own_words(e.text, e.source) if self.own_words else e.text for e in episodes]
        told: Any = self.lm(
            [(self.prompt.replace("{text}", t), e.source) for t, e in zip(texts, episodes, strict=True)]
        )
        untold = self.lm([(self.prompt.replace("{text}", ""), e.source) for e in episodes])
        return [float(np.clip(a - b, -self.limit, self.limit)) for a, b in zip(told, untold, strict=True)]
