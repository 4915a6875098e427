"""The paper's other comparisons: sources of randomness, ensemble sizes, few-shot prompting and last-layer
ensembles.

Shapes: M members an arm, N questions.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ...baselines import FewShot
from ..arms import Arm, randomness_arms
from ..grid import Grid
from ..measures import by_size, described, measured
from ..setting import Bench, measure_run


def randomness(grid: Grid, bench: Bench, *, seed: int) -> dict[str, Any]:
    """Members that differ by initial weights, by data order or by both, with and without decay of B."""
    arms = randomness_arms(grid.learning_rate, grid.decay)
    run = bench.train(arms, grid.config(bench.task.name), members=grid.members, seed=seed)
    return measure_run(run, bench, epochs=grid.snapshots[-1:])


def pool(grid: Grid, bench: Bench, *, seed: int) -> dict[str, Any]:
    """Ensembles of 1 to the pool's size, each size over random subsets, with and without decay of B."""
    arms = [Arm("none"), Arm("decay of B", weight_decay_b=grid.decay / grid.learning_rate)]
    run = bench.train(arms, grid.config(bench.task.name), members=grid.pool, seed=seed)
    known, _ = bench.ask(run.ensemble)
    sizes = [size for size in (1, 2, 3, 5, 10, 15, 20) if size <= grid.pool]
    return {
        arm.name: by_size(known.select(run.rows(index)), sizes, subsets=grid.subsets, seed=seed)
        for index, arm in enumerate(arms)
    }


def few_shot(grid: Grid, bench: Bench, *, seed: int) -> dict[str, Any]:
    """The untouched base with demonstrations; every draw is one member of the prediction."""
    asked = FewShot(*bench.model, bench.task.train, shots=grid.shots, draws=grid.draws, seed=seed)
    known, strange = bench.ask(asked)
    return {**measured(known, strange), "wrong_confidence": described(known)["wrong_confidence"]}


def last_layer(grid: Grid, bench: Bench, *, seed: int) -> dict[str, Any]:
    """An ensemble of output heads on the frozen base."""
    ensemble = bench.last_layer(members=grid.members, seed=seed)
    ensemble.fit(bench.task.train, dataclasses.replace(grid.config(bench.task.name), snapshot_epochs=()))
    return {**measured(*bench.ask(ensemble)), "trained_parameters": ensemble.num_trained_parameters}
