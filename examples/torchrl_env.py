"""PPO of TorchRL's own parts on an environment of llm_gym in its `GymWrapper`.

    pip install torchrl
    python examples/torchrl_env.py --frames 6144

TorchRL turns actions into one-hot vectors unless asked for categories: with a vocabulary, ask for them. It wraps single
environments; of a vector environment it does not read the last observations of a dict space.
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import GymWrapper
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

import llm_gym  # noqa: F401  (registers the ids)

KEYS = ["input_ids", "roles"]


class Reader(nn.Module):
    """Outputs (..., size) from the mean embedding of the text so far."""

    def __init__(self, vocabulary: int, size: int) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(vocabulary, 64), nn.Linear(64, size)
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids: torch.Tensor, roles: torch.Tensor) -> torch.Tensor:
        """Return the outputs for ids and roles (..., C)."""
        there = (roles > 0).unsqueeze(-1).float()
        return self.head((self.tokens(input_ids.long()) * there).sum(-2) / there.sum(-2))


def make_env(env_id: str = "llm_gym.tasks.ladder:CopySymbol-v0") -> GymWrapper:
    """Return the environment as TorchRL has it."""
    env = gym.make(env_id, tokenizer="sp-1k", template="plain", split="all")
    return GymWrapper(env, categorical_action_encoding=True)


def train(frames: int, seed: int = 0, batch: int = 512) -> list[float]:
    """Train from scratch; return the mean reward of each batch's last tokens."""
    torch.manual_seed(seed)
    env = make_env()
    env.set_seed(seed)
    vocabulary = env.action_spec.n
    actor = ProbabilisticActor(
        TensorDictModule(Reader(vocabulary, vocabulary), in_keys=KEYS, out_keys=["logits"]),
        in_keys=["logits"],
        distribution_class=torch.distributions.Categorical,
        return_log_prob=True,
    )
    critic = ValueOperator(Reader(vocabulary, 1), in_keys=KEYS)
    advantage = GAE(gamma=1.0, lmbda=0.95, value_network=critic)
    loss = ClipPPOLoss(actor, critic, entropy_coeff=0.01, normalize_advantage=True)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    curve = []
    collector = Collector(env, actor, frames_per_batch=batch, total_frames=frames, auto_register_policy_transforms=True)
    for data in collector:
        with torch.no_grad():
            advantage(data)
        for _ in range(4):
            for chosen in torch.randperm(batch).chunk(2):
                losses = loss(data[chosen])
                optimizer.zero_grad()
                (losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]).backward()
                optimizer.step()
        curve.append(data["next", "reward"][data["next", "done"]].mean().item())
        print(f"frames {len(curve) * batch:>6}  reward {curve[-1]:.3f}", flush=True)
    return curve


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=6144)
    train(parser.parse_args().frames)
