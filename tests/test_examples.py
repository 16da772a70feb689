"""The examples run as they stand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.models
@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        ("gymnasium_loop.py", [], "ended by stop"),
        ("stock_ppo.py", ["--iterations", "1", "--n-envs", "2"], "total_timesteps"),
    ],
)
def test_an_example_runs(script: str, arguments: list[str], expected: str) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments], capture_output=True, text=True, timeout=540
    )
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
