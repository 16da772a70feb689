from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from llm_gym.models import packing
from llm_gym.models.packing import Segment, pack, passes

QUICK = settings(max_examples=25, deadline=None, database=None, derandomize=True)


@pytest.fixture(scope="module")
def model(tiny_model: str):
    return AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="sdpa").eval()


def segment(context: list[int], ids: list[int], trained: list[int] | None = None) -> Segment:
    flags = np.ones(len(ids), bool) if trained is None else np.asarray(trained, bool)
    return Segment(np.asarray(context, np.int32), np.asarray(ids, np.int32), flags)


def packed_logits(model, packed):
    hidden = model.model(
        input_ids=packed.input_ids, attention_mask=packed.mask, position_ids=packed.position_ids, use_cache=False
    ).last_hidden_state
    return model.lm_head(hidden[packed.rows, packed.columns])


def separate_logits(model, segments):
    found = []
    for s in segments:
        whole = torch.from_numpy(np.concatenate([s.context, s.ids])[None].astype(np.int64))
        logits = model(whole, use_cache=False).logits[0, len(s.context) - 1 : -1]
        found.append(logits[torch.from_numpy(s.trained)])
    return torch.cat(found)


tokens = st.lists(st.integers(0, 300), min_size=1, max_size=7)
segments_strategy = st.lists(
    st.tuples(st.sampled_from([[5, 6, 7], [5, 6], [9], [8, 8, 8, 8, 8, 8]]), tokens, st.integers(0, 2**7 - 1)),
    min_size=1,
    max_size=8,
)


@QUICK
@given(drawn=segments_strategy)
def test_a_packed_pass_equals_separate_passes(model, drawn) -> None:
    segments = [segment(c, ids, [mask >> i & 1 for i in range(len(ids))]) for c, ids, mask in drawn]
    packed = pack(segments)
    with torch.no_grad():
        torch.testing.assert_close(packed_logits(model, packed), separate_logits(model, segments), atol=1e-5, rtol=1e-5)
    assert packed.targets.tolist() == [int(i) for s in segments for i in s.ids[s.trained]]


def test_gradients_of_a_packed_pass_equal_those_of_separate_passes(model) -> None:
    segments = [
        segment([1, 2, 3], [4, 5, 6, 7]),
        segment([1, 2, 3], [4, 9], [0, 1]),
        segment([7], [1, 2, 3], [1, 0, 1]),
    ]
    targets = pack(segments).targets
    grads = []
    for logits in (packed_logits(model, pack(segments)), separate_logits(model, segments)):
        model.zero_grad()
        torch.nn.functional.cross_entropy(logits, targets).backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for left, right in zip(*grads, strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-4)
    assert max(g.abs().max() for g in grads[0]) > 1e-3


def test_a_shared_context_is_stored_once() -> None:
    context = list(range(100))
    packed = pack([segment(context, [1, 2, 3]) for _ in range(8)])
    assert packed.input_ids.shape == (1, 100 + 8 * 2)  # the last token of a branch is predicted, never read
    assert packed.tokens == 116


def test_branches_do_not_see_each_other() -> None:
    mask = pack([segment([1, 2], [3, 4, 5]), segment([1, 2], [6, 7, 8])]).mask[0, 0]
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]


def test_positions_count_within_the_own_sequence() -> None:
    packed = pack([segment([1, 2], [3, 4, 5]), segment([1, 2], [6, 7, 8])])
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 2, 3]]


def test_a_full_row_is_followed_by_another_with_the_same_context(model, monkeypatch) -> None:
    monkeypatch.setattr(packing, "ROW_TOKENS", 10)
    segments = [segment([1, 2, 3], [4 + i, 5, 6]) for i in range(5)]
    packed = pack(segments)
    assert packed.input_ids.shape == (2, 9)
    assert sorted(set(packed.rows.tolist())) == [0, 1]
    with torch.no_grad():
        torch.testing.assert_close(packed_logits(model, packed), separate_logits(model, segments), atol=1e-5, rtol=1e-5)


def test_padding_gives_no_nan(model) -> None:
    packed = pack([segment(list(range(30)), [1]), segment([1], [2])])
    assert torch.isfinite(packed_logits(model, packed)).all()


def test_a_segment_of_one_token_adds_nothing_to_its_context() -> None:
    packed = pack([segment([5, 6, 7], [1]), segment([5, 6, 7], [2])])
    assert packed.input_ids.tolist() == [[5, 6, 7]]
    assert packed.columns.tolist() == [2, 2]
    assert packed.targets.tolist() == [1, 2]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 400)), min_size=1, max_size=24),
    st.integers(1, 4000),
    st.integers(1, 3),
)
@settings(max_examples=60, deadline=None, database=None, derandomize=True)
def test_passes_are_as_full_as_the_limit_lets_them_be(kinds: list[tuple[int, int]], limit: int, together: int) -> None:
    """Counted as `pack` packs: each run fits or cannot be cut, and with what comes next it would not fit."""
    kinds = kinds * together
    segments = [Segment(np.arange(10 * kind + 5), np.arange(size), np.ones(size, bool)) for kind, size in kinds]
    runs = list(passes(segments, limit, together))
    assert [i for run in runs for i in run] == list(range(len(segments)))
    for run in runs:
        assert len(run) % together == 0
        assert len(run) == together or pack(segments[run.start : run.stop]).tokens <= limit
    for run in runs[:-1]:
        assert pack(segments[run.start : run.stop + together]).tokens > limit
