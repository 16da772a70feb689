"""Training an attribution model: from dialogues and texts about them to a folder that `attribution` reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from agents.lora import round_adapters, save_adapters, with_adapters
from agents.preference import held_out, in_batches, share_right
from agents.saving import folder_aside
from llm_gym.data.files import new_file, whole_path
from llm_gym.errors import LLMGymError, positive
from llm_gym.feedback.attribution import FORMAT, asked_of
from llm_gym.feedback.trained import origin, write_config
from llm_gym.models.attribution import Asked, logits
from llm_gym.models.load import load_encoder, load_tokenizer

RANK = 16
DROPOUT = 0.05
LEARNING_RATE = 5e-4
WARM_UP = 20  # updates
BATCH = 8  # dialogues in an update


@dataclass(frozen=True)
class Dialogue:
    """A dialogue, and what the text about it says of single speakers."""

    source: str
    asked: tuple[Asked, ...]


def dialogues(pairs: Iterable[tuple[str, str]]) -> list[Dialogue]:
    """Return what there is to learn from, of pairs of a dialogue and a text about it.

    Raises:
        LLMGymError: There is nothing.
    """
    every = [(source, tuple(one for one in asked_of(source, text) if one)) for source, text in pairs]
    found = [Dialogue(source, asked) for source, asked in every if asked]
    if not found:
        raise LLMGymError(
            "no text says anything of a speaker of its dialogue; documents must be lines such as 'Ann: Is it far?', "
            "and summaries sentences such as 'Ann asks the way.'"
        )
    return found


class AttributionNetwork(nn.Module):
    """An encoder with LoRA adapters, in float32.

    Args:
        model: Name of an encoder.
        seed: Of the adapters.
    """

    def __init__(self, model: str, seed: int = 0) -> None:
        super().__init__()
        self.name, self.tokenizer = model, load_tokenizer(model)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.encoder = with_adapters(load_encoder(model), model, RANK, DROPOUT, task_type=None)

    def logits(self, found: Iterable[Dialogue]) -> torch.Tensor:
        """Return for each sentence of some dialogues the logit that it is about its speaker, `(n,)`."""
        return logits(self.tokenizer, self.encoder, [one for dialogue in found for one in dialogue.asked])

    @property
    def trained(self) -> list[nn.Parameter]:
        """The weights that are trained."""
        return [p for p in self.parameters() if p.requires_grad]

    def save(self, folder: Path, config: dict[str, Any]) -> None:
        """Write adapters and config into an existing folder."""
        save_adapters(self.encoder, folder)
        write_config(folder, "attribution", config)


def train_attribution(
    pairs: Iterable[tuple[str, str]],
    out: str | Path,
    model: str = "minilm-l6",
    epochs: int = 3,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train an attribution model, measure it on dialogues held out, and write its folder, whole or not at all.

    A sentence of a text is right of the speaker it names, and would be wrong of the others: that is all there is to
    learn from, and no text has to be made wrong.

    Args:
        pairs: Dialogues, lines such as `Ann: Is it far?`, each with a text about it.
        out: The folder.
        model: Name of the encoder.
        epochs: How often each dialogue is trained on.
        seed: Of the adapters, of dropout, and of the order of dialogues.
        say: Told how it goes, a line at a time.

    Returns:
        What the folder's config holds: among it `held_out`, the share of the sentences about dialogues not trained on
        that fit their speaker best, `accuracy`, with a 95 % interval.

    Raises:
        LLMGymError: The folder exists, or there is too little data.
    """
    target = new_file(out)
    train, test = held_out(dialogues(pairs))
    name = whole_path(model)
    network = AttributionNetwork(name, seed)
    say(f"{len(train)} dialogues to train on, {len(test)} held out")
    updates = _learn(network, train, positive("epochs", epochs), seed, say)
    config = {
        **origin("attribution", FORMAT, name),
        "seed": seed,
        "rank": RANK,
        "learning_rate": LEARNING_RATE,
        "batch": BATCH,
        "updates": updates,
        "dialogues": len(train),
        "sentences": sum(len(dialogue.asked) for dialogue in train),
        "held_out": _measure(network, test),
    }
    with folder_aside(target) as aside:
        network.save(aside, config)
    return config


def _learn(
    network: AttributionNetwork, train: list[Dialogue], epochs: int, seed: int, say: Callable[[str], None]
) -> int:
    """Train and return the number of updates; the learning rate rises over the first and falls to nought."""
    batches = list(in_batches(train, BATCH, epochs, seed))
    optimiser = torch.optim.AdamW(network.trained, lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda done: min(1, (done + 1) / WARM_UP) * (1 - done / len(batches))
    )
    network.train()
    with torch.random.fork_rng():  # of dropout
        torch.manual_seed(seed)
        for number, batch in enumerate(batches, 1):
            optimiser.zero_grad()
            loss = nn.functional.softplus(-network.logits(batch)).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(network.trained, 1.0)
            optimiser.step()
            schedule.step()
            say(f"update {number} of {len(batches)} · loss {loss.item():.3f}")
    network.eval()
    round_adapters(network.encoder)
    return len(batches)


def _measure(network: AttributionNetwork, test: list[Dialogue]) -> dict[str, Any]:
    """Return how well the speakers of sentences about dialogues held out are told."""
    with torch.no_grad():
        found = [network.logits([dialogue]).cpu().numpy() for dialogue in test]
    accuracy = share_right(found).estimate()
    return {"dialogues": len(test), "sentences": sum(map(len, found)), "accuracy": asdict(accuracy)}
