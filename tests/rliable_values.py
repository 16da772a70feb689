"""Print what `rliable` says of some scores, for tests/test_aggregate.py.

rliable 1.2.0 wants an `arch` that does not import under pandas 3, so it is no development dependency:

    python -m venv rl && rl/bin/pip install rliable "pandas<3" && rl/bin/python tests/rliable_values.py
"""

from __future__ import annotations

import json

import numpy as np

RUNS = {"a": (5, 3), "b": (3, 3), "c": (7, 3), "d": (1, 3)}
THRESHOLDS = np.array([-0.5, 0.0, 0.4, 1.0, 1.6])
PAIRS = (("a", "b"), ("c", "a"), ("b", "d"))


def scores() -> dict[str, np.ndarray]:
    """Return scores of four agents, `(runs, tasks)`, with ties among them."""
    generator = np.random.default_rng(0)
    return {name: np.round(generator.normal(i / 3, 1.0, shape), 1) for i, (name, shape) in enumerate(RUNS.items())}


def main() -> None:
    """Print point estimates and intervals as JSON."""
    from rliable import library, metrics

    np.random.seed(0)
    known = scores()
    iqm = library.get_interval_estimates(known, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=50_000)
    profile = library.create_performance_profile(known, THRESHOLDS, reps=20_000)
    pairs = {f"{x}{y}": [known[x], known[y]] for x, y in PAIRS}
    better = library.get_interval_estimates(
        pairs, lambda x, y: np.array([metrics.probability_of_improvement(x, y)]), reps=10_000
    )
    found = {"iqm": iqm, "profile": profile, "improvement": better}
    listed = {
        kind: {name: [np.round(points[name], 6).tolist(), np.round(ends[name], 4).tolist()] for name in points}
        for kind, (points, ends) in found.items()
    }
    print(json.dumps(listed))


if __name__ == "__main__":
    main()
