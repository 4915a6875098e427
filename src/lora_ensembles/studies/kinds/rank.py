"""Records of the kind `rank`: how large do the adapters of an ensemble have to be?

Alpha grows with the rank, so that the scaling alpha / r stays the paper's 4 and a rank is compared with
another at the same factor; with more columns the update B A still grows faster at the same step size. Members
of all ranks are one stacked run: smaller ones are padded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...baselines import num_trained_parameters
from ..arms import Arm
from ..predictions import Sheet
from ..setting import Bench, measure_run


@dataclass(frozen=True)
class RankConfig:
    """The ranks that are compared."""

    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)


def rank(config: RankConfig, bench: Bench, sheet: Sheet, *, seed: int) -> dict[str, Any]:
    """Single member and ensemble of every rank after the last epoch, and the parameters of a member of it."""
    arms = [Arm(f"rank {size}", rank=size) for size in config.ranks]
    run = bench.train(arms, seed=seed)
    result = measure_run(run, bench, sheet, epochs=bench.shared.snapshots[-1:])
    for index, arm in enumerate(arms):
        result["arms"][arm.name] |= {
            "rank": arm.rank,
            "parameters": num_trained_parameters(run.ensemble, run.rows(index)[0]),
        }
    return result
