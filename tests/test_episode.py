"""The record of an episode, and its JSON."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_gym.episode import FINISH_REASONS, Episode

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
number = st.floats(allow_nan=False, allow_infinity=False)
ids = st.lists(st.integers(0, 2**31 - 1), max_size=8)


def array(dtype):
    return lambda values: np.asarray(values, dtype)


episodes = st.builds(
    Episode,
    example=st.fixed_dictionaries({"id": text, "document": text}, optional={"facts": st.lists(text, max_size=3)}),
    source=text,
    text=text,
    reference=st.none() | text,
    prompt_ids=ids.map(array(np.int32)),
    response_ids=ids.map(array(np.int32)),
    agent_mask=st.lists(st.booleans(), max_size=8).map(array(bool)),
    log_probs=st.none() | st.lists(st.floats(-50, 0, width=32), max_size=8).map(array(np.float32)),
    finish_reason=st.sampled_from(FINISH_REASONS),
    turns=st.lists(st.fixed_dictionaries({"role": text, "text": text}), max_size=2),
    reward=st.none() | number,
    parts=st.dictionaries(text, number, max_size=3),
    token_rewards=st.none() | st.lists(st.floats(-9, 9, width=32), max_size=8).map(array(np.float32)),
)


@given(episodes)
def test_an_episode_survives_json_exactly(episode):
    line = episode.to_json()
    assert "\n" not in line
    back = Episode.from_json(line)
    for field in fields(Episode):
        old, new = getattr(episode, field.name), getattr(back, field.name)
        if isinstance(old, np.ndarray):
            assert new.dtype == old.dtype and new.shape == old.shape and (new == old).all()
        else:
            assert type(new) is type(old) and new == old
    assert back.to_json() == line


def test_an_episode_made_of_texts_alone_has_empty_ids_and_no_score():
    episode = Episode({"id": "a"}, source="Rain fell.", text="It rained.")
    assert episode.prompt_ids.dtype == episode.response_ids.dtype == np.int32
    assert episode.agent_mask.dtype == bool
    assert len(episode.prompt_ids) == len(episode.response_ids) == len(episode.agent_mask) == 0
    assert episode.reward is None and episode.log_probs is None and episode.parts == {}


def test_two_episodes_share_no_arrays():
    one, other = (Episode({"id": "a"}, source="", text="") for _ in range(2))
    one.parts["x"] = 1.0
    assert other.parts == {} and one.response_ids is not other.response_ids


def test_what_is_no_episode_is_refused():
    with pytest.raises((TypeError, KeyError)):
        Episode.from_json("{}")
