"""Loss and accuracy of a batch's rows, and what the base says at the same places, in memory that long answers
cannot exceed.

Shapes: M members, B rows of a member, n answer tokens of a batch, H hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...data import EncodedExample
from ...errors import TrainingError
from ...passes.answer_positions import head_logits, hidden_at, logits_at, places_at_once
from ...passes.hooks import one_pass
from ...passes.memory import with_fewer_rows
from ...passes.stacked_model import StackedModel
from ...passes.trunk_states import TrunkStates
from ...stack.lora import fold_members
from ..losses import RowLosses
from ..objectives import answer_loss, answer_right, kl_to_base
from .table import AnswerTokens, Batch, TokenTable

Terms = TypeVar("Terms", bound=tuple[Tensor | None, ...])

BASE_CACHE_BYTES = 2 * 2**30
"""Most memory for the base's hidden states, which Eq. 4 needs in every step; where they take more, the base
runs again in each step."""


@dataclass(frozen=True)
class BaseStates:
    """The base's last hidden states at every answer token of a table, kept or computed anew: what Eq. 4 needs
    of the base.

    The head is frozen, so logits from these states are the live ones, and H numbers a token are kept in place
    of V. Only tokens that count are kept, in the base's dtype: (sum of all answers' tokens) * H numbers,
    `BASE_CACHE_BYTES` at most. Beyond that each step asks the base again, for half of a forward pass more and
    the same result.
    """

    ensemble: StackedModel
    kept: Tensor | None  # (all answer tokens, H)

    @classmethod
    def of(cls, ensemble: StackedModel, table: TokenTable, *, rows: int) -> BaseStates:
        """The states of a table; `rows` rows are in flight."""
        live, kept = cls(ensemble, None), None
        if ensemble.stack.by_batch:
            return live  # other rows beside them would change these
        total = int(table.answer_lengths.sum())
        by_length = table.lengths.argsort()
        for indices in (
            by_length[:1],
            *by_length[1:].split(rows),
        ):  # one row first: it tells how large a state is
            batch = table.gather(indices[None])
            tokens = batch.answer_tokens()
            states = live.at(batch, tokens)
            if kept is None:
                if total * states.shape[1] * states.element_size() > BASE_CACHE_BYTES:
                    return live
                kept = states.new_empty(total, states.shape[1])
            kept[tokens.numbers] = states
        return cls(ensemble, kept)

    @torch.no_grad()
    def at(self, batch: Batch, tokens: AnswerTokens) -> Tensor:
        """(n, H) at the answer tokens of a batch."""
        if self.kept is not None:
            return self.kept[tokens.numbers]
        ensemble, (count, rows) = self.ensemble, batch.ids.shape[:2]
        running = ensemble.stack.running(rows=count * rows, tokens=batch.ids.numel(), members=slice(0, count))
        with ensemble.base_only() as base, running:
            return hidden_at(base, fold_members(batch.ids), tokens.places)


@dataclass(frozen=True)
class AnswerRows:
    """Prompts and right answers of a causal language model, over the full vocabulary; a `TrainingRows`."""

    ensemble: StackedModel
    table: TokenTable
    base_states: BaseStates | None  # where a member has a KL weight
    trunk_states: TrunkStates | None  # where the lowest layers carry no adapters
    passes: int = 1
    loss: Literal["labels", "vocabulary"] = "vocabulary"

    @classmethod
    def of(
        cls, ensemble: StackedModel, encoded: Sequence[EncodedExample], *, rows: int, with_kl: bool
    ) -> AnswerRows:
        """The rows of labelled examples; what is kept of the base is read with `rows` rows in flight."""
        table = TokenTable.from_encoded(encoded, ensemble.pad_id, device=ensemble.device)

        def read(numbers: Tensor) -> object:
            ids = table.gather(numbers[None]).ids[0]
            return one_pass(ensemble.base, {"input_ids": ids, "use_cache": False})

        return cls(
            ensemble,
            table,
            with_fewer_rows(lambda some: BaseStates.of(ensemble, table, rows=some), rows)
            if with_kl
            else None,
            ensemble.trunk_states(table.fingerprint(), table.lengths, rows=rows, read=read),
        )

    @property
    def lengths(self) -> Tensor:
        return self.table.lengths

    @property
    def accuracy_name(self) -> str:
        return self.table.accuracy_name

    def fingerprint(self) -> str:
        return self.table.fingerprint()

    def losses(self, indices: Tensor, *, members: slice, row_numbers: Tensor | None = None) -> RowLosses:
        return row_losses(
            self.ensemble,
            self.table.gather(indices),
            base_states=self.base_states,
            trunk_states=self.trunk_states,
            members=members,
            row_numbers=row_numbers,
        )


def row_losses(
    ensemble: StackedModel,
    batch: Batch,
    *,
    base_states: BaseStates | None = None,
    trunk_states: TrunkStates | None = None,
    members: slice = slice(None),
    row_numbers: Tensor | None = None,
) -> RowLosses:
    """Losses of a batch's rows; with `base_states`, the divergence from the base as well (Eq. 3 and 4, summed
    over a row's tokens).

    `trunk_states` spare the layers below the adapters. `members` says which members the batch holds,
    `row_numbers` (M, B) where its rows stand in theirs. Where the logits are more than
    `answer_positions.LOGIT_BUDGET`, the head and the losses run over chunks of tokens, and again in the
    backward pass, so that the logits of one chunk are all that there is at a time.
    """
    tokens = batch.answer_tokens()
    base = None if base_states is None else base_states.at(batch, tokens)
    at_once = places_at_once(ensemble.base, copies=1 if base is None else 2)
    count, rows = batch.ids.shape[:2]
    ids = fold_members(batch.ids)
    trunk = (
        nullcontext()
        if trunk_states is None
        else trunk_states.in_place_of_trunk(batch.rows.flatten(), batch.ids.shape[-1])
    )
    with (
        ensemble.stack.running(
            rows=count * rows, tokens=batch.ids.numel(), members=members, row_numbers=row_numbers
        ),
        trunk,
    ):
        sizes = chunk_sizes(ensemble, len(tokens.answers), at_once)
        if len(sizes) == 1:
            loss, divergence, right = _terms(
                logits_at(ensemble.base, ids, tokens.places, extra_hidden=base), tokens.answers
            )
        else:
            hidden = hidden_at(ensemble.base, ids, tokens.places)
            states = hidden if base is None else torch.stack([hidden, base])
            chunks = zip(states.split(sizes, dim=-2), tokens.answers.split(sizes), strict=True)
            loss, divergence, right = in_chunks(ensemble, _terms, chunks)
    per_row = tokens.per_row
    return RowLosses(
        per_row(loss), None if divergence is None else per_row(divergence), per_row((~right).float()) == 0
    )


def _terms(logits: Tensor, answers: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """-log p, divergence from the base, and right or not, of each token (n,), from logits (n, V), or (2, n,
    V) where the base's follow.
    """
    if logits.dim() == 2:
        return answer_loss(logits, answers), None, answer_right(logits, answers)
    tuned, base = logits
    return answer_loss(tuned, answers), kl_to_base(tuned, base), answer_right(tuned, answers)


def chunk_sizes(ensemble: StackedModel, places: int, at_once: int) -> list[int]:
    """The places of each chunk in which the head runs over `places` places, at most `at_once` in each; one
    chunk where they fit.

    Where each rank has rows of its own, all take as many chunks: each is a pass, which they make together.

    Raises:
        TrainingError: this rank has fewer places than others have chunks.
    """
    sharding, count = ensemble.stack.sharding, max(1, math.ceil(places / at_once))
    if not sharding.splits_members:
        return [at_once] * (count - 1) + [places - at_once * (count - 1)]
    count = sharding.ranks.largest(count)
    if count > max(1, places):
        raise TrainingError(
            f"rank {sharding.ranks.rank} has {places} answer tokens in a part of a step and another rank so "
            f"many that its logits are made in {count} chunks; lower batch_size, or set max_rows lower"
        )
    each, more = divmod(places, count)
    return [each + (number < more) for number in range(count)]


def in_chunks(
    ensemble: StackedModel,
    terms: Callable[..., Terms],
    chunks: Iterable[tuple[Tensor, ...]],
) -> Terms:
    """The results of `terms` on logits, one chunk after the other, joined along the first axis.

    A chunk is hidden states (..., n, H), which the head makes logits of, and the tensors that `terms` takes
    beside them. Logits live for one chunk at a time: the backward pass makes them again.
    """

    def of_chunk(hidden: Tensor, *beside: Tensor) -> Terms:
        with ensemble.base_only() as model:
            return terms(head_logits(model, hidden), *beside)

    parts = [checkpoint(of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    joined = [None if part[0] is None else torch.cat(part) for part in zip(*parts, strict=True)]
    return cast(Terms, tuple(joined))
