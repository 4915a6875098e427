"""The paper's regularisers, placements of decay and dropout, trained as one stack.

Shapes: M members an arm, N questions.
"""

from __future__ import annotations

from typing import Any

from ...baselines import MCDropout
from ...passes.stacked_model import num_trained_parameters
from ..arms import Arm, ArmsRun, decay_arms, regulariser_arms
from ..predictions import Sheet
from ..setting import Bench, measure_run
from .paper import PaperConfig

DROPOUT = 0.1


def sweep(config: PaperConfig, bench: Bench, sheet: Sheet, *, seed: int) -> dict[str, Any]:
    """Every regulariser, decay placed on A, B and both, and dropout: those that figures follow over the epochs
    measured after each chosen one, the others at the end.

    All arms are one stacked run but dropout's, whose masks would be drawn, at 0, for every member of the
    stack.
    """
    arms = regulariser_arms(bench.shared.learning_rate, decays=config.decays, kl=config.kl)
    arms += [arm for arm in decay_arms(bench.shared.learning_rate, config.decay) if arm.name != "decay of B"]
    over_epochs = {"none", f"decay of B {config.decay:g}", "decay of A", "decay of A and B"}
    run = bench.train(sorted(arms, key=lambda arm: arm.name not in over_epochs), seed=seed)
    every = sum(arm.name in over_epochs for arm in arms)
    rows = measure_run(run, bench, sheet, epochs=bench.shared.snapshots, every=every)["arms"]
    results: dict[str, Any] = {arm.name: rows[arm.name] for arm in arms}
    parameters = num_trained_parameters(run.ensemble)
    run.ensemble.unload()
    dropped = bench.train([Arm("dropout", dropout=DROPOUT)], seed=seed)
    results |= measure_run(dropped, bench, sheet, epochs=bench.shared.snapshots)["arms"]
    results["MC dropout"] = _mc_dropout(dropped, bench, sheet, seed=seed)
    sizes = {
        "train": len(bench.task.train),
        "validation": len(bench.task.validation),
        "options": bench.task.options,
    }
    return {"arms": results, "sizes": sizes, "trained_parameters": parameters}


def _mc_dropout(run: ArmsRun, bench: Bench, sheet: Sheet, *, seed: int) -> dict[str, Any]:
    """Each member of the dropout arm, asked as many times as an ensemble has members; the mean over members
    is the baseline's value.
    """
    passes = []
    for row in range(run.members):
        dropout = MCDropout(run.ensemble, member=row, passes=run.members, dropout=DROPOUT, seed=seed)
        name = f"MC dropout/{row}"
        sheet.keep(name, *bench.ask(dropout))
        passes.append(sheet.compute(("arms", "MC dropout", "passes", row), "ensemble", name))
    return {"passes": passes}
