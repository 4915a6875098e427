"""SWAG and MultiSWAG: a Gaussian from the weights that training passes late in its course.

Shapes: M members, P parameters of a member, K deviations that are kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...checks import number_between, whole_number
from ...ensemble import LoraEnsemble
from ...errors import ConfigError
from ...stack.sites import MemberWeights
from ...training.adapter_trainee import BUFFERS, AdapterTrainee
from ...training.config import TrainConfig
from ...training.loop import Examples as Rows
from ...training.orders import steps_in_all
from .base import WeightPosterior

MOMENTS = 50  # weights that are taken in where the caller does not say how often


@dataclass
class Moments:
    """Running moments of flat weights (M, P): their mean, the mean of their squares, and the last K
    deviations from the mean as it was then.

    Attributes:
        rank: K.
        count: weights taken in.
        mean, square: (M, P).
        deviations: (K, M, P); those from `count` on are zero.
    """

    rank: int
    mean: Tensor
    square: Tensor
    deviations: Tensor
    count: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))

    @classmethod
    def like(cls, flat: Tensor, *, rank: int) -> Moments:
        """Moments of nothing yet."""
        zeros = torch.zeros_like(flat)
        return cls(rank, zeros, zeros.clone(), flat.new_zeros(rank, *flat.shape))

    def add(self, flat: Tensor) -> None:
        """Take in the weights of one moment."""
        self.count += 1
        count = int(self.count)
        self.mean.lerp_(flat, 1 / count)
        self.square.lerp_(flat.square(), 1 / count)
        self.deviations[(count - 1) % self.rank] = flat - self.mean

    @property
    def variance(self) -> Tensor:
        """The diagonal variances (M, P)."""
        return (self.square - self.mean.square()).clamp_min(0.0)

    def sample(self, member: int, generator: torch.Generator, *, scale: float = 1.0) -> Tensor:
        """A draw (P,): mean + scale (sd * z1 / sqrt(2) + D z2 / sqrt(2 (K - 1)))."""
        kept = min(int(self.count), self.rank)
        mean = self.mean[member].cpu()
        draw = self.variance[member].cpu().sqrt() * torch.randn(mean.shape, generator=generator)
        draw = draw / math.sqrt(2)
        if kept > 1:
            weights = torch.randn(kept, generator=generator) / math.sqrt(2 * (kept - 1))
            draw = draw + weights @ self.deviations[:kept, member].cpu()
        return mean + scale * draw


class SWAG(WeightPosterior):
    """A Gaussian around the mean of the weights in the last part of training: their variances, and the plane
    of their last K deviations.

    theta = mean + scale (sd * z1 / sqrt(2) + D z2 / sqrt(2 (K - 1))), z1 and z2 standard normal. With M
    members it is MultiSWAG, a mixture of M such. Source: Maddox et al. 2019 (arXiv:1902.02476), Eq. 1, for
    LoRA as in Onal et al. 2024 (arXiv:2405.03425); Wilson & Izmailov 2020 (arXiv:2002.08791) for MultiSWAG.
    `Differs:` deviations are of the flat A, B and heads; the step size is that of `TrainConfig`: a constant
    schedule, as here by default, gives the walk around an optimum that SWAG needs.

    Args:
        ensemble: M untrained members.
        samples: S.
        seed: of the samples.
        share: of the steps, at the end, whose weights are taken in.
        every: steps between two of them; None: so many that 50 are, or each where there are fewer.
        rank: K.
        scale: of the spread; 0: the mean alone (SWA).

    Raises:
        ConfigError: a number out of its range, or too few steps to take two weights in.

    Example:
        >>> from lora_ensembles import LoraEnsemble, TrainConfig, load_base, load_task
        >>> task = load_task("world-cqa")
        >>> swag = SWAG(LoraEnsemble(*load_base(), num_members=2), samples=3)
        >>> trained = swag.fit(task.train[:64], TrainConfig(epochs=2, learning_rate=2e-3))
        >>> swag.member_log_probs(task.validation[:4]).shape
        torch.Size([6, 4, 5])
    """

    trained_by = ("share", "every", "rank")

    def __init__(
        self,
        ensemble: LoraEnsemble,
        *,
        samples: int = 10,
        seed: int = 0,
        share: float = 0.5,
        every: int | None = None,
        rank: int = 20,
        scale: float = 1.0,
    ):
        super().__init__(ensemble, samples=samples, seed=seed)
        self.share = number_between("share", share, above=0, most=1)
        self.every = None if every is None else whole_number("every", every)
        self.rank = whole_number("rank", rank, least=2)
        self.scale = number_between("scale", scale, least=0)
        self._walk: _Walk | None = None

    def trainee(self, examples: Rows, config: TrainConfig) -> AdapterTrainee:
        steps = steps_in_all(len(examples), config)
        late = steps - int((1 - self.share) * steps)
        every = self.every or max(1, late // MOMENTS)
        if late // every < 2:
            raise ConfigError(
                f"share={self.share:g} of {steps} steps, every {every}: {late // every} weights would be "
                "taken in, and 2 are needed; train longer, or take a larger share"
            )
        self._walk = _Walk.of(self.ensemble, rank=self.rank, first=steps - late, every=every)
        return AdapterTrainee(self.ensemble, examples, config, observer=self._walk)

    def sample(self, mode: int, generator: torch.Generator) -> MemberWeights:
        assert self._walk is not None
        moments = self._walk.moments
        return self.member_of(
            mode, {name: one.sample(mode, generator, scale=self.scale) for name, one in moments.items()}
        )


@dataclass(frozen=True)
class _Walk:
    """An `Observer` that takes in the weights after every so many steps beyond the first ones."""

    moments: dict[str, Moments]
    first: int
    every: int

    @classmethod
    def of(cls, ensemble: LoraEnsemble, *, rank: int, first: int, every: int) -> _Walk:
        flats = zip(BUFFERS, ensemble.stack.buffers, strict=False)
        return cls({name: Moments.like(flat, rank=rank) for name, flat in flats}, first, every)

    @property
    def kept(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, moments in self.moments.items():
            tensors |= {
                f"{name}.mean": moments.mean,
                f"{name}.square": moments.square,
                f"{name}.deviations": moments.deviations,
                f"{name}.count": moments.count,
            }
        return tensors

    def stepped(self, buffers: dict[str, Tensor], step: int) -> None:
        late = step - self.first
        if late > 0 and late % self.every == 0:
            for name, flat in buffers.items():
                self.moments[name].add(flat)
