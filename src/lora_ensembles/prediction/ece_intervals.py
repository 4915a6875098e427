"""Intervals of the expected calibration error. A bootstrap cannot give them: ECE is biased upwards, and
resampling adds the bias again.

The population's ECE is that of the bins of `metrics.ece` as N goes to infinity, sum_b |E[(right - confidence)
in b]|. A sample's is larger by about what chance puts into every bin, 0.09 on 100 calibrated answers. So an
interval is found the other way round: a population value is kept where a sample drawn from a population with
that value has an ECE like the measured one (Neyman's construction, with nuisance parameters at their
estimates: Chuang & Lai 2000). The candidate populations have the sample's confidences, and in each bin a gap
between accuracy and confidence of the shape that the sample shows, shrunken by empirical Bayes and scaled to
the value that is tried.

Where the population is calibrated the interval begins at 0 in 97.5 % of samples at a level of 95 %: a value
below 0 is not there to be missed, so the other tail cannot err.

Shapes: N examples, S simulated samples, K bins that hold an example, G gaps that are tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .metrics import NUM_BINS

if TYPE_CHECKING:
    from .prediction import Prediction

HALVINGS = 12  # of a range of at most 0.5: ends are right to 1e-4, below what S samples resolve
GRID = 41  # gaps on each side that a difference tries, over REACH standard deviations below and above the measured ECE
REACH = 5.0
PLUG_IN = 1.25
"""Factor on the chi-square quantile of a difference, for shapes that are estimates: without it an interval of a difference from a
calibrated predictor holds it in 0.91 of samples at worst, where it claims 0.95."""
MEDIAN_SAMPLES = 400  # a median's error is 0.06 of the deviation, which the noise of a bin does not show


@dataclass(frozen=True)
class _Bins:
    """The quantities that a sample's ECE depends on: N answers in K bins.

    Attributes:
        index: (N,) the bin of each answer, 0 to K - 1.
        confidence: (N,) float64.
        right: (N,) float64, 1 for a right answer.
        counts: (K,) float64 answers in each bin.
    """

    index: Tensor
    confidence: Tensor
    right: Tensor
    counts: Tensor

    @classmethod
    def of(cls, prediction: Prediction) -> _Bins:
        right = (prediction.choices == prediction.labelled_targets("ece")).double()
        edges = torch.linspace(0, 1, NUM_BINS + 1)
        _, index, counts = torch.unique(
            torch.bucketize(prediction.confidence, edges, right=True), return_inverse=True, return_counts=True
        )
        return cls(index, prediction.confidence.double(), right, counts.double())

    @property
    def size(self) -> int:
        return len(self.index)

    def sums(self, values: Tensor) -> Tensor:
        """(K,) sums over the answers of each bin."""
        return torch.zeros(len(self.counts), dtype=torch.float64).index_add_(0, self.index, values)

    @cached_property
    def confident(self) -> Tensor:
        """(K,) mean confidence."""
        return self.sums(self.confidence) / self.counts

    @cached_property
    def gaps(self) -> Tensor:
        """(K,) accuracy - confidence."""
        return self.sums(self.right) / self.counts - self.confident

    @property
    def ece(self) -> float:
        return float((self.counts * self.gaps.abs()).sum() / self.size)

    @cached_property
    def variance(self) -> Tensor:
        """(K,) sampling variance of a gap; a bin's accuracy counts as if two more answers had been as the
        confidence says.
        """
        accuracy = (self.sums(self.right) + 2 * self.confident) / (self.counts + 2)
        return (accuracy * (1 - accuracy)).clamp_min(1e-3) / self.counts

    @cached_property
    def shape(self) -> Tensor:
        """(K,) the gaps shrunken to their weighted mean: gaps ~ N(mean, tau^2) over bins, tau by DerSimonian
        & Laird's moments.
        """
        weights = 1 / self.variance
        mean = (weights * self.gaps).sum() / weights.sum()
        excess = (weights * (self.gaps - mean).square()).sum() - (len(weights) - 1)
        between = (
            excess / (weights.sum() - weights.square().sum() / weights.sum()) if len(weights) > 1 else 0.0
        )
        if between <= 0:
            return mean.expand(len(weights))
        mean = (self.gaps / (self.variance + between)).sum() / (1 / (self.variance + between)).sum()
        return (self.gaps / self.variance + mean / between) / (1 / self.variance + 1 / between)

    @cached_property
    def debiased(self) -> float:
        """The population ECE of which a sample's is as often above as below the measured one; its noise is
        what the bias comes from.
        """
        counts = _drawn_counts(self, MEDIAN_SAMPLES, 0)

        def above(value: float) -> bool:
            (gaps,) = self.gaps_at(torch.tensor([value], dtype=torch.float64))
            simulated = _simulated(self, counts, gaps, 0)
            return bool((simulated >= self.ece - 1e-9).double().mean() >= 0.5)

        return 0.0 if above(0.0) else _crossing(above, self.ece)

    @property
    def highest(self) -> float:
        """The largest population ECE that these confidences can have."""
        return float((self.counts * torch.maximum(self.confident, 1 - self.confident)).sum() / self.size)

    def gaps_at(self, values: Tensor, *, sign: float = 1.0) -> Tensor:
        """(G, K) gaps of the estimated shape, or of the opposite one, with which the population's ECE is each
        of the `values` (G,).

        Accuracies stay within 0 to 1: a bin that is at its end leaves the rest to the others.
        """
        direction = sign * self.shape / self.shape.abs().max().clamp_min(1e-12)

        def scaled(factors: Tensor) -> Tensor:
            gaps = factors[:, None] * direction
            return torch.minimum(torch.maximum(gaps, -self.confident), 1 - self.confident)

        low, high = torch.zeros_like(values), torch.full_like(values, 1e6)
        for _ in range(60):
            middle = (low + high) / 2
            short = (scaled(middle).abs() @ self.counts) / self.size < values
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)
        return scaled(high) * (values > 0)[:, None]


def ece_range(prediction: Prediction, *, samples: int, level: float, seed: int) -> tuple[float, float]:
    """The population ECEs that the measured one does not speak against: of each side at most (1 - level) / 2
    of samples are as far off.

    Where the sample does not speak against calibration it does not say either on which side of it the
    population is, and both are tried.

    Raises:
        DataError: the prediction is unlabelled.
    """
    bins = _Bins.of(prediction)
    measured, tail = bins.ece - 1e-9, (1 - level) / 2
    counts = _drawn_counts(bins, samples, seed)

    def share_above(value: float, sign: float = 1.0) -> float:
        (gaps,) = bins.gaps_at(torch.tensor([value], dtype=torch.float64), sign=sign)
        return float((_simulated(bins, counts, gaps, seed) >= measured).double().mean())

    at_zero = share_above(0.0)
    if at_zero > 1 - tail:
        return 0.0, 0.0
    reach = min(bins.highest, bins.ece + REACH / 2 / math.sqrt(bins.size))

    def end(sign: float) -> float:
        return _crossing(lambda value: share_above(value, sign) > 1 - tail, reach)

    highs = [end(sign) for sign in ((1.0, -1.0) if at_zero >= tail else (1.0,))]
    low = 0.0 if at_zero >= tail else _crossing(lambda value: share_above(value) >= tail, bins.ece)
    return low, max(low, *highs)


def _crossing(reached: Callable[[float], bool], high: float) -> float:
    """The value between 0 and `high` from which on `reached` is true."""
    low = 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return (low + high) / 2


def _drawn_counts(bins: _Bins, samples: int, seed: int) -> Tensor:
    """(S, K) answers in each bin of samples of N."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(
        bins.counts.expand(samples, -1), bins.size, replacement=True, generator=generator
    )
    ones = torch.ones(1, dtype=torch.float64).expand(drawn.shape)
    return torch.zeros(samples, len(bins.counts), dtype=torch.float64).scatter_add_(1, drawn, ones)


