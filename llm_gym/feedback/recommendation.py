"""What named items are worth: hits and rank among held-out likes, fit to the history, variety; and second judges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback.base import Scorer
from llm_gym.items import Catalogue, Item, shared_catalogue
from llm_gym.search import ndcg


def catalogue_of(episode: Episode) -> Catalogue:
    """Return the catalogue of the episode's row."""
    from llm_gym.tasks.recommendation import ITEMS

    return shared_catalogue(episode.example.get("catalogue") or ITEMS)


def named(episode: Episode) -> list[Item]:
    """Return the items that the text names, a line each, at most `MOST`, without what is no title or named again."""
    from llm_gym.tasks.recommendation import MOST

    items = catalogue_of(episode).items
    titles = dict.fromkeys(line.strip() for line in episode.text.splitlines())
    return [items[title] for title in titles if title in items][:MOST]


def held_out(episode: Episode) -> list[str]:
    """Return the titles that the user likes and the agent is to find.

    Raises:
        LLMGymError: The row has none.
    """
    titles = episode.example.get("held_out")
    if not titles:
        raise LLMGymError(
            f"example {episode.example.get('id')!r} has no 'held_out' to compare with; give it that column"
        )
    return titles


class Hits(Scorer):
    """Share of the held-out likes that are named, 0 to 1; of as many as can be named."""

    reads_reference = True

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the shares.

        Raises:
            LLMGymError: A row has no held-out likes.
        """
        from llm_gym.tasks.recommendation import MOST

        wanted = [set(held_out(episode)) for episode in episodes]
        found = [{item.title for item in named(episode)} for episode in episodes]
        return [len(one & other) / min(MOST, len(one)) for one, other in zip(wanted, found, strict=True)]


class Rank(Scorer):
    """nDCG of the named items with the held-out likes as relevant, 0 to 1: hits count more the earlier they come."""

    reads_reference = True

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the values.

        Raises:
            LLMGymError: A row has no held-out likes.
        """
        from llm_gym.tasks.recommendation import MOST

        return [ndcg([item.title for item in named(e)], held_out(e), MOST) for e in episodes]


class Fit(Scorer):
    """How near the named items are to what the user liked, less how near to what was disliked, -1 to 1.

    Each item is read with its description, each line of the history with its comment and its item's description. An
    item counts its best cosine with a liked one minus, where something was disliked, `against` times its best with
    that; the mean is over as many items as may be named, so that naming fewer is worth less.

    Args:
        model: Name of an embedding model.
        against: Weight of the disliked.
    """

    def __init__(self, model: str = "minilm-l6", against: float = 0.5) -> None:
        self.model, self.against = model, against

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the fits; 0 where nothing is named."""
        from llm_gym.tasks.recommendation import MOST

        return [float(self._fits(episode).sum()) / MOST for episode in episodes]

    def _fits(self, episode: Episode) -> np.ndarray:
        catalogue, titles = catalogue_of(episode), [item.title for item in named(episode)]
        if not titles:
            return np.zeros(0)
        items = catalogue.embed(titles, self.model)
        fits = (items @ catalogue.embed(episode.example["liked"], self.model).T).max(1)
        if disliked := episode.example.get("disliked"):
            fits = fits - self.against * (items @ catalogue.embed(disliked, self.model).T).max(1)
        return fits.clip(-1, 1)


class Variety(Scorer):
    """How different the named items are from each other: 1 minus their mean cosine; 0 for fewer than two.

    Args:
        model: Name of an embedding model.
    """

    def __init__(self, model: str = "minilm-l6") -> None:
        self.model = model

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the values."""
        return [self._variety(episode) for episode in episodes]

    def _variety(self, episode: Episode) -> float:
        titles = [item.title for item in named(episode)]
        if len(titles) < 2:
            return 0.0
        vectors = catalogue_of(episode).embed(titles, self.model)
        return float(1 - (vectors @ vectors.T)[np.triu_indices(len(titles), 1)].mean())


class HeldOutGenres(Scorer):
    """F1 of the genres of the named items with those of the held-out likes, 0 to 1, each as often as it occurs."""

    reads_reference = True

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the F1.

        Raises:
            LLMGymError: A row has no held-out likes, or the catalogue no genres.
        """
        return [self._f1(episode) for episode in episodes]

    def _f1(self, episode: Episode) -> float:
        items = catalogue_of(episode).items
        wanted = Counter(genre for title in held_out(episode) for genre in items[title].genres)
        found = Counter(genre for item in named(episode) for genre in item.genres)
        if not wanted:
            raise LLMGymError(
                f"the held-out likes of example {episode.example.get('id')!r} have no genres in their catalogue; give "
                "it the column 'genres'"
            )
        return 2 * (wanted & found).total() / (wanted.total() + found.total())


class HeldOutSimilarity(Scorer):
    """How near the named items are to the held-out likes by their embeddings: the mean of each like's best cosine.

    Args:
        model: Name of an embedding model.
    """

    reads_reference = True

    def __init__(self, model: str = "minilm-l6") -> None:
        self.model = model

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the values; 0 where nothing is named.

        Raises:
            LLMGymError: A row has no held-out likes.
        """
        return [self._similarity(episode) for episode in episodes]

    def _similarity(self, episode: Episode) -> float:
        catalogue, titles, wanted = catalogue_of(episode), [i.title for i in named(episode)], held_out(episode)
        if not titles:
            return 0.0
        return float((catalogue.embed(wanted, self.model) @ catalogue.embed(titles, self.model).T).max(1).mean())
