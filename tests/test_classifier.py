"""Classifiers as scorers: a wanted label, and entailment by sentence, against transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from conftest import TEXT
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback.classifier import Classifier, Entailment, SequenceClassifier

NLI = {0: "ENTAILMENT", 1: "neutral", 2: "contradiction"}
LIMIT = 64


def make_classifier(folder: Path, labels: dict[int, str], **config: Any) -> str:
    """Save a random classifier of 16 hidden units, with a word-piece tokenizer trained here."""
    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special))
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=LIMIT,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    tokenizer.save_pretrained(folder)
    settings = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LIMIT,
        initializer_range=0.5,
        pad_token_id=0,
        id2label=labels,
        label2id={name: i for i, name in labels.items()},
        **config,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForSequenceClassification(settings).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def nli(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_classifier(tmp_path_factory.mktemp("nli"), NLI)


def naive(folder: str, *texts: str) -> np.ndarray:
    """The probabilities of one text, or pair, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**tokenizer(*texts, return_tensors="pt")).logits[0].softmax(-1).numpy()


def fresh(scorer: Any) -> Any:
    """The same scorer without what it remembers of other tests."""
    scorer.classifier = SequenceClassifier(scorer.classifier.model)
    return scorer


def episode(text: str, source: str = TEXT[0], **columns: Any) -> Episode:
    return Episode({"id": "a", **columns}, source=source, text=text)


def test_the_value_is_the_probability_of_the_label_whether_fixed_or_the_rows(nli):
    for k, label in NLI.items():
        expected = [naive(nli, text)[k] for text in TEXT]
        fixed = Classifier(nli, label=label.upper())([episode(text) for text in TEXT])
        named = Classifier(nli, column="mood")([episode(text, mood=label) for text in TEXT])
        assert fixed == pytest.approx(expected, abs=1e-5) == named
    total = np.sum([Classifier(nli, label=label)([episode(TEXT[0])]) for label in NLI.values()])
    assert total == pytest.approx(1) and Classifier(nli, label="neutral")([episode(" ")]) == [0.0]


def test_entailment_is_by_sentence_the_source_the_premise(nli):
    text = "The council met. Rain fell all night! She asked the team to send the figures."
    shares = [naive(nli, TEXT[0], s)[0] for s in ("The council met.", "Rain fell all night!", text[38:])]
    assert np.ptp(shares) > 1e-3
    assert Entailment(nli)([episode(text)]) == [pytest.approx(np.mean(shares), abs=1e-5)]
    assert Entailment(nli, combine="min")([episode(text)]) == [pytest.approx(min(shares), abs=1e-5)]
    assert Entailment(nli)([episode(""), episode("...")]) == [0.0, 0.0]


def test_a_text_scores_the_same_whatever_else_is_in_the_batch(nli):
    episodes = [episode(text, source) for source in TEXT for text in (*TEXT, "Rain. " * 5, "")]
    for scorer in (Classifier(nli, label="neutral"), Entailment(nli)):
        together = fresh(scorer)(episodes)
        assert together == pytest.approx([fresh(scorer)([e])[0] for e in episodes], abs=1e-5)
        assert fresh(scorer)(episodes[::-1])[::-1] == pytest.approx(together, abs=1e-5)


def test_of_a_source_too_long_the_best_stretch_counts_and_nothing_is_left_out(nli):
    source = " ".join(TEXT * 6)
    tokenizer = AutoTokenizer.from_pretrained(nli)
    ids = tokenizer(source, add_special_tokens=False)["input_ids"]
    claim = tokenizer("Rain fell.", add_special_tokens=False)["input_ids"]
    model = AutoModelForSequenceClassification.from_pretrained(nli).eval()
    room, stride = LIMIT - 3 - len(claim), LIMIT // 8
    shares = []
    for start in range(0, len(ids) - stride, room - stride):
        stretch = ids[start : start + room]
        row = [2, *stretch, 3, *claim, 3]
        kinds = [0] * (len(stretch) + 2) + [1] * (len(claim) + 1)
        with torch.no_grad():
            logits = model(torch.tensor([row]), token_type_ids=torch.tensor([kinds])).logits
        shares.append(logits[0].softmax(-1)[0].item())
    assert len(shares) > 3 and np.ptp(shares) > 1e-3
    assert fresh(Entailment(nli))([episode("Rain fell.", source)]) == [pytest.approx(max(shares), abs=1e-5)]
    (value,) = fresh(Classifier(nli, label="neutral"))([episode(source)])
    assert 0 < value < 1


def test_labels_that_do_not_exclude_each_other_have_their_own_probability(tmp_path):
    folder = make_classifier(tmp_path, {0: "rude", 1: "loud"}, problem_type="multi_label_classification")
    shares = [Classifier(folder, label=label)([episode(TEXT[1])])[0] for label in ("rude", "loud")]
    with torch.no_grad():
        tokens = AutoTokenizer.from_pretrained(folder)(TEXT[1], return_tensors="pt")
        logits = AutoModelForSequenceClassification.from_pretrained(folder).eval()(**tokens).logits
    assert shares == pytest.approx(logits[0].sigmoid().tolist(), abs=1e-5)


def test_a_classifier_without_padding_reads_texts_one_by_one(tiny_model, tmp_path):
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=3,
        max_position_embeddings=LIMIT,
        initializer_range=0.5,
        pad_token_id=None,
    )
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    found = SequenceClassifier(str(tmp_path))(TEXT)
    for text, shares in zip(TEXT, found, strict=True):
        assert shares == pytest.approx(naive(str(tmp_path), text), abs=1e-5)


def test_an_encoder_decoder_classifies_too(nli, tmp_path):
    config = BartConfig(
        vocab_size=120,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=LIMIT,
        init_std=0.5,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=3,
        forced_eos_token_id=3,
        id2label=NLI,
        label2id={name: i for i, name in NLI.items()},
    )
    BartForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(nli)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(tmp_path)
    values = Entailment(str(tmp_path))([episode(text) for text in TEXT])
    assert values == pytest.approx([naive(str(tmp_path), TEXT[0], text)[0] for text in TEXT], abs=1e-5)


def test_special_tokens_in_a_text_are_plain_characters(nli):
    plain, marked = (Classifier(nli, label="neutral")([episode(text)])[0] for text in ("Rain fell", "Rain[SEP]fell"))
    assert marked != pytest.approx(naive(nli, "Rain[SEP]fell")[1], abs=1e-6) and marked != plain


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda nli, lm: Classifier(nli), "either label=..., the wanted one, or column"),
        (lambda nli, lm: Classifier(nli, label="a", column="b"), "either label=..., the wanted one, or column"),
        (lambda nli, lm: Entailment(nli, combine="max"), "must be one of mean, min"),
        (lambda nli, lm: Classifier(nli, label="good")([episode("a")]), "no label 'good', only ENTAILMENT, neutral"),
        (lambda nli, lm: Classifier(nli, column="mood")([episode("a")]), "example 'a' names no label in 'mood'"),
        (lambda nli, lm: Classifier(lm, label="LABEL_0")([episode("a")]), "complete checkpoint of a sequence"),
        (lambda nli, lm: Entailment(nli)([episode("rain " * 60)]), "reads 64 tokens, and a sentence has"),
    ],
)
def test_a_mistake_is_one_line(nli, tiny_model, make, message):
    with pytest.raises(LLMGymError, match=message) as caught:
        make(nli, tiny_model)
    assert "\n" not in str(caught.value)