def _simulated(bins: _Bins, counts: Tensor, gaps: Tensor, seed: int) -> Tensor:
    """(S,) ECEs of samples whose bins have such gaps in the population."""
    accuracy = (bins.confident + gaps).clamp(0, 1).expand(counts.shape)
    generator = torch.Generator().manual_seed(seed + 1)
    right = torch.binomial(counts, accuracy.contiguous(), generator=generator)
    return (right - counts * bins.confident).abs().sum(dim=1) / bins.size


def ece_difference_range(
    first: Prediction, second: Prediction, *, samples: int, level: float, seed: int
) -> tuple[float, float]:
    """The differences of two population ECEs that the two measured ones, of the same examples, do not speak
    against.

    Pairs of population values are kept whose distance from the measured pair is at most that of the best pair
    and `PLUG_IN` times the chi-square quantile of one degree of freedom. The distance is Mahalanobis', with
    means, deviations and correlation of simulated samples at that pair. Where the two go together so closely
    that the grid of pairs has hardly one within that distance, the interval is that of the simulated errors
    of the difference at the best pair, which is always part of it.

    Raises:
        DataError: a prediction is unlabelled.
    """
    bins = _Bins.of(first), _Bins.of(second)
    if torch.equal(bins[0].confidence, bins[1].confidence) and torch.equal(bins[0].right, bins[1].right):
        return 0.0, 0.0
    noises = _joint_noise(bins, first.choices == second.choices, samples, seed)
    values, eces = zip(*(_along(one, *noise) for one, noise in zip(bins, noises, strict=True)), strict=True)
    means, deviations = ([given(one, dim=1) for one in eces] for given in (torch.mean, torch.std))
    deviations = [one.clamp_min(1e-9) for one in deviations]
    units = [
        (one - mean[:, None]) / std[:, None] for one, mean, std in zip(eces, means, deviations, strict=True)
    ]
    correlation = (units[0] @ units[1].T / samples).clamp(-1 + 1e-6, 1 - 1e-6)
    scores = [(one.ece - mean) / std for one, mean, std in zip(bins, means, deviations, strict=True)]
    left, right = scores[0][:, None], scores[1][None]
    distance = (left.square() + right.square() - 2 * correlation * left * right) / (1 - correlation.square())
    allowed = PLUG_IN * NormalDist().inv_cdf((1 + level) / 2) ** 2
    differences = values[0][:, None] - values[1][None]
    kept = differences[distance <= distance.min() + allowed]
    best = divmod(int(distance.argmin()), GRID)
    errors = eces[0][best[0]] - eces[1][best[1]] - differences[best]
    tail = (1 - level) / 2
    lower, upper = errors.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    measured = bins[0].ece - bins[1].ece
    return min(float(kept.min()), measured - upper), max(float(kept.max()), measured - lower)


