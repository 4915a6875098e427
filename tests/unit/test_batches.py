"""The table of training rows: which tokens, positions and answers a batch holds, whose order it is in, and
how a step is split.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch

from lora_ensembles.data import EncodedExample
from lora_ensembles.errors import DataError
from lora_ensembles.heads.lm.table import TokenTable
from lora_ensembles.training.orders import MemberOrders, by_length, cut_by_length, epoch_order, split_step

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

    assert batch.ids.tolist() == [
        [[5, 6, 8, PAD, PAD], [4, 4, 4, 7, PAD]],
        [[5, 6, 9, 9, 8], [5, 6, 8, PAD, PAD]],
    ]


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
    tables = [
        table(),
        TokenTable.from_encoded([LONG, SHORT, MIDDLE], PAD),
        TokenTable.from_encoded([SHORT, LONG], PAD),
    ]

    assert table().fingerprint() == table().fingerprint()
    assert len({made.fingerprint() for made in tables}) == 3


@pytest.mark.parametrize("count", [1, 2, 17])
def test_order_of_an_epoch_holds_every_row_once(count: int) -> None:
    assert sorted(epoch_order(3, 2, count).tolist()) == list(range(count))


def test_order_differs_between_members_and_between_epochs_and_repeats_itself() -> None:
    orders = {
        (seed, epoch): tuple(epoch_order(seed, epoch, 20).tolist()) for seed in range(3) for epoch in range(3)
    }

    assert len(set(orders.values())) == 9
    assert orders[1, 2] == tuple(epoch_order(1, 2, 20).tolist())


def test_order_neither_uses_nor_moves_the_global_generator() -> None:
    torch.manual_seed(5)
    first, state = epoch_order(1, 1, 9).tolist(), torch.get_rng_state()
    torch.manual_seed(6)

    assert epoch_order(1, 1, 9).tolist() == first
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state)


LENGTHS = torch.randint(
    5, 200, (103,), generator=torch.Generator().manual_seed(2)
)  # 103 rows: 25 batches of 4, and one of 3


def rows_of_epoch(orders: MemberOrders, epoch: int) -> list[torch.Tensor]:
    """The rows (M, B) of each step of an epoch."""
    return [
        orders.batch(step)
        for step in range(epoch * orders.steps_per_epoch, (epoch + 1) * orders.steps_per_epoch)
    ]


@pytest.mark.parametrize("window", [None, 1, 4, 100])
def test_each_member_reads_every_row_once_an_epoch_in_an_order_of_its_own(window: int | None) -> None:
    orders = MemberOrders([11, 12, 13], LENGTHS, 4, window)
    for epoch in (0, 1):
        steps = rows_of_epoch(orders, epoch)
        assert [rows.shape for rows in steps] == [(3, 4)] * 25 + [(3, 3)]
        assert [sorted(member.tolist()) for member in torch.cat(steps, dim=1)] == [list(range(103))] * 3
        assert not all(torch.equal(rows[0], rows[1]) for rows in steps)
    assert not torch.equal(rows_of_epoch(orders, 0)[0], rows_of_epoch(orders, 1)[0])


def test_without_a_window_a_member_reads_its_plain_shuffle() -> None:
    orders = MemberOrders([11, 12], LENGTHS, 4)
    assert torch.equal(
        torch.cat(rows_of_epoch(orders, 2), dim=1),
        torch.stack([epoch_order(seed, 2, 103) for seed in (11, 12)]),
    )


@pytest.mark.parametrize("window", [None, 4, 100])
def test_a_members_rows_do_not_depend_on_its_neighbours_nor_on_where_reading_begins(
    window: int | None,
) -> None:
    many, alone = MemberOrders(list(range(8)), LENGTHS, 4, window), MemberOrders([5], LENGTHS, 4, window)
    for step in (40, 3, 77):  # a resumed run begins anywhere
        assert torch.equal(many.batch(step)[5], alone.batch(step)[0])


def test_a_window_takes_its_rows_from_the_members_own_shuffle() -> None:
    order = epoch_order(7, 0, 103)
    found = by_length(order, LENGTHS, batch_size=4, window=5, epoch=0)
    for first in range(0, 100, 20):
        assert set(found[first : first + 20].tolist()) == set(order[first : first + 20].tolist())
        batches = [LENGTHS[rows] for rows in found[first : first + 20].split(4)]
        batches.sort(key=lambda lengths: int(lengths[0]))
        together = torch.cat(batches).tolist()
        assert together == sorted(
            together
        )  # no batch holds a row shorter than the longest of another, shorter one
    assert found[100:].tolist() == order[100:].tolist()


def test_members_read_their_long_rows_in_the_same_steps_so_that_a_step_holds_little_padding() -> None:
    def padding(window: int | None) -> float:
        """The share of padding in all the tokens that an epoch of 8 members computes."""
        steps = [LENGTHS[rows] for rows in rows_of_epoch(MemberOrders(list(range(8)), LENGTHS, 4, window), 0)]
        return 1 - sum(int(lengths.sum()) for lengths in steps) / sum(
            int(lengths.max()) * lengths.numel() for lengths in steps
        )

    # Lengths are uniform on 5 to 199. The longest of 32 rows is near 193 and their mean 102: 47 % padding. A
    # window of all 25 batches has a 25th of the range in a batch, and the members' quantiles differ by about
    # as much again.
    assert padding(None) > 0.4
    assert padding(25) < 0.15


@pytest.mark.parametrize("members", [1, 3, 5])
@pytest.mark.parametrize("rows", [1, 4, 7])
@pytest.mark.parametrize("max_rows", [1, 2, 3, 5, 8, 21, 100])
@pytest.mark.parametrize("pass_tokens", [None, 0.0, 5.0, 1000.0])
def test_split_covers_every_row_of_every_member_exactly_once_within_the_limit(
    members: int, rows: int, max_rows: int, pass_tokens: float | None
) -> None:
    lengths = torch.randint(1, 20, (members, rows), generator=torch.Generator().manual_seed(rows))
    times = torch.zeros(members, rows, dtype=torch.int64)
    for which, numbers in split_step(lengths, max_rows=max_rows, pass_tokens=pass_tokens):
        read = torch.arange(rows).expand_as(times[which]) if numbers is None else numbers
        times[which] += torch.zeros_like(times[which]).scatter(1, read, 1)
        assert read.numel() <= max_rows

    assert bool((times == 1).all())


def test_step_that_fits_is_not_split() -> None:
    lengths = torch.tensor([[3, 9, 3, 3]]).expand(5, 4)
    whole = [(slice(0, 5), None)]
    assert split_step(lengths, max_rows=20) == split_step(lengths, max_rows=100, pass_tokens=91) == whole


def test_rows_are_cut_by_length_where_that_spares_more_than_a_pass_costs() -> None:
    lengths = torch.tensor([[3, 9, 3, 3]]).expand(5, 4)
    (_, short), (_, long) = split_step(lengths, max_rows=20, pass_tokens=89)  # a pass more spares 5 * 3 * 6
    assert short.tolist() == [[0, 2, 3]] * 5
    assert long.tolist() == [[1]] * 5


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("most", [3, 7])
def test_no_other_cut_reads_less(seed: int, most: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 30, (7,), generator=generator).sort().values.tolist()

    def read(sizes: Sequence[int]) -> float:
        ends = list(itertools.accumulate(sizes))
        return sum(size * lengths[end - 1] + 12.5 for size, end in zip(sizes, ends, strict=True))

    every = [
        [end - begin for begin, end in itertools.pairwise((0, *ends, 7))]
        for count in range(7)
        for ends in itertools.combinations(range(1, 7), count)
    ]
    allowed = [sizes for sizes in every if max(sizes) <= most]
    assert read(cut_by_length(lengths, most=most, pass_tokens=12.5)) == min(map(read, allowed))


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

    assert (
        TokenTable.from_encoded([LONG, ended], PAD).fingerprint()
        != TokenTable.from_encoded([LONG, open_ended], PAD).fingerprint()
    )
