"""The paper's regularisers, placements of decay and dropout, trained as one stack.

Shapes: M members an arm, N questions.
"""

from __future__ import annotations

from typing import Any

from ...baselines import MCDropout
from ...passes.stacked_model import num_trained_parameters
from ..arms import Arm, ArmsRun, decay_arms, regulariser_arms
from ..grid import Grid
from ..measures import measured
from ..setting import Bench, measure_run

DROPOUT = 0.1


def sweep(grid: Grid, bench: Bench, *, seed: int) -> dict[str, Any]:
    """Every regulariser, decay placed on A, B and both, and dropout; each measured after chosen epochs.

    All arms are one stacked run but dropout's, whose masks would be drawn, at 0, for every member of the
    stack.
    """
    arms = regulariser_arms(grid.learning_rate, decays=grid.decays, kl=grid.kl)
    arms += [arm for arm in decay_arms(grid.learning_rate, grid.decay) if arm.name != "decay of B"]
    settings: dict[str, Any] = dict(members=grid.members, seed=seed)
    run = bench.train(arms, grid.config(bench.task.name), **settings)
    found: dict[str, Any] = measure_run(run, bench, epochs=grid.snapshots)["arms"]
    parameters = num_trained_parameters(run.ensemble)
    run.ensemble.unload()
    dropped = bench.train([Arm("dropout", dropout=DROPOUT)], grid.config(bench.task.name), **settings)
    found |= measure_run(dropped, bench, epochs=grid.snapshots)["arms"]
    found["MC dropout"] = _mc_dropout(dropped, bench, seed=seed)
    sizes = {
        "train": len(bench.task.train),
        "validation": len(bench.task.validation),
        "options": bench.task.options,
    }
    return {"arms": found, "sizes": sizes, "trained_parameters": parameters}


def _mc_dropout(run: ArmsRun, bench: Bench, *, seed: int) -> dict[str, Any]:
    """Each member of the dropout arm, asked as many times as an ensemble has members; the mean over members
    is the baseline's value.
    """
    found = []
    for row in range(run.members):
        known, strange = bench.ask(
            MCDropout(run.ensemble, member=row, passes=run.members, dropout=DROPOUT, seed=seed)
        )
        found.append(measured(known, strange)["ensemble"])
    return {"passes": found}
