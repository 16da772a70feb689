"""Agents: a language-model policy for Stable-Baselines3, and the algorithms language models need."""

from agents.buffer import SequenceRolloutBuffer
from agents.grpo import GRPO
from agents.policy import LLMPolicy
from agents.vec_env import GymVecEnv, make_vec_env

__all__ = ["GRPO", "GymVecEnv", "LLMPolicy", "SequenceRolloutBuffer", "make_vec_env"]
