"""Who speaks in a dialogue, by which names they go, and which clauses of a text are about one of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import regex

from llm_gym.feedback.corruption import TITLE, WORD, names
from llm_gym.feedback.rules import sentences

TURN = regex.compile(rf"(#\w+#|{WORD}(?: {WORD})*):\s*(.*)")
SUBJECT, OTHER = "Anna", "Ben"
"""What speakers are called where a model reads of them, so that it need not learn what follows from a name."""
GREETING = (
    r"(?:Hi|Hello|Hey|Dear|Oh|Well|Yes|No|So|Sorry|Thanks|Thank you|Good \w+|Goodbye|Bye|Welcome|OK|Okay|Right|Sure|"
    r"Please)"
)
HONORIFIC = rf"(?:{TITLE}|Miss |Sir |Madam )"
LINK = (
    r"(?:,? *\b(?:and|but|so|while|because|since|as|though|although|when|if|that|whereas|who|which)\b|[,;])(?: then)?"
)
"""What ends a clause, if a speaker's name follows."""
JOINED = re.compile(r"(?:['’]s)?\s*(?:,|,?\s*(?:and|or)|&)\s*")
"""What stands between two names of whom the same is said."""


class Turn(NamedTuple):
    """What a speaker says in one go."""

    speaker: str
    words: str


class Claim(NamedTuple):
    """A clause about a speaker, who is called `SUBJECT` in it; the others are `OTHER`."""

    speaker: str
    sentence: str


def turns(source: str) -> list[Turn]:
    r"""Return the turns of a dialogue, lines that begin with a name and a colon; none if it is no dialogue.

    >>> turns("#Person1#: Is it far?\n#Person2#: A mile\nor two.")
    [Turn(speaker='#Person1#', words='Is it far?'), Turn(speaker='#Person2#', words='A mile or two.')]
    >>> turns("Note: it rained.")
    []
    """
    found: list[Turn] = []
    for line in source.splitlines():
        if match := TURN.fullmatch(line.strip()):
            found.append(Turn(match[1], match[2]))
        elif found:
            found[-1] = Turn(found[-1].speaker, f"{found[-1].words} {line.strip()}")
    return found if len({turn.speaker for turn in found}) > 1 else []


def speaker_names(text: str, said: list[Turn]) -> dict[str, str]:
    r"""Return the names that a text may use for speakers, each with the label of its speaker.

    They are the labels themselves, and of two speakers also names by which one addresses the other or introduces
    themselves.

    >>> speaker_names("Mr. Vogel helps #Person1#.", turns("#Person1#: Thank you, Mr. Vogel.\n#Person2#: Not at all."))
    {'#Person1#': '#Person1#', '#Person2#': '#Person2#', 'Mr. Vogel': '#Person2#'}
    """
    labels = list(dict.fromkeys(turn.speaker for turn in said))
    found = {label: label for label in labels}
    if len(labels) == 2:
        for name in names(text, [turn.words for turn in said]):
            if name not in found and (who := _called(name, said, labels)):
                found[name] = who
    return found


def _called(name: str, said: list[Turn], labels: list[str]) -> str | None:
    """Return which of two speakers goes by a name, if what they say tells."""
    bare = regex.sub(rf"^{HONORIFIC}", "", name)
    either = "|".join(re.escape(part) for part in dict.fromkeys([name, bare, *bare.split()]))
    whole = rf"{HONORIFIC}?(?:{either})(?: {WORD})?"
    addressed = regex.compile(rf"(?:^|[,.!?;:] *|\b{GREETING},? ){whole} *(?:[,.!?;:]|$)")
    introduced = regex.compile(rf"\b(?:I'm|I am|[Tt]his is|[Mm]y name is|[Mm]y name's|[Cc]all me) {whole}")
    votes: Counter[str] = Counter()
    for turn in said:
        if introduced.search(turn.words):
            votes[turn.speaker] += 2
        elif addressed.search(turn.words):
            votes[labels[1 - labels.index(turn.speaker)]] += 1
    first, second = (votes[label] for label in labels)
    return None if first == second else labels[0] if first > second else labels[1]


def claims(text: str, said: list[Turn], known: Mapping[str, str]) -> list[Claim | None]:
    r"""Return of each clause of a text what it says of a speaker; None where its first name is nobody's who speaks.

    A clause is a sentence, or what of it begins with a speaker's name after a comma or such a word as "but". None
    stands also for what is said of two people alike.

    Args:
        text: The text.
        said: The dialogue.
        known: The names of speakers, as `speaker_names` returns them.

    >>> said = turns("Ann: Is it far? My Carl is ill.\nBob: A mile.")
    >>> known = speaker_names("", said)
    >>> for claim in claims("Ann asks the way, and Bob tells Ann. Bob and Ann talk. Carl needs Ann.", said, known):
    ...     print(claim)
    Claim(speaker='Ann', sentence='Anna asks the way')
    Claim(speaker='Bob', sentence='Anna tells Ben.')
    None
    None
    """
    speakers, everyone = _any_of(known), _any_of([*names(text, [turn.words for turn in said]), *known])
    return [_claim(clause, known, speakers, everyone) for clause in _clauses(text, speakers.pattern)]


def _clauses(text: str, name: str) -> list[str]:
    opening = re.compile(rf"{LINK} (?={name}(?!['’]s))")  # "and Bob's mother" begins none
    listed = re.compile(rf"{name}(?:['’]s)?,?$")
    found = []
    for sentence in sentences(text):
        start = 0
        for match in opening.finditer(sentence):
            if not listed.search(sentence[: match.start()]):  # "Ann and Bob": no clause ends between them
                found.append(sentence[start : match.start()])
                start = match.end()
        found.append(sentence[start:])
    return found


def _claim(clause: str, known: Mapping[str, str], speakers: re.Pattern[str], everyone: re.Pattern[str]) -> Claim | None:
    found = list(everyone.finditer(clause))
    if not found or found[0].group() not in known:
        return None
    if len(found) > 1 and JOINED.fullmatch(clause[found[0].end() : found[1].start()]):
        return None
    subject = known[found[0].group()]
    called = speakers.sub(lambda match: SUBJECT if known[match.group()] == subject else OTHER, clause)
    return Claim(subject, called)


def _any_of(phrases: Mapping[str, str] | list[str]) -> re.Pattern[str]:
    """Return a pattern of any of some phrases as whole words, the longest that fits."""
    either = "|".join(re.escape(phrase) for phrase in sorted(phrases, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?:{either})(?!\w)")
