"""The settings that every kind of record depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..data.prompts import Answer
from ..heads import HeadKind


@dataclass(frozen=True)
class Shared:
    """The base, the ensembles and the training that all kinds share.

    Attributes:
        base: its name; empty: none chosen yet.
        members: of an ensemble.
        batch_size: rows of a step, on tasks for which the paper has no size of its own.
        snapshots: epochs after which members are measured; the first three are early stopping, the last is
            the end.
        limit: most training, validation and out-of-distribution questions; None: all.
        sample_seed: of the sample that these are; the same questions for every seed of members.
    """

    base: str = "embedded"
    members: int = 5
    learning_rate: float = 2e-3
    batch_size: int = 16
    snapshots: tuple[int, ...] = (1, 2, 3, 5, 10)
    limit: tuple[int | None, int | None, int | None] = (200, 250, 250)
    sample_seed: int = 0


@dataclass(frozen=True)
class Heads:
    """The heads of the members, where they are not the base's own.

    Attributes:
        head: what members say about an example.
        max_length: of its texts, in tokens; longer ones lose their beginning.
        layers: the base's layers that carry adapters; none named: all.
        length_window: that of `TrainConfig`; texts for heads differ more in length than prompts that hold all
            options.
    """

    head: HeadKind = "causal-lm"
    max_length: int | None = None
    layers: tuple[int, ...] = ()
    length_window: int | None = None

    @property
    def of_base(self) -> bool:
        """Whether members answer with the base's own output layer."""
        return self.head == "causal-lm"


@dataclass(frozen=True)
class Asking:
    """The way in which questions are put to a base that answers with its own output layer, where it is not
    the paper's.

    Attributes:
        answer: whether a question is answered by the "letter" of an option or by its "text".
        loss: that of `TrainConfig`.
        layers: the base's layers that carry adapters; none named: all.
        batch_size: rows of a step, on every task; None: the paper's for its tasks.
        alpha: of the adapters; None: the paper's.
    """

    answer: Answer = "letter"
    loss: Literal["auto", "vocabulary", "labels"] = "auto"
    layers: tuple[int, ...] = ()
    batch_size: int | None = None
    alpha: int | None = None
