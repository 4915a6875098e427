"""Training of a distribution over adapters by the one loop: in each step the members carry weights drawn from
it, and their gradients are carried over to its parameters.

Shapes: M members, P parameters of a member.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError
from ...stack.dropout import stream_key
from ...training.adapter_trainee import AdapterTrainee
from ...training.config import TrainConfig
from ...training.loop import Examples as Rows
from ...training.optim import Optimizer
from ...training.trainee import Trainee


class Family(ABC):
    """A family of distributions over the first of M members' flat weights A, B and heads, whose parameters
    are trained; the other weights are trained as they are.

    Attributes:
        buffers: its parameters, flat and fp32 (M, P), by name; training changes them in place.
        decays: the settings of `TrainConfig` by which each of the buffers decays; None: it does not.
        drawn: the number of weights that are drawn: 1 of A alone.
    """

    buffers: dict[str, Tensor]
    decays: tuple[str | None, ...]
    drawn: int = 1

    @abstractmethod
    def place(self, weights: Sequence[Tensor], keys: Sequence[int] | None) -> None:
        """Fill the weights that are drawn, (M, P) each, by the members' keys, or without keys with the
        distribution's centre.
        """

    @abstractmethod
    def carry_over(self, gradients: Sequence[Tensor], totals: Sequence[Tensor]) -> None:
        """Add to `totals`, shaped as the buffers, what the gradients of the drawn weights, and the family's
        own terms of the loss, are for its parameters.
        """

    def unreached(self, columns: Sequence[Sequence[slice]]) -> Sequence[Sequence[slice]]:
        """The columns of each buffer that no pass reached, from those of each weight; none by default."""
        return [() for _ in self.buffers]

    def optimizer(self, *, learning_rate: Tensor, decays: Sequence[Tensor]) -> Optimizer | None:
        """The family's own optimiser; None: AdamW."""
        return None

    def around(self) -> AbstractContextManager[None]:
        """A context for the passes of a step."""
        return nullcontext()


class PosteriorTrainee(Trainee):
    """A family over an ensemble's adapters in training.

    Draws are a function of (member's order seed, step), so a member's result does not depend on its
    neighbours, nor on how a step is split.

    Raises:
        ConfigError: a setting that only members trained as they are have.
    """

    can_recompute = True

    def __init__(self, inner: AdapterTrainee, family: Family, config: TrainConfig):
        for name in ("anchored", "shared_a"):
            if getattr(config, name):
                raise ConfigError(f"{name}=True: a posterior has no such setting; leave it out")
        self.inner, self.family = inner, family
        self.rows, self.order_seeds = inner.rows, inner.order_seeds
        self.dtype, self.tokens_a_row, self.variants = inner.dtype, inner.tokens_a_row, inner.variants
        weights = inner.buffers
        self._drawn = list(weights.values())[: family.drawn]
        self._gradients = [torch.zeros_like(weight) for weight in self._drawn]
        self._buffers = family.buffers | {name: weights[name] for name in list(weights)[family.drawn :]}
        self.decays = (*family.decays, *inner.decays[family.drawn :])

    @property
    def buffers(self) -> dict[str, Tensor]:
        return dict(self._buffers)

    @property
    def device(self) -> torch.device:
        return self.inner.device

    @property
    def pass_tokens(self) -> int | None:
        return self.inner.pass_tokens

    def optimizer(self, *, learning_rate: Tensor, decays: Sequence[Tensor]) -> Optimizer:
        own = self.family.optimizer(learning_rate=learning_rate, decays=decays)
        return own or super().optimizer(learning_rate=learning_rate, decays=decays)

    def begin_step(self, gradients: Sequence[Tensor], step: int) -> None:
        super().begin_step(gradients, step)
        self.inner.begin_step(self._gradients, step)
        keys = [stream_key(seed, "posterior", step) for seed in self.order_seeds]
        self.family.place(self._drawn, keys)
        self.inner.refresh()

    @contextmanager
    def in_step(self, step: int) -> Iterator[None]:
        with self.inner.in_step(step), self.family.around():
            yield

    def add_gradients(self, loss: Tensor, totals: tuple[Tensor, ...]) -> None:
        self.inner.add_gradients(loss, (*self._gradients, *totals[len(self.family.buffers) :]))

    def end_gradients(self, gradients: Sequence[Tensor]) -> None:
        self.family.carry_over(self._gradients, gradients[: len(self.family.buffers)])

    def unreached(self) -> Sequence[Sequence[slice]]:
        columns = self.inner.unreached()
        return [*self.family.unreached(columns), *columns[self.family.drawn :]]

    def refresh(self) -> None:
        self.family.place(self._drawn, None)
        self.inner.refresh()

    def recomputed(self) -> AbstractContextManager[None]:
        return self.inner.recomputed()

    def settings(self, config: TrainConfig) -> dict[str, Any]:
        return self.inner.settings(config)

    def validate(self, examples: Rows, *, epoch: int, max_rows: int | None, last: bool) -> dict[str, Any]:
        return self.inner.validate(examples, epoch=epoch, max_rows=max_rows, last=last)
