"""Whole episodes to learn from again: token ids and rewards, never an observation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from agents.policy_gradient import token_rewards
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.models.packing import Segment


@dataclass
class Experience:
    """What is kept of an episode: a few bytes a token.

    Attributes:
        segment: Its tokens.
        rewards: What each token of the agent's earned, float32 `(T,)`.
        candidates: What might have been written there, int32 `(T, k)`, -1 for none; None where that was any token.
    """

    segment: Segment
    rewards: torch.Tensor
    candidates: torch.Tensor | None = None


def experience(episode: Episode) -> Experience:
    """Return what is kept of an episode; its candidates are not known yet."""
    ids = (episode.prompt_ids, episode.response_ids)
    context, written = (np.asarray(part, np.int32) for part in ids)
    return Experience(Segment(context, written, episode.agent_mask), torch.from_numpy(token_rewards(episode)))


class Replay:
    """The last episodes.

    Args:
        size: How many.

    Raises:
        LLMGymError: A `size` below 1.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise LLMGymError(f"buffer_size={size} holds no episode; pass at least 1")
        self.size = size
        self.kept: list[Experience] = []

    def __len__(self) -> int:
        return len(self.kept)

    def add(self, experiences: Sequence[Experience]) -> None:
        """Keep episodes, and drop the oldest where there are too many."""
        self.kept = [*self.kept, *experiences][-self.size :]

    def sample(self, count: int, generator: np.random.Generator) -> list[Experience]:
        """Return `count` different episodes, or all where there are fewer, each as likely as any."""
        places = generator.choice(len(self.kept), min(count, len(self.kept)), replace=False)
        return [self.kept[place] for place in places]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return everything as a few tensors, the episodes one after the other."""
        if not self.kept:
            return {}
        segments = [e.segment for e in self.kept]
        found = {
            "lengths": torch.tensor([[len(e.segment.context), len(e.segment.ids), len(e.rewards)] for e in self.kept]),
            "contexts": torch.from_numpy(np.concatenate([s.context for s in segments])),
            "ids": torch.from_numpy(np.concatenate([s.ids for s in segments])),
            "trained": torch.from_numpy(np.concatenate([s.trained for s in segments])),
            "rewards": torch.cat([e.rewards for e in self.kept]),
        }
        if self.kept[0].candidates is not None:
            found["candidates"] = torch.cat([e.candidates for e in self.kept])  # type: ignore[misc]
        return found

    def set_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take back what `tensors` returned."""
        self.kept = []
        if not tensors:
            return
        contexts, ids, actions = tensors["lengths"].T.tolist()
        parts = {
            name: tensors[name].split(contexts if name == "contexts" else ids)
            for name in ("contexts", "ids", "trained")
        }
        rewards = tensors["rewards"].split(actions)
        candidates = tensors["candidates"].split(actions) if "candidates" in tensors else [None] * len(actions)
        for *segment, earned, open_ in zip(*parts.values(), rewards, candidates, strict=True):
            self.kept.append(Experience(Segment(*(part.numpy() for part in segment)), earned, open_))
