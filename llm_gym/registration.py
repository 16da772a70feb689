"""The table of environment ids, one row each."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

import gymnasium as gym

from llm_gym.errors import LLMGymError

if TYPE_CHECKING:
    from llm_gym.tasks import Task

ENVIRONMENTS: dict[str, str] = {
    "CustomerService-v0": "llm_gym.tasks.customer_service:CustomerService",
    "Dialogue-v0": "llm_gym.tasks.dialogue:Dialogue",
    "KnowledgeGraph-v0": "llm_gym.tasks.knowledge_graph:KnowledgeGraph",
    "QuestionAnswering-v0": "llm_gym.tasks.question_answering:QuestionAnswering",
    "Recommendation-v0": "llm_gym.tasks.recommendation:Recommendation",
    "Retrieval-v0": "llm_gym.tasks.retrieval:Retrieval",
    "SentimentMonitoring-v0": "llm_gym.tasks.sentiment:SentimentMonitoring",
    "Story-v0": "llm_gym.tasks.story:Story",
    "TextGeneration-v0": "llm_gym.tasks.generation:TextGeneration",
    "TextSummary-v0": "llm_gym.tasks.summary:TextSummary",
    "Translation-v0": "llm_gym.tasks.translation:Translation",
}
"""Environment id to the task behind it, as `module:class`. A task's docstring is its documentation page."""


def register_environments() -> None:
    """Register every row of `ENVIRONMENTS` with Gymnasium; entry points are strings, so specs serialise."""
    for env_id, task in ENVIRONMENTS.items():
        if env_id not in gym.registry:
            register(env_id, task)


def register(env_id: str, task: str) -> None:
    """Register a task with Gymnasium under `env_id`.

    Args:
        env_id: Such as `Headline-v0`.
        task: A subclass of `llm_gym.tasks.Task`, as `module:class`.
    """
    gym.register(
        id=env_id,
        entry_point="llm_gym.envs.text_env:TextEnv",
        vector_entry_point="llm_gym.envs.vector_env:TextVectorEnv",
        kwargs={"task": task},
    )


def find_task(env_id: str) -> Task:
    """Return the task behind a registered text environment; `module:id` imports the module first.

    Raises:
        LLMGymError: The id is unknown, or is no text environment.
    """
    from llm_gym.tasks import load_task

    module, _, name = env_id.rpartition(":")
    if not module and name not in gym.registry:
        near = difflib.get_close_matches(name, ENVIRONMENTS, 1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(ENVIRONMENTS)}"
        raise LLMGymError(f"unknown environment {env_id!r}: {hint}")
    try:
        if module:
            importlib.import_module(module)
        spec = gym.spec(name)
    except (ImportError, TypeError, gym.error.Error) as error:
        what = " ".join(str(error).split())
        raise LLMGymError(f"unknown environment {env_id!r} ({what}); expected 'module:Name-v0'") from error
    if "task" not in spec.kwargs:
        raise LLMGymError(f"{env_id!r} is no text environment; known are {', '.join(ENVIRONMENTS)}")
    return load_task(spec.kwargs["task"])
