"""The head interface: what members say about an example, and what they learn from one.

Shapes: M members, B rows of a member, N examples, C labels, classes or options.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor, nn

from ..data import Completion, Example
from ..passes.reader import Reader
from ..passes.stacked_model import StackedModel
from ..stack.head_config import HeadConfig, HeadInit, HeadKind, LabelScore
from .losses import RowLosses


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

    @property
    def loss(self) -> Literal["labels", "vocabulary"]:
        """The set that an answer is measured against: the example's labels, classes or options, or the full
        vocabulary.
        """
        ...

    @property
    def accuracy_name(self) -> str:
        """The name that a reader is shown for the share of right rows."""
        ...

    def fingerprint(self) -> str:
        """A short hash of the data, to notice when a run is continued on other data."""
        ...

    def losses(self, indices: Tensor, *, members: slice, row_numbers: Tensor | None = None) -> RowLosses:
        """Losses of the rows `indices` (M, B) of these members; `row_numbers` (M, B) say where they stand in
        the members' batches, where these are not the whole of them in order.
        """
        ...


@dataclass(frozen=True)
class Head(ABC):
    """A head: the table of an example's rows, their scores and their losses.

    Attributes:
        config: its settings, resolved.
        trained: whether each member owns one, trained and saved with its adapter.
        reader: how a base is asked for what the head needs.
    """

    config: HeadConfig
    trained: ClassVar[bool]
    reader: ClassVar[Reader]

    @property
    def kind(self) -> HeadKind:
        """Its name."""
        assert self.config.kind is not None  # a resolved config says it
        return self.config.kind

    @property
    def init(self) -> HeadInit | None:
        """The start of members' heads; None where they own none."""
        return self.config.init if self.trained else None

    @abstractmethod
    def check_base(self, base: nn.Module, targets: Mapping[str, Tensor] | None = None) -> None:
        """Refuse a base, or a base with these targets, on which the head means nothing.

        Raises:
            ConfigError: as it says.
        """

    @abstractmethod
    def try_base(self, base: nn.Module) -> None:
        """Try a few tokens on the base, as it computes without members.

        Raises:
            ConfigError: it cannot be used with this head.
        """

    @abstractmethod
    def member_log_probs(
        self, model: StackedModel, examples: Sequence[Example], *, max_rows: int | None
    ) -> Tensor:
        """(M, N, C) log-probabilities of labels, classes or options, with at most `max_rows` rows (members *
        texts) in flight.
        """

    @abstractmethod
    def check_rows(
        self,
        model: StackedModel,
        examples: Sequence[Example] | Sequence[Completion],
        validation: Sequence[Example] | Sequence[Completion],
        *,
        overlong: Literal["error", "left"],
    ) -> None:
        """Refuse validation examples that could not be measured after training on the others.

        Raises:
            DataError: one cannot be encoded.
        """

    def named(self, examples: Sequence[Example] | Sequence[Completion]) -> HeadConfig:
        """The settings with what training examples say of the head: the names of its classes, say."""
        return self.config

    @abstractmethod
    def training_rows(
        self,
        model: StackedModel,
        examples: Sequence[Example] | Sequence[Completion],
        *,
        loss: Literal["auto", "vocabulary", "labels"],
        label_score: LabelScore,
        overlong: Literal["error", "left"],
        rows: int,
        with_kl: bool,
        with_dropout: bool,
    ) -> TrainingRows:
        """The rows that members learn from; what is kept of the base is read with `rows` examples in flight.

        `with_kl`: a member has a weight for the divergence from the base; `with_dropout`: one has dropout.

        Raises:
            DataError: there are no examples, or one cannot be encoded or has no target.
            ConfigError: the divergence or the loss is asked for where it means nothing.
        """

    @abstractmethod
    def run_settings(self, settings: dict[str, Any], loss: str) -> dict[str, Any]:
        """A run's settings without those that change nothing for this head, and with its own."""

    @abstractmethod
    def description(self, base: nn.Module) -> dict[str, Any]:
        """The head's part of `ensemble.json`; its part "base" goes to what the file says of the base."""
