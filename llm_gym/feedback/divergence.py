"""Divergence: how differently two language models would go on, all along the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback.base import Scorer
from llm_gym.feedback.likelihood import PROMPT, filled
from llm_gym.feedback.memory import shared
from llm_gym.models.version import version


class Divergence(Scorer):
    """Mean Kullback-Leibler divergence between two language models along the text, in nats per token; 0 if empty.

    Before each token of the text, both models have read the prompt and the text so far, and each has a distribution p
    of the next token. The value is the mean over the text's tokens of KL(p_model ‖ p_other): 0 where both agree, and
    never negative. With a policy as `model` and what it was trained from as `other`, it tells how far the policy has
    moved along the text, and as a cost keeps texts where it has not (Stiennon et al. 2020). It is exact at each place,
    over the whole vocabulary, where the log-ratio of the text's own token is only one sample.

    Args:
        model: Name of a causal language model.
        other: Name of another one, with the same tokenizer.
        adapter: Folder of a PEFT adapter on `model`, such as a run's.
        prompt: What the text is written after; `{source}` in it stands for the source, `{said}` for what the partner
            of a conversation said last.
    """

    def __init__(
        self, model: str = "smollm2-135m", other: str = "smollm2-135m", adapter: str | None = None, prompt: str = PROMPT
    ) -> None:
        if not prompt.strip():
            raise LLMGymError("prompt must say something: the first token of the text is predicted from it")
        if adapter is None and model == other:
            raise LLMGymError(f"model and other are both {model!r}, which never differs from itself; name another one")
        self.model, self.other, self.adapter, self.prompt = model, other, adapter, prompt
        versions = [version(name) for name in (model, other, adapter or "")]
        self._known = shared(f"divergence/{'/'.join(versions)}/{prompt}")

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return nats per token.

        Raises:
            LLMGymError: The models number tokens differently, or one cannot be loaded.
        """
        keys = [(filled(self.prompt, e.source, e.said), e.text) for e in episodes]
        known = {key: self._known[key] for key in keys if key in self._known}
        new: dict[str, dict[str, None]] = {}
        for context, text in keys:
            if text.strip() and (context, text) not in known:
                new.setdefault(context, {})[text] = None
        for context, texts in new.items():
            for text, value in zip(texts, self._measured(context, list(texts)), strict=True):
                known[context, text] = self._known[context, text] = value
        return [known[key] if key[1].strip() else 0.0 for key in keys]

    def _measured(self, context: str, texts: list[str]) -> Iterator[float]:
        from llm_gym.models.load import fingerprint, load_tokenizer
        from llm_gym.models.packing import Segment, read

        tokenizer = load_tokenizer(self.model)
        if fingerprint(tokenizer) != fingerprint(load_tokenizer(self.other)):
            raise LLMGymError(
                f"{self.model!r} and {self.other!r} number tokens differently, so that their distributions cannot be "
                "compared; name two models with the same tokenizer"
            )

        def encode(text: str) -> np.ndarray:
            return np.asarray(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"], int)

        head = encode(context)
        segments = [Segment(head, ids, np.ones(len(ids), bool)) for ids in (encode(f" {text}") for text in texts)]
        for pair in zip(read(self.model, segments, self.adapter), read(self.other, segments), strict=True):
            # Models often have more logits than the tokenizer has tokens.
            p, q = (logits[:, : len(tokenizer)].double().log_softmax(-1) for logits in pair)
            yield max(0.0, (p.exp() * (p - q)).sum(-1).mean().item())
