"""What all algorithms of ours share: the plumbing of Stable-Baselines3, whole episodes, packed passes, going on.

An algorithm says how it learns from a batch of episodes (`train`); the rest is here.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from agents.policy import LLMPolicy
from agents.rollout import play
from agents.saving import load_algorithm, save_algorithm
from agents.vec_env import GymVecEnv
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError, number, positive
from llm_gym.models.packing import Segment, pack, passes


class Packable(Protocol):
    """What runs through the model: whatever holds a segment."""

    segment: Segment


Member = TypeVar("Member", bound=Packable)


@dataclass
class Text:
    """A text to learn from: its tokens, and their log-probabilities `(T,)` under the reference where these count."""

    segment: Segment
    reference: torch.Tensor | None = None


class TextAlgorithm(BaseAlgorithm):
    """Learn from whole episodes.

    Each iteration draws `n_envs / group_size` examples, lets the policy answer each `group_size` times (`gather`), and
    learns from the answers (`train`).

    Args:
        policy: `LLMPolicy`.
        env: From `make_vec_env`; its number of rows is a multiple of the algorithm's `group_size`.
        learning_rate: A number, or a schedule of the remaining progress.
        max_grad_norm: Gradient clipping.
        tokens_per_pass: Packed tokens run at once; more memory, fewer passes. It does not change the gradient.
        stats_window_size: SB3's argument.
        tensorboard_log: SB3's argument.
        policy_kwargs: Arguments of the policy.
        verbose: SB3's argument.
        seed: Of sampling, the order of examples and new adapters.
        device: `auto`, `cpu` or `cuda`.

    Attributes:
        episodes: What the policy wrote last; none where it learns from what others wrote.
        progress: What share of training is left, for schedules; None: by the tokens that `learn` was asked for.

    Raises:
        LLMGymError: A number of rows that does not divide into groups, or an environment of another kind.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"LLMPolicy": LLMPolicy}
    policy: LLMPolicy

    least_group: ClassVar[int] = 1
    """The fewest answers to a prompt that the algorithm can learn from."""
    group_size: int = 1
    """Answers to each prompt."""

    def __init__(
        self,
        policy: str | type[LLMPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-4,
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
        self.max_grad_norm = number("max_grad_norm", max_grad_norm, above_zero=True)
        self.tokens_per_pass = positive("tokens_per_pass", tokens_per_pass)
        self.episodes: list[Episode] = []
        self.progress: Callable[[], float] | None = None
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
        if self.needs_reference:
            self.policy.keep_reference()
        self._order = np.random.default_rng(self.seed)
        self._queue: list[str] = []

    @property
    def needs_reference(self) -> bool:
        """Whether the policy as it was before training is looked at (`LLMPolicy.reference`)."""
        return False

    @classmethod
    def options(cls) -> set[str]:
        """Return the names of what the constructor takes beside policy, environment and SB3's own arguments."""
        own = [c for c in cls.__mro__ if issubclass(c, TextAlgorithm)]
        names = {name for c in own for name in inspect.signature(c.__init__).parameters}
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

    # ---------------------------------------------------------------- collecting

    def _next_examples(self, ids: list[str], count: int) -> list[str]:
        """Return the next examples: every one once in random order, then again."""
        while len(self._queue) < count:
            self._queue += [ids[i] for i in self._order.permutation(len(ids))]
        chosen, self._queue = self._queue[:count], self._queue[count:]
        return chosen

    def collect(self, callback: BaseCallback) -> bool:
        """Gather what is learnt from next, the callback watching.

        Returns:
            False if the callback asked to stop.
        """

        def on_step(tokens: int) -> bool:
            self.num_timesteps += tokens
            callback.update_locals(locals())
            return callback.on_step()

        self.policy.set_training_mode(False)
        callback.on_rollout_start()
        if not self.gather(on_step):
            return False
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def gather(self, on_step: Callable[[int], bool]) -> bool:
        """Let the policy answer a batch of prompts, each `group_size` times, into `self.episodes`.

        Args:
            on_step: Called with the number of tokens that were written at once; False stops.

        Returns:
            False if it was stopped.
        """
        envs = self._envs()
        examples = self._next_examples(envs.example_ids, self.n_envs // self.group_size)
        rows = [name for name in examples for _ in range(self.group_size)]
        episodes = play(self.policy, envs, rows, on_step=on_step, abstaining=True)
        if episodes is None:
            return False
        self.episodes = self._judged(episodes)
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
        """Make optimiser steps on what was gathered."""
        raise NotImplementedError

    def _passes(self, members: Sequence[Member], together: int = 1) -> Iterator[list[Member]]:
        """Cut what is to be run into runs of at most `tokens_per_pass` packed tokens, some in a row never apart."""
        for run in passes([member.segment for member in members], self.tokens_per_pass, together):
            yield [members[i] for i in run]

    def _evaluate(self, members: Sequence[Packable]) -> tuple[torch.Tensor, ...]:
        """Return values, log-probabilities and entropies of all trained tokens, `(N,)` each, with gradient."""
        packed = pack([member.segment for member in members]).to(self.device)
        values, log_probs, entropies = self.policy.evaluate_actions(packed, packed.targets)
        return values.flatten(), log_probs, entropies

    @torch.no_grad()
    def _read(self, members: Sequence[Packable]) -> list[tuple[torch.Tensor, ...]]:
        """Return values, log-probabilities and entropies of each member's trained tokens, `(T,)` each."""
        read: list[tuple[torch.Tensor, ...]] = []
        for run in self._passes(members):
            lengths = [int(member.segment.trained.sum()) for member in run]
            read += zip(*[tensor.split(lengths) for tensor in self._evaluate(run)], strict=True)
        return read

    def _descend(self) -> float:
        """Make the step of the gradients that were summed up; return their norm before it was clipped."""
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.policy.optimizer.step()
        return norm.item()

    # ---------------------------------------------------------------- going on

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside tensors, as JSON types: counters and data position."""
        return {
            "num_timesteps": self.num_timesteps,
            "queue": list(self._queue),
            "order": self._order.bit_generator.state,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self.num_timesteps = state["num_timesteps"]
        self._queue = list(state["queue"])
        self._order.bit_generator.state = state["order"]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors that a checkpoint holds beside those of the policy and its optimiser."""
        return {}

    def set_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take back what `tensors` returned."""

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
        if self.episodes:
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


def segment(episode: Episode) -> Segment:
    """Return an episode's tokens, of which those that the agent wrote are trained."""
    return Segment(episode.prompt_ids, episode.response_ids, episode.agent_mask)
