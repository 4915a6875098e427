"""What the training loop asks of its data: the losses of some rows, whatever kind of head the members have.

Shapes: M members, B rows of a member, N rows in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .answer_losses import BaseStates, RowLosses, row_losses
from .batches import TokenTable, encode_rows
from .config import TrainConfig
from .ensemble import LoraEnsemble
from .memory import with_fewer_rows
from .reading import context_window
from .tasks import Completion, Example
from .text_losses import TextRows
from .trunk_states import TrunkStates


class TrainingRows(Protocol):
    """The rows that members are trained on."""

    @property
    def lengths(self) -> Tensor:
        """(N,) tokens of each row."""
        ...

    @property
    def passes(self) -> int:
        """The most rows of a pass that one row of the data stands for."""
        ...

    def fingerprint(self) -> str:
        """A short hash of the data, to notice when a run is continued on other data."""
        ...

    def losses(self, indices: Tensor, *, members: slice, first_row: int) -> RowLosses:
        """Losses of the rows `indices` (M, B) of these members; `first_row` says where they stand in the members' batches."""
        ...


@dataclass(frozen=True)
class AnswerRows:
    """Prompts and answers of a causal language model; a `TrainingRows`."""

    ensemble: LoraEnsemble
    table: TokenTable
    base_states: BaseStates | None  # where a member has a KL weight
    trunk_states: TrunkStates | None  # where the lowest layers carry no adapters
    passes: int = 1

    @classmethod
    def of(
        cls,
        ensemble: LoraEnsemble,
        examples: Sequence[Example] | Sequence[Completion],
        config: TrainConfig,
        *,
        with_kl: bool,
    ) -> AnswerRows:
        """The rows of labelled examples; what is kept of the base is read with as many rows in flight as training has."""
        encoded = encode_rows(
            examples, ensemble.tokenizer, max_length=context_window(ensemble.base), overlong=config.overlong
        )
        table = TokenTable.from_encoded(encoded, ensemble.pad_id, device=ensemble.device)
        at_once = config.max_rows or config.batch_size * ensemble.num_members

        def read(numbers: Tensor) -> object:
            return ensemble.base(input_ids=table.gather(numbers[None]).ids[0], use_cache=False)

        return cls(
            ensemble,
            table,
            with_fewer_rows(lambda rows: BaseStates.of(ensemble, table, rows=rows), at_once)
            if with_kl
            else None,
            with_fewer_rows(
                lambda rows: TrunkStates.of(ensemble.trunk, table.lengths, rows=rows, read=read), at_once
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
        ConfigError: the divergence is asked for where it means nothing.
    """
    of = TextRows.of if ensemble.info.head.owned else AnswerRows.of
    return of(ensemble, examples, config, with_kl=with_kl)
