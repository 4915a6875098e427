"""Intervals of shares of answers, and Student's quantiles: formulas that need no draws."""

from __future__ import annotations

import functools
import math
from statistics import NormalDist
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ..prediction import Prediction


def wilson(share: float, count: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share of `count` independent answers: all shares that a test of this level does
    not tell from it.

    With z the normal quantile, (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n) (Wilson
    1927). It stays within 0 to 1 and does not shrink to a point where all answers are right, as a bootstrap
    of them would.

    Example:
        >>> [round(end, 3) for end in wilson(1.0, 100)]
        [0.963, 1.0]
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = share + z**2 / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, (middle - half) / (1 + z**2 / count)), min(1.0, (middle + half) / (1 + z**2 / count))


def accuracy_difference(first: Prediction, second: Prediction, level: float) -> tuple[float, float]:
    """Bonett & Price's interval of a difference of paired shares (2012): Wald's, with one answer more that
    only the first has right, and one that only the second has. Few answers differ between two good
    predictors, and a bootstrap of few is too narrow."""
    if torch.equal(first.choices, second.choices):
        return 0.0, 0.0
    right = [prediction.choices == prediction.labelled_targets("accuracy") for prediction in (first, second)]
    size = first.num_examples + 2
    only_first = (int((right[0] & ~right[1]).sum()) + 1) / size
    only_second = (int((right[1] & ~right[0]).sum()) + 1) / size
    middle = only_first - only_second
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt((only_first + only_second - middle**2) / size)
    return max(-1.0, middle - half), min(1.0, middle + half)


@functools.cache
def t_quantile(level: float, degrees: int) -> float:
    """The t with P(|T| <= t) = level of Student's distribution with so many degrees of freedom.

    With t = sqrt(degrees) tan(x), P is the integral of cos^(degrees - 1) from 0 to x over that from 0 to pi/2
    (Abramowitz & Stegun, 26.7.3 and 26.7.4); x is halved until it is found.

    Example:
        >>> round(t_quantile(0.95, 5), 3)
        2.571
    """

    low, high = 0.0, math.pi / 2
    for _ in range(60):  # down to 1e-18
        middle = (low + high) / 2
        if _powers_of_cosine(middle, degrees) < level * _powers_of_cosine(math.pi / 2, degrees):
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def t_probability(t: float, degrees: int) -> float:
    """P(|T| <= t) of Student's distribution with so many degrees of freedom; see `t_quantile`.

    Example:
        >>> round(t_probability(2.571, 5), 3)
        0.95
    """
    x = math.atan(abs(t) / math.sqrt(degrees))
    return _powers_of_cosine(x, degrees) / _powers_of_cosine(math.pi / 2, degrees)


def _powers_of_cosine(x: float, degrees: int) -> float:
    """The integral of cos^(degrees - 1) from 0 to x."""
    power = (degrees - 1) % 2
    value = math.sin(x) if power else x
    for n in range(power + 2, degrees, 2):
        value = math.cos(x) ** (n - 1) * math.sin(x) / n + (n - 1) / n * value
    return value
