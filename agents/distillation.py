"""On-policy distillation: a teacher says of every token that the policy wrote what it would have written there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from agents.base import TextAlgorithm, segment
from agents.checks import check_head
from agents.evaluate import find_policy
from agents.head import Output
from agents.policy import LLMPolicy
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.models.load import fingerprint, load_tokenizer, shared_adapted_lm, shared_causal_lm
from llm_gym.models.packing import Packed, Segment, check_attention, check_length, hidden_states, pack

ROOM = 2  # a teacher's prompt may be so many times as long as the policy's


@dataclass
class Lesson:
    """A text as the policy wrote it, and the same text behind the teacher's prompt."""

    segment: Segment
    shown: Segment


class Distillation(TextAlgorithm):
    """Bring the policy's distribution towards a teacher's, at the tokens that the policy itself writes.

    Generalised knowledge distillation (Agarwal et al. 2024). The teacher is another model with the same tokenizer, or
    the policy as it was before training under a better prompt (context distillation: Snell et al. 2022). Each batch is
    `n_envs` texts of the policy; one optimiser step follows, on the mean over tokens of the divergence over the whole
    vocabulary. Rewards are recorded and not learnt from.

    Args:
        policy: `LLMPolicy`.
        env: From `make_vec_env`; its number of rows is a multiple of `group_size`.
        learning_rate: A number, or a schedule of the remaining progress.
        group_size: Answers to each prompt, which policy and teacher read once for all of them.
        teacher: A model's name, a model folder or a run folder; None for the policy as it was before training.
        instruction: What the teacher is asked to do; None for what the policy is. `{column}` stands for the row's value
            of that column, such as the reference, which the teacher then sees and the policy does not.
        beta: From 0, KL(teacher || policy), to 1, KL(policy || teacher); see `agents.losses.generalised_jsd`.
        kwargs: Arguments of `TextAlgorithm`.

    Raises:
        LLMGymError: Nothing to learn from, a `beta` out of range, a teacher with another tokenizer, or a column that a
            row does not have.
    """

    def __init__(
        self,
        policy: Any,
        env: Any,
        learning_rate: Any = 1e-4,
        group_size: int = 4,
        teacher: str | None = None,
        instruction: str | None = None,
        beta: float = 0.5,
        **kwargs: Any,
    ) -> None:
        if teacher is None and instruction is None:
            raise LLMGymError(
                "the policy cannot learn from itself: give a teacher (a model, or a run), or an instruction that tells "
                "it more, such as one that shows the reference"
            )
        if not 0 <= beta <= 1:
            raise LLMGymError(f"beta={beta} must be from 0 to 1")
        self.group_size, self.teacher, self.instruction, self.beta = group_size, teacher, instruction, beta
        super().__init__(policy, env, learning_rate, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        self._teacher = None if self.teacher is None else Teacher(self.teacher, self.policy)

    @property
    def needs_reference(self) -> bool:
        """Where the policy as it was is the teacher."""
        return self.teacher is None

    def train(self) -> None:
        """Make one optimiser step on the texts."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        self.policy.optimizer.zero_grad()
        lessons = [Lesson(segment(episode), self._shown(episode)) for episode in self.episodes]
        tokens = sum(int(lesson.segment.trained.sum()) for lesson in lessons)
        loss = 0.0
        for run in self._passes(lessons):
            teacher = self._taught(pack([lesson.shown for lesson in run]).to(self.device))
            divergences = self.policy.divergence(pack([lesson.segment for lesson in run]), teacher, self.beta)
            part = divergences.sum() / tokens
            part.backward()
            loss += part.item()
        self.logger.record("train/loss", loss)
        self.logger.record("train/grad_norm", self._descend())

    @torch.no_grad()
    def _taught(self, packed: Packed) -> Output:
        """Return what the teacher would write at each token."""
        if self._teacher is not None:
            return self._teacher.output(packed)
        with self.policy.reference():
            return self.policy.output(packed)

    def _shown(self, episode: Episode) -> Segment:
        """Return what the teacher sees of an episode."""
        if self.instruction is None:
            return segment(episode)
        envs, example = self._envs(), episode.example
        for column in (*envs.task.required, *envs.task.optional):
            if "{" + column + "}" in self.instruction and not isinstance(example.get(column), str):
                raise LLMGymError(f"the instruction shows {column!r}, and example {example['id']!r} has no such text")
        builder = envs.prompt_builder.instructed(self.instruction, ROOM * envs.max_prompt_tokens)
        return Segment(builder(example).ids, episode.response_ids, episode.agent_mask)


class Teacher:
    """A model of its own that is looked at and never trained.

    Args:
        name: A model's name, a model folder or a run folder.
        policy: Whose tokenizer, temperature and device it shares.

    Raises:
        LLMGymError: No such model, or one that numbers tokens differently or cannot run here.
    """

    def __init__(self, name: str, policy: LLMPolicy) -> None:
        source = find_policy(name)
        if source.agent:
            raise LLMGymError(f"teacher={name!r} is no language model; SFT learns from references")
        if fingerprint(load_tokenizer(source.model)) != fingerprint(load_tokenizer(policy.model_name)):
            raise LLMGymError(
                f"teacher={name!r} and the policy's model {policy.model_name!r} number tokens differently, so that "
                "their distributions cannot be compared; choose a teacher of the same family"
            )
        self.name, self.policy = name, policy
        if source.adapter is None:
            self.lm = shared_causal_lm(source.model, policy.device)
        else:
            self.lm = shared_adapted_lm(source.model, source.adapter, policy.device)
        check_attention(self.lm.config, name)
        check_head(self.lm, name)

    def output(self, packed: Packed) -> Output:
        """Return what its logits are made of, at the policy's temperature."""
        check_length(self.lm.config, self.name, packed.segments)
        head, size, temperature = self.lm.get_output_embeddings(), self.policy.actions, self.policy.temperature
        bias = None if head.bias is None else head.bias[:size].float() / temperature
        return Output(hidden_states(self.lm, packed).float() / temperature, head.weight[:size].float(), bias)
