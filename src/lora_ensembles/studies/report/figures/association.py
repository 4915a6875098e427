"""Does an ensemble gain more where its members agree less? A rank correlation over the arms of each record,
with its interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torchmetrics.functional import spearman_corrcoef

from ...claims.contrasts import SIGNS, Contrast
from ...claims.judge import judge_contrasts
from .values import ENSEMBLE, MEMBER, Record, Records, by_task, last_row, value


@dataclass(frozen=True)
class Association:
    """The mean over tasks of Spearman's rho, its 95 % t interval over tasks, and the number of settings.

    The interval is None for fewer than `judge.LEAST_TASKS` tasks.
    """

    rho: float
    interval: tuple[float, float] | None
    settings: int

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.rho:+.2f}"
        return f"{self.rho:+.2f} ({self.interval[0]:+.2f} to {self.interval[1]:+.2f})"


def gains(record: Record, prefix: str, metric: str) -> list[tuple[float, float]]:
    """(correlation of the members, what the ensemble gains over them) of the record's arms whose name begins
    so; up is better.
    """
    points = []
    for name, arm in record["result"]["arms"].items():
        row = last_row(record, name)
        if not name.startswith(prefix) or row is None or arm.get("correlation") is None:
            continue
        member, ensemble = value(row, metric, MEMBER), value(row, metric, ENSEMBLE)
        if member is not None and ensemble is not None:
            points.append((arm["correlation"], SIGNS[metric] * (ensemble - member)))
    return points


def association(records: Records, metric: str) -> Association | None:
    """The association of the gain in a metric with the members' correlation: rho within each (task, seed)
    over its arms, so that easy and hard tasks do not stand in for it. None where no setting has three arms
    whose values differ.

    Raises:
        DataError: there is no record of a sweep.
    """
    rhos: dict[tuple[str, int], float] = {}
    for task, several in by_task(records, "sweep").items():
        for record in several:
            rho = rank_correlation(gains(record, "", metric))
            if rho is not None:
                rhos[task, int(record["settings"]["seed"])] = rho
    (part,) = judge_contrasts([Contrast(metric, rhos, -1)])
    if part.difference is None:
        return None
    interval = part.interval and (
        max(-1.0, part.interval[0]),
        min(1.0, part.interval[1]),
    )  # rho is never outside
    return Association(part.difference, interval, part.settings)


def rank_correlation(points: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's rho: the correlation of the ranks, those of equal values being their mean; None for fewer
    than three points, or where one side has a single value.

    Example:
        >>> rank_correlation([(1, 10), (2, 30), (3, 20)])
        0.5
    """
    sides = torch.tensor(points, dtype=torch.float64).reshape(-1, 2).T
    if len(points) < 3 or any(len(side.unique()) == 1 for side in sides):
        return None
    return float(spearman_corrcoef(*sides))
