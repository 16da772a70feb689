"""Group relative policy optimisation, the algorithm that needs no critic (Shao et al. 2024, DeepSeekMath)."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from agents.losses import clipped_surrogate, group_advantages, kl_k3
from agents.policy import LLMPolicy
from agents.rollout import play
from agents.vec_env import GymVecEnv
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.models.packing import Segment, pack, packed_tokens


class GRPO(BaseAlgorithm):
    """Learn from the differences within groups of answers to the same prompt.

    Each iteration draws `n_envs / group_size` examples, lets the policy answer each `group_size` times, and moves it
    towards the answers that scored above their group's mean. The loss is averaged over tokens (DAPO), the reference
    for the KL penalty is the model with its adapters off.

    Args:
        policy: `LLMPolicy`.
        env: From `make_vec_env`; its number of rows is a multiple of `group_size`.
        learning_rate: A number, or a schedule of the remaining progress.
        group_size: Answers to each prompt.
        n_epochs: Optimiser steps on each batch.
        clip_range: How far the ratio may move in one batch; it matters from the second epoch on.
        kl_coef: Weight of the KL penalty to the reference; 0 leaves it out.
        token_coef: Weight of what a scorer blames on single tokens, such as a copied run of words, in the advantage of
            these alone (`agents.losses.group_advantages`).
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

    def __init__(
        self,
        policy: str | type[LLMPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-4,
        group_size: int = 8,
        n_epochs: int = 1,
        clip_range: float = 0.2,
        kl_coef: float = 0.02,
        token_coef: float = 10.0,
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
        self.group_size, self.n_epochs, self.clip_range = group_size, n_epochs, clip_range
        self.kl_coef, self.token_coef = kl_coef, token_coef
        self.max_grad_norm, self.tokens_per_pass = max_grad_norm, tokens_per_pass
        self.episodes: list[Episode] = []
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        if self.group_size < 2 or self.n_envs % self.group_size:
            raise LLMGymError(
                f"{self.n_envs} environments do not divide into groups of group_size={self.group_size} (at least 2); "
                "make n_envs a multiple of it"
            )
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs
        )
        self.policy = self.policy.to(self.device)
        self._order = np.random.default_rng(self.seed)
        self._queue: list[str] = []

    def _envs(self) -> Any:
        adapter = self.env.unwrapped if self.env is not None else None
        if not isinstance(adapter, GymVecEnv) or not hasattr(adapter.envs.unwrapped, "example_ids"):
            raise LLMGymError("GRPO needs an environment from agents.make_vec_env, whose examples it can choose")
        return adapter.envs.unwrapped

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

        episodes = play(self.policy, envs, rows, on_step=on_step)
        if episodes is None:
            return False
        self.episodes = episodes
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    # ---------------------------------------------------------------- learning

    def train(self) -> None:
        """Make `n_epochs` optimiser steps on `self.episodes`."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        rewards = torch.tensor([episode.reward for episode in self.episodes])
        placed = [torch.from_numpy(_token_rewards(episode)) for episode in self.episodes]
        passes = self._passes(group_advantages(rewards, placed, self.group_size, self.token_coef))
        total = sum(len(batch["old"]) for batch in passes)
        for epoch in range(self.n_epochs):
            self.policy.optimizer.zero_grad()
            sums: dict[str, float] = {}
            for batch in passes:
                loss, stats = self._loss(batch)
                (loss.sum() / total).backward()
                for name, values in stats.items():
                    sums[name] = sums.get(name, 0.0) + values.sum().item() / total
            norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
            if epoch == 0:
                self.logger.record("train/ratio_error", sums.pop("ratio_error"))  # 0 but for float rounding
        sums.pop("ratio_error", None)
        for name, value in sums.items():
            self.logger.record(f"train/{name}", value)
        self.logger.record("train/grad_norm", norm.item())

    def _passes(self, advantages: list[torch.Tensor]) -> list[dict[str, Any]]:
        """Cut the batch into packed passes of at most `tokens_per_pass`, with their references."""
        segments = [Segment(e.prompt_ids, e.response_ids, e.agent_mask) for e in self.episodes]
        passes: list[dict[str, Any]] = []
        members: list[int] = []
        for i in range(len(segments)):
            if members and packed_tokens([segments[k] for k in (*members, i)]) > self.tokens_per_pass:
                passes.append(self._pass(members, segments, advantages))
                members = []
            members.append(i)
        return [*passes, self._pass(members, segments, advantages)]

    def _pass(self, members: list[int], segments: list[Segment], advantages: list[torch.Tensor]) -> dict[str, Any]:
        episodes = [self.episodes[i] for i in members]
        packed = pack([segments[i] for i in members]).to(self.device)
        old = torch.from_numpy(np.concatenate([e.log_probs[e.agent_mask] for e in episodes]))  # type: ignore[index]
        reference = None
        if self.kl_coef:
            with torch.no_grad(), self.policy.reference():
                reference, _ = self.policy.packed_stats(packed)
        return {
            "packed": packed,
            "old": old.to(self.device),
            "advantages": torch.cat([advantages[i] for i in members]).to(self.device),
            "reference": reference,
        }

    def _loss(self, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of each token and what to log, one value a token each."""
        log_probs, entropy = self.policy.packed_stats(batch["packed"])
        loss = clipped_surrogate(log_probs, batch["old"], batch["advantages"], self.clip_range)
        difference = log_probs.detach() - batch["old"]
        stats = {
            "entropy": entropy.detach(),
            "ratio_error": difference.abs(),
            "clip_fraction": ((difference.exp() - 1).abs() > self.clip_range).float(),
        }
        if batch["reference"] is not None:
            kl = kl_k3(log_probs, batch["reference"])
            loss = loss + self.kl_coef * kl
            stats["kl"] = kl.detach()
        stats["loss"] = loss.detach()
        return loss, stats

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "GRPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> GRPO:
        """Train until `total_timesteps` tokens have been written, or a callback stops it; see SB3's `learn`."""
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        callback.on_training_start(locals(), globals())
        iteration = 0
        while self.num_timesteps < total_timesteps and self.collect(callback):
            iteration += 1
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            started = time.monotonic()
            self.train()
            self.logger.record("time/train_seconds", time.monotonic() - started)
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
        """Write a folder with the adapter (safetensors) and the arguments (JSON). Nothing in it is code.

        Raises:
            LLMGymError: `exclude` or `include`, which SB3's zip files have and this folder has not.
        """
        if exclude is not None or include is not None:
            raise LLMGymError("GRPO.save takes a folder only; exclude and include do not apply")
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            self.policy.save_adapter(aside)
            (aside / "grpo.json").write_text(json.dumps(self._arguments(), indent=2) + "\n")
            if target.exists():
                shutil.rmtree(target)
            os.replace(aside, target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _arguments(self) -> dict[str, Any]:
        names = (
            "group_size",
            "n_epochs",
            "clip_range",
            "kl_coef",
            "token_coef",
            "max_grad_norm",
            "tokens_per_pass",
            "seed",
        )
        policy = {"model": self.policy.model_name, "lora": self.policy.lora, "temperature": self.policy.temperature}
        return {
            "learning_rate": self.lr_schedule(1),
            **{name: getattr(self, name) for name in names},
            "policy_kwargs": policy,
        }

    @classmethod
    def load(cls, path: Any, env: GymEnv | None = None, device: torch.device | str = "auto", **kwargs: Any) -> GRPO:  # type: ignore[override]
        """Return the algorithm from a folder that `save` wrote; the optimiser starts afresh.

        Args:
            path: The folder.
            env: From `make_vec_env`.
            device: `auto`, `cpu` or `cuda`.
            kwargs: Arguments to change.

        Raises:
            LLMGymError: The folder is not one that `save` wrote.
        """
        try:
            arguments = json.loads((Path(path) / "grpo.json").read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise LLMGymError(f"{path} is not a folder that GRPO.save wrote ({error})") from error
        policy_kwargs = {**arguments.pop("policy_kwargs"), "adapter": str(path)}
        return cls(LLMPolicy, env, device=device, policy_kwargs=policy_kwargs, **{**arguments, **kwargs})


def _token_rewards(episode: Episode) -> np.ndarray:
    """Return what single tokens of the agent's caused, float32 `(T,)` over the tokens that it wrote."""
    if episode.token_rewards is None:
        return np.zeros(int(episode.agent_mask.sum()), np.float32)
    return episode.token_rewards[episode.agent_mask]
