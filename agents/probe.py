"""Training a preference model that leaves its language model as it is: a head on what one of its layers holds.

Adapters learn a few hundred documents by heart, and how their author writes with them; a linear head on frozen states
has too few weights for that (Alain and Bengio 2016 call it a probe).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from agents.preference import Document, documents, held_out, measured
from agents.saving import folder_aside
from llm_gym.data.files import new_file, whole_path
from llm_gym.errors import LLMGymError
from llm_gym.feedback.human import Judgements
from llm_gym.feedback.preference import FORMAT, HEAD, mean_states
from llm_gym.feedback.trained import origin, write_config
from llm_gym.models.load import shared_causal_lm

DEPTH = 0.6  # of the layers: in the middle a model knows most of a text, at the end of its next word
PENALTY = 0.3  # of squared weights, of states in units of their spread
NEWTON_STEPS = 30


def train_probe(
    data: Judgements,
    out: str | Path,
    model: str = "smollm2-135m",
    layer: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train a head, measure it on documents held out, and write its folder, whole or not at all.

    The reward of a text is linear in the mean of the hidden states over its tokens, fitted to the comparisons
    (Bradley and Terry 1952) with a penalty, each document counting once; that has one optimum and no seed.

    Args:
        data: Which texts are better than others about the same document.
        out: The folder.
        model: Name of the language model.
        layer: Whose states, counted from 1; three fifths of the way up if None.
        say: Told how it goes, a line at a time.

    Returns:
        What the folder's config holds, as of `agents.preference.train_preference`.

    Raises:
        LLMGymError: The folder exists, the model has no such layer, there is too little data, or a text is too long.
    """
    target = new_file(out)
    train, test = held_out(documents(data))
    name = whole_path(model)
    depth = _depth(name, layer)
    say(f"{len(train)} documents to train on, {len(test)} held out")
    weight = fitted(list(_states(name, depth, train, say)), [document.better for document in train])
    rewards = [states @ weight for states in _states(name, depth, test, say)]
    config = {
        **origin("preference", FORMAT, name),
        "layer": depth,
        "penalty": PENALTY,
        "documents": len(train),
        "comparisons": sum(len(document.better) for document in train),
        "held_out": measured(rewards, test),
    }
    bias = -np.mean(np.concatenate(rewards))  # makes their mean 0, which no difference changes
    with folder_aside(target) as aside:
        save_file({"weight": weight.astype(np.float32), "bias": np.array([bias], np.float32)}, aside / HEAD)
        write_config(aside, "preference", config)
    return config


def _depth(model: str, layer: int | None) -> int:
    layers = shared_causal_lm(model, dtype="float32").config.num_hidden_layers
    if layer is None:
        return max(1, round(DEPTH * layers))
    if not 1 <= layer <= layers:
        raise LLMGymError(f"layer={layer!r} is none of {model!r}, which has layers 1 to {layers}")
    return layer


def _states(model: str, layer: int, found: Sequence[Document], say: Callable[[str], None]) -> Iterator[np.ndarray]:
    """Yield the states of each document's texts, float64 `(texts, H)`."""
    for number, document in enumerate(found, 1):
        yield np.stack(list(mean_states(model, layer, document.source, document.texts)))
        say(f"read {number} of {len(found)} documents")


def fitted(states: Sequence[np.ndarray], better: Sequence[np.ndarray]) -> np.ndarray:
    """Return the weights of a linear reward, float64 `(H,)`, by Newton's method.

    Args:
        states: Of each document, float `(texts, H)`.
        better: Of each document, int `(comparisons, 2)`: places of two texts, the better one first.
    """
    spread = np.concatenate(states).std(0) + 1e-9
    gaps = np.concatenate([(s[b[:, 0]] - s[b[:, 1]]) / spread for s, b in zip(states, better, strict=True)])
    shares = np.concatenate([np.full(len(b), 1 / len(b) / len(better)) for b in better])
    weight = np.zeros(len(spread))
    for _ in range(NEWTON_STEPS):
        wrong = np.exp(-np.logaddexp(0, gaps @ weight))
        slope = PENALTY * weight - gaps.T @ (shares * wrong)
        curvature = (gaps.T * (shares * wrong * (1 - wrong))) @ gaps + PENALTY * np.eye(len(weight))
        step = np.linalg.solve(curvature, slope)
        weight -= step
        if np.abs(step).max() < 1e-10:
            break
    return weight / spread
