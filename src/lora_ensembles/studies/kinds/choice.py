"""The strength of decay, chosen on a held-out part of the training questions."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ...prediction.metrics import evaluate
from ...prediction.prediction import predict
from ..arms import regulariser_arms
from ..grid import Grid
from ..setting import Bench


def choice(grid: Grid, bench: Bench, *, seed: int) -> dict[str, Any]:
    """The ensemble's NLL on a held-out part of the training questions, for each strength of decay of B,
    trained on the rest.
    """
    held_out, rest = bench.held_out(share=grid.held_out, seed=seed)
    arms = regulariser_arms(grid.learning_rate, decays=grid.choose, kl=())[1:]
    run = bench.train(arms, grid.config(bench.task.name), members=grid.members, seed=seed, examples=rest)
    known = predict(run.ensemble, held_out)
    nll = [evaluate(known.select(run.rows(index))).nll for index in range(len(arms))]
    return {
        "shares": list(grid.choose),
        "nll": [round(one, 6) for one in nll],
        "sizes": {"held_out": len(held_out), "train": len(rest)},
    }


def with_choice(grid: Grid, found: Sequence[Mapping[str, Any]]) -> Grid:
    """The grid with the strength of the lowest NLL on held-out questions, the mean over `found`, in the place
    of its decays.
    """
    means = [
        statistics.fmean(values)
        for values in zip(*(record["result"]["nll"] for record in found), strict=True)
    ]
    best = grid.choose[means.index(min(means))]
    return dataclasses.replace(grid, decays=(best,), decay=best)
