"""What tells a model that was saved anew under the same name from the one before."""

from __future__ import annotations

import functools
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

from llm_gym.models.bundled import BUNDLED
from llm_gym.models.catalogue import CATALOGUE

T = TypeVar("T")


def stamp(path: str) -> str:
    """Return what changes when a local file, or any file of a folder, is written anew; nothing if there is none."""
    place = Path(path)
    if not place.exists():
        return ""
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    told = repr([(name, stat.st_mtime_ns, stat.st_size) for name, stat in stats])
    return blake2b(told.encode(), digest_size=8).hexdigest()


def version(name: str) -> str:
    """Return a model's name, and for a local folder or file its stamp: what its results may be kept under.

    >>> version("smollm2-135m"), version("owner/name"), version("")
    ('smollm2-135m', 'owner/name', '')
    """
    named = not name or name in CATALOGUE or name in BUNDLED
    told = "" if named else stamp(str(Path(name).expanduser()))
    return f"{name}@{told}" if told else name


def one_a_model(make: Callable[[str], T]) -> Callable[[str], T]:
    """Let a function of a model's name return one object a process, anew where the model was saved anew."""
    kept = functools.cache(lambda model, saved: make(model))
    return functools.wraps(make)(lambda model: kept(model, version(model)))
