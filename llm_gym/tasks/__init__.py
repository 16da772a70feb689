"""The tasks: one file each, with its prompt, data, default feedback and second judge."""

from llm_gym.tasks.base import Task, load_task

__all__ = ["Task", "load_task"]
