"""Training a preference model: from texts of which one is better to a folder that the scorer `preference` reads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from agents.lora import round_adapters, save_adapters, with_adapters
from agents.losses import bradley_terry
from agents.saving import folder_aside
from llm_gym.data.files import new_file, whole_path
from llm_gym.errors import LLMGymError, positive
from llm_gym.feedback.human import Judgements
from llm_gym.feedback.pairs import about
from llm_gym.feedback.preference import FORMAT, HEAD, segments
from llm_gym.feedback.rules import words
from llm_gym.feedback.trained import origin, write_config
from llm_gym.models.load import load_causal_lm, load_tokenizer
from llm_gym.models.packing import check_attention, check_length, hidden_states, pack
from llm_gym.statistics import Statistic, by_document, ratio

RANK = 8
LEARNING_RATE = 1e-3
BATCH = 4  # documents in an update
HELD_OUT = 0.2  # of the documents


@dataclass(frozen=True)
class Document:
    """What is known of the texts about one source.

    Attributes:
        source: What they are about.
        texts: The texts, each once.
        better: int `(comparisons, 2)`: places of two texts, the better one first.
    """

    source: str
    texts: tuple[str, ...]
    better: np.ndarray


def documents(data: Judgements) -> list[Document]:
    """Return the documents of a file of judgements in which a text is better than another."""
    compared = data.overall
    owners = data.documents[compared[:, 0]]
    found = []
    for owner in range(int(data.documents.max()) + 1):
        pairs = [(data.episodes[b], data.episodes[w]) for b, w in compared[owners == owner]]
        places: dict[str, int] = {}
        better = [
            [places.setdefault(e.text, len(places)) for e in pair] for pair in pairs if pair[0].text != pair[1].text
        ]
        if better:
            found.append(Document(about(pairs[0][0]), tuple(places), np.array(better)))
    return found


class About(Protocol):
    """What is about a source."""

    @property
    def source(self) -> str:
        """The source."""


T = TypeVar("T", bound=About)


def held_out(found: Sequence[T]) -> tuple[list[T], list[T]]:
    """Divide what there is to learn from into what to train on and what is held out, by the rank of a hash of sources.

    Raises:
        LLMGymError: There are fewer than two sources.
    """
    if len(found) < 2:
        raise LLMGymError(
            f"there is something to learn from {len(found)} of the documents; give at least 2, one to be held out"
        )
    ranked = sorted(found, key=lambda document: hashlib.sha256(document.source.encode()).digest())
    count = max(1, round(HELD_OUT * len(ranked)))
    return ranked[count:], ranked[:count]


class RewardModel(nn.Module):
    """A causal language model with LoRA adapters and a scalar head, in float32.

    Args:
        model: Name of a causal language model.
        seed: Of the adapters.
    """

    def __init__(self, model: str, seed: int = 0) -> None:
        super().__init__()
        self.name, self.tokenizer = model, load_tokenizer(model)
        causal = load_causal_lm(model, dtype="float32")
        check_attention(causal.config, model)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.lm = with_adapters(causal, model, RANK).eval()
            self.head = nn.Linear(causal.config.hidden_size, 1).to(causal.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def rewards(self, document: Document) -> torch.Tensor:
        """Return the reward of each text of a document, `(texts,)`, with gradient; its source is read once.

        Raises:
            LLMGymError: A text is too long for the model.
        """
        branches = segments(self.tokenizer, document.source, document.texts)
        causal: Any = self.lm.get_base_model()
        check_length(causal.config, self.name, branches)
        return self.head(hidden_states(causal, pack(branches).to(causal.device)))[:, 0]

    @property
    def trained(self) -> list[nn.Parameter]:
        """The weights that are trained."""
        return [p for p in self.parameters() if p.requires_grad]

    def save(self, folder: Path, config: dict[str, Any]) -> None:
        """Write adapters, head and config into an existing folder."""
        save_adapters(self.lm, folder)
        head = {"weight": self.head.weight.detach()[0], "bias": self.head.bias.detach()}
        save_file({name: value.cpu().contiguous() for name, value in head.items()}, folder / HEAD)
        write_config(folder, "preference", config)


def train_preference(
    data: Judgements,
    out: str | Path,
    model: str = "smollm2-135m",
    epochs: int = 3,
    steps: int | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train a preference model, measure it on documents held out, and write its folder, whole or not at all.

    Args:
        data: Which texts are better than others about the same document.
        out: The folder.
        model: Name of the base model.
        epochs: How often each document is trained on.
        steps: Stop after so many updates; None for all of the epochs.
        seed: Of the adapters, and of the order of documents.
        say: Told how it goes, a line at a time.

    Returns:
        What the folder's config holds: among it `held_out`, the share of comparisons of documents not trained on in
        which the better text has the higher reward, `accuracy`, and of these what a rule that likes the longer text
        would get, `longer`, each with a 95 % interval.

    Raises:
        LLMGymError: The folder exists, there is too little data, or a text is too long for the model.
    """
    target = new_file(out)
    epochs, steps = positive("epochs", epochs), None if steps is None else positive("steps", steps)
    train, test = held_out(documents(data))
    name = whole_path(model)
    rewards = RewardModel(name, seed)
    say(f"{len(train)} documents to train on, {len(test)} held out")
    updates = _learn(rewards, train, epochs, steps, seed, say)
    config = {
        **origin("preference", FORMAT, name),
        "seed": seed,
        "rank": RANK,
        "learning_rate": LEARNING_RATE,
        "batch": BATCH,
        "updates": updates,
        "documents": len(train),
        "comparisons": sum(len(document.better) for document in train),
        "held_out": _measure(rewards, test),
    }
    with folder_aside(target) as aside:
        rewards.save(aside, config)
    return config


