"""What the training loop asks of its data: the losses of some rows, whatever kind of head the members have.

Shapes: M members, B rows of a member, N rows in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..data import Completion, EncodedExample, Example
from ..ensemble import LoraEnsemble
from ..errors import ConfigError
from ..heads import HeadConfig
from ..heads.lm.label_losses import LabelRows
from ..heads.lm.losses import BaseStates, RowLosses, row_losses
from ..heads.lm.table import TokenTable, encode_rows
from ..heads.remarks import warn_of_label_lengths
from ..heads.task.losses import TextRows
from ..passes.memory import with_fewer_rows
from ..passes.shared_prefix import context_window
from ..passes.trunk_states import TrunkStates
from .config import TrainConfig
from .trainee import TrainingRows


@dataclass(frozen=True)
class AnswerRows:
    """Prompts and right answers of a causal language model, over the full vocabulary; a `TrainingRows`."""

    ensemble: LoraEnsemble
    table: TokenTable
    base_states: BaseStates | None  # where a member has a KL weight
    trunk_states: TrunkStates | None  # where the lowest layers carry no adapters
    passes: int = 1
    loss: Literal["labels", "vocabulary"] = "vocabulary"

    @classmethod
    def of(
        cls, ensemble: LoraEnsemble, encoded: Sequence[EncodedExample], *, rows: int, with_kl: bool
    ) -> AnswerRows:
        """The rows of labelled examples; what is kept of the base is read with `rows` rows in flight."""
        table = TokenTable.from_encoded(encoded, ensemble.pad_id, device=ensemble.device)

        def read(numbers: Tensor) -> object:
            return ensemble.base(input_ids=table.gather(numbers[None]).ids[0], use_cache=False)

        return cls(
            ensemble,
            table,
            with_fewer_rows(lambda some: BaseStates.of(ensemble, table, rows=some), rows)
            if with_kl
            else None,
            with_fewer_rows(
                lambda some: TrunkStates.of(ensemble.trunk, table.lengths, rows=some, read=read), rows
            ),
        )

    @property
    def lengths(self) -> Tensor:
        return self.table.lengths

    def fingerprint(self) -> str:
        return self.table.fingerprint()

    def losses(self, indices: Tensor, *, members: slice, first_row: int) -> RowLosses:
        return row_losses(
            self.ensemble,
            self.table.gather(indices),
            base_states=self.base_states,
            trunk_states=self.trunk_states,
            members=members,
            first_row=first_row,
        )


def training_rows(
    ensemble: LoraEnsemble,
    examples: Sequence[Example] | Sequence[Completion],
    config: TrainConfig,
    *,
    with_kl: bool,
) -> TrainingRows:
    """The rows of labelled examples for the head that the members have; `with_kl`: a member has a weight for the divergence from the base.

    Raises:
        DataError: there are none, or one cannot be encoded or has no target.
        ConfigError: the divergence or the loss is asked for where it means nothing.
    """
    rows = config.max_rows or config.batch_size * ensemble.num_members
    if ensemble.info.head.owned:
        _refuse_vocabulary(config, ensemble.info.head)
        config.check_decay("weight_decay_head")
        return TextRows.of(ensemble, examples, overlong=config.overlong, rows=rows, with_kl=with_kl)
    encoded = encode_rows(
        examples, ensemble.tokenizer, max_length=context_window(ensemble.base), overlong=config.overlong
    )
    questions = [example for example in examples if isinstance(example, Example)]
    if len(questions) < len(encoded):
        _refuse_labels_of_open_answers(config)
    elif _over_labels(config, questions, encoded):
        return LabelRows.of(ensemble, encoded, rows=rows, with_kl=with_kl, label_score=config.label_score)
    elif config.label_score == "sum":
        warn_of_label_lengths(questions, encoded)
    return AnswerRows.of(ensemble, encoded, rows=rows, with_kl=with_kl)


def _over_labels(
    config: TrainConfig, questions: Sequence[Example], encoded: Sequence[EncodedExample]
) -> bool:
    if config.loss != "auto":
        return config.loss == "labels"
    one_set = len({question.labels for question in questions}) == 1
    return one_set and any(len(label) > 1 for example in encoded for label in example.label_ids)


def _refuse_vocabulary(config: TrainConfig, head: HeadConfig) -> None:
    if config.loss == "vocabulary":
        raise ConfigError(
            f"loss='vocabulary': members with {head.kind} heads give probabilities to classes or options, not to a vocabulary; leave it at "
            "'auto'"
        )


def _refuse_labels_of_open_answers(config: TrainConfig) -> None:
    if config.loss == "labels":
        raise ConfigError(
            "loss='labels': open answers (Completion) have no set of labels to choose from; leave it at 'auto', or train on questions with "
            "options or labels (Example)"
        )
