"""Examples that come in groups, such as several questions about one case: what is drawn is a group, since the
examples in it are not independent.

Shapes: N examples, K groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .bca import BCa
from .studentised import Studentised, ratio


@dataclass(frozen=True)
class Clusters:
    """The groups of a prediction, or of a pair of them, as what a bootstrap draws.

    Attributes:
        prediction: of the N examples.
        rows: the row numbers of each of the K groups.
    """

    prediction: Any
    rows: tuple[Tensor, ...]

    @property
    def num_examples(self) -> int:
        """K: what is drawn is a group."""
        return len(self.rows)

    def take(self, groups: Tensor) -> Clusters:
        """The examples of these groups, which may repeat."""
        return Clusters(
            self.prediction.take(torch.cat([self.rows[group] for group in groups.tolist()])), self.rows
        )

    def mean(self, values: Tensor) -> Studentised:
        """The mean of a value of each example (N,), as the ratio of the groups' sums to their sizes."""
        owners = torch.empty(sum(map(len, self.rows)), dtype=torch.int64)
        for number, own in enumerate(self.rows):
            owners[own] = number
        sums = torch.zeros(len(self.rows), dtype=torch.float64).index_add_(0, owners, values.double())
        return ratio(sums, torch.tensor([len(own) for own in self.rows]))


def clusters_of(prediction: Any, *, of: Any = None) -> Clusters | None:
    """The groups of a prediction, `of` which stands for what is drawn where that is another; None where every
    example is by itself.

    Example:
        >>> from types import SimpleNamespace
        >>> found = clusters_of(SimpleNamespace(groups=("a", "b", "a", None)))
        >>> [rows.tolist() for rows in found.rows]
        [[0, 2], [1], [3]]
    """
    groups = getattr(prediction, "groups", ())
    rows: dict[object, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(row if group is None else group, []).append(row)
    if len(rows) == len(groups):
        return None
    return Clusters(prediction if of is None else of, tuple(torch.tensor(own) for own in rows.values()))


def each_by_itself(prediction: Any) -> Clusters:
    """Every example as a group of its own."""
    return Clusters(prediction, tuple(torch.arange(prediction.num_examples).split(1)))


def over_groups(metric: Callable[..., float], drawn: BCa, *, of_each: Tensor | None) -> tuple[float, float]:
    """The ends of a metric's interval over draws of groups; of one that is the mean of a value `of_each`
    example (N,) by the bootstrap-t of the groups' sums.
    """
    if of_each is not None:
        mean = drawn.sets[0].mean(of_each)
        ends = mean.ends(samples=drawn.samples, level=drawn.level, seed=drawn.seed)
        if ends is not None:
            return ends
    return drawn.ends(lambda *groups: metric(*(own.prediction for own in groups)))
