"""The paper's regularisers, placements of decay and dropout, trained as one stack.

Shapes: M members an arm, N questions.
"""

from __future__ import annotations

from typing import Any

from ...baselines import MCDropout
from ...passes.stacked_model import num_trained_parameters
from ...prediction.prediction import predict
from ..arms import Arm, ArmsRun, decay_arms, regulariser_arms
from ..predictions import Sheet, name_of
from ..setting import Bench, measure_run
from .paper import PaperConfig

DROPOUT = 0.1


def sweep(config: PaperConfig, bench: Bench, sheet: Sheet, *, seed: int) -> dict[str, Any]:
    """Every regulariser, decay placed on A, B and both, and dropout: those that figures follow over the
    epochs measured after each chosen one, the others at the end; no regulariser and one decay also out of
    distribution.

    `snapshots` is the ensemble of a single member's snapshots, as the mean over members; `scaled` and
    `scaled_members` are the plain ensemble and its members, scaled by a temperature. All arms are one stacked
    run but dropout's, whose masks would be drawn, at 0, for every member of the stack.
    """
    arms = regulariser_arms(bench.shared.learning_rate, decays=config.decays, kl=config.kl)
    arms += [arm for arm in decay_arms(bench.shared.learning_rate, config.decay) if arm.name != "decay of B"]
    over_epochs = ["none", f"decay of B {config.decay:g}", "decay of A", "decay of A and B"]
    first = sorted(arms, key=lambda arm: (*over_epochs, arm.name).index(arm.name))
    run = bench.train(first, seed=seed)
    epochs = bench.shared.snapshots
    rows = measure_run(run, bench, sheet, epochs=epochs, every=len(over_epochs), outside=2)["arms"]
    results: dict[str, Any] = {arm.name: rows[arm.name] for arm in arms}
    plain = [name_of(("arms", "none", "epochs", epoch)) for epoch in epochs]
    beside = {"snapshots": sheet.compute(("snapshots",), "snapshots", *plain)}
    folds = {"folds": config.folds, "seed": seed}
    for name in ("scaled", "scaled_members"):
        beside[name] = sheet.compute((name,), name, plain[-1], settings=folds)
    parameters = num_trained_parameters(run.ensemble)
    run.ensemble.unload()
    dropped = bench.train([Arm("dropout", dropout=DROPOUT)], seed=seed)
    results |= measure_run(dropped, bench, sheet, epochs=epochs, outside=0)["arms"]
    results["MC dropout"] = _mc_dropout(dropped, bench, sheet, seed=seed)
    sizes = {
        "train": len(bench.task.train),
        "validation": len(bench.task.validation),
        "options": bench.task.options,
    }
    return {"arms": results, **beside, "sizes": sizes, "trained_parameters": parameters}


def _mc_dropout(run: ArmsRun, bench: Bench, sheet: Sheet, *, seed: int) -> dict[str, Any]:
    """Each member of the dropout arm, asked as many times as an ensemble has members; the mean over members
    is the baseline's value.
    """
    passes = []
    for row in range(run.members):
        dropout = MCDropout(run.ensemble, member=row, passes=run.members, dropout=DROPOUT, seed=seed)
        name = f"MC dropout/{row}"
        sheet.keep(name, predict(dropout, bench.task.validation))
        passes.append(sheet.compute(("arms", "MC dropout", "passes", row), "ensemble", name))
    return {"passes": passes}
