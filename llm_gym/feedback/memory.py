"""What scorers remember, so that a repeated text scores exactly the same and costs nothing."""

from __future__ import annotations

from typing import Any

SIZE = 50_000


class Memory(dict[Any, Any]):
    """A dict that forgets its oldest entry when it holds more than `SIZE`.

    >>> memory = Memory()
    >>> for i in range(SIZE + 1):
    ...     memory[i] = i
    >>> 0 in memory, SIZE in memory
    (False, True)
    """

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        if len(self) > SIZE:
            del self[next(iter(self))]
