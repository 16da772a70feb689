"""The documents that tasks are made of: bundled corpora, and files of the user's own."""

from llm_gym.data.files import read_rows
from llm_gym.data.source import SPLITS, Row, load_examples, read_examples

__all__ = ["SPLITS", "Row", "load_examples", "read_examples", "read_rows"]
