"""Preference: the reward of a Bradley-Terry model, which has learned from pairs which of two texts is better."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError, number
from llm_gym.feedback.base import Scorer
from llm_gym.feedback.memory import Memory
from llm_gym.feedback.pairs import about
from llm_gym.feedback.trained import read_config
from llm_gym.models.version import version

BUNDLED = {name: Path(__file__).parents[1] / "models" / name for name in ("who-did-what", "which-reply")}
"""The models that come with the package; `make preference` and `make replies` make them."""
HEAD = "head.safetensors"
FORMAT = 1
"""Value of `llm_gym_preference` in the config."""
PROMPT = ("Source:\n", "\n\nText:")


class PreferenceModel:
    """A reward model: a causal language model with a head, which remembers by text.

    Either with an adapter, see `agents.preference`, or as it is, see `agents.probe`.

    Args:
        folder: What `llm-gym feedback train` or `train-probe` wrote.

    Attributes:
        config: What its `preference.json` holds.

    Raises:
        LLMGymError: The folder is no preference model, or one of another version.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.config = _read_config(Path(folder))
        self._known = Memory(f"preference/{version(folder)}/{version(self.config['model'])}")

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return for each `(source, text)` the reward; a source is read once for all texts about it.

        Raises:
            LLMGymError: The base model or a file of the folder cannot be loaded.
        """
        known = {pair: self._known[pair] for pair in pairs if pair in self._known}
        new: dict[str, dict[str, None]] = {}
        for source, text in pairs:
            if (source, text) not in known:
                new.setdefault(source, {})[text] = None
        for source, texts in new.items():
            for text, reward in zip(texts, self._rewards(source, list(texts)), strict=True):
                known[source, text] = self._known[source, text] = reward
        return [known[pair] for pair in pairs]

    def _rewards(self, source: str, texts: list[str]) -> list[float]:
        from llm_gym.models.load import load_tokenizer
        from llm_gym.models.packing import hidden_states, read

        model, layer = self.config["model"], self.config.get("layer")
        weight, bias = self._head
        if layer is not None:
            return [float(state @ weight + bias) for state in mean_states(model, layer, source, texts)]
        branches = segments(load_tokenizer(model), source, texts)
        states = read(model, branches, self.folder, hidden_states)
        return [float(state[0].double().cpu().numpy() @ weight + bias) for state in states]

    @functools.cached_property
    def _head(self) -> tuple[np.ndarray, float]:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            tensors = load_file(Path(self.folder) / HEAD)
            return tensors["weight"].astype(np.float64), float(tensors["bias"][0])
        except (OSError, KeyError, SafetensorError) as error:
            raise LLMGymError(f"the head of the preference model in {self.folder} cannot be read ({error})") from error


def segments(tokenizer: Any, source: str, texts: Sequence[str]) -> list[Any]:
    """Return texts as branches of their source; what comes after the end of each is what its reward is read from.

    Special tokens written out in source or texts are plain characters; the only real one is the end of the text.
    """
    from llm_gym.models.packing import Segment

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    context = np.array(encode(source.join(PROMPT)))
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    branches = [np.array([*encode(f" {text}"), *end, 0]) for text in texts]  # the last is predicted, never read
    return [Segment(context, ids, np.arange(len(ids)) == len(ids) - 1) for ids in branches]


def mean_states(model: str, layer: int, source: str, texts: Sequence[str]) -> Iterator[np.ndarray]:
    """Yield for each text the mean of a layer's hidden states over its tokens and its end, float64 `(H,)`.

    Args:
        model: Name of a causal language model, which is read as it is.
        layer: After how many of its layers.
        source: It is read once for all texts.
        texts: The texts.

    Raises:
        LLMGymError: A text is too long for the model.
    """
    from llm_gym.models.load import load_tokenizer
    from llm_gym.models.packing import hidden_states, read

    branches = [
        replace(branch, trained=np.arange(len(branch.ids)) > 0)
        for branch in segments(load_tokenizer(model), source, texts)
    ]
    for states in read(model, branches, None, functools.partial(hidden_states, layer=layer)):
        yield states.double().mean(0).cpu().numpy()


def preference_model(path: str) -> PreferenceModel:
    """Return the process-wide model of a folder, anew if it was written again, or a bundled one by its name."""
    folder = str(BUNDLED.get(path, Path(path).expanduser().absolute()))
    return _preference_model(folder, version(folder), version(_read_config(Path(folder))["model"]))


@functools.cache
def _preference_model(folder: str, saved: str, base: str) -> PreferenceModel:
    return PreferenceModel(folder)


def _read_config(folder: Path) -> dict[str, Any]:
    return read_config(folder, "preference", FORMAT, "train")


class Preference(Scorer):
    """Reward of a preference model trained from pairs (Bradley and Terry 1952), within ± `limit`.

    How much likelier one text is to be preferred to another is the logistic function of the difference of their
    rewards. A reward is 0 for an average text of those that the model was checked on. An empty text has −`limit`.

    Args:
        path: Folder that `llm-gym feedback train` or `train-probe` wrote, or a bundled model: `who-did-what`, which has
            learned from summaries with names and numbers changed, or `which-reply`, from better and worse replies to
            requests. For a folder that has one of these names, write `./which-reply`.
        limit: A reward beyond it is cut off: far from all that the model has seen, it means nothing.

    Raises:
        LLMGymError: The folder is no preference model.
    """

    def __init__(self, path: str = "who-did-what", limit: float = 10.0) -> None:
        self.model, self.limit = preference_model(path), number("limit", limit, above_zero=True)

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the rewards."""
        written = [e for e in episodes if e.text.strip()]
        rewards = iter(self.model([(about(e), e.text) for e in written]))
        return [
            float(np.clip(next(rewards), -self.limit, self.limit)) if e.text.strip() else -self.limit for e in episodes
        ]
