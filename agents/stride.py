"""Several tokens a row without a look from the host, which is what lets a GPU write at its own pace."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from agents.engine import Engine
from agents.sampling import choose

ROWS, WIDTH = 8, 64  # sizes are rounded up to multiples of these, so that few graphs are captured


class Stride:
    """The next tokens of the first slots of an engine: a step on fixed tensors, which chooses what the next one reads.

    On CUDA the step is captured as a graph at once, and replayed from then on: a thousand kernels start as one, and the
    host waits once, at the end. A model whose step no graph can hold runs it kernel by kernel, with a warning. Weights
    may change in place between runs, and must not move.

    Args:
        engine: Whose slots they are.
        logits: From hidden states `(n, H)` to float32 logits `(n, V)`.
        stop_ids: The tokens that end a turn.
        rows: How many slots.
        width: Positions that are looked at; sequences may not outgrow them.
        most: Tokens of a run.
        sampling: Whether tokens are drawn, not the likeliest taken.
    """

    def __init__(
        self,
        engine: Engine,
        logits: Callable[[torch.Tensor], torch.Tensor],
        stop_ids: Sequence[int],
        rows: int,
        width: int,
        most: int,
        sampling: bool,
    ) -> None:
        device = self._device = engine.backbone.device
        self.engine, self.logits, self.width, self.most = engine, logits, width, most
        self._stops = torch.tensor(list(stop_ids), dtype=torch.int64, device=device)
        self._slots = torch.arange(rows, device=device)
        self._place = torch.zeros(1, dtype=torch.int64, device=device)
        self._token, self._position, self._left = (torch.zeros_like(self._slots) for _ in range(3))
        self._drawn = torch.zeros(most, rows, 1, dtype=torch.float64, device=device) if sampling else None
        self._tokens = torch.zeros(most, rows, dtype=torch.int64, device=device)
        self._log_probs = torch.zeros(most, rows, device=device)
        self._graph = self._captured() if device.type == "cuda" else None

    @torch.no_grad()
    def run(
        self,
        slots: np.ndarray,
        tokens: np.ndarray,
        positions: np.ndarray,
        left: np.ndarray,
        drawn: torch.Tensor | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Write until each turn ends, by a stop token or its cap, or it has got `most` tokens.

        Args:
            slots: int `(n,)`, some of the first `rows`; all that stands in the others is kept.
            tokens: int `(n,)`, the token of each that is to be read next.
            positions: int `(n,)`, where it stands.
            left: int `(n,)`, the most tokens that each may get, at least 1.
            drawn: Random numbers, float64 `(most, n, 1)`; None unless `sampling`.

        Returns:
            Tokens int64 `(n, most)`, -1 after the end of a turn, and their log-probabilities float32 `(n, most)`.
        """
        there = torch.from_numpy(slots).to(self._slots.device)
        self._idle()
        for tensor, values in ((self._token, tokens), (self._position, positions), (self._left, left)):
            tensor[there] = torch.from_numpy(np.ascontiguousarray(values, np.int64)).to(tensor.device)
        if self._drawn is not None:
            self._drawn[:, there] = drawn  # type: ignore[assignment]
        for _ in range(self.most):
            self._graph.replay() if self._graph else self._step()
        return self._tokens[:, there].T.cpu().numpy(), self._log_probs[:, there].T.cpu().numpy()

    def _idle(self) -> None:
        """Have no slot write: one that does not reads into the last position, which is read anew before it counts."""
        self._place.zero_()
        self._token.zero_()
        self._left.zero_()
        self._position.fill_(self.engine.capacity - 1)

    def _step(self) -> None:
        """Read a token of each slot and choose the next."""
        hidden = self.engine.step(self._slots, self._token[:, None], self._position[:, None], self.width, whole=True)
        drawn = None if self._drawn is None else self._drawn.index_select(0, self._place)[0]
        chosen, log_probs = choose(self.logits(hidden[:, 0]), drawn)
        silent = self._left < 1
        self._tokens.index_copy_(0, self._place, chosen.masked_fill(silent, -1)[None])
        self._log_probs.index_copy_(0, self._place, log_probs.masked_fill(silent, 0.0)[None])
        over = (self._left <= 1) | (chosen[:, None] == self._stops).any(1)
        self._place += 1
        self._token.copy_(chosen)
        self._left.sub_(1).masked_fill_(over, 0)
        self._position.add_(1).masked_fill_(over, self.engine.capacity - 1)

    @torch.no_grad()
    def _captured(self) -> torch.cuda.CUDAGraph | None:
        with torch.cuda.device(self._device):
            stream: Any = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # libraries set themselves up in the first call
                self._idle()
                self._step()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            try:
                # A capture that fails may leave its stream current: the outer block takes back the one before.
                with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, stream=stream):
                    self._step()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                told = str(error.__context__ or error).partition("\n")[0]  # what ended the capture is told first
                warnings.warn(
                    f"no CUDA graph can hold a step of this model, so it runs kernel by kernel: {told}", stacklevel=2
                )
                return None
            return graph


class Strides:
    """The strides of a policy, made as sizes come up."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, ...], Stride] = {}
        self._form: Any = None
        self._logits: Any = None  # may hold a copy of the output layer, which all share

    def find(
        self,
        form: Any,
        engine: Engine,
        logits: Callable[[], Callable[[torch.Tensor], torch.Tensor]],
        stop_ids: Sequence[int],
        rows: int,
        width: int,
        most: int,
        sampling: bool,
    ) -> Stride:
        """Return a stride over at least that many rows and positions.

        Args:
            form: What a step depends on beside the values of weights; where it has changed, no stride is kept.
            engine: Whose slots are written.
            logits: Returns the function from hidden states to logits.
            stop_ids: The tokens that end a turn.
            rows: How many slots at least.
            width: Positions at least.
            most: Tokens of a run.
            sampling: Whether tokens are drawn.
        """
        if (form := (engine, form)) != self._form:
            self._kept.clear()
            self._form, self._logits = form, logits()
        sizes = rounded(rows, ROWS, engine.rows), rounded(width, WIDTH, engine.capacity), most, sampling
        if sizes not in self._kept:
            self._kept[sizes] = Stride(engine, self._logits, stop_ids, *sizes)
        return self._kept[sizes]


def rounded(size: int, step: int, most: int) -> int:
    """Return the next multiple of `step`, at most `most`.

    >>> rounded(9, 8, 32), rounded(30, 8, 31)
    (16, 31)
    """
    return min(most, -(-size // step) * step)
