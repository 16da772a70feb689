"""What an agent may write where a task constrains it: some of several texts, as a trie over token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from llm_gym.errors import LLMGymError
from llm_gym.feedback.memory import Memory


class Choices(NamedTuple):
    r"""What may be written: one of several texts, or more of them, each once, and then a stop token.

    Attributes:
        texts: The texts. The order does not matter, and none may hold the separator.
        most: How many of them at most.
        without: Those of them that may not be written after all, so that rows can share `texts` and what is made of it.
        separator: What stands between two of them.

    >>> Choices(("red", "green", "blue"), most=2).pieces("red\nblue")
    ['red', 'blue']
    """

    texts: tuple[str, ...]
    most: int = 1
    without: frozenset[str] = frozenset()
    separator: str = "\n"

    def pieces(self, text: str) -> list[str]:
        """Return what stands between the separators of `text`, whether it is one of the texts or not."""
        return [piece.strip() for piece in text.split(self.separator)]


@dataclass
class _Node:
    """A place in the trie: the texts that lead through it, by number, and the one that is complete here."""

    below: set[int] = field(default_factory=set)
    children: dict[int, _Node] = field(default_factory=dict)
    complete: int | None = None

    def put(self, ids: Sequence[int], number: int) -> None:
        """Add a text."""
        node = self
        node.below.add(number)
        for token in ids:
            node = node.children.setdefault(int(token), _Node())
            node.below.add(number)
        node.complete = number

    def open(self, written: frozenset[int]) -> list[int]:
        """Return the tokens that lead on to a text which is not yet `written`."""
        return [token for token, child in self.children.items() if not child.below <= written]


class Grammar:
    """Texts as tries over a tokenizer's ids: one for the first text, one for those behind a separator.

    Args:
        texts: The texts.
        separator: What stands between two of them.
        tokenizer: A Hugging Face tokenizer.
        stops: Its stop tokens.

    Raises:
        LLMGymError: No text, or one that the tokenizer cannot write so that it can be read again.
    """

    def __init__(self, texts: Sequence[str], separator: str, tokenizer: Any, stops: Sequence[int]) -> None:
        if not texts:
            raise LLMGymError("a constraint needs at least one text that may be written; the task gave none")
        texts = list(dict.fromkeys(texts))
        self.stops, self.numbers = tuple(stops), {text: number for number, text in enumerate(texts)}
        self._first_ids = [_encode(tokenizer, text) for text in texts]
        start = self._first_ids[0]
        # A text behind a separator may be made of other tokens than at the beginning, so it is encoded there.
        behind = [_encode(tokenizer, f"{texts[0]}{separator}{text}") for text in texts]
        self._later_ids = [ids[len(start) :] if ids[: len(start)] == start else [] for ids in behind]
        self.first, self.later = _Node(), _Node()
        read = tokenizer.batch_decode([start + ids for ids in self._later_ids], skip_special_tokens=True)
        for number, (text, again) in enumerate(zip(texts, read, strict=True)):
            if [piece.strip() for piece in again.split(separator)] != [texts[0], text]:
                raise LLMGymError(
                    f"the tokenizer {tokenizer.name_or_path!r} cannot write {text!r} behind {separator!r} (it reads "
                    f"{again!r}); the texts of a constraint must be ones that it can, so change them or the tokenizer"
                )
            self.first.put(self._first_ids[number], number)
            self.later.put(self._later_ids[number], number)

    def start(self, choices: Choices) -> State:
        """Return the state before the first token.

        Raises:
            LLMGymError: All texts are excluded.
        """
        without = frozenset(self.numbers[text] for text in choices.without if text in self.numbers)
        if len(without) == len(self.numbers):
            raise LLMGymError(f"all {len(without)} texts of a constraint are excluded, so nothing could be written")
        return State(self, self.first, without, min(choices.most, len(self.numbers) - len(without)))

    def encode(self, pieces: Sequence[str]) -> list[int] | None:
        """Return the ids of texts with separators between them, None if one of `pieces` is none of the texts."""
        numbers = [self.numbers.get(piece) for piece in pieces]
        if not numbers or None in numbers:
            return None
        rest = [self._later_ids[number] for number in numbers[1:]]  # type: ignore[index]
        return [*self._first_ids[numbers[0]], *(token for ids in rest for token in ids)]  # type: ignore[index]


class State(NamedTuple):
    """Where an agent is in what it may write; a value, nothing in it changes.

    Attributes:
        grammar: The tries.
        node: Where in the present text.
        written: The numbers of the texts that may not be written, or not again.
        left: How many texts may still be written, the present one included.
    """

    grammar: Grammar
    node: _Node
    written: frozenset[int]
    left: int

    def allowed(self) -> np.ndarray:
        """Return the tokens that may come next, int64 `(k,)`; none once a stop token was written."""
        tokens = self.node.open(self.written)
        if self._complete():
            tokens += self.grammar.stops
            if self.left > 1:
                tokens += self.grammar.later.open(self._finished())
        return np.asarray(tokens, np.int64)

    def after(self, token: int) -> State | None:
        """Return the state after `token`, None if it is illegal here."""
        child = self.node.children.get(token)
        if child is not None and not child.below <= self.written:
            return self._replace(node=child)
        if not self._complete():
            return None
        if token in self.grammar.stops:
            return State(self.grammar, _Node(), self.written, 0)
        child = self.grammar.later.children.get(token) if self.left > 1 else None
        finished = self._finished()
        return None if child is None or child.below <= finished else State(self.grammar, child, finished, self.left - 1)

    def _complete(self) -> bool:
        return self.node.complete is not None and self.node.complete not in self.written

    def _finished(self) -> frozenset[int]:
        return self.written | {self.node.complete}  # type: ignore[arg-type]


_begun = Memory()


class Constraint:
    """What may follow given token ids: what a policy, which knows no tasks, asks.

    An environment says at the beginning of each turn what may be written there. All environments and policies of a
    process that speak the same tokenizer share this knowledge, so that a copy of a constraint, or one that was saved
    with a policy, knows what environments here have begun.

    Args:
        fingerprint: Hash of the tokenizer's contents.
    """

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint

    def begin(self, ids: np.ndarray, state: State | None) -> None:
        """Remember what may be written after `ids`, int `(n,)`, where a turn begins; None for anything."""
        key = self._key(ids)
        _begun.pop(key, None)  # so that it is the newest, and the last one to be forgotten
        _begun[key] = state

    def state(self, ids: np.ndarray, start: int | None = None) -> State | None:
        """Return what may be written after `ids`, int `(n,)`: a turn's beginning and what was written since.

        Args:
            ids: Everything so far.
            start: Where the turn's first token stands, or would stand, if that is known; else the last place where a
                turn has begun.

        Raises:
            LLMGymError: No environment of this process has begun a turn there, or what was written is illegal.
        """
        for end in range(len(ids) if start is None else start, 0, -1):
            key = self._key(ids[:end])
            if key in _begun:
                return _after(_begun[key], ids[end:])
        raise LLMGymError(
            "what may be written after these tokens is not known here: they begin like no episode that an environment "
            "of this process has started with this tokenizer; make that environment and reset it to this example"
        )

    def _key(self, ids: np.ndarray) -> bytes:
        return hashlib.blake2b(np.asarray(ids, np.int32).tobytes(), digest_size=16, key=self._salt()).digest()

    def _salt(self) -> bytes:
        return self.fingerprint.encode()[:64]


def _after(state: State | None, ids: np.ndarray) -> State | None:
    for token in () if state is None else ids.tolist():
        following = state.after(token)  # type: ignore[union-attr]
        if following is None:
            raise LLMGymError(
                f"token {token} is illegal where it stands; a constrained episode must be sampled under its constraint"
            )
        state = following
    return state


def _encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
