"""Direct preference optimisation: learning from which of two texts is better, without a reward model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from agents import losses
from agents.base import Text, TextAlgorithm, segment
from agents.reference import recite
from llm_gym.data.files import read_rows
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError

PAIR = ("id", "source", "chosen", "rejected")


class DPO(TextAlgorithm):
    """Make the better of two texts likelier than the worse, in relation to the policy before training.

    Rafailov et al. 2023. The pairs are the policy's own: the best and the worst of each group of answers by the
    environment's feedback, where these differ (online: Guo et al. 2024). Or they are a file's, as
    `llm-gym feedback label` writes it; then the policy writes nothing, and no feedback is asked. One optimiser step a
    batch.

    Args:
        policy: `LLMPolicy`.
        env: From `make_vec_env`; its number of rows is a multiple of `group_size`, with a file of 2.
        learning_rate: A number, or a schedule of the remaining progress.
        group_size: Answers to each prompt, of which two are compared; a file has two.
        beta: Price of leaving the reference: the smaller, the further the policy may go.
        pairs: File of pairs, rows of `id`, `source`, `chosen` and `rejected` about the training examples; None to write
            them.
        kwargs: Arguments of `TextAlgorithm`.

    Raises:
        LLMGymError: A `beta` that is not positive, or pairs that are not about the training examples.
    """

    least_group: ClassVar[int] = 2

    def __init__(
        self,
        policy: Any,
        env: Any,
        learning_rate: Any = 1e-4,
        group_size: int = 4,
        beta: float = 0.1,
        pairs: str | None = None,
        **kwargs: Any,
    ) -> None:
        if beta <= 0:
            raise LLMGymError(f"beta={beta} must be positive")
        self.beta, self.pairs = beta, pairs
        self.group_size = 2 if pairs else group_size
        self._given: list[Episode] = []
        super().__init__(policy, env, learning_rate, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        self._rows = [] if self.pairs is None else read_pairs(self.pairs, self._envs())

    @property
    def needs_reference(self) -> bool:
        """Always."""
        return True

    # ---------------------------------------------------------------- pairs

    def gather(self, on_step: Callable[[int], bool]) -> bool:
        """Let the policy answer, or take the next pairs of the file."""
        if self.pairs is None:
            return super().gather(on_step)
        numbers = self._next_examples([str(i) for i in range(len(self._rows))], self.n_envs // 2)
        rows = [self._rows[int(number)] for number in numbers]
        texts = [row[name] for row in rows for name in ("chosen", "rejected")]
        given = recite(self._envs(), [row["id"] for row in rows for _ in range(2)], texts, on_step)
        if given is None:
            return False
        self._given = given
        return True

    def _compared(self) -> list[Episode]:
        """Return the texts of the pairs, better and worse by turns."""
        return best_and_worst(self.episodes, self.group_size) if self.pairs is None else self._given

    # ---------------------------------------------------------------- learning

    def train(self) -> None:
        """Make one optimiser step on the pairs, if there are any."""
        texts = [Text(segment(episode)) for episode in self._compared()]
        self.logger.record("train/pairs", len(texts) // 2)
        if not texts:
            return
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        with self.policy.reference():
            for text, (_, log_probs, _) in zip(texts, self._read(texts), strict=True):
                text.reference = log_probs
        self.policy.optimizer.zero_grad()
        parts = [self._run(run, len(texts) // 2) for run in self._passes(texts, together=2)]
        for name in parts[0]:
            self.logger.record(f"train/{name}", torch.cat([part[name] for part in parts]).mean().item())
        self.logger.record("train/grad_norm", self._descend())

    def _run(self, texts: Sequence[Text], pairs: int) -> dict[str, torch.Tensor]:
        """Add the gradient of some of the `pairs`; return what to log, a value a pair, or a token."""
        _, log_probs, entropies = self._evaluate(texts)
        reference = torch.cat([text.reference for text in texts])  # type: ignore[misc]
        lengths = [int(text.segment.trained.sum()) for text in texts]
        ratios = torch.stack([part.sum() for part in (log_probs - reference).split(lengths)])
        chosen, rejected = self.beta * ratios[0::2], self.beta * ratios[1::2]
        loss = losses.bradley_terry(chosen, rejected)
        (loss.sum() / pairs).backward()
        logged = {
            "loss": loss,
            "chosen_reward": chosen,
            "rejected_reward": rejected,
            "accuracy": (chosen > rejected).float(),
            "entropy": entropies,
        }
        if self.pairs is None:  # an estimate from what the policy drew
            logged["kl"] = losses.kl(log_probs, reference)
        return {name: values.detach() for name, values in logged.items()}


def best_and_worst(episodes: Sequence[Episode], group_size: int) -> list[Episode]:
    """Return the best and the worst text of each group by their rewards, by turns; a group of equals has neither."""
    found = []
    for start in range(0, len(episodes), group_size):
        ranked = sorted(episodes[start : start + group_size], key=lambda e: e.reward or 0.0)
        if ranked[0].reward != ranked[-1].reward:
            found += [ranked[-1], ranked[0]]
    return found


def read_pairs(path: str, envs: Any) -> list[dict[str, Any]]:
    """Return the rows of a file of pairs about an environment's examples.

    Raises:
        LLMGymError: A row is not what it must be, or is about another text.
    """
    if envs.task.max_turns > 1:
        raise LLMGymError(f"pairs={path!r}: {envs.task.name!r} is a conversation, whose texts cannot be compared")
    examples = {example["id"]: example for example in envs.examples}
    rows = []
    for number, row in read_rows(Path(path)):
        where = f"{path}:{number}"
        for name in PAIR:
            if not isinstance(row.get(name), str):
                raise LLMGymError(f"{where}: column {name!r} must be a string, not {json.dumps(row.get(name))[:40]}")
        example = examples.get(row["id"])
        if example is None or envs.task.source(example) != row["source"]:
            raise LLMGymError(
                f"{where} is about {row['id']!r}, which is no training example here or has another source; write the "
                "pairs' texts by 'llm-gym feedback sample' on the same data, split train"
            )
        rows.append(row)
    if not rows:
        raise LLMGymError(f"{path} has no pairs; write some by 'llm-gym feedback label'")
    return rows
