"""Supervised fine-tuning: imitation of what people wrote."""

from __future__ import annotations

from collections.abc import Callable

from agents.base import Text, TextAlgorithm, segment
from agents.reference import recite
from llm_gym.episode import Episode


class SFT(TextAlgorithm):
    """Make the references of the training examples likelier, token by token.

    A batch is `n_envs` references, each as the policy would have written it: with the token that ends a turn, or cut
    off at the cap; in a conversation, the turns of the reference agent. One optimiser step a batch, on the mean over
    tokens. The policy writes nothing and no feedback is asked.

    Args:
        policy: `LLMPolicy`.
        env: From `make_vec_env`, of a task whose data has references.
        learning_rate: A number, or a schedule of the remaining progress.
        kwargs: Arguments of `TextAlgorithm`.

    Raises:
        LLMGymError: While learning, where an example has no reference.
    """

    references: list[Episode]
    """What is imitated now."""

    def gather(self, on_step: Callable[[int], bool]) -> bool:
        """Take the next references."""
        envs = self._envs()
        references = recite(envs, self._next_examples(envs.example_ids, self.n_envs), on_step=on_step)
        if references is None:
            return False
        self.references = references
        return True

    def train(self) -> None:
        """Make one optimiser step on the references."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        self.policy.optimizer.zero_grad()
        texts = [Text(segment(episode)) for episode in self.references]
        tokens = sum(int(text.segment.trained.sum()) for text in texts)
        loss = entropy = 0.0
        for run in self._passes(texts):
            _, log_probs, entropies = self._evaluate(run)
            part = -log_probs.sum() / tokens
            part.backward()
            loss, entropy = loss + part.item(), entropy + entropies.detach().sum().item() / tokens
        self.logger.record("train/loss", loss)
        self.logger.record("train/entropy", entropy)
        self.logger.record("train/grad_norm", self._descend())
