"""Intervals of the expected calibration error. A bootstrap cannot give them: ECE is biased upwards, and
resampling adds the bias again.

The population's ECE is that of the bins of `metrics.ece` as N goes to infinity, sum_b |E[(right - confidence)
in b]|. A sample's is larger by about what chance puts into every bin, 0.09 on 100 calibrated answers. So an
interval is found the other way round: a population value is kept where a sample drawn from a population with
that value has an ECE like the measured one (Neyman's construction, with nuisance parameters at their
estimates: Chuang & Lai 2000). The candidate populations have the sample's confidences, and in each bin a gap
between accuracy and confidence of the shape that the sample shows, shrunken by empirical Bayes and scaled to
the value that is tried.

How far off a sample is, is measured by its likelihood beside that of the best value there is (Feldman &
Cousins 1998, arXiv:physics/9711021): values below 0 are not among them, so that an interval that begins at 0
covers as often as any other.

Shapes: N examples, S simulated samples, K bins that hold an example, G gaps that are tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..metrics import NUM_BINS

if TYPE_CHECKING:
    from ..prediction import Prediction

HALVINGS = 12  # of a range of at most 0.5: ends are right to 1e-4, below what S samples resolve
LARGEST = 1e6  # multiple of the estimated gaps, where every accuracy is at an end
GRID = 41  # values that are tried, and differences; the ends lie between two of them by interpolation
REACH = 5.0  # deviations on each side that are tried
PLUG_IN = 1.1
"""Factor on the excess of a difference, since shapes are estimates; its coverage is in docs/statistics.md."""
CALIBRATING = 400  # samples at each pair, whose shares are wanted to a hundredth
DRAWN_AT_ONCE = 2_000_000  # answers: 16 MB a tensor
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

    def _scaled(self, factors: Tensor, sign: float) -> Tensor:
        """(G, K) gaps of the estimated shape, `factors` (G,) times as large; accuracies stay in 0 to 1.

        A sample without a gap shows no shape: then all bins have the same.
        """
        largest = self.shape.abs().max()
        direction = self.shape / largest if largest > 1e-12 else torch.ones_like(self.shape)
        gaps = sign * factors[:, None] * direction
        return torch.minimum(torch.maximum(gaps, -self.confident), 1 - self.confident)

    def highest(self, sign: float = 1.0) -> float:
        """The largest population ECE that gaps of the estimated shape, or of the opposite one, can have."""
        (gaps,) = self._scaled(torch.tensor([LARGEST], dtype=torch.float64), sign)
        return float((self.counts * gaps.abs()).sum() / self.size)

    def gaps_at(self, values: Tensor, *, sign: float = 1.0) -> Tensor:
        """(G, K) gaps of the estimated shape, or of the opposite one, with which the population's ECE is each
        of the `values` (G,), `highest` at most.

        Accuracies stay within 0 to 1: a bin that is at its end leaves the rest to the others.
        """
        low, high = torch.zeros_like(values), torch.full_like(values, LARGEST)
        for _ in range(60):
            middle = (low + high) / 2
            short = (self._scaled(middle, sign).abs() @ self.counts) / self.size < values
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)
        return self._scaled(high, sign) * (values > 0)[:, None]


def debiased_ece(prediction: Prediction) -> float:
    """The ECE without the bias of few examples, 0 to 1: the population ECE of which a sample's is as often
    above as below the measured one; 0 where the measured one is no larger than that of calibrated answers.

    Raises:
        DataError: the prediction is unlabelled.
    """
    return _Bins.of(prediction).debiased


def ece_range(prediction: Prediction, *, samples: int, level: float, seed: int) -> tuple[float, float]:
    """The population ECEs that the measured one does not speak against at this level.

    A value v is kept where a share above 1 - level of samples from a population with it is at least as far
    off as the measured ECE x, by the ratio of its likelihood to that of the best value (Feldman & Cousins
    1998): ((x - mean_v) / std_v)^2 - min(0, (x - mean_0) / std_0)^2, since no value lies below 0. Where the
    sample does not speak against calibration it does not say either on which side of it the population is,
    and both are tried.

    Raises:
        DataError: the prediction is unlabelled.
    """
    bins = _Bins.of(prediction)
    counts = _drawn_counts(bins, samples, seed)

    def ends(sign: float) -> tuple[float, float]:
        reach = min(bins.highest(sign), bins.ece + REACH / 2 / math.sqrt(bins.size))
        values = torch.linspace(0.0, reach, GRID, dtype=torch.float64)
        gaps_of_each = bins.gaps_at(values, sign=sign)
        drawn = torch.stack([_simulated(bins, counts, gaps, seed) for gaps in gaps_of_each])  # (G, S)
        kept = _shares_as_far_off(bins.ece, drawn).tolist()
        best = max(range(GRID), key=kept.__getitem__)
        low, high = (_end(values, kept.__getitem__, 1 - level, best, towards) for towards in (-1, GRID))
        return low, high

    low, high = ends(1.0)
    return (low, high) if low > 0 else (0.0, max(high, ends(-1.0)[1]))


def _shares_as_far_off(measured: float, drawn: Tensor) -> Tensor:
    """Of the samples at each value (G, S), lowest value first, the share (G,) that is as far off."""
    mean, std = drawn.mean(1, keepdim=True), drawn.std(1, keepdim=True).clamp_min(1e-9)

    def off(eces: Tensor) -> Tensor:
        below = ((eces - mean[0]) / std[0]).clamp_max(0)
        return ((eces - mean) / std).square() - below.square()

    least = off(torch.tensor([[measured]], dtype=torch.float64)) - 1e-9
    return (off(drawn) >= least).double().mean(1)


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
    against at this level.

    Pairs of population values are tried on a grid of first values and differences. A pair's distance from
    measured ECEs is Mahalanobis', with means, deviations and correlation of simulated samples at that pair. A
    difference is kept where a share above 1 - level of samples, from its pair next to the measured ECEs, has
    an excess of its own nearest pair over the nearest of all pairs as large as the measured one.

    Raises:
        DataError: a prediction is unlabelled.
    """
    bins = _Bins.of(first), _Bins.of(second)
    if torch.equal(bins[0].confidence, bins[1].confidence) and torch.equal(bins[0].right, bins[1].right):
        return 0.0, 0.0
    pairs = _Pairs.around(bins, _joint_noise(bins, first.choices == second.choices, samples, seed))
    measured = torch.tensor([[bins[0].ece, bins[1].ece]], dtype=torch.float64)
    distance = pairs.distance(measured)[0]
    least = distance.min()

    def share(place: int) -> float:
        row = pairs.rows(place)
        nearest, at = distance[row].min(0)
        if nearest.isinf():
            return 0.0
        drawn = pairs.distance(pairs.drawn[row][at][:CALIBRATING])
        excess = drawn[:, row].amin(1) - drawn.amin(1)
        return float((PLUG_IN * excess >= nearest - least - 1e-9).double().mean())

    best = int(distance.argmin()) // GRID
    ends = (_end(pairs.differences, share, 1 - level, best, towards) for towards in (-1, GRID))
    low, high = ends
    return low, high


