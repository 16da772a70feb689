"""Feedback: scorers that judge finished episodes, one family per file, composed by name."""

from llm_gym.feedback.base import PairwiseScorer, Score, Scorer
from llm_gym.feedback.compose import SCORERS, Composite, build

__all__ = ["SCORERS", "Composite", "PairwiseScorer", "Score", "Scorer", "build"]
