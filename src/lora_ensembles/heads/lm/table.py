"""Training rows as one table of tokens, and the batches that each member draws from it in its own order.

Shapes: M members, N examples, B rows of a member, T tokens, K answer tokens of a row, n answer tokens in all.
"""

from __future__ import annotations

import hashlib
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

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_rows(
    examples: Sequence[Example] | Sequence[Completion],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    overlong: Literal["error", "left"],
) -> list[EncodedExample]:
    """Token ids of questions with options, or of open answers, as `encode_examples` and `encode_completions`
    give them.

    Raises:
        DataError: some examples are of one kind and some of the other; else as these two.
    """
    questions = [example for example in examples if isinstance(example, Example)]
    completions = [example for example in examples if isinstance(example, Completion)]
    if questions and completions:
        raise DataError(
            f"{len(questions)} questions with options (Example) and {len(completions)} open answers "
            "(Completion) in one list; their losses mean different things: train on one kind"
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
    """Rows of some members: ids (M, B, T), positions (M, B, K) of the logits, answers (M, B, K), counted (M,
    B, K).

    `rows` (M, B) says which of the table's rows they are, `numbers` (M, B, K) which of all its answer tokens
    each one is. `ids` are on the table's device, the rest on the CPU: what is counted and cut to size there
    needs no wait for a device.
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
    """The n answer tokens of a batch, member-major: places (n) in the folded batch, answers (n,), numbers
    (n,) in the table's count.
    """

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
    """All training rows, prompt and right answer, right-padded: tokens (N, T), prompt_lengths (N,),
    answer_lengths (N,), on the CPU.

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

    @property
    def accuracy_name(self) -> str:
        """The name of the share of rows of which every answer token is the likeliest of the vocabulary."""
        return "exact match" if int(self.answer_lengths.max()) > 1 else "accuracy"

    @classmethod
    def from_encoded(
        cls, encoded: Sequence[EncodedExample], pad_id: int, *, device: torch.device | str = "cpu"
    ) -> TokenTable:
        """The table of labelled examples.

        Raises:
            DataError: there are none, or one has no target or soft labels.
        """
        check_answered(encoded)
        if any(example.target_probs is not None for example in encoded):
            raise DataError(
                "these examples have soft labels, and this training takes one right answer; "
                "leave target_probs out"
            )
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