def _along(bins: _Bins, weights: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Population values around the measured one (G,), and the ECEs of simulated samples at each (G, S)."""
    reach = REACH * 0.5 / math.sqrt(bins.size)
    values = torch.linspace(
        max(0.0, bins.ece - reach), min(bins.highest, bins.ece + reach), GRID, dtype=torch.float64
    )
    sums = bins.gaps_at(values) * bins.counts / bins.size
    return values, torch.stack([(one * weights + noise).abs().sum(dim=1) for one in sums])


def _joint_noise(
    bins: tuple[_Bins, _Bins], agree: Tensor, samples: int, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Of each prediction, in samples of the same examples and answers: each bin's share over the measured one
    (S, K), and the noise of its sum of right answers over N (S, K).

    Where both choose the same option they are right together, with the mean of both probabilities; where not,
    at most one of them is.
    """
    generator = torch.Generator().manual_seed(seed)
    size = bins[0].size
    gaps = [one.gaps_at(torch.tensor([one.debiased], dtype=torch.float64))[0] for one in bins]
    chances = [(one.confidence + gap[one.index]).clamp(0, 1) for one, gap in zip(bins, gaps, strict=True)]
    together = (chances[0] + chances[1]) / 2
    apart = (chances[0] + chances[1]).clamp_min(1.0)
    chances = [torch.where(agree, together, one / apart) for one in chances]
    sums: list[list[Tensor]] = [[], []]
    for _ in range(samples):
        rows = torch.randint(size, (size,), generator=generator)
        uniform = torch.rand(size, generator=generator, dtype=torch.float64)
        for place, one in enumerate(bins):
            chance = chances[place][rows]
            mirrored = uniform if place == 0 else torch.where(agree[rows], uniform, 1 - uniform)
            surplus = (mirrored < chance).double() - chance
            both = torch.zeros(2, len(one.counts), dtype=torch.float64)
            sums[place].append(
                both.index_add_(
                    1, one.index[rows], torch.stack([torch.ones(size, dtype=torch.float64), surplus])
                )
            )
    stacked = [torch.stack(one) for one in sums]
    return [(one[:, 0] / own.counts, one[:, 1] / size) for one, own in zip(stacked, bins, strict=True)]
