"""Texts made wrong: names and numbers changed, so that a preference model learns to look at who did what."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import combinations
from random import Random
from typing import Any

import regex

from llm_gym.errors import LLMGymError
from llm_gym.feedback.reference import FUNCTION_WORDS
from llm_gym.feedback.vocabulary import NUMBER
from llm_gym.tasks import Task

WORD = r"\p{Lu}\w*(?:[-'’](?!s\b)\w+)*"
DATES = (
    frozenset("January February March April May June July August September October November December".split()),
    frozenset("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()),
)
DATE = rf"(?:{'|'.join(sorted(frozenset.union(*DATES)))})s?"
TITLE = r"(?:Dr|Mr|Mrs|Ms|Prof|St)\. "
NAME = regex.compile(rf"#\w+#|\b{DATE}\b|(?:{TITLE})?{WORD}(?: (?!{DATE}\b|{TITLE}){WORD})*")
INSIDE = regex.compile(rf"(?<=[\w#,;)] ){WORD}")
"""A capitalised word that does not open a sentence."""
SPEAKER = regex.compile(rf"^({WORD}):", regex.MULTILINE)
OPENERS = FUNCTION_WORDS | set("though although despite during without since until under once yesterday today".split())
JOINED = re.compile(r"\s*(?:,|,?\s*(?:and|or|und|oder|et|ou)|&)\s*")
"""What stands between two names that are said to do the same; to swap them changes nothing."""
NUMBER_WORDS = tuple("two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty".split())


def names(text: str, known: Iterable[str] = ()) -> list[str]:
    """Return the names in a text, each once, in order: runs of capitalised words, speakers such as `#Person1#`.

    A lone word that opens a sentence is a name only if it is one elsewhere, in the text or in `known`.

    >>> names("When Oda Brenn met Mill's crew, I left. Tam came. Rain fell.", ["So Tam stayed."])
    ['Oda Brenn', 'Mill', 'Tam']
    >>> names("Give Mr. Vogel the key.")
    ['Mr. Vogel']
    >>> names("#Person1# asks #Person2# for tea on Monday.")
    ['#Person1#', '#Person2#', 'Monday']
    """
    elsewhere = {word for part in (text, *known) for word in (*INSIDE.findall(part), *SPEAKER.findall(part))}
    found: dict[str, None] = {}
    for match in NAME.finditer(text):
        words = match.group().split(" ")
        while words and (words[0].lower() in OPENERS or re.match(r"I(?!\w)", words[0])):
            del words[0]
        opens = not INSIDE.match(text, match.start()) and len(words) == 1 and not words[0].startswith("#")
        if words and not (opens and words[0] not in elsewhere):
            found[" ".join(words)] = None
    return list(found)


def corruptions(text: str, source: str, random: Random, count: int = 1) -> dict[str, list[str]]:
    """Return at most `count` wrong versions of a right text of each kind; none where nothing can be done.

    - `swapped`: two names have changed places, such as the speakers of a dialogue;
    - `replaced`: a name is another one of the source's;
    - `number`: a number is another one of the source's, or, where it has no other, one made up.

    Months are swapped with months, days with days. As in FactCC (Kryscinski et al. 2020).

    Args:
        text: What is right.
        source: What it is about.
        random: Draws which.
        count: How many of each kind.

    >>> corruptions("Ann asks Bob for 4 eggs.", "Ann: Bob, I need 4 eggs, not 6.", Random(0))["swapped"]
    ['Bob asks Ann for 4 eggs.']
    """
    found = names(text, [source])
    changes = {
        "swapped": _swaps(found, text),
        "replaced": _replacements(found, names(source, [text])),
        "number": _numbers(text, source, random),
    }
    drawn = {
        kind: [_changed(text, change) for change in random.sample(options, min(count, len(options)))]
        for kind, options in changes.items()
    }
    different = {kind: [wrong for wrong in texts if wrong != text] for kind, texts in drawn.items()}
    return {kind: texts for kind, texts in different.items() if texts}


def corrupted_pairs(
    task: Task, examples: Iterable[dict[str, Any]], seed: int = 0, count: int = 1
) -> list[dict[str, Any]]:
    """Return pairs of a task's references with wrong versions of them: `id`, `source`, `chosen`, `rejected`, `kind`.

    Args:
        task: Whose references.
        examples: Its examples.
        seed: Of what is drawn; an example's wrong versions do not depend on the others.
        count: Wrong versions of each kind, at most.

    Raises:
        LLMGymError: No reference has a name or a number that could be changed.
    """
    pairs = []
    for example in examples:
        source, right = task.source(example), task.reference(example)
        wrong = corruptions(right, source, Random(f"{seed} {example['id']}"), count) if right else {}
        pairs += [
            {"id": example["id"], "source": source, "chosen": right, "rejected": text, "kind": kind}
            for kind, texts in wrong.items()
            for text in texts
        ]
    if not pairs:
        raise LLMGymError(f"no reference of the task {task.name!r} has names or numbers to change; choose another one")
    return pairs


def _swaps(found: list[str], text: str) -> list[dict[str, str]]:
    return [
        {one: other, other: one}
        for one, other in combinations(found, 2)
        if _unlike(one, other) and not JOINED.fullmatch(_between(text, one, other))
    ]


def _between(text: str, one: str, other: str) -> str:
    return text[text.index(one) + len(one) : text.index(other)]


def _replacements(found: list[str], others: list[str]) -> list[dict[str, str]]:
    """Return the ways to put a name of the source, of which the text has no part, in a name's place."""
    new = [other for other in others if not other.isupper() and all(_apart(other, name) for name in found)]
    return [{name: other} for name in found for other in new if _unlike(name, other)]


def _unlike(one: str, other: str) -> bool:
    """Whether two names can change places: of one kind, and neither part of the other."""
    return _apart(one, other) and all((one.rstrip("s") in d) == (other.rstrip("s") in d) for d in DATES)


def _apart(one: str, other: str) -> bool:
    return not set(one.split()) & set(other.split())


def _numbers(text: str, source: str, random: Random) -> list[dict[str, str]]:
    changes = []
    for pattern, made_up in ((NUMBER, _other_digit), ("|".join(NUMBER_WORDS), _other_word)):
        whole = rf"(?<!\w)(?:{pattern})(?!\w)"
        found = list(dict.fromkeys(re.findall(whole, text)))
        new = [number for number in dict.fromkeys(re.findall(whole, source)) if number not in found]
        changes += [{number: random.choice(new) if new else made_up(number, random)} for number in found]
    return changes


def _other_digit(number: str, random: Random) -> str:
    return number[:-1] + random.choice([digit for digit in "123456789" if digit != number[-1]])


def _other_word(number: str, random: Random) -> str:
    return random.choice([word for word in NUMBER_WORDS if word != number])


def _changed(text: str, change: dict[str, str]) -> str:
    """Return the text with each key of `change`, where it stands as whole words, replaced by its value."""
    keys = "|".join(re.escape(key) for key in sorted(change, key=len, reverse=True))
    return re.sub(rf"(?<!\w)(?:{keys})(?!\w)", lambda match: change[match.group()], text)
