"""Cheap tricks by task: texts that are worth nothing, or less than the reference, for `benchmarks/references.py`."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from llm_gym.feedback.answers import ABSTENTION
from llm_gym.feedback.reference import FUNCTION_WORDS
from llm_gym.feedback.rules import sentences, words
from llm_gym.items import Catalogue, shared_catalogue
from llm_gym.search import shared_index
from llm_gym.tasks.customer_service import DECISIONS, RESOLVE
from llm_gym.tasks.knowledge_graph import SHOWN_FACTS
from llm_gym.tasks.recommendation import ITEMS, MOST, Recommendation
from llm_gym.tasks.sentiment import answer

Row = dict[str, Any]


def story(row: Row, rows: list[Row]) -> dict[str, str]:
    """Return ways to write no story."""
    named = f"There were a {row['elements'][0]}, a {row['elements'][1]} and a {row['elements'][2]}."
    generic = "It was a strange day. Nobody knew what to do. Then everything changed. In the end they were all happy."
    first = sentences(row["story"])[0]
    return {
        "elements listed": ", ".join(row["elements"]) + ".",
        "elements listed, over and over": " ".join([f"{', '.join(row['elements'])}."] * 8),
        "premise and elements": f"{row['premise']} {named}",
        "elements, then platitudes": f"{named} {generic} {generic.replace('day', 'time')}",
        "first sentence, over and over": " ".join([first] * 6),
        "the story without its end": " ".join(row["story"].split()[:40]),
        "the story, sentences shuffled": " ".join(np.random.default_rng(7).permutation(sentences(row["story"]))),
    }


def question_answering(row: Row, rows: list[Row]) -> dict[str, str]:
    """Return ways to answer without reading."""
    names = re.findall(r"(?<![.!?] )(?<!^)\b[A-Z]\w+(?: [A-Z]\w+)*|\d[\d,.:]*\d", row["context"])
    return {
        "always abstaining": ABSTENTION,
        "passage copied": row["context"],
        "first sentence": sentences(row["context"])[0],
        "first name or number": next(iter(names), row["context"].split()[0]),
        "question echoed": row["question"],
        "reference in a sentence": f"The answer to the question is {next(iter(row['answers']), ABSTENTION)}.",
        "answer, then abstention": f"{next(iter(row['answers']), row['context'].split()[0])}, or {ABSTENTION}",
    }


def translation(row: Row, rows: list[Row]) -> dict[str, str]:
    """Return ways to translate less than all, or more."""
    source, target = row["source"].split(), row["target"].split()
    half = " ".join(target[: len(target) // 2])
    return {
        "source copied": row["source"],
        "source three times": " ".join([row["source"]] * 3),
        "half translated": f"{half} {' '.join(source[len(source) // 2 :])}",
        "first half of the reference": half,
        "reference three times": " ".join([row["target"]] * 3),
        "reference and source": f"{row['target']} {row['source']}",
        "reference scrambled": " ".join(np.random.default_rng(7).permutation(target)),
    }


def sentiment_monitoring(row: Row, rows: list[Row]) -> dict[str, str]:
    """Return ways to answer without judging, and right answers for no good reason."""
    first = " ".join(row["news"].split()[:8])
    return {
        "news copied": row["news"],
        "always negative and alarm": answer("negative", "yes", first),
        "always neutral and no alarm": answer("neutral", "no", first),
        "always negative and no alarm": answer("negative", "no", first),
        "an alarm for a fixed reason": answer("negative", "yes", "the plant leaked chlorine"),
        "label and alarm right, whole news as reason": answer(row["label"], row["alarm"], row["news"]),
        "label and alarm right, first words as reason": answer(row["label"], row["alarm"], first),
    }


def knowledge_graph(row: Row, rows: list[Row]) -> dict[str, str]:
    """Return ways to list facts without reading which."""
    passage, triples = row["passage"], row["triples"]
    names = list(dict.fromkeys(name for subject, _, thing in triples for name in (subject, thing)))
    capitals = list(dict.fromkeys(re.findall(r"[A-Z]\w+(?: [A-Z]\w+)*", passage)))
    pairs = [[a, "located in", b] for a, b in itertools.permutations(names, 2)]
    moved = [triples[k - 1][2] for k in range(len(triples))]
    return {
        "passage copied": passage,
        "neighbouring capitalised names, 'located in'": _lines(
            [[a, "located in", b] for a, b in itertools.pairwise(capitals)]
        ),
        "all pairs of true names, 'located in'": _lines(pairs),
        "subject and object exchanged": _lines([[c, b, a] for a, b, c in triples]),
        "relation always 'created'": _lines([[a, "created", c] for a, _, c in triples]),
        "objects moved on by one": _lines([[a, b, c] for (a, b, _), c in zip(triples, moved, strict=True)]),
        "first triple alone": _lines(triples[:1]),
        "first triple, five times": _lines(triples[:1] * 5),
        "reference twice": _lines(triples + triples),
        "reference and three false ones": _lines([*triples, ["Lena Park", "born in", "Oakham"], *pairs[:2]]),
        "the instruction's example": SHOWN_FACTS,
        "bars only": "| | |\n" * 4,
    }


def _lines(triples: list[list[str]]) -> str:
    return "\n".join(" | ".join(triple) for triple in triples)


def retrieval(row: Row, rows: list[Row]) -> dict[str, str]:
    """Return queries of no skill; each is asked once."""
    rng = np.random.default_rng(7)
    need, query = row["need"], row["query"].splitlines()[-1]
    content = [word for word in words(need) if word not in FUNCTION_WORDS]
    vocabulary = sorted({word for other in rows for word in words(other["query"])})
    return {
        "need copied": need,
        "key words of the need": " ".join(content),
        "one word of the need": max(content, key=len),
        "reference and ten random words": f"{query} {' '.join(rng.choice(vocabulary, 10))}",
        "forty random words": " ".join(rng.choice(vocabulary, 40)),
        "reference three times": " ".join([query] * 3),
        "need and reference": f"{need} {query}",
        "nonsense": "qzx vrrp blorf nnn",
        "done": "done",
    }


def recommendation(row: Row, rows: list[Row]) -> dict[str, str]:
    """Return lists of no skill, and of half."""
    rng = np.random.default_rng([7, rows.index(row)])
    catalogue, choices, likes = shared_catalogue(ITEMS), Recommendation().choices(row, []), row["held_out"]
    legal = [title for title in choices.texts if title not in choices.without]
    same = [other for other in rows if other["kind"] == row["kind"] and other is not row]
    counts = Counter(title for other in same for title in other["held_out"] if title in legal)
    wrong = [title for title in rng.permutation(legal).tolist() if title not in likes]
    neighbour = next(r for r in rng.permutation(same) if set(r["held_out"]) <= set(legal) - set(likes))  # type: ignore[arg-type]
    return {
        "random titles": "\n".join(wrong[:MOST]),
        "first titles of the catalogue": "\n".join(legal[:MOST]),
        "what most people like": "\n".join(title for title, _ in counts.most_common(MOST)),
        "what another one of the same kind likes": "\n".join(neighbour["held_out"]),
        "nearest to the history": "\n".join(nearest(catalogue, row["liked"], legal)),
        "nearest to the disliked": "\n".join(nearest(catalogue, row["disliked"], legal)),
        "the history again": "\n".join(catalogue.find(entry).title for entry in row["liked"]),  # type: ignore[union-attr]
        "one like, four times": "\n".join(likes[:1] * MOST),
        "one like alone": likes[0],
        "one like and random titles": "\n".join([likes[0], *wrong[: MOST - 1]]),
        "three likes and a random title first": "\n".join([wrong[0], *likes[: MOST - 1]]),
    }


def nearest(catalogue: Catalogue, entries: list[str], legal: list[str]) -> list[str]:
    """Return the legal titles that are nearest to entries by their embeddings."""
    scores = (catalogue.embed(legal, "minilm-l6") @ catalogue.embed(entries, "minilm-l6").T).max(1)
    return [legal[place] for place in np.argsort(-scores)[:MOST]]


def customer_service(row: Row, rows: list[Row]) -> dict[str, str | list[str]]:
    """Return ways to close a case without looking into it, and ways to spoil good turns."""
    right, (*before, last) = row["decision"], row["turns"]
    said = last.partition(RESOLVE)[0].strip()
    twin = next(other for other in rows if other["passage"] == row["passage"] and other["id"] != row["id"])
    handbook = shared_index(row["handbook"])
    passage = handbook.documents[handbook.places[row["passage"]]].text
    kind = "I am so sorry about that. Thank you for telling us, we will gladly take care of it for you."
    promised = " ".join(f"You get {phrase}." for phrase in row.get("forbidden", ()))
    insult = "Stop whining, you stupid fool. You people are a pain, and I hate talking to you."
    return {
        "closed at once, refund": _closed(kind, "refund"),
        "closed at once, escalate": _closed(kind, "escalate"),
        "closed at once, decline": _closed(kind, "decline"),
        "right decision, not a word": _closed("", right),
        "right decision, kind words only": _closed(kind, right),
        "right decision, key words only": _closed(" ".join(row["told"]), right),
        "author's last turn at once": last,
        "all decisions listed": [*before, f"{said}\nRESOLVE: {', '.join(DECISIONS)}"],
        "looked into, the other branch's last turn": [*before, twin["turns"][-1]],
        "looked into, the passage read out": [*before[:1], passage, _closed(kind, right)],
        "looked into, all promised": [*before, _closed(f"{said} {promised}", right)],
        "looked into, insults first": [*before, _closed(f"{insult} {said}", right)],
        "looked into, closed without a word": [*before, _closed("", right)],
        "everything looked up twice": [before[0], *before, last],
        "never closed": [*before, said, said, said, said],
        "kind words for ever": [kind] * 6,
    }


def _closed(said: str, decision: str) -> str:
    return f"{said}\n{RESOLVE} {decision}"


Tricks = Mapping[str, str | list[str]]
"""What each trick writes: in a conversation, a text for the first turn or a list of turns, then nothing."""
FUNCTIONS: tuple[Callable[[Row, list[Row]], Tricks], ...] = (
    story,
    question_answering,
    translation,
    sentiment_monitoring,
    knowledge_graph,
    retrieval,
    customer_service,
    recommendation,
)
TRICKS = {function.__name__: function for function in FUNCTIONS}
"""By the task's name."""
