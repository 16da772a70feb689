"""What the policy-gradient algorithms share: whole episodes, packed passes, the penalty for leaving the reference.

An algorithm says what a token is worth (`credit`) and what loss follows from it (`policy_loss`); the rest is here.
"""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import explained_variance

from agents import losses
from agents.kl import KLController
from agents.policy import LLMPolicy
from agents.rollout import play
from agents.saving import load_algorithm, save_algorithm
from agents.vec_env import GymVecEnv
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.models.packing import Segment, pack, passes

RATIO_ERROR = 0.1  # mean difference of log-probabilities between sampling and training that is no rounding any more


@dataclass
class Sample:
    """An episode as training sees it. Tensors are float32 `(T,)` over the tokens that the agent wrote.

    Attributes:
        episode: The record.
        segment: Its tokens, for packing.
        old: Log-probabilities at sampling.
        rewards: What each token earned, the penalty for leaving the reference included where it is part of the reward.
        reference: Log-probabilities under the reference, or None without a penalty.
        values: The critic's, at sampling; zeros without a critic.
        advantages: What `credit` made of it.
        returns: What the critic is to predict; zeros without a critic.
        kept: Whether it is trained on.
    """

    episode: Episode
    segment: Segment
    old: torch.Tensor
    rewards: torch.Tensor
    reference: torch.Tensor | None
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    kept: bool = True


@dataclass
class Batch:
    """Samples that run together, their tensors one after the other: `(N,)`, as in `Sample`; `lengths` are their T."""

    lengths: list[int]
    old: torch.Tensor
    reference: torch.Tensor | None
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor


