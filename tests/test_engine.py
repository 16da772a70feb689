from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from agents import engine as engine_module
from agents.engine import Engine

ROWS, CAPACITY = 5, 24


@pytest.fixture(scope="module")
def backbone(tiny_model: str):
    return AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="sdpa").eval().model


def padded(sequences: list[list[int]], capacity: int = CAPACITY) -> tuple[np.ndarray, np.ndarray]:
    ids = np.zeros((len(sequences), capacity), np.int32)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)] = sequence
    return ids, np.array([len(sequence) for sequence in sequences])


def full_forward(backbone, sequences: list[list[int]]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([backbone(torch.tensor([s]), use_cache=False).last_hidden_state[:, -1] for s in sequences])


def check(engine: Engine, sequences: list[list[int]], rows: list[int] | None = None) -> None:
    found = engine.last_hidden(*padded(sequences, engine.capacity), None if rows is None else np.asarray(rows))
    expected = full_forward(engine.backbone, sequences)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def random_sequences(seed: int, *lengths: int) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 300, length).tolist() for length in lengths]


def test_stepwise_equals_a_full_forward_for_ragged_lengths(backbone) -> None:
    engine = Engine(backbone, 4, CAPACITY)
    sequences = random_sequences(0, 1, 5, 2, 9)
    for token in range(10):
        check(engine, sequences)
        sequences = [[*s, token + i] for i, s in enumerate(sequences)]


def test_a_step_runs_one_token_a_row(backbone) -> None:
    engine = Engine(backbone, 4, CAPACITY)
    sequences = random_sequences(0, 3, 5, 2, 9)
    check(engine, sequences)
    for _ in range(8):
        before = engine.tokens_run
        sequences = [[*s, 7] for s in sequences]
        check(engine, sequences)
        assert engine.tokens_run - before == 4


def test_a_row_that_is_reset_in_the_middle_does_not_cost_the_others(backbone) -> None:
    engine = Engine(backbone, 3, CAPACITY)
    sequences = random_sequences(1, 4, 6, 8)
    check(engine, sequences)
    sequences = [[*sequences[0], 1], *random_sequences(2, 5), [*sequences[2], 2]]
    before = engine.tokens_run
    check(engine, sequences)
    assert engine.tokens_run - before == 4 + 3  # the new prompt but its last token, then one token a row


def test_equal_prompts_are_read_once(backbone) -> None:
    engine = Engine(backbone, 8, CAPACITY)
    one, two = random_sequences(3, 11, 7)
    check(engine, [one] * 4 + [two] * 4)
    # the two prompts go in one padded pass
    assert engine.tokens_run == 10 + 10 + 8
    check(engine, [[*one, i] for i in range(4)] + [[*two, i] for i in range(4)])
    assert engine.tokens_run == 28 + 8


def test_what_all_prompts_begin_with_is_read_once(backbone) -> None:
    engine = Engine(backbone, 4, CAPACITY)
    beginning, *ends = random_sequences(16, 8, 5, 3, 5)
    sequences = [[*beginning, *end] for end in ends]
    check(engine, sequences, [0, 1, 3])
    assert engine.tokens_run == 8 + (4 + 4 + 4) + 3  # the beginning, one padded pass, the last tokens
    check(engine, [[*s, 7] for s in sequences], [0, 1, 3])
    engine.clear()
    check(engine, [beginning, [*beginning, 5], [*beginning, 6, 7, 8]], [0, 1, 3])  # one prompt is another's beginning


def test_appended_tokens_need_no_comparison(backbone) -> None:
    engine = Engine(backbone, 3, CAPACITY)
    sequences = random_sequences(17, 4, 6, 5)
    check(engine, sequences)
    for rows, tokens in (([0, 1, 2], [1, 2, 3]), ([2, 0], [4, 5]), ([2], [6])):  # rows may finish
        for row, token in zip(rows, tokens, strict=True):
            sequences[row].append(token)
        found = engine.append(np.array(rows), np.array(tokens))
        torch.testing.assert_close(
            found, full_forward(backbone, [sequences[row] for row in rows]), atol=1e-5, rtol=1e-5
        )


def test_several_tokens_may_be_appended_at_once(backbone) -> None:
    engine = Engine(backbone, 3, CAPACITY)
    sequences = random_sequences(4, 4, 5, 6)
    check(engine, sequences)
    check(engine, [[*sequences[0], 1, 2, 3, 4], [*sequences[1], 1], [*sequences[2], 9, 8]])


def test_another_sequence_in_the_same_row_is_noticed_wherever_it_differs(backbone) -> None:
    engine = Engine(backbone, 1, CAPACITY)
    (sequence,) = random_sequences(5, 12)
    for place in range(12):
        check(engine, [sequence])
        check(engine, [[*sequence[:place], (sequence[place] + 1) % 300, *sequence[place + 1 :]]])


