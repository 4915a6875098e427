"""Training rows as one table of tokens, and the batches that each member draws from it in its own order.

Shapes: M members, N examples, B rows of a member, T tokens, K answer tokens of a row, n answer tokens in all.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ...data import (
    Completion,
    EncodedExample,
    Example,
    encode_completions,
    encode_examples,
)
from ...errors import DataError
from ...passes.decoder import Places
from ...passes.texts import pad_rows
from ...stack.dropout import stream_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_rows(
    examples: Sequence[Example] | Sequence[Completion],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    overlong: Literal["error", "left"],
) -> list[EncodedExample]:
    """Token ids of questions with options, or of open answers, as `encode_examples` and `encode_completions` give them.

    Raises:
        DataError: some examples are of one kind and some of the other; else as these two.
    """
    questions = [example for example in examples if isinstance(example, Example)]
    completions = [example for example in examples if isinstance(example, Completion)]
    if questions and completions:
        raise DataError(
            f"{len(questions)} questions with options (Example) and {len(completions)} open answers (Completion) in one list; "
            "their losses mean different things: train on one kind"
        )
    if completions:
        return encode_completions(completions, tokenizer, max_length=max_length, overlong=overlong)
    return encode_examples(questions, tokenizer, max_length=max_length, overlong=overlong)


def check_answered(encoded: Sequence[EncodedExample]) -> None:
    """Refuse training without examples, or on one without an answer.

    Raises:
        DataError: as it says.
    """
    if not encoded:
        raise DataError("no training examples were given; pass at least one")
    unlabelled = [n for n, example in enumerate(encoded) if example.target is None]
    if unlabelled:
        raise DataError(
            f"training example number {unlabelled[0] + 1} has no answer; every training example needs one"
        )


@dataclass(frozen=True)
class Batch:
    """Rows of some members: ids (M, B, T), positions (M, B, K) of the logits, answers (M, B, K), counted (M, B, K).

    `rows` (M, B) says which of the table's rows they are, `numbers` (M, B, K) which of all its answer tokens each one is. `ids` are on the
    table's device, the rest on the CPU: what is counted and cut to size there needs no wait for a device.
    """

    rows: Tensor
    ids: Tensor
    positions: Tensor
    answers: Tensor
    counted: Tensor
    numbers: Tensor

    def answer_tokens(self) -> AnswerTokens:
        """The tokens that count, without padding."""
        flat = self.counted.flatten().nonzero()[:, 0]
        chosen = [
            flat // self.counted.shape[-1],
            *(values.flatten()[flat] for values in (self.positions, self.answers, self.numbers)),
            flat,
        ]
        rows, positions, answers, numbers, flat = torch.stack(chosen).to(
            self.ids.device, non_blocking=True
        )  # one copy for all
        return AnswerTokens(Places(rows, positions), answers, numbers, flat, self.counted.shape)


@dataclass(frozen=True)
class AnswerTokens:
    """The n answer tokens of a batch, member-major: places (n) in the folded batch, answers (n,), numbers (n,) in the table's count."""

    places: Places
    answers: Tensor
    numbers: Tensor
    flat: Tensor  # (n,) index into the padded (M, B, K)
    padded: torch.Size

    def unpacked(self, values: Tensor) -> Tensor:
        """Values (n,) at their places in (M, B, K), 0 elsewhere."""
        if len(self.flat) < self.padded.numel():
            values = values.new_zeros(self.padded.numel()).index_copy(0, self.flat, values)
        return values.view(self.padded)

    def per_row(self, values: Tensor) -> Tensor:
        """Values (n,) summed over the tokens of each row: (M, B)."""
        return self.unpacked(values).sum(dim=-1)


