"""The project's own tokenizer and its random model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_gym.errors import LLMGymError
from llm_gym.models import bundled
from llm_gym.models.load import fingerprint, load_causal_lm, load_tokenizer, stop_ids


def test_the_checked_in_tokenizer_is_what_the_command_trains(tmp_path: Path) -> None:
    bundled.train_tokenizer(tmp_path)
    for file in bundled.SP_1K.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), f"run python -m llm_gym.models.bundled: {file}"


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=60))
def test_any_text_round_trips(text: str) -> None:
    tokenizer = load_tokenizer("sp-1k")
    assert len(tokenizer) == 1000
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids).lstrip(" ") == text.lstrip(" ")


def test_the_random_model_is_the_same_each_time_and_speaks_the_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = []
    for name in ("one", "two"):
        monkeypatch.setenv("LLM_GYM_CACHE", str(tmp_path / name))
        state = torch.random.get_rng_state()
        weights.append(load_causal_lm("tiny-1k").state_dict())
        assert (torch.random.get_rng_state() == state).all()  # the global generator is left alone
        (folder,) = (tmp_path / name / "models").iterdir()
        assert folder.name.startswith("tiny-1k")
        assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # users may share a cache
    assert all((value == weights[1][key]).all() for key, value in weights[0].items())
    assert 3e6 < sum(value.numel() for value in weights[0].values()) < 8e6
    assert fingerprint(load_tokenizer("tiny-1k")) == fingerprint(load_tokenizer("sp-1k"))
    assert stop_ids("tiny-1k", load_tokenizer("tiny-1k")) == stop_ids("sp-1k", load_tokenizer("sp-1k")) == (2,)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("LLM_GYM_CACHE", str(tmp_path / "file"))
    with pytest.raises(LLMGymError, match="tiny-1k cannot be stored in the cache .*file.*; set LLM_GYM_CACHE"):
        load_causal_lm("tiny-1k")
