"""Attribution: of each speaker of a dialogue, does the text say what that speaker said?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_gym.episode import Episode
from llm_gym.feedback.base import Scorer
from llm_gym.feedback.memory import Memory
from llm_gym.feedback.speakers import claims, speaker_names, turns
from llm_gym.feedback.trained import read_config
from llm_gym.models.version import one_a_model, version

if TYPE_CHECKING:
    from llm_gym.models.attribution import Asked

WHO_SAID_WHAT = Path(__file__).parents[1] / "models" / "who-said-what"
"""The model that comes with the package; `make attribution` makes it."""
FORMAT = 1
"""Value of `llm_gym_attribution` in the config."""


class AttributionModel:
    """An encoder with an adapter, see `agents.attribution`, which remembers by dialogue and sentence.

    Args:
        folder: What `llm-gym feedback train-attribution` wrote.

    Attributes:
        config: What its `attribution.json` holds.

    Raises:
        LLMGymError: The folder is no attribution model, or one of another version.
    """

    def __init__(self, folder: str) -> None:
        self.folder, self.config = folder, _read_config(Path(folder))
        self._known = Memory(f"attribution/{version(folder)}/{version(self.config['model'])}")

    def __call__(self, asked: Sequence[Asked]) -> list[float]:
        """Return for each sentence the logit that it is about its speaker and not the others.

        Raises:
            LLMGymError: The encoder or the adapter cannot be loaded.
        """
        import torch

        from llm_gym.models.attribution import logits
        from llm_gym.models.load import load_tokenizer, shared_encoder

        known = {one: logit for one in asked if (logit := self._known.get(one)) is not None}
        if new := [one for one in dict.fromkeys(asked) if one not in known]:
            name = self.config["model"]
            with torch.no_grad():
                found = logits(load_tokenizer(name), shared_encoder(name, adapter=self.folder), new)
            for one, logit in zip(new, found.tolist(), strict=True):
                known[one] = self._known[one] = logit
        return [known[one] for one in asked]


@one_a_model
def attribution_model(folder: str) -> AttributionModel:
    """Return the process-wide model of a folder."""
    return AttributionModel(folder)


def asked_of(source: str, text: str) -> list[Asked | None]:
    r"""Return each clause of a text about a dialogue, with all that is said in it; None for one of no single speaker.

    Nothing is returned where the source is no dialogue.

    >>> source, text = "Ann: Is it far, Bob?\nBob: A mile.", "Ann asks Bob the way, but Bob is lame. It rains."
    >>> one, two, three = asked_of(source, text)
    >>> one
    Asked(turns=(('Ann', 'Is it far, Bob?'), ('Bob', 'A mile.')), speaker='Ann', sentence='Anna asks Ben the way')
    >>> two.speaker, two.sentence, three
    ('Bob', 'Anna is lame.', None)
    """
    from llm_gym.models.attribution import Asked

    if not (said := turns(source)):
        return []
    spoken = tuple((turn.speaker, turn.words) for turn in said)
    found = claims(text, said, speaker_names(text, said))
    return [claim and Asked(spoken, claim.speaker, claim.sentence) for claim in found]


def _read_config(folder: Path) -> dict[str, Any]:
    return read_config(folder, "attribution", FORMAT, "train-attribution")


class Attribution(Scorer):
    """How much better what the text says of each speaker of a dialogue fits that speaker than the others, −1 to 1.

    The source is a dialogue of lines such as `Ann: Is it far?`. Of each clause whose first name is a speaker's, a model
    tells the probability p that it is about what that one said and not the others; its value is 2p − 1, that of other
    clauses 0. The score is the mean over the clauses, 0 where there are none or the source is no dialogue.

    Args:
        path: Folder that `llm-gym feedback train-attribution` wrote; the bundled `who-said-what` if none is given.

    Raises:
        LLMGymError: The folder is no attribution model.
    """

    def __init__(self, path: str = str(WHO_SAID_WHAT)) -> None:
        self.model = attribution_model(str(Path(path).expanduser().absolute()))

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the scores."""
        asked = [asked_of(e.source, e.text) for e in episodes]
        logits = iter(self.model([one for group in asked for one in group if one]))
        values = [[math.tanh(next(logits) / 2) if one else 0.0 for one in group] for group in asked]
        return [sum(group) / max(1, len(group)) for group in values]
