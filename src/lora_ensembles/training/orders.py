"""The rows that each member reads in each step, and how a step is split where memory holds less.

Shapes: M members, N rows in all, B rows of a member.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..stack.dropout import stream_key
from .config import TrainConfig


def epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    """The order (N,) in which the member with this order seed sees its rows in `epoch`, counted from 0: a
    shuffle of its own.

    Example:
        >>> epoch_order(7, 0, 5).tolist() == epoch_order(7, 0, 5).tolist() != epoch_order(7, 1, 5).tolist()
        True
    """
    generator = torch.Generator().manual_seed(stream_key(seed, "epoch", epoch))
    return torch.randperm(count, generator=generator)


def rows_per_epoch(count: int, share: float | None) -> int:
    """Rows that a member reads in an epoch, of `count` and with a `data_share`."""
    return count if share is None else max(1, round(share * count))


def steps_in_all(count: int, config: TrainConfig) -> int:
    """Steps of a run over `count` examples.

    Example:
        >>> steps_in_all(10, TrainConfig(epochs=3, batch_size=4))
        9
        >>> steps_in_all(10, TrainConfig(epochs=3, batch_size=4, max_steps=7))
        7
    """
    steps = math.ceil(rows_per_epoch(count, config.data_share) / config.batch_size) * config.epochs
    return steps if config.max_steps is None else min(steps, config.max_steps)


def own_rows(seed: int, count: int, share: float) -> Tensor:
    """The rows that the member with this order seed is trained on, the same in every epoch: `share` of
    `count` rows without repeats, or for a share of 1 as many as there are with repeats, a bootstrap sample.

    Example:
        >>> len(set(own_rows(7, 10, 0.5).tolist())), len(own_rows(7, 10, 1.0))
        (5, 10)
    """
    generator = torch.Generator().manual_seed(stream_key(seed, "own rows"))
    if share == 1:
        return torch.randint(count, (count,), generator=generator)
    return torch.randperm(count, generator=generator)[: rows_per_epoch(count, share)]


def by_length(order: Tensor, lengths: Tensor, *, batch_size: int, window: int, epoch: int) -> Tensor:
    """An order (N,) in which every `window` batches that follow each other share out their rows by length:
    little padding, still a shuffle.

    Within each window of the member's own shuffle `order` (N,), rows are sorted by their `lengths` (N,) and
    cut into batches, and the batches are shuffled. That last shuffle has no seed: it depends on epoch and
    window alone. So every member has its short batch of a window in the same step as its neighbours, which
    share their padding with it, and knows nothing of them. The rows of a last, smaller batch stay where they
    are, or it would always hold the longest.

    Example:
        >>> order, lengths = torch.tensor([3, 0, 2, 1, 4]), torch.tensor([9, 5, 8, 6, 7])
        >>> by_length(order, lengths, batch_size=2, window=2, epoch=0).tolist()
        [1, 3, 2, 0, 4]
    """
    full = len(order) // batch_size * batch_size
    parts = []
    for number, rows in enumerate(order[:full].split(window * batch_size)):
        batches = rows[lengths[rows].argsort(stable=True)].view(-1, batch_size)
        generator = torch.Generator().manual_seed(stream_key("order of lengths", epoch, number))
        parts.append(batches[torch.randperm(len(batches), generator=generator)].flatten())
    return torch.cat([*parts, order[full:]])


@dataclass
class MemberOrders:
    """The rows that each member reads in each step: a shuffle of its own in every epoch, cut into batches.

    `seeds` are the members' order seeds, `lengths` those of the examples; `length_window` and `data_share`
    are those of `TrainConfig`. Of an example with several variants each member draws one in every epoch.
    """

    seeds: Sequence[int]
    lengths: Tensor
    batch_size: int
    length_window: int | None = None
    variants: int = 1  # rows of each example, one after the other, of which one is read
    data_share: float | None = None  # of the examples, drawn by each member for itself
    _epoch: tuple[int, Tensor] | None = (
        None  # the epoch under way, and its orders (M, N): made once, read at each of its steps
    )

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.rows_per_epoch / self.batch_size)

    @property
    def rows_per_epoch(self) -> int:
        """Rows of a member in an epoch."""
        return rows_per_epoch(len(self.lengths), self.data_share)

    def batch(self, step: int) -> Tensor:
        """The rows (M, B) of a step, counted from 0 over all epochs; the last batch of an epoch may be
        smaller.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, torch.stack([self._rows(seed, epoch) for seed in self.seeds])
        return self._epoch[1][:, place * self.batch_size : (place + 1) * self.batch_size]

    def _rows(self, seed: int, epoch: int) -> Tensor:
        order = self._order(seed, epoch)
        if self.variants == 1:
            return order
        generator = torch.Generator().manual_seed(stream_key(seed, "variants", epoch))
        drawn = torch.randint(self.variants, (len(order),), generator=generator)
        return order * self.variants + drawn[order]

    def _order(self, seed: int, epoch: int) -> Tensor:
        order = epoch_order(seed, epoch, self.rows_per_epoch)
        if self.data_share is not None:
            order = own_rows(seed, len(self.lengths), self.data_share)[order]
        if self.length_window is None:
            return order
        return by_length(
            order, self.lengths, batch_size=self.batch_size, window=self.length_window, epoch=epoch
        )