@dataclass(frozen=True)
class TokenTable:
    """All training rows, prompt and right answer, right-padded: tokens (N, T), prompt_lengths (N,), answer_lengths (N,), on the CPU.

    `device` is where the ids of a batch go.
    """

    tokens: Tensor
    prompt_lengths: Tensor
    answer_lengths: Tensor
    device: torch.device | str = "cpu"

    @property
    def lengths(self) -> Tensor:
        """Tokens of prompt and answer of each row: (N,)."""
        return self.prompt_lengths + self.answer_lengths

    @classmethod
    def from_encoded(
        cls, encoded: Sequence[EncodedExample], pad_id: int, *, device: torch.device | str = "cpu"
    ) -> TokenTable:
        """The table of labelled examples.

        Raises:
            DataError: there are none, or one has no target.
        """
        check_answered(encoded)
        answers = [example.label_ids[example.target or 0] for example in encoded]
        rows = [[*example.prompt_ids, *answer] for example, answer in zip(encoded, answers, strict=True)]
        prompt_lengths = torch.tensor([len(example.prompt_ids) for example in encoded])
        return cls(
            pad_rows(rows, pad_id), prompt_lengths, torch.tensor([len(answer) for answer in answers]), device
        )

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def fingerprint(self) -> str:
        """A short hash of the rows, to notice when a run is continued on other data."""
        digest = hashlib.sha256(self.tokens.numpy().tobytes())
        for lengths in (self.prompt_lengths, self.answer_lengths):
            digest.update(lengths.numpy().tobytes())
        return digest.hexdigest()[:16]

    def gather(self, indices: Tensor) -> Batch:
        """The rows of `indices` (M, B), cut to the longest of them."""
        prompts, answers = self.prompt_lengths[indices], self.answer_lengths[indices]
        tokens = self.tokens[indices]
        steps = torch.arange(int(self.answer_lengths.max()))
        counted = steps < answers[..., None]
        first = (self.answer_lengths.cumsum(0) - self.answer_lengths)[indices]
        places = (prompts[..., None] + steps).clamp(max=tokens.shape[-1] - 1)
        length = int((prompts + answers).max()) - 1  # the last answer token is predicted, never read
        positions = (places - 1).clamp(max=length - 1)
        ids = tokens[..., :length].to(self.device, non_blocking=True)
        return Batch(indices, ids, positions, tokens.gather(-1, places), counted, first[..., None] + steps)


def epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    """The order (N,) in which the member with this order seed sees its rows in `epoch`, counted from 0: a shuffle of its own.

    Example:
        >>> epoch_order(7, 0, 5).tolist() == epoch_order(7, 0, 5).tolist() != epoch_order(7, 1, 5).tolist()
        True
    """
    generator = torch.Generator().manual_seed(stream_key(seed, "epoch", epoch))
    return torch.randperm(count, generator=generator)


def by_length(order: Tensor, lengths: Tensor, *, batch_size: int, window: int, epoch: int) -> Tensor:
    """An order (N,) in which every `window` batches that follow each other share out their rows by length: little padding, still a shuffle.

    Within each window of the member's own shuffle `order` (N,), rows are sorted by their `lengths` (N,) and cut into batches, and the
    batches are shuffled. That last shuffle has no seed: it depends on epoch and window alone. So every member has its short batch of a
    window in the same step as its neighbours, which share their padding with it, and knows nothing of them. The rows of a last, smaller
    batch stay where they are, or it would always hold the longest.

    Example:
        >>> by_length(torch.tensor([3, 0, 2, 1, 4]), torch.tensor([9, 5, 8, 6, 7]), batch_size=2, window=2, epoch=0).tolist()
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

    `seeds` are the members' order seeds; `length_window` is that of `TrainConfig`.
    """

    seeds: Sequence[int]
    lengths: Tensor
    batch_size: int
    length_window: int | None = None
    _epoch: tuple[int, Tensor] | None = (
        None  # the epoch under way, and its orders (M, N): made once, read at each of its steps
    )

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    def batch(self, step: int) -> Tensor:
        """The rows (M, B) of a step, counted from 0 over all epochs; the last batch of an epoch may be smaller."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, torch.stack([self._order(seed, epoch) for seed in self.seeds])
        return self._epoch[1][:, place * self.batch_size : (place + 1) * self.batch_size]

    def _order(self, seed: int, epoch: int) -> Tensor:
        order = epoch_order(seed, epoch, len(self.lengths))
        if self.length_window is None:
            return order
        return by_length(
            order, self.lengths, batch_size=self.batch_size, window=self.length_window, epoch=epoch
        )


def split_step(members: int, rows: int, max_rows: int | None) -> list[tuple[slice, slice]]:
    """How a step of `members` * `rows` rows is split so that at most `max_rows` are in flight: over members, then over rows.

    Example:
        >>> split_step(4, 8, 16)
        [(slice(0, 2, None), slice(0, 8, None)), (slice(2, 4, None), slice(0, 8, None))]
        >>> split_step(1, 8, 5)
        [(slice(0, 1, None), slice(0, 5, None)), (slice(0, 1, None), slice(5, 8, None))]
    """
    limit = max_rows or members * rows
    group = max(1, min(members, limit // rows))
    chunk = rows if limit >= rows else limit
    return [
        (slice(m, min(m + group, members)), slice(b, min(b + chunk, rows)))
        for m in range(0, members, group)
        for b in range(0, rows, chunk)
    ]
