"""The tasks: one file each, with its prompt, data, default feedback and second judge."""

from llm_gym.tasks.base import Public, Task, load_task

__all__ = ["Public", "Task", "load_task"]
