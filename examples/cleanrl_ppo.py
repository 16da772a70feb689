"""PPO in one file, after the manner of CleanRL, on token-level environments of llm_gym.

    python examples/cleanrl_ppo.py --env-id llm_gym.tasks.ladder:CopySymbol-v0 --total-timesteps 60000

Nothing of `agents` is in it: a policy of your own (here an embedding and a GRU, from scratch) reads token ids, and an
action is the id of the next token. Prints the mean return of each update's finished episodes.
"""

from __future__ import annotations

import argparse
import time

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical

import llm_gym  # noqa: F401  (registers the ids)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="llm_gym.tasks.ladder:CopySymbol-v0")
    parser.add_argument("--tokenizer", default="sp-1k")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--total-timesteps", type=int, default=60_000)
    parser.add_argument("--num-envs", type=int, default=128)
    parser.add_argument("--num-steps", type=int, default=8)
    parser.add_argument("--num-minibatches", type=int, default=4)
    parser.add_argument("--update-epochs", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--gae-lambda", type=float, default=0.95)
    parser.add_argument("--clip-coef", type=float, default=0.2)
    parser.add_argument("--ent-coef", type=float, default=0.01)
    parser.add_argument("--vf-coef", type=float, default=0.5)
    parser.add_argument("--max-grad-norm", type=float, default=0.5)
    return parser.parse_args(argv)


class Agent(nn.Module):
    """An embedding of ids and of who wrote them, a GRU over the text so far, and two heads."""

    def __init__(self, vocabulary: int, size: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, size)
        self.roles = nn.Embedding(3, size)
        self.gru = nn.GRU(size, size, batch_first=True)
        self.actor = nn.Linear(size, vocabulary)
        self.critic = nn.Linear(size, 1)
        nn.init.orthogonal_(self.actor.weight, 0.01)
        nn.init.zeros_(self.actor.bias)

    def forward(self, input_ids: torch.Tensor, roles: torch.Tensor) -> tuple[Categorical, torch.Tensor]:
        """Return the distribution of the next token and the value, for ids and roles (N, C), padded on the right."""
        last = (roles > 0).sum(1) - 1
        longest = int(last.max()) + 1
        hidden, _ = self.gru(self.tokens(input_ids[:, :longest]) + self.roles(roles[:, :longest]))
        state = hidden[torch.arange(len(last)), last]
        return Categorical(logits=self.actor(state)), self.critic(state).squeeze(1)


def as_tensors(obs: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and roles (N, C)."""
    return torch.from_numpy(obs["input_ids"]).long(), torch.from_numpy(obs["roles"]).long()


def train(args: argparse.Namespace) -> list[float]:
    """Train from scratch; return the mean return of the episodes that ended in each update."""
    torch.manual_seed(args.seed)
    generator = np.random.default_rng(args.seed)
    envs = gym.make_vec(
        args.env_id,
        num_envs=args.num_envs,
        autoreset_mode="SameStep",  # a finished row holds the next prompt at once, as the advantages below expect
        tokenizer=args.tokenizer,
        template="plain",
        split="all",
    )
    assert isinstance(envs.single_action_space, gym.spaces.Discrete)
    agent = Agent(int(envs.single_action_space.n))
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)

    steps, rows = args.num_steps, args.num_envs
    context = envs.single_observation_space["input_ids"].shape[0]
    ids = torch.zeros(steps, rows, context, dtype=torch.long)
    roles = torch.zeros(steps, rows, context, dtype=torch.long)
    actions = torch.zeros(steps, rows, dtype=torch.long)
    logprobs, rewards, dones, values = (torch.zeros(steps, rows) for _ in range(4))

    obs, _ = envs.reset(seed=args.seed)
    returns = np.zeros(rows)
    curve: list[float] = []
    start, batch = time.time(), steps * rows
    for update in range(1, args.total_timesteps // batch + 1):
        finished = []
        for step in range(steps):
            ids[step], roles[step] = as_tensors(obs)
            with torch.no_grad():
                distribution, values[step] = agent(ids[step], roles[step])
                actions[step] = distribution.sample()
                logprobs[step] = distribution.log_prob(actions[step])
            obs, reward, terminated, truncated, _ = envs.step(actions[step].numpy())
            done = terminated | truncated
            rewards[step], dones[step] = torch.from_numpy(reward), torch.from_numpy(done)
            returns += reward
            finished.extend(returns[done])
            returns[done] = 0

        with torch.no_grad():
            _, following = agent(*as_tensors(obs))
            advantages, carried = torch.zeros_like(rewards), torch.zeros(rows)
            for step in reversed(range(steps)):  # undiscounted: a token is as much part of the text as the last one
                goes_on = 1.0 - dones[step]
                delta = rewards[step] + goes_on * following - values[step]
                carried = delta + args.gae_lambda * goes_on * carried
                advantages[step], following = carried, values[step]
            targets = advantages + values

        flat = [x.flatten(0, 1) for x in (ids, roles, actions, logprobs, advantages, targets)]
        for _ in range(args.update_epochs):
            order = torch.from_numpy(generator.permutation(batch))
            for chosen in order.chunk(args.num_minibatches):
                b_ids, b_roles, b_actions, b_logprobs, b_advantages, b_targets = (x[chosen] for x in flat)
                distribution, value = agent(b_ids, b_roles)
                ratio = (distribution.log_prob(b_actions) - b_logprobs).exp()
                scaled = (b_advantages - b_advantages.mean()) / (b_advantages.std() + 1e-8)
                clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
                policy_loss = -torch.min(scaled * ratio, scaled * clipped).mean()
                value_loss = 0.5 * (value - b_targets).square().mean()
                loss = policy_loss + args.vf_coef * value_loss - args.ent_coef * distribution.entropy().mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()

        curve.append(float(np.mean(finished)) if finished else float("nan"))
        speed = int(update * batch / (time.time() - start))
        print(f"global_step {update * batch:>7}  episodic_return {curve[-1]:.3f}  SPS {speed}", flush=True)
    envs.close()
    return curve


if __name__ == "__main__":
    train(parse_args())
