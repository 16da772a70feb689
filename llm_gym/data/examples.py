"""Examples that need not fit into memory."""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from array import array
from collections.abc import Sequence
from typing import Any

IN_MEMORY = 2**28  # characters of text that are held; what comes after goes to a temporary file

Example = dict[str, Any]


class Store:
    """Takes examples one by one, and gives some of them back as a sequence.

    The first `IN_MEMORY` characters are held, the rest is written into a temporary file without a name, which the
    system removes with the process.
    """

    def __init__(self) -> None:
        self._held: list[Example] = []
        self._room = IN_MEMORY
        self._file: Any = None
        self._offsets, self._sizes = array("Q"), array("L")

    def append(self, example: Example) -> None:
        """Take an example."""
        if self._file is None:
            self._room -= sum(len(str(value)) for value in example.values())
            if self._room >= 0:
                self._held.append(example)
                return
            self._file = tempfile.TemporaryFile()
            weakref.finalize(self, self._file.close)
        line = json.dumps(example, ensure_ascii=False).encode()
        self._offsets.append(self._file.tell())
        self._sizes.append(len(line))
        self._file.write(line)

    def pick(self, places: Sequence[int]) -> Sequence[Example]:
        """Return the examples at `places`, in that order: a list, or what reads them from the file when asked."""
        if self._file is None:
            return [self._held[place] for place in places]
        self._file.flush()
        return _Stored(self, array("Q", places))

    def read(self, place: int) -> Example:
        """Return the example at `place`."""
        if place < len(self._held):
            return self._held[place]
        place -= len(self._held)
        # Not seek and read: after a fork several processes share the place in the file.
        return json.loads(os.pread(self._file.fileno(), self._sizes[place], self._offsets[place]))


class _Stored(Sequence[Example]):
    """Some examples of a store, read anew each time."""

    def __init__(self, store: Store, places: array) -> None:
        self._store, self._places = store, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Stored(self._store, self._places[index])
        return self._store.read(self._places[index])
