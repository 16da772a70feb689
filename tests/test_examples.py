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
        ("own_task.py", [], "'Flooded road sends buses over the bridge' scores"),
        ("own_scorer.py", [], "own_scorer:ShortWords"),
    ],
)
def test_an_example_runs(script: str, arguments: list[str], expected: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments], capture_output=True, text=True, timeout=540, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


@pytest.mark.parametrize("script", ["own_task.py", "own_scorer.py"])
def test_the_readme_shows_the_example_as_it_is(script: str) -> None:
    code = (EXAMPLES / script).read_text()
    assert len(code.splitlines()) < 40
    readme = (EXAMPLES.parent / "README.md").read_text()
    assert code.partition('"""\n\n')[2].strip() in readme
