"""Cheap tricks by task: texts that are worth nothing, or less than the reference, for `benchmarks/references.py`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from llm_gym.feedback.answers import ABSTENTION
from llm_gym.feedback.rules import sentences
from llm_gym.tasks.sentiment import answer

Row = dict[str, Any]


def story(row: Row) -> dict[str, str]:
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


def question_answering(row: Row) -> dict[str, str]:
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


def translation(row: Row) -> dict[str, str]:
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


def sentiment_monitoring(row: Row) -> dict[str, str]:
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


TRICKS: dict[str, Callable[[Row], dict[str, str]]] = {
    function.__name__: function for function in (story, question_answering, translation, sentiment_monitoring)
}
"""By the task's name."""
