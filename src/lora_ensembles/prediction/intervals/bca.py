"""The bias-corrected and accelerated bootstrap, for metrics that have no interval of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from ...errors import DataError
from .shares import t_quantile

JACKKNIFE_GROUPS = (
    100  # examples left out together: their skewness says as much of the acceleration as that of each alone
)


@dataclass(frozen=True)
class BCa:
    """The bias-corrected and accelerated bootstrap of a metric (Efron 1987); each of the sets is drawn on its
    own.

    Attributes:
        sets: predictions, or what else is drawn from.
        estimate: the metric of all.
        samples, level, seed: as for `bootstrap_interval`.
    """

    sets: tuple[Any, ...]
    estimate: float
    samples: int
    level: float
    seed: int

    def ends(self, metric: Callable[..., float]) -> tuple[float, float]:
        """The ends of the interval.

        An end is the quantile Phi(z0 + (z0 + z) / (1 - a (z0 + z))) of the draws, with z0 from the share of
        draws below the estimate and the acceleration a from the skewness of the jackknife. z is
        sqrt(N / (N - 1)) times Student's quantile in place of the normal one, since the draws of N examples
        are narrower than samples are by about as much (Hesterberg 2015, arXiv:1411.5279).
        """
        draws = _drawn(metric, self.sets, self.samples, self.seed)
        below = (
            (draws < self.estimate).double().mean() + 0.5 * (draws == self.estimate).double().mean()
        ).item()
        bias = NormalDist().inv_cdf(min(max(below, 0.5 / len(draws)), 1 - 0.5 / len(draws)))
        acceleration = _acceleration(metric, self.sets)
        count = min(prediction.num_examples for prediction in self.sets)
        z = t_quantile(self.level, max(1, count - 1)) * math.sqrt(count / max(1, count - 1))
        shares = []
        for end in (-z, z):
            room = 1 - acceleration * (bias + end)
            shares.append(NormalDist().cdf(bias + (bias + end) / room) if room > 0 else float(end > 0))
        low, high = draws.quantile(torch.tensor(sorted(shares), dtype=torch.float64)).tolist()
        return low, high


def _drawn(metric: Callable[..., float], sets: tuple[Any, ...], samples: int, seed: int) -> Tensor:
    """The metric of each draw (S,); draws in which it has no value (no wrong answer, for an AUROC of errors)
    are left out.
    """
    resamples = (
        _resamples(prediction.num_examples, samples, seed + place) for place, prediction in enumerate(sets)
    )
    values = torch.tensor(
        [_value(metric, sets, rows) for rows in zip(*resamples, strict=True)], dtype=torch.float64
    )
    values = values[~values.isnan()]
    if len(values) < max(2, samples / 2):
        raise DataError(
            f"the metric has a value in {len(values)} of {samples} draws of the {sets[0].num_examples} "
            "examples; an interval needs most of them: measure more examples"
        )
    return values


def _acceleration(metric: Callable[..., float], sets: tuple[Any, ...]) -> float:
    """A sixth of the skewness of the influences, from leaving out groups of examples of one set at a time."""
    influences = []
    for place, prediction in enumerate(sets):
        groups = torch.randperm(prediction.num_examples, generator=torch.Generator().manual_seed(0)).chunk(
            JACKKNIFE_GROUPS
        )
        if len(groups) < 2:
            continue
        left = [
            _value(
                metric,
                sets,
                tuple(
                    torch.cat([*groups[:n], *groups[n + 1 :]])
                    if other == place
                    else torch.arange(whole.num_examples)
                    for other, whole in enumerate(sets)
                ),
            )
            for n in range(len(groups))
        ]
        values = torch.tensor(left, dtype=torch.float64)
        values = values[~values.isnan()]
        influences.append(values.mean() - values if len(values) else values)
    every = torch.cat(influences) if influences else torch.zeros(1, dtype=torch.float64)
    spread = every.square().sum().item() ** 1.5
    return every.pow(3).sum().item() / (6 * spread) if 0 < spread < math.inf else 0.0


def _value(metric: Callable[..., float], sets: tuple[Any, ...], rows: tuple[Tensor, ...]) -> float:
    try:
        return metric(*(prediction.take(chosen) for prediction, chosen in zip(sets, rows, strict=True)))
    except DataError:
        return math.nan


def _resamples(num_examples: int, samples: int, seed: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(samples):
        yield torch.randint(num_examples, (num_examples,), generator=generator)