class PolicyGradient(BaseAlgorithm):
    """Learn from whole episodes by the gradient of their log-probabilities.

    Each iteration draws `n_envs / group_size` examples, lets the policy answer each `group_size` times, and makes
    `n_epochs` times `n_minibatches` optimiser steps on the answers. The reference of the KL penalty is the model as it
    was before training (its adapters off, or a frozen copy of what is trained).

    Args:
        policy: `LLMPolicy`.
        env: From `make_vec_env`; its number of rows is a multiple of `group_size`.
        learning_rate: A number, or a schedule of the remaining progress.
        group_size: Answers to each prompt.
        kl_coef: Weight of the KL penalty to the reference; 0 leaves it out.
        kl_estimator: `k1`, `k2` or `k3` (`agents.losses.kl`); None for the algorithm's own.
        kl_target: Divergence of a text, in nats, that `kl_coef` is adapted to keep; None for a fixed weight.
        kl_horizon: Texts over which it is adapted.
        ent_coef: Weight of the entropy bonus.
        max_grad_norm: Gradient clipping.
        tokens_per_pass: Packed tokens run at once; more memory, fewer passes. It does not change the gradient.
        stats_window_size: SB3's argument.
        tensorboard_log: SB3's argument.
        policy_kwargs: Arguments of the policy.
        verbose: SB3's argument.
        seed: Of sampling, the order of examples and new adapters.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        LLMGymError: A number of rows that does not divide into groups, or an environment of another kind.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"LLMPolicy": LLMPolicy}
    policy: LLMPolicy

    kl_in_loss: ClassVar[bool] = False
    """Whether the penalty is a term of the loss; else every token pays it out of its reward."""
    least_group: ClassVar[int] = 1
    """The fewest answers to a prompt that the algorithm can learn from."""
    n_epochs: int = 1
    n_minibatches: int = 1
    vf_coef: float | None = None
    """Weight of the critic's loss; None without a critic."""
    clip_range_vf: float | None = None
    loss_reduction: str = "token"

    def __init__(
        self,
        policy: str | type[LLMPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-4,
        group_size: int = 1,
        kl_coef: float = 0.02,
        kl_estimator: str | None = None,
        kl_target: float | None = None,
        kl_horizon: float = 1000.0,
        ent_coef: float = 0.0,
        max_grad_norm: float = 1.0,
        tokens_per_pass: int = 2048,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy=policy,
            env=env,
            learning_rate=learning_rate,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
            supported_action_spaces=(spaces.Discrete,),
        )
        self.group_size, self.kl_coef, self.ent_coef = group_size, kl_coef, ent_coef
        self.kl_estimator = kl_estimator or ("k3" if self.kl_in_loss else "k1")
        if self.kl_estimator not in losses.KL_ESTIMATORS:
            raise LLMGymError(
                f"kl_estimator={kl_estimator!r} is unknown; expected one of {', '.join(losses.KL_ESTIMATORS)}"
            )
        self.kl_target, self.kl_horizon = kl_target, kl_horizon
        self.kl = KLController(kl_coef, kl_target, kl_horizon)
        self.max_grad_norm, self.tokens_per_pass = max_grad_norm, tokens_per_pass
        self.episodes: list[Episode] = []
        self.progress: Callable[[], float] | None = None
        """What share of training is left, for schedules; None: by the tokens that `learn` was asked for."""
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        if self.group_size < self.least_group or self.n_envs % self.group_size:
            raise LLMGymError(
                f"{self.n_envs} environments do not divide into groups of group_size={self.group_size} "
                f"(at least {self.least_group}); make n_envs a multiple of it"
            )
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs
        )
        self.policy = self.policy.to(self.device)
        if self.kl_coef:
            self.policy.keep_reference()
        self._order = np.random.default_rng(self.seed)
        self._queue: list[str] = []

    @classmethod
    def options(cls) -> set[str]:
        """Return the names of what the constructor takes beside policy, environment and SB3's own arguments."""
        names = {name for c in (cls, PolicyGradient) for name in inspect.signature(c.__init__).parameters}
        return names - {"self", "kwargs", "policy", "env", "_init_setup_model", "stats_window_size"} - {
            "tensorboard_log", "verbose", "seed", "device"
        }  # fmt: skip

    def _envs(self) -> Any:
        adapter = self.env.unwrapped if self.env is not None else None
        if not isinstance(adapter, GymVecEnv) or not hasattr(adapter.envs.unwrapped, "example_ids"):
            raise LLMGymError(
                f"{type(self).__name__} needs an environment from agents.make_vec_env, whose examples it can choose"
            )
        return adapter.envs.unwrapped

    # ---------------------------------------------------------------- what an algorithm says

    def credit(self, samples: list[Sample]) -> None:
        """Set the advantages of all samples, and with a critic the returns; may take some out by `kept`."""
        raise NotImplementedError

    def policy_loss(self, log_probs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of each token `(N,)`, and what to log, `(N,)` each."""
        raise NotImplementedError

    # ---------------------------------------------------------------- collecting

    def _next_examples(self, ids: list[str], count: int) -> list[str]:
        """Return the next examples: every one once in random order, then again."""
        while len(self._queue) < count:
            self._queue += [ids[i] for i in self._order.permutation(len(ids))]
        chosen, self._queue = self._queue[:count], self._queue[count:]
        return chosen

    def collect(self, callback: BaseCallback) -> bool:
        """Let the policy answer a batch of prompts, each `group_size` times, into `self.episodes`.

        Returns:
            False if the callback asked to stop.
        """
        envs = self._envs()
        self.policy.set_training_mode(False)
        callback.on_rollout_start()
        examples = self._next_examples(envs.example_ids, self.n_envs // self.group_size)
        rows = [name for name in examples for _ in range(self.group_size)]

        def on_step(tokens: int) -> bool:
            self.num_timesteps += tokens
            callback.update_locals(locals())
            return callback.on_step()

        episodes = play(self.policy, envs, rows, on_step=on_step, abstaining=True)
        if episodes is None:
            return False
        self.episodes = self._judged(episodes)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _judged(self, episodes: list[Episode]) -> list[Episode]:
        """Leave out groups from one of whose texts the feedback abstained: they could not be compared.

        Raises:
            LLMGymError: None is left.
        """
        groups = [episodes[i : i + self.group_size] for i in range(0, len(episodes), self.group_size)]
        judged = [group for group in groups if all(e.reward is not None for e in group)]
        if not judged:
            raise LLMGymError(
                f"the feedback abstained from a text of each of {len(groups)} groups, so nothing can be learnt; "
                "is the judge's endpoint up, and its deadline long enough?"
            )
        self.logger.record("rollout/groups_left_out", len(groups) - len(judged))
        return [e for group in judged for e in group]

    # ---------------------------------------------------------------- learning

    def train(self) -> None:
        """Make optimiser steps on `self.episodes`."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        samples = self._samples()
        self.credit(samples)
        first: dict[str, float] | None = None
        for _ in range(self.n_epochs):
            for minibatch in self._minibatches(samples):
                logged = self._step(minibatch)
                first = logged if first is None else first
        assert first is not None
        self._audit(first["ratio_error"])
        self._record({**logged, "ratio_error": first["ratio_error"]}, samples)

    def _samples(self) -> list[Sample]:
        samples = []
        for e in self.episodes:
            old = torch.from_numpy(e.log_probs[e.agent_mask]).to(self.device)  # type: ignore[index]
            zeros = torch.zeros_like(old)
            segment = Segment(e.prompt_ids, e.response_ids, e.agent_mask)
            rewards = torch.from_numpy(token_rewards(e)).to(self.device)
            samples.append(Sample(e, segment, old, rewards, None, zeros, zeros, zeros))
        if self.kl.coef:
            with self.policy.reference():
                for sample, (_, log_probs, _) in zip(samples, self._read(samples), strict=True):
                    sample.reference = log_probs
                    if not self.kl_in_loss:
                        sample.rewards = sample.rewards - self.kl.coef * losses.kl(
                            sample.old, log_probs, self.kl_estimator
                        )
        if self.vf_coef is not None:
            for sample, (values, _, _) in zip(samples, self._read(samples), strict=True):
                sample.values = values
        return samples

    @torch.no_grad()
    def _read(self, samples: list[Sample]) -> list[tuple[torch.Tensor, ...]]:
        """Return values, log-probabilities and entropies of each sample, `(T,)` each."""
        read: list[tuple[torch.Tensor, ...]] = []
        for members in self._passes(samples):
            lengths = [len(sample.old) for sample in members]
            read += zip(*[tensor.split(lengths) for tensor in self._evaluate(members)], strict=True)
        return read

    def _evaluate(self, members: list[Sample]) -> tuple[torch.Tensor, ...]:
        packed = pack([sample.segment for sample in members]).to(self.device)
        values, log_probs, entropies = self.policy.evaluate_actions(packed, packed.targets)
        return values.flatten(), log_probs, entropies

    def _minibatches(self, samples: list[Sample]) -> Iterator[list[Sample]]:
        """Yield the samples in `n_minibatches` parts, groups whole and, where there are several parts, shuffled."""
        groups = [samples[i : i + self.group_size] for i in range(0, len(samples), self.group_size)]
        order = np.arange(len(groups)) if self.n_minibatches == 1 else self._order.permutation(len(groups))
        for part in np.array_split(order, min(self.n_minibatches, len(groups))):
            yield [sample for i in part for sample in groups[i]]

    def _passes(self, samples: list[Sample]) -> Iterator[list[Sample]]:
        """Cut samples into runs of at most `tokens_per_pass` packed tokens."""
        for run in passes([sample.segment for sample in samples], self.tokens_per_pass):
            yield [samples[i] for i in run]

    def _step(self, samples: list[Sample]) -> dict[str, float]:
        """Make one optimiser step; return what to log: losses as they were reduced, all else as means over tokens."""
        self.policy.optimizer.zero_grad()
        lengths = [len(sample.old) for sample in samples]
        longest = self._envs().task.max_turns * self._envs().max_new_tokens
        weights = losses.token_weights(lengths, [s.kept for s in samples], self.loss_reduction, longest)
        weight_of = {id(sample): weight for sample, weight in zip(samples, weights, strict=True)}
        sums: dict[str, float] = {}
        for members in self._passes(samples):
            weight = torch.cat([weight_of[id(sample)] for sample in members]).to(self.device)
            loss, stats = self._loss(members)
            (loss * weight).sum().backward()
            for name, values in stats.items():
                share = weight if name.endswith("loss") else torch.full_like(weight, 1 / sum(lengths))
                sums[name] = sums.get(name, 0.0) + (values.detach() * share).sum().item()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.policy.optimizer.step()
        return {**sums, "grad_norm": norm.item()}

    def _loss(self, members: list[Sample]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of each token and what to log, one value a token each."""
        batch = _joined(members)
        values, log_probs, entropies = self._evaluate(members)
        loss, stats = self.policy_loss(log_probs, batch)
        stats = {"policy_loss": loss, "entropy": entropies, "ratio_error": (log_probs - batch.old).abs(), **stats}
        if self.ent_coef:
            loss = loss - self.ent_coef * entropies
        if self.vf_coef is not None:
            stats["value_loss"] = losses.value_loss(values, batch.values, batch.returns, self.clip_range_vf)
            loss = loss + self.vf_coef * stats["value_loss"]
        if batch.reference is not None:
            stats["kl"] = losses.kl(log_probs, batch.reference)
            if self.kl_in_loss:
                loss = loss + self.kl.coef * losses.kl(log_probs, batch.reference, self.kl_estimator)
        return loss, {**stats, "loss": loss}

    def _audit(self, ratio_error: float) -> None:
        """Before the first step the policy that is trained is the one that sampled, so that every ratio is 1."""
        if ratio_error > RATIO_ERROR:
            warnings.warn(
                f"log-probabilities of sampling and training differ by {ratio_error:.3f} on average before any step: "
                "what is trained is not what wrote the texts (did weights change in between, or is the dtype coarse?)",
                UserWarning,
                stacklevel=3,
            )

    def _record(self, logged: dict[str, float], samples: list[Sample]) -> None:
        for name, value in logged.items():
            self.logger.record(f"train/{name}", value)
        if self.vf_coef is not None:
            join = lambda name: torch.cat([getattr(s, name) for s in samples]).cpu().numpy()  # noqa: E731
            self.logger.record("train/explained_variance", float(explained_variance(join("values"), join("returns"))))
        if self.kl.coef:
            spent = float(np.mean([(s.old - s.reference).sum().item() for s in samples]))  # type: ignore[operator]
            self.logger.record("train/kl_text", spent)
            self.logger.record("train/kl_coef", self.kl.coef)
            self.kl.update(spent, len(samples))

    # ---------------------------------------------------------------- going on

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside tensors, as JSON types: counters, data position, penalty."""
        return {
            "num_timesteps": self.num_timesteps,
            "queue": list(self._queue),
            "order": self._order.bit_generator.state,
            "kl_coef": self.kl.coef,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self.num_timesteps = state["num_timesteps"]
        self._queue = list(state["queue"])
        self._order.bit_generator.state = state["order"]
        self.kl.coef = state["kl_coef"]

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train until `total_timesteps` tokens have been written, or a callback stops it; see SB3's `learn`."""
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name or type(self).__name__, progress_bar
        )
        callback.on_training_start(locals(), globals())
        iteration = 0
        while self.num_timesteps < total_timesteps:
            started = time.monotonic()
            if not self.collect(callback):
                break
            collected = time.monotonic()
            iteration += 1
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            if self.progress is not None:
                self._current_progress_remaining = self.progress()
            self.train()
            self.logger.record("time/collect_seconds", collected - started)
            self.logger.record("time/train_seconds", time.monotonic() - collected)
            if iteration % log_interval == 0:
                self._log(iteration)
        callback.on_training_end()
        return self

    def _log(self, iteration: int) -> None:
        mean = lambda values: float(np.mean(list(values)))  # noqa: E731
        elapsed = max((time.time_ns() - self.start_time) / 1e9, 1e-9)
        self.logger.record("rollout/ep_rew_mean", mean(e.reward for e in self.episodes))
        self.logger.record("rollout/ep_len_mean", mean(e.agent_mask.sum() for e in self.episodes))
        for name in self.episodes[0].parts:
            self.logger.record(f"parts/{name}", mean(e.parts[name] for e in self.episodes))
        self.logger.record("time/iterations", iteration, exclude="tensorboard")
        self.logger.record("time/fps", int((self.num_timesteps - self._num_timesteps_at_start) / elapsed))
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(step=self.num_timesteps)

    # ---------------------------------------------------------------- saving

    def save(self, path: Any, exclude: Any = None, include: Any = None) -> None:
        """Write a folder with what is trained (safetensors) and the arguments (JSON). Nothing in it is code.

        Raises:
            LLMGymError: `exclude` or `include`, which SB3's zip files have and this folder has not.
        """
        if exclude is not None or include is not None:
            raise LLMGymError(f"{type(self).__name__}.save takes a folder only; exclude and include do not apply")
        save_algorithm(self, path)

    @classmethod
    def load(cls, path: Any, env: GymEnv | None = None, device: torch.device | str = "auto", **kwargs: Any) -> Self:  # type: ignore[override]
        """Return the algorithm from a folder that `save` wrote; the optimiser starts afresh.

        Args:
            path: The folder.
            env: From `make_vec_env`.
            device: `auto`, `cpu` or `cuda`.
            kwargs: Arguments to change.

        Raises:
            LLMGymError: The folder is not one that `save` wrote.
        """
        return load_algorithm(cls, path, env, device, kwargs)


def token_rewards(episode: Episode) -> np.ndarray:
    """Return what each token of the agent's earned, float32 `(T,)`; their sum is the episode's reward.

    What a scorer places on single tokens is earned there, the rest of a turn's reward at the turn's last token.
    """
    mask = episode.agent_mask
    placed = np.zeros(len(mask), np.float32) if episode.token_rewards is None else episode.token_rewards
    rewards = placed.copy()
    ends = np.flatnonzero(mask & ~np.append(mask[1:], False))
    starts = np.concatenate([[0], ends[:-1] + 1])
    for start, end, reward in zip(starts, ends, episode.turn_rewards or [episode.reward or 0.0], strict=True):
        rewards[end] += reward - placed[start : end + 1].sum()
    return rewards[mask].astype(np.float32)


def placed_rewards(episode: Episode) -> np.ndarray:
    """Return the share of its reward that single tokens caused, float32 `(T,)` over the tokens that the agent wrote."""
    if episode.token_rewards is None:
        return np.zeros(int(episode.agent_mask.sum()), np.float32)
    return episode.token_rewards[episode.agent_mask]


def _joined(members: Sequence[Sample]) -> Batch:
    join = lambda name: torch.cat([getattr(sample, name) for sample in members])  # noqa: E731
    return Batch(
        lengths=[len(sample.old) for sample in members],
        old=join("old"),
        reference=None if members[0].reference is None else join("reference"),
        values=join("values"),
        advantages=join("advantages"),
        returns=join("returns"),
    )
