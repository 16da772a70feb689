"""Gymnasium wrappers of text environments, in one place; those that need no language model live in `llm_gym.envs`."""

from agents.wrappers.hidden_state import HiddenStateObservation, VectorHiddenStateObservation
from agents.wrappers.kl_penalty import KLPenalty, VectorKLPenalty
from agents.wrappers.top_k import TopKActions, VectorTopKActions
from llm_gym.envs.record_texts import RecordTexts, VectorRecordTexts
from llm_gym.envs.shaping import PotentialShaping, VectorPotentialShaping
from llm_gym.envs.text_actions import TextActions, VectorTextActions

__all__ = [
    "HiddenStateObservation",
    "KLPenalty",
    "PotentialShaping",
    "RecordTexts",
    "TextActions",
    "TopKActions",
    "VectorHiddenStateObservation",
    "VectorKLPenalty",
    "VectorPotentialShaping",
    "VectorRecordTexts",
    "VectorTextActions",
    "VectorTopKActions",
]
