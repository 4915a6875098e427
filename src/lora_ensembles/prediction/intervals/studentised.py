"""The bootstrap-t interval: draws of a metric, each divided by its own standard error (Efron 1982; Hall
1988).

A sum that a few wrong answers decide is skewed, and its standard error grows with it; a draw that holds none
of them has both too small. Dividing each draw's deviation by the draw's own standard error takes that out,
which the quantiles of the draws alone cannot. It needs the standard errors in closed form, so it is for
means, ratios of sums and the coverage area.

Shapes: N examples, S draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NUMBERS_AT_ONCE = 4_000_000  # draws times examples: 32 MB

Estimator = Callable[[Tensor], tuple[Tensor, Tensor]]  # rows (S, N) -> estimates (S,), standard errors (S,)


@dataclass(frozen=True)
class Studentised:
    """A metric of N examples as an estimator with a standard error, on a scale from which `back` leads to the
    metric's own.
    """

    size: int
    estimator: Estimator
    back: Callable[[float], float] = float

    def ends(self, *, samples: int, level: float, seed: int) -> tuple[float, float] | None:
        """The ends of the interval, or None where the standard errors say nothing: of one example, or of most
        draws.

        With estimate v, standard error s and the quantiles q of (v* - v) / s* over the draws, v - q_high s to
        v - q_low s.
        """
        estimate, error = (float(value) for value in self.estimator(torch.arange(self.size)[None]))
        if not math.isfinite(estimate) or not math.isfinite(error):
            return None
        if error == 0.0:
            return self.back(estimate), self.back(estimate)
        generator = torch.Generator().manual_seed(seed)
        parts, left = [], samples
        while left > 0:
            count = min(left, max(1, NUMBERS_AT_ONCE // self.size))
            drawn, errors = self.estimator(torch.randint(self.size, (count, self.size), generator=generator))
            parts.append((drawn - estimate) / errors)
            left -= count
        ratios = torch.cat(parts)
        ratios = ratios[ratios.isfinite()]
        if len(ratios) < max(2, samples / 2):
            return None
        shares = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        low, high = ratios.quantile(shares).tolist()
        return self.back(estimate - high * error), self.back(estimate - low * error)


def ratio(
    values: Tensor, counts: Tensor | None = None, back: Callable[[float], float] = float
) -> Studentised:
    """The sum of `values` (N,) over that of `counts` (N,); their mean without counts.

    The standard error is that of the linearised residuals (v_n - R c_n) / mean(c), with N - 1 degrees of
    freedom.
    """
    values, size = values.double(), len(values)
    counts = torch.ones_like(values) if counts is None else counts.double()

    def estimator(rows: Tensor) -> tuple[Tensor, Tensor]:
        drawn, weights = values[rows], counts[rows]
        estimate = drawn.sum(-1) / weights.sum(-1)
        residuals = (drawn - estimate[:, None] * weights) / weights.mean(-1, keepdim=True)
        return estimate, (residuals.square().sum(-1) / (size * max(1, size - 1))).sqrt()

    return Studentised(size, estimator, back)


def coverage_area_of(doubt: Tensor, correct: Tensor) -> Studentised | None:
    """The area under the accuracy-coverage curve of answers (N,), on the scale of log-odds, which keeps it
    within 0 to 1.

    The standard error is the jackknife's, in closed form: without the answer of rank k, the accuracies before
    it stay, and each behind it loses one answer. None where answers of equal doubt differ in being right,
    since a draw's order among them is not decided.
    """
    ranked, order = doubt.sort()
    right = correct[order].double()
    if bool(((ranked[1:] == ranked[:-1]) & (right[1:] != right[:-1])).any()) or len(right) < 3:
        return None

    def estimator(rows: Tensor) -> tuple[Tensor, Tensor]:
        area, error = _area_and_error(right[rows.sort(-1).values])
        return (area / (1 - area)).log(), error / (area * (1 - area))

    return Studentised(len(right), estimator, lambda odds: 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0)


def _area_and_error(right: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the accuracies of the first 1 to N answers (S,), and its jackknife standard error; `right`
    (S, N) by rank.
    """
    size = right.shape[-1]
    ranks = torch.arange(1, size + 1, dtype=torch.float64)
    sums = right.cumsum(-1)
    accuracies = sums / ranks
    upto = accuracies.cumsum(-1)
    fewer = (ranks - 1).clamp_min(1)  # of the first k answers, all but one
    behind = _sums_behind(sums / fewer) - right * _sums_behind(1 / fewer)
    without = (upto - accuracies + behind) / (size - 1)
    spread = (without - without.mean(-1, keepdim=True)).square().sum(-1)
    return upto[..., -1] / size, (spread * (size - 1) / size).sqrt()


def _sums_behind(values: Tensor) -> Tensor:
    """The sum of all later values of the last axis, at each place."""
    return values.flip(-1).cumsum(-1).flip(-1) - values