def split_step(
    lengths: Tensor, *, max_rows: int, pass_tokens: float | None = None
) -> list[tuple[slice, Tensor | None]]:
    """The split of a step into passes: of each the members, and which rows of their batches (M, b) it reads,
    None for all of them in order.

    At most `max_rows` rows are in flight: the split is over members, then over rows. With `pass_tokens`, rows
    are read in the order of their `lengths` (M, B), and in as many passes as make the least of what is read:
    the tokens, padding included, and `pass_tokens` for each pass.

    Example:
        >>> [members for members, rows in split_step(torch.ones(4, 8), max_rows=16)]
        [slice(0, 2, None), slice(2, 4, None)]
        >>> lengths = torch.tensor([[9, 30, 9, 8], [9, 8, 29, 9]])
        >>> [rows.tolist() for _, rows in split_step(lengths, max_rows=8, pass_tokens=10)]
        [[[3, 0, 2], [1, 0, 3]], [[1], [2]]]
    """
    members, rows = lengths.shape
    group, most = max(1, min(members, max_rows // rows)), min(rows, max_rows)
    parts: list[tuple[slice, Tensor | None]] = []
    for first in range(0, members, group):
        which = slice(first, min(first + group, members))
        own = lengths[which]
        if pass_tokens is None:
            order = torch.arange(rows).expand(len(own), rows)
            sizes = [min(most, rows - begin) for begin in range(0, rows, most)]
        else:
            order = own.argsort(dim=1, stable=True)
            longest = own.gather(1, order).amax(dim=0).tolist()
            sizes = cut_by_length(longest, most=most, pass_tokens=pass_tokens / len(own))
        parts += [(which, part) for part in order.split(sizes, dim=1)] if len(sizes) > 1 else [(which, None)]
    return parts


def cut_by_length(lengths: Sequence[float], *, most: int, pass_tokens: float) -> list[int]:
    """The sizes of the parts, of at most `most` rows, into which rows of rising lengths are cut so that the
    sum of (rows * the longest of them + `pass_tokens`) over the parts is least.

    Example:
        >>> cut_by_length([8, 9, 9, 30], most=4, pass_tokens=10)
        [3, 1]
        >>> cut_by_length([8, 9, 9, 30], most=4, pass_tokens=100)
        [4]
    """
    least, begins = [0.0], [0]
    for end, longest in enumerate(lengths, start=1):
        cost, begin = min(
            (least[begin] + (end - begin) * longest + pass_tokens, begin)
            for begin in range(max(0, end - most), end)
        )
        least.append(cost)
        begins.append(begin)
    sizes, end = [], len(lengths)
    while end:
        sizes.append(end - begins[end])
        end = begins[end]
    return sizes[::-1]
