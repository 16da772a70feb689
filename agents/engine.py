"""Stepwise decoding: keys and values are kept by environment row, so a token costs one token."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import Cache, PreTrainedModel

if TYPE_CHECKING:
    from agents.stride import Stride

PREFILL_TOKENS = 512  # padded tokens of one prefill pass: enough for full speed, few enough to stay in a core's cache


class KeyValueCache(Cache):
    """Preallocated keys and values, `(slots, heads, capacity, dim)` a layer, written in place.

    The engine says before each pass which slots and positions the pass is about.
    """

    def __init__(self, slots: int, capacity: int) -> None:
        super().__init__(layers=[])
        self.slots, self.capacity = slots, capacity
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def aim(self, slots: torch.Tensor, positions: torch.Tensor, width: int, whole: bool) -> None:
        """Point the next pass at `slots` `(n,)` and `positions` `(n, t)`; `whole` if slots are 0..n-1 in order."""
        self._slots, self._positions, self._width, self._whole = slots, positions, width, whole

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write `(n, heads, t, dim)` and return the first `width` positions, `(n, heads, width, dim)`."""
        if layer_idx == len(self.keys):
            shape = (self.slots, key_states.shape[1], self.capacity, key_states.shape[3])
            self.keys.append(key_states.new_zeros(shape))
            self.values.append(value_states.new_zeros((*shape[:3], value_states.shape[3])))
        return self._write(self.keys[layer_idx], key_states), self._write(self.values[layer_idx], value_states)

    def _write(self, store: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        store[self._slots[:, None], :, self._positions] = states.transpose(1, 2)
        if self._whole:
            return store[: len(self._slots), :, : self._width]
        return store[self._slots, :, : self._width]

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot to another."""
        for store in (*self.keys, *self.values):
            store[target, :, :length] = store[source, :, :length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions are always passed, and differ by row."""
        return 0


class Engine:
    """Last hidden states of growing sequences, one sequence a row.

    The caller always passes whole sequences. Of each row the engine reads only what follows the longest prefix that
    it has already read, so it is right whatever is passed, and fast when sequences grow by a token.

    Args:
        backbone: The transformer without its head; called with a cache, a 4-D mask and position ids.
        rows: Number of rows.
        capacity: Longest sequence.
    """

    def __init__(self, backbone: PreTrainedModel, rows: int, capacity: int) -> None:
        self.backbone, self.rows, self.capacity = backbone, rows, capacity
        self.cache = KeyValueCache(rows, capacity)
        # Its name before and since transformers 5.24.
        self._cache_argument = "cache" if "cache" in signature(backbone.forward).parameters else "past_key_values"
        self._slot = np.arange(rows)
        self._ids = np.zeros((rows, capacity), np.int64)
        self._read = np.zeros(rows, np.int64)  # tokens of each slot whose keys and values stand
        self.tokens_run = 0

    def clear(self) -> None:
        """Forget everything; to be called when the weights have changed."""
        self._read[:] = 0
        self._slot[:] = np.arange(self.rows)  # as in a new engine, so that a run gone on with computes the same bits

    def forget(self, rows: np.ndarray) -> None:
        """Forget what was read of `rows`, int `(n,)`."""
        self._read[self._slot[rows]] = 0

    def last_hidden(self, ids: np.ndarray, lengths: np.ndarray, rows: np.ndarray | None = None) -> torch.Tensor:
        """Return the hidden state at the last token of each sequence, `(n, H)`.

        Args:
            ids: int `(n, C)`, sequences from the left.
            lengths: int `(n,)`, at least 1.
            rows: int `(n,)`, the row of each sequence; None for 0..n-1. Rows left out may be forgotten.
        """
        rows = np.arange(len(ids)) if rows is None else np.asarray(rows)
        self.read(ids, lengths, rows)
        return self.append(rows, np.take_along_axis(np.asarray(ids), np.asarray(lengths)[:, None] - 1, 1)[:, 0])

    def read(self, ids: np.ndarray, lengths: np.ndarray, rows: np.ndarray) -> None:
        """Read all but the last token of each sequence; arguments as of `last_hidden`."""
        self._bring_forward(rows)
        n, width = ids.shape
        order = np.argsort(self._slot[rows])
        sequences, ends = np.asarray(ids)[order], np.asarray(lengths)[order] - 1
        differs = self._ids[:n, :width] != sequences
        common = np.where(differs.any(1), differs.argmax(1), width)
        kept = np.minimum(np.minimum(common, self._read[:n]), ends)
        self._ids[:n, :width] = sequences
        self._read[:n] = kept  # should the pass be broken off, no more than this stands
        self._prefill(kept, ends)
        self._read[:n] = ends

    def append(self, rows: np.ndarray, tokens: np.ndarray) -> torch.Tensor:
        """Return the hidden state `(n, H)` at one more token of each of `rows`, which have been read so far.

        It is `last_hidden` of sequences that have grown by `tokens`, int `(n,)`, but compares nothing. Rows left out
        may be forgotten.
        """
        self._bring_forward(rows)
        n, slots = len(rows), self._slot[rows]
        at = self._read[:n]
        self._ids[slots, at[slots]] = tokens
        hidden = self._run(np.arange(n), np.take_along_axis(self._ids[:n], at[:, None], 1), at[:, None], whole=True)
        self._read[:n] += 1
        return hidden[torch.from_numpy(slots).to(hidden.device), 0]

    def write(self, stride: Stride, rows: np.ndarray, left: np.ndarray, drawn: Any) -> tuple[np.ndarray, np.ndarray]:
        """Let a stride write into `rows`, of which all but the last token has been read; see `Stride.run`."""
        self._read = np.minimum(self._read, self.capacity - 1)  # where slots that do not write read into
        slots = self._slot[rows]
        at = self._read[slots]
        tokens, log_probs = stride.run(slots, self._ids[slots, at], at, left, drawn)
        for slot, start, written in zip(slots, at, tokens, strict=True):
            written = written[written >= 0]  # the last of them has not been read
            self._ids[slot, start + 1 : start + len(written)] = written[:-1]
            self._read[slot] += len(written)
            self.tokens_run += len(written)
        return tokens, log_probs

    def _bring_forward(self, rows: np.ndarray) -> None:
        """Move the slots of `rows` to the front, so that the pass over them is a view and no copy."""
        n = len(rows)
        if (self._slot[rows] < n).all():
            return
        free = iter(np.setdiff1d(np.arange(n), self._slot[rows]))
        for row in rows[self._slot[rows] >= n]:
            source, target = self._slot[row], next(free)
            self.cache.copy(source, target, self._read[source])
            self._ids[target], self._read[target] = self._ids[source], self._read[source]
            self._read[source] = 0
            self._slot[np.flatnonzero(self._slot == target)[0]] = source
            self._slot[row] = target

    def _prefill(self, start: np.ndarray, end: np.ndarray) -> None:
        """Read tokens `start..end` of each slot: what is the same in several once, similar lengths together."""
        first: dict[bytes, int] = {}
        twins: list[tuple[int, int]] = []
        for slot in np.flatnonzero(end > start).tolist():
            key = self._ids[slot, : end[slot]].tobytes()
            if first.setdefault(key, slot) != slot:
                twins.append((first[key], slot))
        start = self._read_beginning([slot for slot in first.values() if start[slot] == 0], start.copy(), end)
        slots = sorted(first.values(), key=lambda slot: end[slot] - start[slot], reverse=True)
        while slots and (size := end[slots[0]] - start[slots[0]]):
            batch, slots = slots[: max(1, PREFILL_TOKENS // size)], slots[max(1, PREFILL_TOKENS // size) :]
            positions = start[batch][:, None] + np.arange(size)
            # Padding runs into positions that later tokens overwrite before anything looks at them.
            positions = np.minimum(positions, self.capacity - 1)
            self._run(np.asarray(batch), np.take_along_axis(self._ids[batch], positions, 1), positions, whole=False)
        for source, target in twins:
            self.cache.copy(source, target, end[target])

    def _read_beginning(self, fresh: list[int], start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Read once what all `fresh` slots begin with, such as a chat template; return where each is to go on."""
        if len(fresh) < 2:
            return start
        differs = (self._ids[fresh] != self._ids[fresh[0]]).any(0)
        size = min(int(differs.argmax()) if differs.any() else self.capacity, int(end[fresh].min()))
        if size:
            positions = np.arange(size)[None]
            self._run(np.asarray(fresh[:1]), self._ids[fresh[:1], :size], positions, whole=False)
            for slot in fresh[1:]:
                self.cache.copy(fresh[0], slot, size)
            start[fresh] = size
        return start

    def _run(self, slots: np.ndarray, tokens: np.ndarray, positions: np.ndarray, whole: bool) -> torch.Tensor:
        self.tokens_run += tokens.size
        device = self.backbone.device
        there, read, at = (torch.from_numpy(array).to(device) for array in (slots, tokens, positions))
        return self.step(there, read, at, int(positions.max()) + 1, whole)

    @torch.inference_mode(False)  # a cache that was made in inference mode could not be written outside of it
    @torch.no_grad()
    def step(
        self, slots: torch.Tensor, tokens: torch.Tensor, positions: torch.Tensor, width: int, whole: bool
    ) -> torch.Tensor:
        """Return the hidden states `(n, t, H)` at more tokens of some slots; nothing is read back to the host.

        Args:
            slots: int64 `(n,)`.
            tokens: int64 `(n, t)`.
            positions: int64 `(n, t)`, where they stand.
            width: Positions that are looked at, more than the last of `positions`.
            whole: Whether slots are 0..n-1 in order, which spares a copy.
        """
        self.cache.aim(slots, positions, width, whole)
        keys = torch.arange(width, device=positions.device)
        unseen = (keys > positions[..., None])[:, None]
        # Each layer would make such a mask of a boolean one. `where` would copy its two numbers to the device.
        mask = torch.zeros_like(unseen, dtype=self.backbone.dtype).masked_fill_(unseen, -torch.inf)
        return self.backbone(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **{self._cache_argument: self.cache},
        ).last_hidden_state
