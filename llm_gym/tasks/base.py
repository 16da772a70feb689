"""What a task is: the words around the data, and who judges."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

from llm_gym.choices import Choices
from llm_gym.data.hub import HubData
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
        reference_column: The column with a person's answer; only second judges read it, and training where the task is
            `verifiable`.
        instruction: What the agent is asked to do; `{column}` stands for the row's value of that column.
        feedback: Default training feedback, a spec for `llm_gym.feedback.build`.
        judge: The second judge: a spec that may read the reference, and that training never sees.
        verifiable: Whether the data's answers are a checkable ground truth, which training may read (reinforcement
            learning with verifiable reward). Where they are a person's free text, it must not.
        public: Well-known data sets by a short name; `data` takes that, or the hub's.
        worst: Score of a text that `choices` forbids, for a task that constrains its tokens: the least that the default
            feedback can give. Where another feedback gives the text even less, that counts.
        max_prompt_tokens: Default longest prompt.
        max_new_tokens: Default cap of a turn.
        max_turns: The most turns an agent can have; more than one makes the task a conversation.
        max_reply_tokens: Tokens that the context has for each reply of the partner.
        partners: Names of the partners that the task itself plays; where `script` is among them, a language model may
            speak in its place.
        partner: The one of them that plays.
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
    verifiable: ClassVar[bool] = False
    public: ClassVar[dict[str, HubData]] = {}
    worst: ClassVar[float] = 0.0
    max_prompt_tokens: ClassVar[int] = 320
    max_new_tokens: ClassVar[int] = 48
    max_turns: ClassVar[int] = 1
    max_reply_tokens: ClassVar[int] = 0
    partners: ClassVar[tuple[str, ...]] = ("script",)
    partner: str = "script"

    def check(self, example: dict[str, Any]) -> str | None:
        """Return what is wrong with a data row beyond the types of its columns, or None."""
        return None

    def instruct(self, instruction: str, example: dict[str, Any]) -> str:
        """Return the instruction for one row, each `{column}` replaced by the row's value."""
        for column in (*self.required, *self.optional):
            if isinstance(example.get(column), str):
                instruction = instruction.replace("{" + column + "}", example[column])
        return instruction

    def messages(self, instruction: str, source: str, example: dict[str, Any]) -> list[dict[str, str]]:
        """Return the chat that opens an episode."""
        return [{"role": "user", "content": f"{instruction}\n\n{source}"}]

    def plain(self, instruction: str, source: str, example: dict[str, Any]) -> str:
        """Return the prompt for a base model that has no chat template."""
        return f"{instruction}\n\nText:\n{source}\n\nAnswer:"

    @property
    def constrained(self) -> bool:
        """Whether the task constrains which tokens may be written."""
        return type(self).choices is not Task.choices

    def choices(self, example: dict[str, Any], turns: list[dict[str, str]]) -> Choices | None:
        """Return what the agent may write after `turns`, None for anything.

        The agent cannot see it but in what it is given: rows with the same prompt must have the same choices.
        """
        return None

    def opening(self, example: dict[str, Any]) -> list[dict[str, str]]:
        """Return what has been said when the agent's first turn begins: in a conversation, the partner's first line."""
        return []

    def speaker(self, turns: list[dict[str, str]]) -> str:
        """Return who replies to the last of `turns`: the `partner`, or another where the task itself answers.

        A language model speaks in the partner's place only.
        """
        return "partner"

    def reply(self, example: dict[str, Any], turns: list[dict[str, str]]) -> str | None:
        """Return what the partner says after `turns`, or None where the conversation is over."""
        return None

    def farewell(self, example: dict[str, Any], turns: list[dict[str, str]]) -> list[dict[str, str]]:
        """Return what else is said when a conversation is over; nobody answers it."""
        return []

    def source(self, example: dict[str, Any]) -> str:
        """Return what the agent reads of a data row."""
        return example[self.source_column]

    def reference(self, example: dict[str, Any]) -> str | None:
        """Return what a person wrote for a data row, if it has that."""
        return example.get(self.reference_column) if self.reference_column else None

    def reference_turn(self, example: dict[str, Any], turns: list[dict[str, str]]) -> str | None:
        """Return what a person would write after `turns`; what `agents.reference.ReferenceAgent` says."""
        return self.reference(example)

    def episode(self, example: dict[str, Any], text: str, **fields: Any) -> Episode:
        """Return the record of `text` written for `example`; `fields` are further fields of `Episode`."""
        return Episode(example, source=self.source(example), text=text, reference=self.reference(example), **fields)


def load_task(path: str) -> Task:
    """Return the task behind `module:class`.

    Raises:
        LLMGymError: The module or class does not exist, or is no `Task`.
    """
    module, _, name = path.partition(":")
    try:
        task = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise LLMGymError(f"task {path!r} cannot be loaded ({error}); expected 'package.module:TaskClass'") from error
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise LLMGymError(f"task {path!r} is not a subclass of llm_gym.tasks.Task")
    return task()
