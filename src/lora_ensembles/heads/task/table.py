"""Texts as token ids, and which of them belong to one example.

Shapes: M members, N examples, W texts of all examples, C options or classes, B rows, R texts of a member, T
tokens, K scores of a text.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...passes.memory import scoring_rows
from ...passes.texts import Texts, pad_rows


@dataclass(frozen=True)
class Choice:
    """Texts of a training step, by their numbers in the table (M, R): `slots` (M, R) says where in (B, C)
    each one's score goes, and is B * C for a text that only fills up; `present` (M, B, C) which places a
    score goes to. All on the CPU.
    """

    numbers: Tensor
    slots: Tensor
    present: Tensor
    choices: bool

    @property
    def there(self) -> Tensor:
        """(M, R) which of the texts belong to an example."""
        return self.slots < self.present[0].numel()

    def per_example(self, scores: Tensor) -> Tensor:
        """Scores (M, R, K) by example: (M, B, C), -inf where an example has fewer options."""
        if not self.choices:
            return scores
        members = len(scores)
        slots, absent = (
            tensor.to(scores.device, non_blocking=True) for tensor in (self.slots, ~self.present)
        )
        flat = scores.new_zeros(members, self.present[0].numel() + 1).scatter(1, slots, scores[..., 0])
        return flat[:, :-1].view(self.present.shape).masked_fill(absent, -math.inf)


@dataclass(frozen=True)
class TextTable:
    """The texts of all examples, on the CPU: ids (W, T), types (W, T) or None, lengths (W,); counts (N,)
    texts of each example.

    An example has one text that gets a score for each class (`choices` false), or one text an option, that
    gets one score. `targets` (N,) is the index of the right class or option, -1 where it is not known;
    `target_probs` (N, C) the soft labels, where an example has such.
    """

    ids: Tensor
    types: Tensor | None
    text_lengths: Tensor
    counts: Tensor
    targets: Tensor
    choices: bool
    device: torch.device | str = "cpu"
    target_probs: Tensor | None = None

    @classmethod
    def of(
        cls,
        rows: Sequence[Sequence[int]],
        types: Sequence[Sequence[int]] | None,
        *,
        pad_id: int,
        counts: Sequence[int],
        targets: Sequence[int | None],
        choices: bool,
        device: torch.device | str = "cpu",
        target_probs: Tensor | None = None,
    ) -> TextTable:
        """The table of texts given as token ids, `counts` of them an example."""
        return cls(
            pad_rows(rows, pad_id),
            None if types is None else pad_rows(types, 0),
            torch.tensor([len(row) for row in rows]),
            torch.tensor(counts),
            torch.tensor([-1 if target is None else target for target in targets]),
            choices,
            device,
            target_probs,
        )

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def first(self) -> Tensor:
        """(N,) number of each example's first text."""
        return self.counts.cumsum(0) - self.counts

    @property
    def owner(self) -> Tensor:
        """(W,) the example that each text belongs to."""
        return torch.arange(len(self)).repeat_interleave(self.counts)

    @property
    def width(self) -> int:
        """The largest number of texts that an example has."""
        return int(self.counts.max())

    @property
    def lengths(self) -> Tensor:
        """(N,) tokens of each example's longest text."""
        return torch.zeros(len(self), dtype=torch.int64).scatter_reduce(
            0, self.owner, self.text_lengths, "amax"
        )

    def rows_in_flight(self, members: int, *, max_rows: int | None) -> int:
        """The number of rows (members * texts) in a pass that scores texts of this table;
        `memory.scoring_rows`.
        """
        length = self.text_lengths.float().mean().item()
        return scoring_rows(members, tokens_a_row=length, device=torch.device(self.device), max_rows=max_rows)

    def fingerprint(self) -> str:
        """A short hash of texts and targets, to notice when a run is continued on other data."""
        digest = hashlib.sha256(self.ids.numpy().tobytes())
        for values in (
            self.text_lengths,
            self.counts,
            self.targets,
            *(values for values in (self.types, self.target_probs) if values is not None),
        ):
            digest.update(values.numpy().tobytes())
        return digest.hexdigest()[:16]

    def texts(self, numbers: Tensor) -> Texts:
        """The texts of these numbers (B,), cut to the longest of them, on the table's device."""
        lengths = self.text_lengths[numbers]
        longest = int(lengths.max())
        mask = (torch.arange(longest) < lengths[:, None]).long()
        types = None if self.types is None else self.types[numbers, :longest].to(self.device)
        return Texts(self.ids[numbers, :longest].to(self.device), mask.to(self.device), types, numbers)

    def names(self, numbers: Tensor) -> list[list[int]]:
        """Of each of these texts (B,), the tokens of its example's first text: options of one question have
        one name.
        """
        firsts = self.first[self.owner[numbers]].tolist()
        return [self.ids[number, : self.text_lengths[number]].tolist() for number in firsts]

    def gather(self, indices: Tensor) -> Choice:
        """The texts of examples `indices` (M, B), filled up as `numbers_of` says."""
        return Choice(*self.numbers_of(indices), self.choices)

    def numbers_of(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which texts the examples `indices` (M, B) have: numbers (M, R), slots (M, R) and present (M, B, C)
        as in `Choice`, on the CPU.

        Members whose examples have fewer options in all are filled up, with the table's shortest text, to the
        number that the others have: the members of a pass have equally many rows. The slot of what fills up
        is B * C, behind all others.
        """
        rows = indices.shape[1]
        counts, options = self.counts[indices], torch.arange(self.width)
        present = options < counts[..., None]
        numbers = (self.first[indices][..., None] + options).flatten(1)
        each = int(counts.sum(dim=1).max())
        order = (
            (~present).flatten(1).long().argsort(dim=1, stable=True)[:, :each]
        )  # those that are there, in their order
        there = present.flatten(1).gather(1, order)
        chosen = torch.where(there, numbers.gather(1, order), self.text_lengths.argmin())
        return chosen, torch.where(there, order, rows * self.width), present

    def text_numbers(self, slots: Tensor, row_numbers: Tensor | None) -> Tensor:
        """The places (M, R) of texts at `slots` (M, R) among all texts of their members' batches: what is
        drawn for a text is the same alone and beside others. `row_numbers` (M, B) are the places of the
        examples; None: they are the whole batch.
        """
        if row_numbers is None:
            return slots
        behind = row_numbers.amax(dim=1, keepdim=True) + 1  # what only fills up
        examples = torch.cat([row_numbers, behind], dim=1).to(slots.device)
        return examples.gather(1, slots // self.width) * self.width + slots % self.width

    def per_example(self, scores: Tensor) -> Tensor:
        """Scores (M, W, K) of all texts by example: (M, N, C), -inf where an example has fewer options."""
        if not self.choices:
            return scores
        result = scores.new_full((len(scores), len(self), self.width), -math.inf)
        owner = self.owner
        result[:, owner, torch.arange(len(owner)) - self.first[owner]] = scores[..., 0]
        return result


def passes_of_one_length(lengths: Tensor) -> list[tuple[slice, Tensor]]:
    """Which texts of M members, of these lengths (M, R), 0 for none, are read together where no padding may
    be: each in one pass.

    A pass is some members next to each other, and which r of its texts each of them reads (m, r), all of one
    length.

    Example:
        >>> lengths = torch.tensor([[5, 7, 5], [7, 5, 0]])
        >>> [(members, texts.tolist()) for members, texts in passes_of_one_length(lengths)]
        [(slice(0, 2, None), [[0], [1]]), (slice(0, 1, None), [[2]]), (slice(0, 2, None), [[1], [0]])]
    """
    passes = []
    for length in lengths[lengths > 0].unique():
        left = [row.nonzero()[:, 0].tolist() for row in lengths == length]
        while any(left):
            first = next(m for m, texts in enumerate(left) if texts)
            last = next((m for m in range(first, len(left)) if not left[m]), len(left))
            each = min(map(len, left[first:last]))
            passes.append((slice(first, last), torch.tensor([texts[:each] for texts in left[first:last]])))
            left = [texts[each:] if first <= m < last else texts for m, texts in enumerate(left)]
    return passes
