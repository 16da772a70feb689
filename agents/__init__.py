"""Agents: a language-model policy for Stable-Baselines3, and the algorithms language models need."""

from agents.a2c import A2C
from agents.buffer import SequenceRolloutBuffer
from agents.distillation import Distillation
from agents.dpo import DPO
from agents.dqn import DQN
from agents.grpo import GRPO
from agents.policy import LLMPolicy
from agents.ppo import PPO
from agents.q_policy import QPolicy
from agents.reinforce import REINFORCE
from agents.rloo import RLOO
from agents.sft import SFT
from agents.vec_env import GymVecEnv, make_vec_env

__all__ = [
    "A2C",
    "DPO",
    "DQN",
    "GRPO",
    "PPO",
    "REINFORCE",
    "RLOO",
    "SFT",
    "Distillation",
    "GymVecEnv",
    "LLMPolicy",
    "QPolicy",
    "SequenceRolloutBuffer",
    "make_vec_env",
]
