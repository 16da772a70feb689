"""The vocabulary as an action space, and prompts: template, cutting, special tokens."""

from __future__ import annotations

import copy
import json
import pickle
import re

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_gym.envs.prompts import PromptBuilder
from llm_gym.envs.spaces import Vocabulary
from llm_gym.errors import LLMGymError
from llm_gym.models.load import load_tokenizer
from llm_gym.tasks.summary import TextSummary

TASK = TextSummary()
INSTRUCTION = "Summarize this."
SPECIAL = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>")
SOURCE = (
    "The ferry  leaves at nine.\n\nBring a coat, two sandwiches and — if you have one — a map; it is cold out there."
)


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model)


@pytest.fixture(scope="module")
def untemplated(tiny_model, tmp_path_factory):
    """The folder of the same tokenizer without a chat template."""
    folder = tmp_path_factory.mktemp("untemplated")
    tokenizer = copy.deepcopy(load_tokenizer(tiny_model))
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return str(folder)


def builder(tokenizer, template="chat", max_tokens=500, instruction=INSTRUCTION) -> PromptBuilder:
    return PromptBuilder(TASK, tokenizer, instruction, template, max_tokens)


def example(source: str) -> dict:
    return {"id": "a", "document": source}


def rendered(template: str, source: str) -> str:
    if template == "plain":
        return f"{INSTRUCTION}\n\nText:\n{source}\n\nAnswer:"
    return f"<|user|>{INSTRUCTION}\n\n{source}<|end|><|assistant|>"


# --- the action space ---------------------------------------------------------------------------------------


def vocabulary(fingerprint: str = "f") -> Vocabulary:
    return Vocabulary(7, "some-model", fingerprint, (2, 3))


def test_a_vocabulary_is_a_discrete_space_that_knows_its_tokenizer():
    space = vocabulary()
    assert isinstance(space, spaces.Discrete) and space.n == 7 and space.start == 0
    assert space.contains(6) and not space.contains(7)
    assert (space.tokenizer, space.fingerprint, space.stop_ids) == ("some-model", "f", (2, 3))
    assert batch_space(space, 3) == spaces.MultiDiscrete([7, 7, 7])


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copied_vocabulary_is_equal_and_keeps_what_it_knows(duplicate):
    space = vocabulary()
    other = duplicate(space)
    assert other == space and other.stop_ids == (2, 3) and other.fingerprint == "f"


def test_vocabularies_of_different_tokenizers_differ_and_a_plain_discrete_fits():
    assert vocabulary() != vocabulary("g")
    assert vocabulary() == spaces.Discrete(7) and spaces.Discrete(7) == vocabulary()
    assert vocabulary() != spaces.Discrete(8) and spaces.Discrete(7, start=1) != vocabulary()


def test_two_vocabularies_seeded_alike_sample_alike():
    one, other = vocabulary(), vocabulary()
    one.seed(5), other.seed(5)
    assert [one.sample() for _ in range(20)] == [other.sample() for _ in range(20)]


# --- prompts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_a_prompt_that_fits_is_the_template_around_the_source(tokenizer, template):
    ids, words_cut = builder(tokenizer, template)(example(SOURCE))
    assert ids.dtype == np.int32 and ids.ndim == 1 and words_cut == 0
    assert tokenizer.decode(ids) == rendered(template, SOURCE)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), template=st.sampled_from(["chat", "plain"]))
