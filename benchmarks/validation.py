"""How well does each scorer agree with people?

    python benchmarks/validation.py --summeval FILE --qags FILE --autoj FILE [SCORER ...]

Prints the table of docs/feedback.md, a row a scorer. Scorers that run a model read the number of documents given
by `--documents`, the others all. What `llm-gym feedback validate` measures; see there for the file formats.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from llm_gym.feedback import build
from llm_gym.feedback.human import Judgements, read_judgements
from llm_gym.feedback.validation import validate
from llm_gym.tasks.summary import TextSummary

DEFAULT = TextSummary.feedback
GUARDS = ("copying", "copied_share")
WHOLE: dict[str, Any] = {
    "default": DEFAULT,
    "default without guard": {name: part for name, part in DEFAULT.items() if name not in GUARDS},
    "quality": {  # agrees best with people; copies earn most
        "likelihood": {"weight": 0.6, "length_penalty": 0.7},
        "similarity": 6.0,
        "distinct": 10.0,
    },
    "faithful": {"likelihood": 1.0, "bigram_precision": 3.0},
    "helpful": {"preference": {"path": "which-reply"}, "similarity": 5.0, "repetition": -5.0},  # of replies
}
RULES: dict[str, Any] = {
    "length": 1.0,
    "bigram_precision": 1.0,
    "supported": 1.0,
    "copying": -1.0,
    "repetition": -1.0,
    "distinct": 1.0,
    "brevity": -1.0,
    "complete": 1.0,
    "reading_level": -1.0,
    "spelling": -1.0,
    "rouge": 1.0,
    "rouge#2": {"variant": "2"},
    "rouge#L": {"variant": "L"},
    "bleu": 1.0,
    "chrf": 1.0,
    "key_facts": 1.0,
    "exact": 1.0,
    "f1": 1.0,
}
MODELS: dict[str, Any] = {
    "similarity": 1.0,
    "similarity#sentences": {"sentences": True},
    "reference_similarity": 1.0,
    "likelihood": 1.0,
    "grounding": 1.0,
    **WHOLE,
    "coverage": 1.0,
    "preference": 1.0,
    "preference#which-reply": {"path": "which-reply"},
    "coherence": 1.0,
    "rating": 1.0,
    "yes_no": 1.0,
    "rubric": 1.0,
    "constitution": 1.0,
    "pairwise": 1.0,
}


def row(name: str, files: dict[str, Judgements]) -> list[str]:
    """Return the cells of a scorer's row."""
    known = RULES | MODELS
    spec = WHOLE.get(name) or {name: known[name]}
    feedback = build(spec)
    cells = []
    for title, data in files.items():
        if feedback.reads_reference and not all(e.reference for e in data.episodes):
            cells += [""] * 3
            continue
        found = validate(feedback, data)["dimensions"]
        if title == "summeval":
            cells += [_figure(found[d]["spearman"]) for d in ("coherence", "consistency", "fluency", "relevance")]
            cells.append(_figure(found["mean"]["spearman"], True))
        elif title == "qags":
            cells.append(_figure(found["mean"]["pearson"], True))
        else:
            cells += [_figure(found["mean"][f"accuracy_{which}"]) for which in ("shorter", "longer")]
            cells.append(_figure(found["mean"]["accuracy_balanced"], True))
    sign = " × −1" if known[name] == -1.0 else ""
    return [f"`{name}`{sign}", *cells]


def _figure(estimate: dict[str, float], interval: bool = False) -> str:
    shown = f"{estimate['value']:.2f}"
    return f"{shown} [{estimate['low']:.2f}, {estimate['high']:.2f}]" if interval else shown


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scorers", nargs="*", metavar="SCORER", help="default: all")
    for name in ("summeval", "qags", "autoj"):
        parser.add_argument(f"--{name}", required=True, metavar="FILE")
    parser.add_argument("--documents", nargs=3, type=int, default=(20, 40, 40), help="of each file, for models")
    args = parser.parse_args()
    paths = {name: getattr(args, name) for name in ("summeval", "qags", "autoj")}
    some = {k: read_judgements(path, None, n) for (k, path), n in zip(paths.items(), args.documents, strict=True)}
    every = {name: read_judgements(path) for name, path in paths.items()}
    print("| scorer | coherence | consistency | fluency | relevance | mean | QAGS-CNN | shorter | longer | mean |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in args.scorers or (*RULES, *MODELS):
        start = time.perf_counter()
        cells = row(name, some if name in MODELS else every)
        print("|", " | ".join(cells), "|", f"<!-- {time.perf_counter() - start:.0f} s -->", flush=True)


if __name__ == "__main__":
    main()
