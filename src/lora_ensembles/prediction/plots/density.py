"""Kernel density of probabilities."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import DataError

# A bandwidth below this shows single answers and not a density.
_MIN_BANDWIDTH = 0.01


def density_on_unit_interval(
    values: Tensor, grid: Tensor, *, least_bandwidth: float = _MIN_BANDWIDTH
) -> Tensor:
    """The Gaussian kernel density of probabilities, at the points of `grid`, in float64.

    Values are reflected at 0 and 1, so that no mass leaks out of the interval: without it the peak at 1 of an
    overconfident model halves. The bandwidth is Silverman's rule, 0.9 min(std, IQR / 1.34) n^(-1/5), at least
    `least_bandwidth`: for values that were counted in bins give the bins' width, below which the kernels
    would show the bins.

    Raises:
        DataError: no values.

    Example:
        >>> grid = torch.linspace(0, 1, 101)
        >>> density = density_on_unit_interval(torch.tensor([0.2, 0.9, 1.0]), grid)
        >>> round(torch.trapezoid(density, grid.double()).item(), 2)
        1.0
    """
    if len(values) == 0:
        raise DataError("no values to estimate a density from; give at least one")
    values, grid = values.double(), grid.double()
    lower, upper = values.quantile(torch.tensor([0.25, 0.75], dtype=torch.float64)).tolist()
    # A middle half of equal values has IQR 0 although the rest is spread: then the standard deviation alone
    # sets the width.
    spreads = [spread for spread in (values.std(correction=0).item(), (upper - lower) / 1.34) if spread > 0]
    bandwidth = max(0.9 * min(spreads, default=0.0) * len(values) ** -0.2, least_bandwidth)
    steps = (grid[:, None] - torch.cat([values, -values, 2 - values])) / bandwidth
    density: Tensor = (-0.5 * steps.square()).exp().sum(dim=1) / (
        len(values) * bandwidth * math.sqrt(2 * math.pi)
    )
    return density
