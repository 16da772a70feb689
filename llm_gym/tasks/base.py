"""What a task is: the words around the data, and who judges."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError


class Task:
    """A language task. Subclasses set the attributes; their docstring is the environment's page.

    Attributes:
        name: Short name, also of its bundled corpus.
        corpus: File of the bundled corpus under `llm_gym/data/corpora`, without `.jsonl`.
        required: Columns that every data row has.
        optional: Columns that a row may have.
        source_column: The column that the agent reads; a long one is cut to fit the prompt.
        reference_column: The column with a person's answer; only second judges read it.
        instruction: What the agent is asked to do.
        feedback: Default training feedback, a spec for `llm_gym.feedback.build`.
        judge: The second judge: a spec that may read the reference, and that training never sees.
        max_prompt_tokens: Default longest prompt.
        max_new_tokens: Default cap of a turn.
    """

    name: ClassVar[str]
    corpus: ClassVar[str]
    required: ClassVar[tuple[str, ...]]
    optional: ClassVar[tuple[str, ...]] = ()
    source_column: ClassVar[str]
    reference_column: ClassVar[str | None] = None
    instruction: ClassVar[str]
    feedback: ClassVar[dict[str, Any]]
    judge: ClassVar[dict[str, Any]]
    max_prompt_tokens: ClassVar[int] = 320
    max_new_tokens: ClassVar[int] = 48

    def messages(self, instruction: str, source: str) -> list[dict[str, str]]:
        """Return the chat that opens an episode."""
        return [{"role": "user", "content": f"{instruction}\n\n{source}"}]

    def plain(self, instruction: str, source: str) -> str:
        """Return the prompt for a base model that has no chat template."""
        return f"{instruction}\n\nText:\n{source}\n\nAnswer:"

    def source(self, example: dict[str, Any]) -> str:
        """Return what the agent reads of a data row."""
        return example[self.source_column]

    def episode(self, example: dict[str, Any], text: str, **fields: Any) -> Episode:
        """Return the record of `text` written for `example`; `fields` are further fields of `Episode`."""
        reference = example.get(self.reference_column) if self.reference_column else None
        return Episode(example, source=self.source(example), text=text, reference=reference, **fields)


def load_task(path: str) -> Task:
    """Return the task behind `module:class`.

    Raises:
        LLMGymError: The module or class does not exist, or is no `Task`.
    """
    module, _, name = path.partition(":")
    try:
        task = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise LLMGymError(f"task {path!r} cannot be loaded ({error}); expected 'package.module:TaskClass'") from error
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise LLMGymError(f"task {path!r} is not a subclass of llm_gym.tasks.Task")
    return task()