def _learn(
    model: RewardModel,
    train: Sequence[Document],
    epochs: int,
    steps: int | None,
    seed: int,
    say: Callable[[str], None],
) -> int:
    """Train and return the number of updates; the learning rate falls to nought over them."""
    batches = list(in_batches(train, BATCH, epochs, seed))[:steps]
    optimiser = torch.optim.AdamW(model.trained, lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda done: 1 - done / len(batches))
    for number, batch in enumerate(batches, 1):
        optimiser.zero_grad()
        losses = []
        for document in batch:
            better, worse = model.rewards(document)[torch.as_tensor(document.better)].T
            loss = bradley_terry(better, worse).mean()  # a document counts once, however many texts it has
            (loss / len(batch)).backward()
            losses.append(loss.item())
        nn.utils.clip_grad_norm_(model.trained, 1.0)
        optimiser.step()
        schedule.step()
        say(f"update {number} of {len(batches)} · loss {np.mean(losses):.3f}")
    round_adapters(model.lm)
    return len(batches)


def in_batches(train: Sequence[T], size: int, epochs: int, seed: int) -> Iterator[list[T]]:
    """Yield documents in another order each epoch, `size` at a time."""
    random = np.random.default_rng(seed)
    for _ in range(epochs):
        order = random.permutation(len(train))
        for start in range(0, len(order), size):
            yield [train[place] for place in order[start : start + size]]


def _measure(model: RewardModel, test: Sequence[Document]) -> dict[str, Any]:
    """Return how well the rewards tell documents held out, and make their mean 0, which no difference changes."""
    with torch.no_grad():
        rewards = [model.rewards(document).double().cpu().numpy() for document in test]
        model.head.bias.sub_(float(np.mean(np.concatenate(rewards))))
    return measured(rewards, test)


def measured(rewards: Sequence[np.ndarray], test: Sequence[Document]) -> dict[str, Any]:
    """Return how well the rewards of each document's texts tell the better ones, and how well their lengths do."""
    lengths = [np.array([len(words(text)) for text in document.texts]) for document in test]
    return {
        "documents": len(test),
        "comparisons": sum(len(document.better) for document in test),
        "accuracy": asdict(_accuracy(rewards, test).estimate()),
        "longer": asdict(_accuracy(lengths, test).estimate()),
    }


def _accuracy(values: Sequence[np.ndarray], test: Sequence[Document]) -> Statistic:
    """Return in what share of the comparisons the better text has the higher value."""
    return share_right([v[d.better[:, 0]] - v[d.better[:, 1]] for v, d in zip(values, test, strict=True)])


def share_right(gaps: Sequence[np.ndarray]) -> Statistic:
    """Return what share of the gaps of some documents is above 0; one of 0 is half a hit."""
    owners = np.repeat(np.arange(len(gaps)), [len(gap) for gap in gaps])
    hits = (np.sign(np.concatenate(gaps)) + 1) / 2
    sums = by_document(np.stack([hits, np.ones(len(hits))], -1), owners)
    return ratio(sums[:, 0], sums[:, 1], (0.0, 1.0))