def _end(values: Tensor, share: Callable[[int], float], tail: float, inside: int, outside: int) -> float:
    """The value between the places `inside` and `outside` at which shares fall to `tail`; between the two
    places next to it by interpolation.
    """
    shares = {inside: max(share(inside), 2 * tail)}
    limit = outside
    while abs(outside - inside) > 1:
        middle = (inside + outside) // 2
        shares[middle] = share(middle)
        inside, outside = (middle, outside) if shares[middle] > tail else (inside, middle)
    if outside == limit:
        return float(values[inside])
    part = (shares[inside] - tail) / (shares[inside] - shares[outside])
    return float(values[inside] + part * (values[outside] - values[inside]))


@dataclass(frozen=True)
class _Pairs:
    """Pairs of population ECEs, G first values of each of G differences, and simulated samples at each.

    Attributes:
        differences: (G,) first value minus second.
        drawn: (G * G, S, 2) simulated ECEs, difference-major.
        possible: (G * G,) true where both values can be.
    """

    differences: Tensor
    drawn: Tensor
    possible: Tensor

    @classmethod
    def around(cls, bins: tuple[_Bins, _Bins], noises: list[tuple[Tensor, Tensor]]) -> _Pairs:
        """Pairs within `REACH` deviations of the measured ECEs and of their difference."""
        near = torch.stack(
            [
                _eces(one, torch.tensor([one.debiased], dtype=torch.float64), *noise)[0]
                for one, noise in zip(bins, noises, strict=True)
            ]
        )
        reach = REACH * near[0].std().item()
        width = REACH * max((near[0] - near[1]).std().item(), 1e-6)
        bias = (near[0] - near[1]).mean().item() - (bins[0].debiased - bins[1].debiased)
        middle = bins[0].ece - bins[1].ece - bias
        differences = torch.linspace(middle - width, middle + width, GRID, dtype=torch.float64)
        values = torch.linspace(
            max(0.0, bins[0].ece - reach),
            min(bins[0].highest(), bins[0].ece + reach),
            GRID,
            dtype=torch.float64,
        )
        others = (values - differences[:, None]).flatten()
        first = _eces(bins[0], values, *noises[0]).repeat(GRID, 1)
        second = _eces(bins[1], others.clamp(0, bins[1].highest()), *noises[1])
        possible = (others >= -1e-12) & (others <= bins[1].highest())
        return cls(differences, torch.stack([first, second], dim=-1), possible)

    def rows(self, place: int) -> slice:
        """The pairs of one difference."""
        return slice(place * GRID, (place + 1) * GRID)

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor, Tensor]:
        mean, std = self.drawn.mean(1), self.drawn.std(1).clamp_min(1e-9)
        units = (self.drawn - mean[:, None]) / std[:, None]
        correlation = units.prod(-1).mean(1).clamp(-1 + 1e-6, 1 - 1e-6)
        return mean, std, correlation

    def distance(self, eces: Tensor) -> Tensor:
        """(S, G * G) distances of measured ECEs (S, 2) from all pairs; infinite where a pair cannot be."""
        mean, std, correlation = self._moments
        left = (eces[:, None, 0] - mean[:, 0]) / std[:, 0]
        right = (eces[:, None, 1] - mean[:, 1]) / std[:, 1]
        squared = (left.square() + right.square() - 2 * correlation * left * right) / (
            1 - correlation.square()
        )
        return squared.masked_fill(~self.possible, math.inf)


def _eces(bins: _Bins, values: Tensor, weights: Tensor, noise: Tensor) -> Tensor:
    """(G, S) ECEs of simulated samples at each of the population values (G,)."""
    sums = bins.gaps_at(values) * bins.counts / bins.size
    return torch.stack([(one * weights + noise).abs().sum(dim=1) for one in sums])


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
    made: list[list[Tensor]] = [[], []]
    at_once = max(1, DRAWN_AT_ONCE // size)
    for part in range(0, samples, at_once):
        shape = (min(at_once, samples - part), size)
        rows = torch.randint(size, shape, generator=generator)
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
        for place, one in enumerate(bins):
            chance = chances[place][rows]
            mirrored = uniform if place == 0 else torch.where(agree[rows], uniform, 1 - uniform)
            surplus = (mirrored < chance).double() - chance
            index, zeros = one.index[rows], torch.zeros(shape[0], len(one.counts), dtype=torch.float64)
            counted = zeros.scatter_add(1, index, torch.ones_like(surplus))
            made[place].append(torch.stack([counted, zeros.scatter_add(1, index, surplus)]))
    sums = [torch.cat(one, dim=1) for one in made]
    return [(one[0] / own.counts, one[1] / size) for one, own in zip(sums, bins, strict=True)]
