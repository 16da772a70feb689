"""What scorers remember, so that a repeated text scores exactly the same and costs nothing."""

from __future__ import annotations

import base64
import functools
from hashlib import sha256
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

SIZE = 50_000

_named: WeakValueDictionary[int, Memory] = WeakValueDictionary()  # by `id`: several may have one name
_restored: dict[str, dict[str, Any]] = {}


class Memory(dict[Any, Any]):
    """A dict that forgets its oldest entry when it holds more than `SIZE`, and keeps digests of its keys alone.

    Args:
        name: Under which `remembered` and `restore` find it: numbers that a model computed depend in their last bits on
            what was computed beside them, so that a run which is to be gone on with exactly needs them. None where a
            value follows from its key alone.

    >>> memory = Memory()
    >>> for i in range(SIZE + 1):
    ...     memory[i] = i
    >>> 0 in memory, SIZE in memory, memory[SIZE], memory.get(0), memory.get(1)
    (False, True, 50000, None, 1)
    """

    def __init__(self, name: str | None = None) -> None:
        super().__init__(_restored.get(name, {}) if name else {})
        self.name = name
        if name:
            _named[id(self)] = self

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(digest(key), value)
        if len(self) > SIZE:
            super().__delitem__(next(iter(self)))

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(digest(key))

    def get(self, key: Any, default: Any = None) -> Any:
        """Return an entry, or `default`; see `dict.get`."""
        return super().get(digest(key), default)

    def pop(self, key: Any, *default: Any) -> Any:
        """Forget an entry and return it; see `dict.pop`."""
        return super().pop(digest(key), *default)

    def __contains__(self, key: Any) -> bool:
        return super().__contains__(digest(key))


@functools.cache
def shared(name: str) -> Memory:
    """Return the process-wide memory of a name, for what follows from its keys whoever asks."""
    return Memory(name)


def digest(key: Any) -> str:
    """Return the digest of a key, or of each part of a tuple: texts as they are, all else by its `repr`.

    >>> digest(("ab", "c")) == digest(("a", "bc")), digest(1) == digest("1"), len(digest("a"))
    (False, False, 32)
    """
    parts = key if isinstance(key, tuple) else (key,)
    whole = "".join([f"{len(part)}:{part}" if isinstance(part, str) else f"{part!r};" for part in parts])
    return sha256(whole.encode(errors="surrogatepass")).hexdigest()[:32]


def remembered() -> dict[str, dict[str, Any]]:
    """Return what all named memories hold, as JSON types."""
    state: dict[str, dict[str, Any]] = {}
    for memory in _named.values():
        known = {key: _plain(value) for key, value in memory.items()}
        state.setdefault(memory.name or "", {}).update(known)
    return state


def restore(state: dict[str, dict[str, Any]]) -> None:
    """Make all named memories, those to come as well, hold what `remembered` returned."""
    _restored.clear()
    for name, entries in state.items():
        _restored[name] = {key: _value(value) for key, value in entries.items()}
    for memory in _named.values():
        memory.clear()
        memory.update(_restored.get(memory.name or "", {}))


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"array": base64.b64encode(value.tobytes()).decode(), "dtype": str(value.dtype)}
    return {"tuple": list(value)} if isinstance(value, tuple) else value


def _value(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(value["tuple"])
    return np.frombuffer(base64.b64decode(value["array"]), np.dtype(value["dtype"]))