def test_a_long_source_is_cut_after_a_word_and_the_template_stays_whole(tokenizer, data, template):
    def size(source: str) -> int:
        return len(tokenizer(rendered(template, source), add_special_tokens=False)["input_ids"])

    words = data.draw(st.lists(st.text("abcé-.", min_size=1, max_size=6), min_size=1, max_size=15))
    gaps = data.draw(st.lists(st.sampled_from([" ", "\n\n", "  "]), min_size=len(words), max_size=len(words)))
    source = "".join(w + g for w, g in zip(words, gaps, strict=True)).rstrip()
    limit = data.draw(st.integers(size(""), size(source) + 2))
    ids, words_cut = builder(tokenizer, template, limit)(example(source))
    ends = [0, *(match.end() for match in re.finditer(r"\S+", source))]
    kept = len(words) - words_cut
    assert len(ids) <= limit
    assert tokenizer.decode(ids) == rendered(template, source[: ends[kept]])
    assert words_cut == 0 or size(source[: ends[kept + 1]]) > limit  # one word more would not fit


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_too_small_a_prompt_names_how_many_tokens_it_takes_empty(tokenizer, template):
    bare = len(tokenizer(rendered(template, ""), add_special_tokens=False)["input_ids"])
    assert builder(tokenizer, template, bare)(example(SOURCE)).words_cut == len(SOURCE.split())
    with pytest.raises(LLMGymError, match=f"max_prompt_tokens={bare - 1} is too small.* {bare} tokens"):
        builder(tokenizer, template, bare - 1)(example(SOURCE))


fragments = st.lists(st.sampled_from([*SPECIAL, "<|en", "d|>", "<|", "|>", "<", " ", "word", "\n", "end"]))


@settings(max_examples=150, deadline=None)
@given(pieces=fragments, template=st.sampled_from(["chat", "plain"]))
def test_a_document_cannot_write_special_tokens_into_the_prompt(tokenizer, pieces, template):
    build = builder(tokenizer, template)
    special = tokenizer.convert_tokens_to_ids(list(SPECIAL))

    def count(source: str) -> list[int]:
        ids = build(example(source)).ids
        return [int((ids == token).sum()) for token in special]

    assert count("".join(pieces)) == count("")


def test_the_words_around_a_written_out_special_token_stay(tokenizer):
    prompt = builder(tokenizer, "plain")(example("before<|end|>after"))
    assert tokenizer.decode(prompt.ids) == rendered("plain", "before after")


def test_the_same_example_gives_the_same_prompt(tokenizer):
    build = builder(tokenizer, max_tokens=60)
    one, other = build(example(SOURCE)), build(example(SOURCE))
    assert (one.ids == other.ids).all() and one.words_cut == other.words_cut > 0


def test_an_unknown_template_is_an_error(tokenizer):
    with pytest.raises(LLMGymError, match="template='jinja' is unknown.*'chat' or 'plain'"):
        builder(tokenizer, "jinja")


def test_a_tokenizer_without_a_chat_template_needs_the_plain_template(untemplated, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"document": SOURCE}) + "\n")
    kwargs = dict(tokenizer=untemplated, data=str(data), split="all", feedback="length", instruction=INSTRUCTION)
    with pytest.raises(LLMGymError, match="no chat template; pass template='plain'"):
        gym.make("TextSummary-v0", **kwargs)
    env = gym.make("TextSummary-v0", template="plain", **kwargs)
    observation, _ = env.reset(seed=0)
    prompt = observation["input_ids"][observation["roles"] == 1]
    assert env.unwrapped.tokenizer.decode(prompt) == rendered("plain", SOURCE)


def test_a_plain_prompt_is_not_closed_by_the_tokenizer(tokenizer):
    """T5-style tokenizers end every text with EOS, and Llama-style ones begin it with BOS."""
    from tokenizers.processors import TemplateProcessing

    closing = copy.deepcopy(tokenizer)
    bos, eos = ((token, tokenizer.convert_tokens_to_ids(token)) for token in ("<|user|>", tokenizer.eos_token))
    closing.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos[0]} $A {eos[0]}", special_tokens=[bos, eos]
    )
    assert closing("x")["input_ids"][-1] == eos[1]
    ids = builder(closing, "plain")(example(SOURCE)).ids
    assert ids[0] == bos[1] and ids[-1] != eos[1]
    assert closing.decode(ids[1:]) == rendered("plain", SOURCE)
