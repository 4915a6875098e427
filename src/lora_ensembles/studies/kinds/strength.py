"""Records of the kind `strength`: each regulariser from far too weak to far too strong.

The sweep holds the paper's three strengths of each; here they span three decades, and early stopping has a
snapshot after every epoch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..arms import regulariser_arms
from ..predictions import Sheet
from ..setting import Bench, measure_run


@dataclass(frozen=True)
class StrengthConfig:
    """The strengths of both regularisers; the decays are shares of B a step."""

    wide_kl: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    wide_decays: tuple[float, ...] = (0.001, 0.005, 0.02, 0.08, 0.16, 0.32, 0.8)


def strength(config: StrengthConfig, bench: Bench, sheet: Sheet, *, seed: int) -> dict[str, Any]:
    """Single member and ensemble of every strength after the last epoch, and of the arm without a regulariser
    after each.
    """
    arms = regulariser_arms(bench.shared.learning_rate, decays=config.wide_decays, kl=config.wide_kl)
    last = bench.shared.snapshots[-1]
    every_epoch = dataclasses.replace(bench.config, snapshot_epochs=list(range(1, last + 1)))
    run = bench.train(arms, config=every_epoch, seed=seed)
    plain = {}
    for epoch in range(1, last):
        run.ensemble.stack.set_members([run.trained.snapshots[epoch][row] for row in run.rows(0)])
        plain[str(epoch)] = sheet.measured(("arms", "none", "epochs", str(epoch)), *bench.ask(run.ensemble))
    result = measure_run(run, bench, sheet, epochs=[last])
    result["arms"]["none"]["epochs"] = plain | result["arms"]["none"]["epochs"]
    return result
