"""Rules on words: variety, what the source supports, required and banned words, reading level, spelling, format."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError, number, positive
from llm_gym.feedback.base import Scorer
from llm_gym.feedback.rules import WORD, occurrences, sentences, words

NUMBER = r"\d+(?:[.,:]\d+)*"
MATCH_SECONDS = 1.0  # the longest that a regular expression may take over a text


def grams(found: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """Return the runs of `size` words, in order.

    >>> grams(["a", "b", "c"], 2)
    [('a', 'b'), ('b', 'c')]
    """
    return [tuple(found[i : i + size]) for i in range(len(found) - size + 1)]


class Distinct(Scorer):
    """Share of different ones among the runs of `size` words of the text (Li et al. 2016); 0 where it has none."""

    def __init__(self, size: int = 2) -> None:
        self.size = positive("size", size)

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the shares."""
        found = [grams(words(e.text), self.size) for e in episodes]
        return [len(set(row)) / len(row) if row else 0.0 for row in found]


class BigramPrecision(Scorer):
    """Share of the text's word pairs that the source has, 0 to 1: the baseline that factuality scorers must beat."""

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the shares; 0 for a text of fewer than two words."""
        return [self._share(grams(words(e.text), 2), set(grams(words(e.source), 2))) for e in episodes]

    def _share(self, found: list[tuple[str, ...]], known: set[tuple[str, ...]]) -> float:
        return sum(pair in known for pair in found) / len(found) if found else 0.0


def claims(text: str) -> list[str]:
    """Return the numbers and names of a text, in lower case, in order.

    A name is a capitalised word that does not open a sentence; "I" is none. Numbers are read without their commas.

    >>> claims("The 1,200 men of Anna's crew. Bob left at 9:30, I think.")
    ['1200', 'anna', '9:30']
    """
    found = []
    for sentence in sentences(text):
        for place, match in enumerate(re.finditer(rf"{NUMBER}|{WORD}", sentence)):
            word = match.group()
            if word[0].isdigit():
                found.append(word.replace(",", ""))
            elif place and word[0].isupper() and word.partition("'")[0] != "I":
                found.append(_singular(word))
    return found


def _singular(word: str) -> str:
    return word.lower().removesuffix("'s")


class Supported(Scorer):
    """Share of the text's numbers and names that the source has, 0 to 1; 1 where there are none. See `claims`."""

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the shares."""
        return [self._share(claims(e.text), e.source) for e in episodes]

    def _share(self, found: list[str], source: str) -> float:
        known = {_singular(word) for word in re.findall(WORD, source)}
        known |= {number.replace(",", "") for number in re.findall(NUMBER, source)}
        return sum(word in known for word in found) / len(found) if found else 1.0


class _Wanted(Scorer):
    """What required and banned words share: a list, or else the row's column of that name.

    Words may be phrases. They count as whole words, whatever the case, also in the plural.

    Args:
        words: The words, for all rows alike.
        column: The column that has them by row, where `words` is left out.
    """

    default_column: ClassVar[str]

    def __init__(self, words: Sequence[str] | None = None, column: str | None = None) -> None:
        if words is not None and not _is_words(words):
            raise LLMGymError(f"words={words!r} must be a list of strings that are not empty")
        self.words, self.column = words, column or self.default_column

    def of(self, episode: Episode) -> Sequence[str]:
        """Return the words for an episode."""
        if self.words is not None:
            return self.words
        found = episode.example.get(self.column)
        if found is None or not _is_words(found):
            raise LLMGymError(
                f"example {episode.example.get('id')!r} has no list of words in {self.column!r}; "
                "give the data that column, or the scorer words=[...]"
            )
        return found


def _is_words(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(w, str) and w.strip() for w in value)


class RequiredWords(_Wanted):
    """Share of the required words that the text has, 0 to 1."""

    default_column = "required_words"

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the shares."""
        wanted = [self.of(e) for e in episodes]
        return [
            sum(occurrences(e.text, w) > 0 for w in row) / len(row) for e, row in zip(episodes, wanted, strict=True)
        ]


