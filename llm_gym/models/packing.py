"""Many sequences in few rows: shared contexts are stored and run once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from llm_gym.errors import LLMGymError

ROW_TOKENS = 1024  # a row takes further branches up to this many tokens


@dataclass
class Segment:
    """A stretch of one episode that is trained on in one pass.

    Attributes:
        context: int `(P,)`, what stood before the first trained token. Read, not trained.
        ids: int `(T,)`, what came after it.
        trained: bool `(T,)`, which of `ids` are the agent's actions.
    """

    context: np.ndarray
    ids: np.ndarray
    trained: np.ndarray

    @cached_property
    def key(self) -> bytes:
        """The same for segments of the same context."""
        return np.ascontiguousarray(self.context).tobytes()


@dataclass
class Packed:
    """Segments as rows of a tree-shaped batch: a context, then its branches side by side.

    Attributes:
        input_ids: int64 `(R, L)`.
        position_ids: int64 `(R, L)`: positions within the own sequence, not within the row.
        mask: bool `(R, 1, L, L)`, True where a query may look at a key: earlier, and in its own branch or the context.
        rows: int64 `(N,)` and
        columns: int64 `(N,)`: where the hidden state stands that predicts each trained token.
        targets: int64 `(N,)`, the trained tokens, segment by segment in the order they were given.
        segments: What was packed; a constrained policy finds there again what might have been written.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    mask: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor
    segments: tuple[Segment, ...] = ()

    def to(self, device: torch.device | str) -> Packed:
        """Return the batch on `device`."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in tensors.items()}
        return replace(self, **moved)

    @property
    def tokens(self) -> int:
        """Tokens that a pass over this batch runs, padding included."""
        return self.input_ids.numel()


@dataclass
class _Row:
    """A context with the branches that have been hung on it."""

    context: np.ndarray
    ids: list[np.ndarray] = field(default_factory=list)
    positions: list[np.ndarray] = field(default_factory=list)
    branches: list[np.ndarray] = field(default_factory=list)
    length: int = 0
    count: int = 0

    def __post_init__(self) -> None:
        self._put(self.context, 0)

    def _put(self, ids: np.ndarray, start: int) -> None:
        self.ids.append(ids)
        self.positions.append(np.arange(start, start + len(ids)))
        self.branches.append(np.full(len(ids), self.count))
        self.length += len(ids)
        self.count += 1

    def add(self, segment: Segment) -> np.ndarray:
        """Hang a segment on the row and return the columns that predict its trained tokens."""
        start = self.length
        self._put(segment.ids[:-1], len(self.context))  # the last token is predicted, never read
        columns = np.arange(start - 1, start - 1 + len(segment.ids))
        columns[0] = len(self.context) - 1  # the first is predicted from the end of the context
        return columns[segment.trained]


def pack(segments: Sequence[Segment]) -> Packed:
    """Pack segments; those with the same context share one copy of it.

    Args:
        segments: Each with at least one token of context and one after it.

    >>> context = np.array([5, 6, 7])
    >>> two = [Segment(context, np.array([1, 2]), np.ones(2, bool)), Segment(context, np.array([3]), np.ones(1, bool))]
    >>> pack(two).input_ids.tolist(), pack(two).columns.tolist()
    ([[5, 6, 7, 1]], [2, 3, 2])
    """
    rows, where = _assembled(segments)
    return _tensors(rows, where, segments)


def passes(segments: Sequence[Segment], tokens: int, together: int = 1) -> Iterator[range]:
    """Cut segments into runs of which a pass runs at most `tokens` tokens, padding included, or that cannot be cut.

    Args:
        segments: What is to be run.
        tokens: The most that a pass runs.
        together: How many in a row are never cut apart, such as 2 for pairs.

    >>> one, two = (Segment(np.array(context), np.array([1, 2]), np.ones(2, bool)) for context in ([5, 6], [7, 8]))
    >>> list(passes([one, one, two], 4)), list(passes([one, one, two], 8))
    ([range(0, 2), range(2, 3)], [range(0, 3)])
    """
    start = 0
    lengths: list[int] = []
    open_rows: dict[bytes, int] = {}
    for i in range(0, len(segments), together):
        group = segments[i : i + together]
        if i > start and _added(group, lengths, open_rows) > tokens:
            yield range(start, i)
            start, lengths, open_rows = i, [], {}
        for segment in group:
            _add(segment, lengths, open_rows)
    yield range(start, len(segments))


def _added(group: Sequence[Segment], lengths: list[int], open_rows: dict[bytes, int]) -> int:
    """Return how many tokens rows of `lengths` and some more segments run."""
    lengths, open_rows = lengths.copy(), open_rows.copy()
    for segment in group:
        _add(segment, lengths, open_rows)
    return len(lengths) * max(lengths)


def _add(segment: Segment, lengths: list[int], open_rows: dict[bytes, int]) -> None:
    row, length = _place(segment, lengths, open_rows)
    lengths[row:] = [length, *lengths[row + 1 :]]
    open_rows[segment.key] = row


def _place(segment: Segment, lengths: list[int], open_rows: dict[bytes, int]) -> tuple[int, int]:
    """Return the row that a segment goes to, and how long it is then; see `_assembled`."""
    row = open_rows.get(segment.key)
    if row is None or lengths[row] + len(segment.ids) > ROW_TOKENS:
        return len(lengths), len(segment.context) + len(segment.ids) - 1
    return row, lengths[row] + len(segment.ids) - 1


def _assembled(segments: Sequence[Segment]) -> tuple[list[_Row], list[tuple[int, np.ndarray]]]:
    """Return the rows, and for each segment its row and the columns that predict its trained tokens."""
    rows: list[_Row] = []
    open_rows: dict[bytes, int] = {}
    where: list[tuple[int, np.ndarray]] = []
    for segment in segments:
        index = open_rows.get(segment.key)
        if index is None or rows[index].length + len(segment.ids) > ROW_TOKENS:
            index = open_rows[segment.key] = len(rows)
            rows.append(_Row(segment.context))
        where.append((index, rows[index].add(segment)))
    return rows, where


def check_attention(config: Any, name: str) -> None:
    """Make sure that the model `name` reads a boolean mask, which the eager kernels would add to the scores.

    Raises:
        LLMGymError: Its attention is not torch's `scaled_dot_product_attention`.
    """
    if config._attn_implementation != "sdpa":
        raise LLMGymError(f"model {name!r} does not support 'sdpa' attention, which is needed here; choose another one")


def logits(model: Any, packed: Packed) -> torch.Tensor:
    """Return the logits `(N, V)` that predict the trained tokens of one row."""
    return model(**_inputs(packed), logits_to_keep=packed.columns).logits[0]


def hidden_states(model: Any, packed: Packed, layer: int | None = None) -> torch.Tensor:
    """Return the hidden states `(N, H)` that predict the trained tokens, with gradient.

    Args:
        model: A causal language model.
        packed: What it reads.
        layer: After how many layers; None for the last, normed.
    """
    found = model.base_model(**_inputs(packed), output_hidden_states=layer is not None)
    states = found.last_hidden_state if layer is None else found.hidden_states[layer]
    return states[packed.rows, packed.columns]


def _inputs(packed: Packed) -> dict[str, Any]:
    return {
        "input_ids": packed.input_ids,
        "attention_mask": packed.mask,
        "position_ids": packed.position_ids,
        "use_cache": False,
    }


def check_length(config: Any, name: str, segments: Sequence[Segment]) -> None:
    """Make sure that the model `name` can read the longest of the segments.

    Raises:
        LLMGymError: It cannot.
    """
    longest = max(len(segment.context) + len(segment.ids) for segment in segments)
    if longest > (limit := getattr(config, "max_position_embeddings", longest)):
        raise LLMGymError(f"model {name!r} reads at most {limit} tokens, and here are {longest}; shorten the text")


def read(
    name: str,
    segments: Sequence[Segment],
    adapter: str | None = None,
    outputs: Callable[[Any, Packed], torch.Tensor] = logits,
) -> Iterator[torch.Tensor]:
    """Run the shared model `name` in float32 over segments of one context, a row full of them at a time, unpadded.

    Args:
        name: Name of a causal language model.
        segments: All with the same context.
        adapter: Folder of a PEFT adapter on the model.
        outputs: What is wanted of the model, `logits` or `hidden_states`.

    Yields:
        For each segment, float32 `(trained tokens, V)` or `(trained tokens, H)`: what predicts its trained tokens.

    Raises:
        LLMGymError: A sequence is longer than the model can read, or its attention does not fit.
    """
    from llm_gym.models.load import shared_adapted_lm, shared_causal_lm

    model = shared_adapted_lm(name, adapter, dtype="float32") if adapter else shared_causal_lm(name, dtype="float32")
    check_attention(model.config, name)
    check_length(model.config, name, segments)
    ends = len(segments[0].context) + np.cumsum([len(segment.ids) for segment in segments])
    while segments:
        fit = max(1, int(np.searchsorted(ends, ROW_TOKENS, "right")))
        packed = pack(segments[:fit]).to(model.device)
        with torch.no_grad():
            found = outputs(model, packed)
        yield from found.split([int(segment.trained.sum()) for segment in segments[:fit]])
        segments, ends = segments[fit:], ends[fit:] - (ends[fit - 1] - len(segments[0].context))


def _tensors(rows: list[_Row], where: list[tuple[int, np.ndarray]], segments: Sequence[Segment]) -> Packed:
    shape = (len(rows), max(row.length for row in rows))
    ids, positions, branches = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.full(shape, -1)
    for i, row in enumerate(rows):
        ids[i, : row.length] = np.concatenate(row.ids)
        positions[i, : row.length] = np.concatenate(row.positions)
        branches[i, : row.length] = np.concatenate(row.branches)
    branch = torch.from_numpy(branches)
    causal = torch.ones(shape[1], shape[1], dtype=torch.bool).tril()
    related = (branch[:, None, :] == branch[:, :, None]) | (branch[:, None, :] == 0)
    targets: Any = np.concatenate([segment.ids[segment.trained] for segment in segments])
    return Packed(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(positions),
        mask=(related & causal)[:, None],
        rows=torch.from_numpy(np.concatenate([np.full(len(columns), i) for i, columns in where])),
        columns=torch.from_numpy(np.concatenate([columns for _, columns in where])),
        targets=torch.from_numpy(targets.astype(np.int64)),
        segments=tuple(segments),
    )
