"""Records of the kind `strength`: each regulariser from far too weak to far too strong.

The sweep holds the paper's three strengths of each; here they span three decades, and early stopping has a
snapshot after every epoch.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ..arms import regulariser_arms
from ..grid import Grid
from ..measures import measured
from ..setting import Bench, measure_run


def strength(grid: Grid, bench: Bench, *, seed: int) -> dict[str, Any]:
    """Single member and ensemble of every strength after the last epoch, and of the arm without a regulariser
    after each.
    """
    arms, last = (
        regulariser_arms(grid.learning_rate, decays=grid.wide_decays, kl=grid.wide_kl),
        grid.snapshots[-1],
    )
    config = dataclasses.replace(grid.config(bench.task.name), snapshot_epochs=list(range(1, last + 1)))
    run = bench.train(arms, config, members=grid.members, seed=seed)
    plain = {}
    for epoch in range(1, last):
        run.ensemble.stack.set_members([run.trained.snapshots[epoch][row] for row in run.rows(0)])
        plain[str(epoch)] = measured(*bench.ask(run.ensemble))
    found = measure_run(run, bench, epochs=[last])
    found["arms"]["none"]["epochs"] = plain | found["arms"]["none"]["epochs"]
    return found
