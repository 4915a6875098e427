"""Losses of the members' own heads: the cross entropy over classes or over an example's options, and what the
base says of them.

Shapes: M members, B rows of a member, R texts of a member, N examples, C classes or options.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...data import Completion, Example
from ...errors import ConfigError, DataError
from ...passes.memory import with_fewer_rows
from ...passes.stacked_model import StackedModel
from ...passes.texts import text_scores
from ...passes.trunk_states import TrunkStates
from ...stack.lora import unfold_members
from ..losses import RowLosses, distribution_losses
from ..resolve import HeadConfig, HeadKind
from .encoding import encode_texts, log_probs, no_target, with_classes
from .scores import score_texts
from .table import Choice, TextTable, passes_of_one_length


@dataclass(frozen=True)
class TextRows:
    """Examples whose texts are scored by heads that members own; a `TrainingRows`.

    Each example's loss is -log p of its class or option, in nats. Over a chosen and a rejected text that is
    -log sigmoid of the difference of their scores, the loss of Bradley and Terry's model.
    """

    ensemble: StackedModel
    table: TextTable
    base: Tensor | None  # (N, C) log-probabilities of the base, where a member has a KL weight
    trunk_states: TrunkStates | None  # where the lowest layers carry no adapters
    loss: Literal["labels", "vocabulary"] = "labels"
    accuracy_name: str = "accuracy"

    @classmethod
    def of(
        cls,
        ensemble: StackedModel,
        examples: Sequence[Example] | Sequence[Completion],
        *,
        overlong: Literal["error", "left"],
        rows: int,
        with_kl: bool,
    ) -> TextRows:
        """The rows of labelled examples; what is kept of the base is read with the texts of `rows` examples
        in flight.

        Raises:
            DataError: there are none, one is no `Example`, cannot be encoded or has no target; or they have
                not all the same classes.
            ConfigError: a KL weight, and heads that were newly initialised; or a base over several ranks that
                reads padding, whose ranks would make different numbers of passes.
        """
        head = ensemble.info.head
        if ensemble.padding_is_read:
            ensemble.stack.sharding.check_all_here("training on a base that reads the padding of texts")
        if with_kl:
            refuse_divergence(head)
        questions = check_examples(head.kind, examples)
        head = with_classes(head, questions)
        table = encode_texts(questions, ensemble.base, ensemble.tokenizer, head=head, overlong=overlong)
        check_labelled(table)
        at_once = rows * table.width

        trunk = ensemble.trunk_states(
            table.fingerprint(),
            table.text_lengths,
            rows=at_once,
            read=lambda numbers: text_scores(ensemble.base, table.texts(numbers)),
        )
        losses = cls(ensemble, table, None, trunk)
        return (
            dataclasses.replace(losses, base=with_fewer_rows(losses.base_log_probs, at_once))
            if with_kl
            else losses
        )

    @property
    def lengths(self) -> Tensor:
        return self.table.lengths

    @property
    def passes(self) -> int:
        return self.table.width

    def fingerprint(self) -> str:
        return self.table.fingerprint()

    def base_log_probs(self, rows: int) -> Tensor:
        """The base's own log-probabilities of every example (N, C), `rows` texts at a time."""
        token, padded = self.ensemble.token_read, not self.ensemble.padding_is_read
        with self.ensemble.base_only() as base:
            scores = score_texts(
                self.table,
                lambda texts: text_scores(base, texts, token=token)[None],
                rows=rows,
                padded=padded,
            )
        return log_probs(self.table.per_example(scores))[0]

    def losses(self, indices: Tensor, *, members: slice, row_numbers: Tensor | None = None) -> RowLosses:
        batch = self.table.gather(indices)
        rows = self.table.text_numbers(batch.slots, row_numbers)
        if self.ensemble.padding_is_read:
            scores = self._scores_by_length(batch, rows, members)
        else:
            scores = self._scores(batch.numbers, rows, members)
        return choice_losses(
            batch,
            scores,
            targets=self.table.targets[indices],
            base=None if self.base is None else self.base[indices],
            target_probs=None if self.table.target_probs is None else self.table.target_probs[indices],
        )

    def _scores(self, numbers: Tensor, rows: Tensor, members: slice) -> Tensor:
        """Scores (M, R, K) of texts by their numbers (M, R) in one pass; `rows` (M, R) says which rows of its
        batch a member reads.
        """
        ensemble, kept = self.ensemble, self.trunk_states
        texts, token = self.table.texts(numbers.flatten()), ensemble.token_read
        trunk = nullcontext() if kept is None else kept.in_place_of_trunk(texts.numbers, texts.ids.shape[1])
        running = ensemble.stack.running(
            rows=len(texts.ids),
            tokens=texts.ids.numel(),
            members=members,
            row_numbers=rows.to(self.table.device, non_blocking=True),
        )
        with running, trunk:
            return unfold_members(text_scores(ensemble.base, texts, token=token), len(numbers))

    def _scores_by_length(self, batch: Choice, rows: Tensor, members: slice) -> Tensor:
        """Scores (M, R, K) of a batch on a base that reads padding: texts of one length in a pass, and 0 for
        what fills up.
        """
        lengths = self.table.text_lengths[batch.numbers].where(batch.there, 0)
        first, width = range(self.ensemble.num_members)[members].start, lengths.shape[1]
        scores, places = [], []
        for some, texts in passes_of_one_length(lengths):
            numbers, own = batch.numbers[some].gather(1, texts), rows[some].gather(1, texts)
            scores.append(
                self._scores(numbers, own, slice(first + some.start, first + some.stop)).flatten(0, 1)
            )
            places.append((torch.arange(some.start, some.stop)[:, None] * width + texts).flatten())
        joined = torch.cat(scores)
        flat = joined.new_zeros(lengths.numel(), joined.shape[1])
        return unfold_members(flat.index_copy(0, torch.cat(places).to(joined.device), joined), len(lengths))


def check_examples(
    kind: HeadKind | None, examples: Sequence[Example] | Sequence[Completion]
) -> list[Example]:
    """The examples, which a task head can be trained on or judged by.

    Raises:
        DataError: one is an open answer.
    """
    questions = [example for example in examples if isinstance(example, Example)]
    if len(questions) < len(examples):
        raise DataError(
            f"open answers (Completion) for members with {kind} heads; "
            "pass examples with classes or options (Example)"
        )
    return questions


def choice_losses(
    batch: Choice, scores: Tensor, *, targets: Tensor, base: Tensor | None, target_probs: Tensor | None
) -> RowLosses:
    """`distribution_losses` from the scores (M, R, K) of a batch's texts."""
    predicted = log_probs(batch.per_example(scores))
    return distribution_losses(predicted, targets=targets, base=base, target_probs=target_probs)


def refuse_divergence(head: HeadConfig) -> None:
    """Refuse a KL weight where the base says nothing about the answers.

    Raises:
        ConfigError: members' heads were newly initialised.
    """
    if head.init != "base":
        raise ConfigError(
            "kl_weight: members' heads were newly initialised, so the base has no distribution over these "
            "answers to stay close to; leave kl_weight at 0, or train a base that has a trained head "
            "with HeadConfig(init='base')"
        )


def check_labelled(table: TextTable) -> None:
    """Refuse training examples without an answer.

    Raises:
        DataError: as it says.
    """
    missing = no_target(table)
    if missing is not None:
        raise DataError(f"training example number {missing} has no answer; every training example needs one")