def test_the_same_question_twice_has_the_same_answer(backbone) -> None:
    engine = Engine(backbone, 2, CAPACITY)
    ids, lengths = padded(random_sequences(6, 5, 9))
    first = engine.last_hidden(ids, lengths)
    torch.testing.assert_close(engine.last_hidden(ids, lengths), first, atol=1e-6, rtol=1e-6)


def test_a_shorter_sequence_in_the_same_row_is_right(backbone) -> None:
    engine = Engine(backbone, 1, CAPACITY)
    (sequence,) = random_sequences(7, 15)
    check(engine, [sequence])
    check(engine, [sequence[:6]])
    check(engine, [[*sequence[:6], 299]])


def test_sequences_may_be_as_long_as_the_capacity(backbone) -> None:
    engine = Engine(backbone, 3, CAPACITY)
    check(engine, random_sequences(8, CAPACITY, 1, CAPACITY - 1))
    sequences = random_sequences(9, CAPACITY - 1, 2, CAPACITY)
    check(engine, sequences)
    check(engine, [[*sequences[0], 5], [*sequences[1], 5], sequences[2]])


def test_rows_may_finish_in_any_order_and_all_come_back(backbone) -> None:
    random = np.random.default_rng(10)
    engine = Engine(backbone, 6, CAPACITY)
    for _ in range(3):
        sequences = [[int(t) for t in random.integers(0, 300, n)] for n in random.integers(1, 10, 6)]
        check(engine, sequences)
        running = list(range(6))
        while running:
            for row in running:
                sequences[row].append(int(random.integers(300)))
            before = engine.tokens_run
            check(engine, [sequences[row] for row in running], running)
            assert engine.tokens_run - before == len(running)
            running.remove(random.choice(running))


def test_rows_may_come_in_any_order(backbone) -> None:
    engine = Engine(backbone, 4, CAPACITY)
    sequences = random_sequences(11, 3, 6, 9, 2)
    for order in ([2, 0, 3, 1], [3, 1], [1, 3], [0], [3, 2, 1, 0]):
        check(engine, [sequences[row] for row in order], order)
        sequences = [[*s, 4] for s in sequences]


def test_after_clear_new_weights_count(tiny_model: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="sdpa").eval().model
    engine = Engine(model, 2, CAPACITY)
    sequences = random_sequences(12, 4, 7)
    check(engine, sequences)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    engine.clear()
    check(engine, [[*s, 1] for s in sequences])


def test_many_long_prompts_are_read_in_several_passes(backbone, monkeypatch) -> None:
    monkeypatch.setattr(engine_module, "PREFILL_TOKENS", 20)
    engine = Engine(backbone, 6, CAPACITY)
    sequences = random_sequences(13, 20, 3, 24, 9, 1, 14)
    check(engine, sequences)
    check(engine, [s if len(s) == CAPACITY else [*s, 3] for s in sequences])


def test_a_pass_that_was_broken_off_leaves_nothing_stale(backbone) -> None:
    engine = Engine(backbone, 2, CAPACITY)
    check(engine, random_sequences(14, 8, 8))
    others = random_sequences(15, 9, 9)

    def interrupt(*args) -> None:
        raise KeyboardInterrupt

    handle = backbone.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        engine.last_hidden(*padded(others))
    handle.remove()
    check(engine, others)


def change(data: st.DataObject, sequences: list[list[int]], row: int) -> list[int]:
    """Draw what happens to a row between two calls."""
    token, old = st.integers(0, 299), sequences[row]
    what = data.draw(st.sampled_from(["append", "append", "append", "several", "new", "copy", "cut", "edit", "same"]))
    if what == "append":
        return [*old, data.draw(token)][:CAPACITY]
    if what == "several":
        return [*old, *data.draw(st.lists(token, max_size=5))][:CAPACITY]
    if what == "new":
        return data.draw(st.lists(token, min_size=1, max_size=CAPACITY))
    if what == "copy":
        return list(sequences[data.draw(st.integers(0, ROWS - 1))])
    if what == "cut":
        return old[: data.draw(st.integers(1, len(old)))]
    if what == "edit":
        place = data.draw(st.integers(0, len(old) - 1))
        return [*old[:place], data.draw(token), *old[place + 1 :]]
    return old


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(data=st.data())
def test_any_schedule_equals_full_forwards(backbone, data: st.DataObject) -> None:
    engine = Engine(backbone, ROWS, CAPACITY)
    sequences = [[row + 1] for row in range(ROWS)]
    for _ in range(data.draw(st.integers(1, 6))):
        if data.draw(st.integers(0, 9)) == 0:
            engine.clear()
        rows = data.draw(st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=ROWS, unique=True))
        for row in rows:
            sequences[row] = change(data, sequences, row)
        check(engine, [sequences[row] for row in rows], rows)
    check(engine, sequences)
