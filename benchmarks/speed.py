"""How fast are environment, decoding, update and a whole step, each against what people use, in one run?

    python benchmarks/speed.py [--only S3 S5]

Both sides of a row run the same model, prompts and numbers of tokens in float32, one after the other, `--repeat`
times. Printed are medians, ranges and the ratio of the medians, and how far the results are apart. S5 needs TRL
(`pip install llm-gym[dev]`), S8 a GPU, where it runs bf16. Nothing else should run beside it: a step of decoding is a
thousand short operations.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import Any

import numpy as np
import torch

from llm_gym.models.load import load_tokenizer
from speed_rows import decoding, environment, gpu, grpo, scoring, update
from speed_rows.common import MODEL

ROWS = {
    "S1": environment.many,
    "S1-single": environment.single,
    "S2": update.stock_ppo,
    "S3": decoding.equal,
    "S4": decoding.ragged,
    "S5": grpo.grpo_step,
    "S6": decoding.growth,
    "S6-rows": decoding.throughput,
    "S7": update.share,
    "S8-135M": partial(gpu.rollout, shape="135M"),
    "S8-135M-step": partial(gpu.step, shape="135M"),
    "S8-1.5B": partial(gpu.rollout, shape="1.5B"),
    "S8-1.5B-step": partial(gpu.step, shape="1.5B"),
    "scoring": scoring.candidates,
    "scoring-512": scoring.many,
    "linear": decoding.linear,
    "start": environment.start,
}
TIMED = ("what", "ours", "theirs", "ratio")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=ROWS, nargs="*", help="rows to measure; all without it")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    load_tokenizer(MODEL)
    measured = {}
    for name in args.only or ROWS:
        measured[name] = ROWS[name](args.repeat)
        if not args.json:
            print(_line(name, measured[name]), flush=True)
    print(json.dumps(measured) if args.json else f"\n{torch.get_num_threads()} threads, torch {torch.__version__}")


def _line(name: str, row: dict[str, Any]) -> str:
    what = "; ".join([row["what"], *(f"{key} {_short(value)}" for key, value in row.items() if key not in TIMED)])
    if "ratio" not in row:
        return f"| {name} | {what} | | | |"
    return f"| {name} | {what} | {_span(row['ours'])} | {_span(row['theirs'])} | {row['ratio']:.2f} |"


def _span(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:,.4g}"
    return f"{np.median(values):,.4g} ({min(values):,.4g} to {max(values):,.4g})"


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " / ".join(map(_short, value))
    return f"{value:.1e}" if isinstance(value, float) and abs(value) < 1e-2 else f"{value:g}"


if __name__ == "__main__":
    main()
