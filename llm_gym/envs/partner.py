"""Who answers the agent in a conversation."""

from __future__ import annotations

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from llm_gym.envs.prompts import special_tokens
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback.memory import shared
from llm_gym.tasks import Task

BATCH = 16
REACTION_TOKENS = 20
KEY = "LLM_GYM_PARTNER_KEY"
SPECIAL = re.compile(r"<\|[^|>]*\|>|</?s>")  # what many tokenizers of servers take for more than text


class Partner(ABC):
    """Answers the turns of several conversations; what it says depends on nothing but the record."""

    @abstractmethod
    def __call__(self, turns: Sequence[Episode]) -> list[str | None]:
        """Return a reply to each turn, None where the partner has nothing left to say."""


class ScriptedPartner(Partner):
    """Says what the task's scenario has it say."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __call__(self, turns: Sequence[Episode]) -> list[str | None]:
        """Return the lines of the script."""
        return [self.task.reply(turn.example, turn.turns) for turn in turns]


class ReactingPartner(Partner):
    """Reacts through a language model, and then says what the scenario has it say.

    The model reads who the partner is, what it knows and the agent's words as a quotation; it sees neither the agent's
    instruction nor its briefing. It words the reaction only: which goal comes next is the scenario's business, so no
    words of the agent talk the partner out of its goals. Decoding is greedy, and what was said once is remembered.

    Args:
        task: The conversation.
        name: Under which the reactions are remembered.
        special: What is taken out of the agent's words before they are quoted.
    """

    def __init__(self, task: Task, name: str, special: re.Pattern[str]) -> None:
        self.task, self._special = task, special
        self._known = shared(f"reactions/{name}")

    def __call__(self, turns: Sequence[Episode]) -> list[str | None]:
        """Return a reaction and the script's line each; where it is not the partner who replies, the line alone."""
        lines = [self.task.reply(turn.example, turn.turns) for turn in turns]
        prompts = [
            None if line is None or self.task.speaker(turn.turns) != "partner" else self._prompt(turn)
            for turn, line in zip(turns, lines, strict=True)
        ]
        unknown = {prompt for prompt in prompts if prompt is not None and prompt not in self._known}
        new = sorted(unknown, key=lambda prompt: (len(prompt), prompt))
        for start in range(0, len(new), BATCH):
            batch = new[start : start + BATCH]
            for prompt, text in zip(batch, self._react(batch), strict=True):
                self._known[prompt] = _first_sentence(text)
        return [
            line if prompt is None else f"{self._known[prompt]} {line}".strip()
            for prompt, line in zip(prompts, lines, strict=True)
        ]

    def _chat(self, turn: Episode) -> list[dict[str, str]]:
        row = turn.example
        known = " ".join(row.get("facts") or ())
        system = f"You are {row['partner']}. {row['situation']} {known} You talk like this: {row['manner']}."
        heard = self._special.sub(" ", turn.turns[-1]["text"]).replace('"', "'")
        asked = (
            f'You asked: "{turn.said}" The other person answered: "{heard}"\n'
            "Say in a few words what you think of the answer. Ask nothing."
        )
        return [{"role": "system", "content": system}, {"role": "user", "content": asked}]

    @abstractmethod
    def _prompt(self, turn: Episode) -> str:
        """Return what the model is asked about a turn."""

    @abstractmethod
    def _react(self, prompts: list[str]) -> list[str]:
        """Return what the model says to each."""


class ModelPartner(ReactingPartner):
    """A `ReactingPartner` whose model runs here.

    Args:
        task: The conversation.
        model: Name of a causal language model with a chat template.

    Raises:
        LLMGymError: The model has no chat template.
    """

    def __init__(self, task: Task, model: str) -> None:
        from llm_gym.models.load import load_tokenizer

        self.model, self.tokenizer = model, load_tokenizer(model)
        if not self.tokenizer.chat_template:
            raise LLMGymError(
                f"partner={model!r} has no chat template, which a partner needs; choose an instruct model"
            )
        super().__init__(task, model, special_tokens(self.tokenizer))

    def _prompt(self, turn: Episode) -> str:
        return self.tokenizer.apply_chat_template(self._chat(turn), add_generation_prompt=True, tokenize=False)

    def _react(self, prompts: list[str]) -> list[str]:
        import torch

        from llm_gym.models.load import shared_causal_lm, stop_ids

        model = shared_causal_lm(self.model, dtype="float32")
        rows = [self.tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
        width = max(map(len, rows))
        stops = stop_ids(self.model, self.tokenizer)
        ids = torch.full((len(rows), width), stops[0])
        seen = torch.zeros(len(rows), width, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, width - len(row) :] = torch.tensor(row)
            seen[i, width - len(row) :] = 1
        with torch.no_grad():
            out = model.generate(
                ids.to(model.device),
                attention_mask=seen.to(model.device),
                max_new_tokens=REACTION_TOKENS,
                do_sample=False,
                eos_token_id=list(stops),
                pad_token_id=stops[0],
            )
        return self.tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)


class RemotePartner(ReactingPartner):
    """A `ReactingPartner` whose model answers behind an OpenAI-compatible endpoint.

    A key that the server wants is read from the environment variable `LLM_GYM_PARTNER_KEY`.

    Args:
        task: The conversation.
        address: Address and model, such as `http://127.0.0.1:8000/v1#my-model`.

    Raises:
        LLMGymError: The address names no model, or is none. While it speaks, an `EndpointError` if there is no answer
            within two minutes.
    """

    def __init__(self, task: Task, address: str) -> None:
        from llm_gym.models.endpoint import Endpoint, with_model

        place, model = with_model("partner", address, KEY)
        self.server = Endpoint(place, model, KEY if os.environ.get(KEY) else None)
        super().__init__(task, address, SPECIAL)

    def _prompt(self, turn: Episode) -> str:
        return json.dumps(self._chat(turn))

    def _react(self, prompts: list[str]) -> list[str]:
        def ask(client: Any, prompt: str, gone: Any) -> str:
            body = {"model": self.server.model, "messages": json.loads(prompt), "temperature": 0}
            return self.server.content(client, {**body, "max_tokens": REACTION_TOKENS}, gone)

        return self.server.each(ask, prompts)


def _first_sentence(text: str) -> str:
    """Return the first whole sentence of a model's text, if it is a statement.

    >>> _first_sentence(' "That is good news! I hoped')
    'That is good news!'
    """
    found = re.match(r"[^.!?\n]*[.!]", " ".join(text.replace('"', "").split()))
    return found.group() if found else ""


def make_partner(name: str | None, task: Task) -> Partner:
    """Return the partner behind a name: one that the task plays, by default its first, else a language model.

    A name with `://` in it is the address of an endpoint and a model, another one a model's on this machine.

    Raises:
        LLMGymError: The model cannot be a partner, or the task takes none.
    """
    if name is None or name in task.partners:
        task.partner = name or task.partner
        return ScriptedPartner(task)
    if "script" not in task.partners:
        raise LLMGymError(f"partner={name!r} is unknown; {task.name!r} has {', '.join(task.partners)}")
    return RemotePartner(task, name) if "://" in name else ModelPartner(task, name)
