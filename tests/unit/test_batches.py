"""The table of training rows: which tokens, positions and answers a batch holds, whose order it is in, and how a step is split."""

from __future__ import annotations

import pytest
import torch

from lora_ensembles.batches import TokenTable, epoch_order, split_step
from lora_ensembles.errors import DataError
from lora_ensembles.tasks import EncodedExample

PAD = 0
SHORT = EncodedExample(prompt_ids=(5, 6), label_ids=((7,), (8,)), target=1)  # 5 6 | 8
LONG = EncodedExample(prompt_ids=(5, 6, 9, 9), label_ids=((7,), (8, 3)), target=1)  # 5 6 9 9 | 8 3
MIDDLE = EncodedExample(prompt_ids=(4, 4, 4), label_ids=((7,), (8,)), target=0)  # 4 4 4 | 7


def table() -> TokenTable:
    return TokenTable.from_encoded([SHORT, LONG, MIDDLE], PAD)


def test_table_holds_prompt_and_right_answer_padded_on_the_right() -> None:
    made = table()

    assert made.tokens.tolist() == [[5, 6, 8, PAD, PAD, PAD], [5, 6, 9, 9, 8, 3], [4, 4, 4, 7, PAD, PAD]]
    assert made.prompt_lengths.tolist() == [2, 4, 3]
    assert made.answer_lengths.tolist() == [1, 2, 1]
    assert len(made) == 3


def test_gathered_rows_are_cut_to_the_longest_and_never_read_the_last_answer_token() -> None:
    batch = table().gather(torch.tensor([[0, 2], [1, 0]]))

    assert batch.ids.tolist() == [[[5, 6, 8, PAD, PAD], [4, 4, 4, 7, PAD]], [[5, 6, 9, 9, 8], [5, 6, 8, PAD, PAD]]]


def test_short_rows_alone_make_a_short_batch() -> None:
    batch = table().gather(torch.tensor([[0, 2]]))

    assert batch.ids.tolist() == [[[5, 6, 8], [4, 4, 4]]]  # 4 4 4 predicts 7; 5 6 predicts 8


def test_position_before_each_answer_token_is_where_its_logits_are_read() -> None:
    batch = table().gather(torch.tensor([[0], [1], [2]]))

    assert batch.counted.tolist() == [[[True, False]], [[True, True]], [[True, False]]]
    assert batch.answers[batch.counted].tolist() == [8, 8, 3, 7]
    assert batch.positions[batch.counted].tolist() == [1, 3, 4, 2]
    assert int(batch.positions.max()) < batch.ids.shape[-1]  # those that do not count are places too


def test_tokens_before_a_position_are_the_prompt_and_the_answer_so_far() -> None:
    batch = table().gather(torch.tensor([[1]]))

    seen = [batch.ids[0, 0, : position + 1].tolist() for position in batch.positions[0, 0].tolist()]
    assert seen == [[5, 6, 9, 9], [5, 6, 9, 9, 8]]


def test_no_examples_and_an_example_without_an_answer_are_refused() -> None:
    with pytest.raises(DataError, match="no training examples were given"):
        TokenTable.from_encoded([], PAD)
    with pytest.raises(DataError, match="training example number 2 has no answer"):
        TokenTable.from_encoded([SHORT, EncodedExample((5,), ((7,), (8,)), None)], PAD)


def test_fingerprint_tells_other_rows_and_another_order_apart() -> None:
    tables = [table(), TokenTable.from_encoded([LONG, SHORT, MIDDLE], PAD), TokenTable.from_encoded([SHORT, LONG], PAD)]

    assert table().fingerprint() == table().fingerprint()
    assert len({made.fingerprint() for made in tables}) == 3


@pytest.mark.parametrize("count", [1, 2, 17])
def test_order_of_an_epoch_holds_every_row_once(count: int) -> None:
    assert sorted(epoch_order(3, 2, count).tolist()) == list(range(count))


def test_order_differs_between_members_and_between_epochs_and_repeats_itself() -> None:
    orders = {(seed, epoch): tuple(epoch_order(seed, epoch, 20).tolist()) for seed in range(3) for epoch in range(3)}

    assert len(set(orders.values())) == 9
    assert orders[1, 2] == tuple(epoch_order(1, 2, 20).tolist())


def test_order_neither_uses_nor_moves_the_global_generator() -> None:
    torch.manual_seed(5)
    first, state = epoch_order(1, 1, 9).tolist(), torch.get_rng_state()
    torch.manual_seed(6)

    assert epoch_order(1, 1, 9).tolist() == first
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("members", [1, 3, 5])
@pytest.mark.parametrize("rows", [1, 4, 7])
@pytest.mark.parametrize("max_rows", [None, 1, 2, 3, 5, 8, 21, 100])
def test_split_covers_every_row_of_every_member_exactly_once_within_the_limit(members: int, rows: int, max_rows: int | None) -> None:
    times = torch.zeros(members, rows, dtype=torch.int64)
    for which, chunk in split_step(members, rows, max_rows):
        times[which, chunk] += 1
        assert times[which, chunk].numel() <= (max_rows or members * rows)

    assert bool((times == 1).all())


def test_step_that_fits_is_not_split() -> None:
    assert split_step(5, 4, 20) == split_step(5, 4, None) == [(slice(0, 5), slice(0, 4))]


def test_answer_tokens_of_a_batch_come_without_padding_and_know_their_place_in_the_table() -> None:
    batch = table().gather(torch.tensor([[1, 2], [0, 1]]))
    tokens = batch.answer_tokens()

    assert tokens.answers.tolist() == [8, 3, 7, 8, 8, 3]
    assert tokens.places.rows.tolist() == [0, 0, 1, 2, 3, 3]  # row m * B + b of the folded batch
    assert tokens.places.positions.tolist() == [3, 4, 2, 1, 3, 4]
    assert tokens.numbers.tolist() == [1, 2, 3, 0, 1, 2]  # the table's answers are 8 | 8 3 | 7


def test_values_of_answer_tokens_are_summed_over_each_row() -> None:
    tokens = table().gather(torch.tensor([[1, 2], [0, 1]])).answer_tokens()
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])

    assert tokens.unpacked(values).tolist() == [[[1, 2], [3, 0]], [[4, 0], [5, 6]]]
    assert tokens.per_row(values).tolist() == [[3, 3], [4, 11]]


def test_fingerprint_tells_an_answer_that_ends_in_the_padding_token_from_a_shorter_one() -> None:
    ended, open_ended = EncodedExample((5,), ((7, PAD),), 0), EncodedExample((5,), ((7,),), 0)

    assert TokenTable.from_encoded([LONG, ended], PAD).fingerprint() != TokenTable.from_encoded([LONG, open_ended], PAD).fingerprint()
