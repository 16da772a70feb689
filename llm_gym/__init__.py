"""Language tasks as Gymnasium environments: a step emits one token, the reward is AI feedback.

Importing this package registers the environments and loads neither torch nor transformers.

>>> import gymnasium as gym, llm_gym
>>> "TextSummary-v0" in gym.registry
True
"""

from __future__ import annotations

from llm_gym.errors import LLMGymError
from llm_gym.registration import ENVIRONMENTS, register, register_environments

__version__ = "0.1.0"
__all__ = ["ENVIRONMENTS", "LLMGymError", "__version__", "register"]

register_environments()