class BannedWords(_Wanted):
    """How often banned words stand in the text: give it a negative weight."""

    default_column = "banned_words"

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the counts."""
        return [float(sum(occurrences(e.text, word) for word in self.of(e))) for e in episodes]


def syllables(word: str) -> int:
    """Return the syllables of an English word by rule: its groups of vowels, at least one.

    A final e (also es, ed) is silent, unless it stands in a consonant + le, or after a t or d before the final d.

    >>> [syllables(word) for word in ("table", "made", "wanted", "asked", "reading", "the")]
    [2, 1, 2, 1, 2, 1]
    """
    word = re.sub(r"[^a-z]", "", word.lower())
    silent = re.search(r"(?<![^aeiouy]l)e$|(?<=[^aeiouysxz])es$|(?<=[^aeiouytd])ed$", word)
    return max(1, len(re.findall(r"[aeiouy]+", word[: silent.start()] if silent else word)))


def grade(text: str) -> float:
    """Return the Flesch-Kincaid grade (Kincaid et al. 1975): years of American school needed; 0 without words.

    .39 words per sentence + 11.8 syllables per word - 15.59.
    """
    found = [word for word in words(text) if re.search(r"[a-z]", word)]
    if not found:
        return 0.0
    return 0.39 * len(found) / len(sentences(text)) + 11.8 * sum(map(syllables, found)) / len(found) - 15.59


class ReadingLevel(Scorer):
    """Distance of the text's Flesch-Kincaid grade from a wanted one: give it a negative weight.

    Args:
        grade: The wanted grade; 8 is plain English.
    """

    def __init__(self, grade: float = 8.0) -> None:
        self.grade = number("grade", grade)

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the distances, in grades."""
        return [abs(grade(e.text) - self.grade) for e in episodes]


class Spelling(Scorer):
    """Share of misspelt words, 0 to 1: give it a negative weight.

    A word is misspelt if neither the English word list of `pyspellchecker` nor the source has it. Numbers, and
    capitalised words that do not open a sentence, which may be names, are left out.
    """

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the shares; 0 for a text without words."""
        return [self._share(e.text, set(words(e.source))) for e in episodes]

    def _share(self, text: str, known: set[str]) -> float:
        found = [
            word.lower()
            for sentence in sentences(text)
            for place, word in enumerate(re.findall(WORD, sentence))
            if word.replace("'", "").isalpha() and (not place or not word[0].isupper())
        ]
        unknown = _word_list().unknown({_singular(word) for word in found} - known)
        return sum(_singular(word) in unknown for word in found) / len(found) if found else 0.0


@lru_cache(1)
def _word_list() -> Any:
    from spellchecker import SpellChecker

    return SpellChecker(language="en", distance=1)


class Format(Scorer):
    r"""1 if the whole text matches a regular expression, else 0.

    A text on which the expression takes more than a second, which nested repeats such as `(a+)+` can, is an error.

    Args:
        pattern: The expression, in the notation of the package `regex`, such as `"Answer: \\d+"`.
    """

    def __init__(self, pattern: str) -> None:
        import regex

        try:
            self.pattern = regex.compile(pattern)
        except (regex.error, TypeError) as error:
            raise LLMGymError(f"pattern={pattern!r} is no regular expression: {error}") from error

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return 0 or 1."""
        return [float(self._matches(e)) for e in episodes]

    def _matches(self, episode: Episode) -> bool:
        try:
            return self.pattern.fullmatch(episode.text, timeout=MATCH_SECONDS) is not None
        except TimeoutError as error:
            raise LLMGymError(
                f"pattern={self.pattern.pattern!r} takes more than {MATCH_SECONDS:g} s over the text of example "
                f"{episode.example.get('id')!r}; write it without nested repeats"
            ) from error
