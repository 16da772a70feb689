"""Preference: the reward of a Bradley-Terry model, which has learned from pairs which of two texts is better."""

from __future__ import annotations

import functools
from collections.abc import Sequence
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

WHO_DID_WHAT = Path(__file__).parents[1] / "models" / "who-did-what"
"""The model that comes with the package; `make preference` makes it."""
CONFIG, HEAD = "preference.json", "head.safetensors"
FORMAT = 1
"""Value of `llm_gym_preference` in the config."""
PROMPT = ("Source:\n", "\n\nText:")


class PreferenceModel:
    """A reward model: a causal language model with an adapter and a head, see `agents.preference`; remembers by text.

    Args:
        folder: What `llm-gym feedback train` wrote.

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

        model = self.config["model"]
        weight, bias = self._head
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


def preference_model(path: str) -> PreferenceModel:
    """Return the process-wide model of a folder, anew if it was written again."""
    folder = str(Path(path).expanduser().absolute())
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
        path: Folder that `llm-gym feedback train` wrote; the bundled `who-did-what`, which has learned from summaries
            with names and numbers changed, if none is given.
        limit: A reward beyond it is cut off: far from all that the model has seen, it means nothing.

    Raises:
        LLMGymError: The folder is no preference model.
    """

    def __init__(self, path: str = str(WHO_DID_WHAT), limit: float = 10.0) -> None:
        self.model, self.limit = preference_model(path), number("limit", limit, above_zero=True)

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the rewards."""
        written = [e for e in episodes if e.text.strip()]
        rewards = iter(self.model([(about(e), e.text) for e in written]))
        return [
            float(np.clip(next(rewards), -self.limit, self.limit)) if e.text.strip() else -self.limit for e in episodes
        ]
