"""The loss over the label set, `TrainConfig(loss="labels")`: -log p of the right label among an example's
own.

With s_c the summed log-probability of label c's tokens after the prompt x, or its mean over them
(`label_score`), a member's task distribution is p_T(c | x) = exp(s_c) / sum_c' exp(s_c') (Eq. 1 of
arXiv:2310.00035); a row's loss is -log p_T(y | x), and its divergence from the base D_KL(p_T of the member ||
p_T of the base), Eq. 4 over the labels in place of the vocabulary.

Shapes: M members, N examples, B examples of a member, W rows of all examples, R rows of a member, T tokens, C
labels, n places with logits, S label tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...data import EncodedExample
from ...passes.answer_positions import hidden_at, logits_at, places_at_once
from ...passes.branches import Branches, arguments_of, can_branch
from ...passes.decoder import Places
from ...passes.hooks import one_pass
from ...passes.memory import with_fewer_rows
from ...passes.shared_prefix import BaseRows
from ...passes.stacked_model import StackedModel
from ...passes.texts import Texts
from ...passes.trunk_states import TrunkStates
from ...prediction.soft_labels import soft_targets
from ...stack.head_config import LabelScore
from ..losses import RowLosses, distribution_losses
from ..task.table import TextTable
from .label_plan import label_plan
from .losses import chunk_sizes, in_chunks
from .scores import WORTH_SHARING, label_lengths, label_log_probs, score_labels
from .table import check_answered


@dataclass(frozen=True)
class ScoredTokens:
    """The S tokens of labels in a table or in a batch, each with the row and the position (S,) whose logits
    say how probable it is.

    `labels` (S,) and `steps` (S,) say which label of its example a token belongs to, and which of that
    label's tokens it is.
    """

    rows: Tensor
    positions: Tensor
    tokens: Tensor
    labels: Tensor
    steps: Tensor


@dataclass(frozen=True)
class LabelBatch:
    """Examples of some members: M * R texts, slots (M, R) as in `heads.task.table.Choice`, and the label
    tokens that they score.

    `which` (S,) says at which of the n `places` a token's logits are, in rising order; `slots_of_tokens` (S,)
    where its log-probability goes in (M, B, C, tokens of the longest label); `lengths` (M, B, C) holds the
    tokens of each label.
    """

    texts: Texts
    slots: Tensor
    places: Places
    which: Tensor
    tokens: Tensor
    slots_of_tokens: Tensor
    lengths: Tensor
    longest: int
    branches: Branches | None = None

    def sums(self, log_probs: Tensor) -> Tensor:
        """Log-probabilities (S,) of the tokens, summed over each label: (M, B, C); 0 where there is
        no label.
        """
        padded = log_probs.new_zeros(self.lengths.numel() * self.longest)
        padded = padded.index_copy(0, self.slots_of_tokens, log_probs)
        return padded.view(*self.lengths.shape, self.longest).sum(dim=-1)


@dataclass(frozen=True)
class LabelTable:
    """All training examples with all their labels, on the CPU: rows to read, and the label tokens that each
    row scores.

    A row is a prompt and the beginning of a label. It is read once for all labels that it serves: an example
    whose labels are single tokens has one row, its prompt, and one whose labels are words at most one a
    label. Where several rows hold the same beginning, the first of them scores what follows it. `lengths` (N,
    C) are the tokens of each label, 0 where there is none; `counts` (W,) the label tokens of each row, which
    lie in `tokens` row after row. With `branches`, all rows of an example are one: its prompt stands in it
    once.
    """

    rows: TextTable
    tokens: ScoredTokens
    counts: Tensor
    lengths: Tensor
    branches: Branches | None = None

    @classmethod
    def of(
        cls,
        encoded: Sequence[EncodedExample],
        *,
        pad_id: int,
        device: torch.device | str = "cpu",
        branched: bool = False,
    ) -> LabelTable:
        """The table of labelled examples, `branched`: with one row for each.

        Raises:
            DataError: there are none, or one has no target.
        """
        check_answered(encoded)
        rows: list[tuple[int, ...]] = []
        parts: list[Tensor] = []
        plans = [label_plan(example.label_ids) for example in encoded]
        for example, plan in zip(encoded, plans, strict=True):
            shift = torch.tensor([len(rows), len(example.prompt_ids) - 1, 0, 0, 0])
            tokens_of_example = plan.in_one_row() if branched else plan.tokens
            parts.append(tokens_of_example + shift[:, None])
            if branched:
                rows.append(sum(plan.beginnings, example.prompt_ids))
            else:
                rows += [example.prompt_ids + beginning for beginning in plan.beginnings]
        tokens = ScoredTokens(*torch.cat(parts, dim=1))
        table = TextTable.of(
            rows,
            None,
            pad_id=pad_id,
            counts=[1 if branched else len(plan.beginnings) for plan in plans],
            targets=[example.target for example in encoded],
            choices=True,
            device=device,
            target_probs=soft_targets(encoded, [len(example.label_ids) for example in encoded]),
        )
        branches = None
        if branched:
            continuations = [[len(beginning) for beginning in plan.beginnings] for plan in plans]
            branches = Branches.of([len(example.prompt_ids) for example in encoded], continuations)
        counts = tokens.rows.bincount(minlength=len(rows))
        return cls(table, tokens, counts, label_lengths(encoded), branches)

    def branches_of(self, texts: Texts) -> Branches | None:
        """The continuations of some of the rows; None where each row has one."""
        if self.branches is None:
            return None
        return self.branches.rows(texts.numbers, texts.ids.shape[1], texts.ids.device)

    def fingerprint(self) -> str:
        """A short hash of prompts, labels and targets, to notice when a run is continued on other data."""
        digest = hashlib.sha256(self.rows.fingerprint().encode())
        for values in (self.tokens.tokens, self.tokens.labels, self.lengths):
            digest.update(values.numpy().tobytes())
        return digest.hexdigest()[:16]

    def gather(self, indices: Tensor) -> LabelBatch:
        """The rows of examples `indices` (M, B), those that fill up a member's included, which
        score nothing.
        """
        numbers, slots, _ = self.rows.numbers_of(indices)
        examples = indices.shape[1]
        flat, flat_slots = numbers.flatten(), slots.flatten()
        counts = self.counts[flat].masked_fill(flat_slots == examples * self.rows.width, 0)
        rows = torch.arange(len(flat)).repeat_interleave(counts)
        begins = (self.counts.cumsum(0) - self.counts)[flat] - (counts.cumsum(0) - counts)
        chosen = begins[rows] + torch.arange(len(rows))
        positions, labels = self.tokens.positions[chosen], self.tokens.labels[chosen]
        keys = rows * self.rows.ids.shape[1] + positions  # in rising order, one for each place
        _, which = keys.unique_consecutive(return_inverse=True)
        first = (which.diff(prepend=which.new_tensor([-1])) > 0).nonzero()[:, 0]
        example = rows // numbers.shape[1] * examples + flat_slots[rows] // self.rows.width  # in (M * B)
        longest = int(self.lengths.max())
        goes_to = (example * self.lengths.shape[1] + labels) * longest + self.tokens.steps[chosen]
        device = self.rows.device
        which, tokens, goes_to = torch.stack([which, self.tokens.tokens[chosen], goes_to]).to(
            device, non_blocking=True
        )
        places = torch.stack([rows[first], positions[first]]).to(device, non_blocking=True)
        texts = self.rows.texts(flat)
        return LabelBatch(
            texts,
            slots.to(device, non_blocking=True),
            Places(*places),
            which,
            tokens,
            goes_to,
            self.lengths[indices].to(device, non_blocking=True),
            longest,
            self.branches_of(texts),
        )


@dataclass(frozen=True)
class LabelRows:
    """Questions whose labels are scored against each other by a causal language model; a `TrainingRows`."""

    ensemble: StackedModel
    table: LabelTable
    base: Tensor | None  # (N, C) log-probabilities of the base, where a member has a KL weight
    trunk_states: TrunkStates | None  # where the lowest layers carry no adapters
    label_score: LabelScore
    loss: Literal["labels", "vocabulary"] = "labels"
    accuracy_name: str = "accuracy"

    @classmethod
    def of(
        cls,
        ensemble: StackedModel,
        encoded: Sequence[EncodedExample],
        *,
        rows: int,
        with_kl: bool,
        with_dropout: bool,
        label_score: LabelScore,
    ) -> LabelRows:
        """The rows of labelled examples; what is kept of the base is read with `rows` examples in flight.

        The labels of an example share one row where that pays and the base takes it; not with dropout, which
        drops other features of a prompt for each label that follows it.

        Raises:
            DataError: there are none, or one has no target.
        """
        branched = not with_dropout and _branches_pay(ensemble, encoded)
        table = LabelTable.of(encoded, pad_id=ensemble.pad_id, device=ensemble.device, branched=branched)

        def read(numbers: Tensor) -> object:
            texts = table.rows.texts(numbers)
            more = arguments_of(table.branches_of(texts), ensemble.base)
            return one_pass(ensemble.base, {"input_ids": texts.ids, "use_cache": False, **more})

        def base_log_probs(at_once: int) -> Tensor:
            with torch.no_grad(), ensemble.base_only() as base:
                return score_labels(
                    encoded,
                    BaseRows(base, at_once),
                    pad_id=ensemble.pad_id,
                    device=ensemble.device,
                    label_score=label_score,
                )[0]

        at_once = rows * table.rows.width
        lengths = table.rows.text_lengths
        trunk = ensemble.trunk_states(table.fingerprint(), lengths, rows=at_once, read=read)
        base = with_fewer_rows(base_log_probs, at_once) if with_kl else None
        return cls(ensemble, table, base, trunk, label_score)

    @property
    def lengths(self) -> Tensor:
        return self.table.rows.lengths

    @property
    def passes(self) -> int:
        return self.table.rows.width

    def fingerprint(self) -> str:
        return self.table.fingerprint()

    def losses(self, indices: Tensor, *, members: slice, row_numbers: Tensor | None = None) -> RowLosses:
        ensemble, batch, probs = self.ensemble, self.table.gather(indices), self.table.rows.target_probs
        texts, kept = batch.texts, self.trunk_states
        numbers = self.table.rows.text_numbers(batch.slots, row_numbers)
        trunk = nullcontext() if kept is None else kept.in_place_of_trunk(texts.numbers, texts.ids.shape[1])
        with (
            ensemble.stack.running(
                rows=len(texts.ids), tokens=texts.ids.numel(), members=members, row_numbers=numbers
            ),
            trunk,
        ):
            log_probs = _token_log_probs(ensemble, batch)
        return distribution_losses(
            label_log_probs(batch.sums(log_probs), batch.lengths, self.label_score),
            targets=self.table.rows.targets[indices],
            base=None if self.base is None else self.base[indices],
            target_probs=None if probs is None else probs[indices],
        )


def _branches_pay(ensemble: StackedModel, encoded: Sequence[EncodedExample]) -> bool:
    """Whether one row for each example has so many fewer tokens that its mask is worth it."""
    plans = [label_plan(example.label_ids) for example in encoded]
    prompts = [len(example.prompt_ids) for example in encoded]
    beginnings = [sum(map(len, plan.beginnings)) for plan in plans]
    apart = sum(len(plan.beginnings) * prompt for plan, prompt in zip(plans, prompts, strict=True))
    tokens = [prompt + more for prompt, more in zip(prompts, beginnings, strict=True)]
    pays = apart + sum(beginnings) >= WORTH_SHARING * sum(tokens)
    return pays and can_branch(ensemble.base, max(tokens, default=0))


def _token_log_probs(ensemble: StackedModel, batch: LabelBatch) -> Tensor:
    """log p of each label token over the full vocabulary (S,), in memory that `answer_positions.LOGIT_BUDGET`
    bounds.
    """
    base, ids, places = ensemble.base, batch.texts.ids, batch.places
    sizes = chunk_sizes(ensemble, len(places.rows), places_at_once(base))
    if len(sizes) == 1:
        logits = logits_at(base, ids, places, branches=batch.branches)
        return _chosen(logits, batch.which, batch.tokens)[0]
    ends = torch.tensor(sizes, device=batch.which.device).cumsum(0)
    chunk = torch.bucketize(batch.which, ends, right=True)
    tokens = chunk.bincount(minlength=len(sizes)).tolist()
    chunks = zip(
        hidden_at(base, ids, places, branches=batch.branches).split(sizes),
        (batch.which - (ends - ends.diff(prepend=ends.new_zeros(1)))[chunk]).split(tokens),
        batch.tokens.split(tokens),
        strict=True,
    )
    return in_chunks(ensemble, _chosen, chunks)[0]


def _chosen(logits: Tensor, which: Tensor, tokens: Tensor) -> tuple[Tensor]:
    """log p of tokens (S,) from logits (n, V), in float32, each at the place that `which` (S,) says."""
    return (logits.float().log_softmax(dim=-1)[which, tokens],)
