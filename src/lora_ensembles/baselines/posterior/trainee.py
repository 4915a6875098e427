"""Training of a distribution over adapters by the one loop: in each step the members carry weights drawn from
it, and their gradients are carried over to its parameters.

Shapes: M members, N rows, P parameters of a member.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data import Completion, Example
from ...ensemble import LoraEnsemble
from ...errors import ConfigError
from ...stack.dropout import stream_key
from ...training.adapter_trainee import AdapterTrainee
from ...training.adapters import prepared, trained_info
from ...training.config import TrainConfig
from ...training.loop import run
from ...training.optim import Optimizer
from ...training.trainee import Trainee, TrainResult

Rows = Sequence[Example] | Sequence[Completion]


class Family(ABC):
    """A family of distributions over M members' flat weights, whose parameters are trained.

    Attributes:
        buffers: its parameters, flat and fp32 (M, P), by name; training changes them in place.
        decays: the settings of `TrainConfig` by which each of the buffers decays; None: it does not.
    """

    buffers: dict[str, Tensor]
    decays: tuple[str | None, ...]

    @abstractmethod
    def place(self, weights: Sequence[Tensor], keys: Sequence[int] | None) -> None:
        """Fill the members' weights (M, P_a), (M, P_b), ... with draws by the members' keys, or without keys
        with the distribution's centre.
        """

    @abstractmethod
    def carry_over(
        self, weights: Sequence[Tensor], gradients: Sequence[Tensor], totals: Sequence[Tensor]
    ) -> None:
        """Add to `totals`, shaped as the buffers, what the gradients of the drawn weights, and the family's
        own terms of the loss, are for its parameters.
        """

    def optimizer(self, *, learning_rate: Tensor, decays: Sequence[Tensor]) -> Optimizer | None:
        """The family's own optimiser; None: AdamW."""
        return None

    def around(self) -> AbstractContextManager[None] | None:
        """A context for the passes of a step; None: none is needed."""
        return None


class PosteriorTrainee(Trainee):
    """A family over an ensemble's adapters in training.

    Draws are a function of (member's order seed, step), so a member's result does not depend on its
    neighbours, nor on how a step is split.
    """

    can_recompute = True

    def __init__(self, inner: AdapterTrainee, family: Family):
        self.inner, self.family = inner, family
        self.decays = family.decays
        self.rows, self.order_seeds = inner.rows, inner.order_seeds
        self.dtype, self.tokens_a_row, self.variants = inner.dtype, inner.tokens_a_row, inner.variants
        self._weights = tuple(inner.buffers.values())
        self._gradients = tuple(torch.zeros_like(weight) for weight in self._weights)

    @property
    def buffers(self) -> dict[str, Tensor]:
        return dict(self.family.buffers)

    @property
    def device(self) -> torch.device:
        return self.inner.device

    def optimizer(self, *, learning_rate: Tensor, decays: Sequence[Tensor]) -> Optimizer:
        own = self.family.optimizer(learning_rate=learning_rate, decays=decays)
        return own or super().optimizer(learning_rate=learning_rate, decays=decays)

    def begin_step(self, gradients: Sequence[Tensor], step: int) -> None:
        super().begin_step(gradients, step)
        self.inner.begin_step(self._gradients, step)
        keys = [stream_key(seed, "posterior", step) for seed in self.order_seeds]
        self.family.place(self._weights, keys)
        self.inner.refresh()

    def in_step(self, step: int) -> AbstractContextManager[None]:
        return self.family.around() or self.inner.in_step(step)

    def add_gradients(self, loss: Tensor, totals: tuple[Tensor, ...]) -> None:
        self.inner.add_gradients(loss, self._gradients)

    def end_gradients(self, gradients: Sequence[Tensor]) -> None:
        self.family.carry_over(self._weights, self._gradients, gradients)

    def refresh(self) -> None:
        self.family.place(self._weights, None)
        self.inner.refresh()

    def recomputed(self) -> AbstractContextManager[None]:
        return self.inner.recomputed()

    def settings(self, config: TrainConfig) -> dict[str, Any]:
        return {**self.inner.settings(config), "posterior": type(self.family).__name__}

    def validate(self, examples: Rows, *, epoch: int, max_rows: int | None, last: bool) -> dict[str, Any]:
        return self.inner.validate(examples, epoch=epoch, max_rows=max_rows, last=last)


def fit(
    ensemble: LoraEnsemble,
    examples: Rows,
    config: TrainConfig,
    family_of: Any,
    *,
    validation: Rows = (),
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
) -> TrainResult:
    """Train the family that `family_of` makes of a trainee, and leave its centre in the ensemble.

    Raises:
        ConfigError, DataError, CheckpointError, TrainingError: as `train`.
    """
    for name in ("anchored", "shared_a"):
        if getattr(config, name):
            raise ConfigError(f"{name}=True: a posterior has no such setting; leave it out")
    examples, validation = prepared(ensemble, examples, validation, config)
    inner = AdapterTrainee(ensemble, examples, config)
    ensemble.info = trained_info(ensemble, examples, config)
    trainee = PosteriorTrainee(inner, family_of(inner))
    return run(trainee, config, validation=validation, out=out, resume=resume, progress=progress)
