"""The strength of decay, chosen on a held-out part of the training questions."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...prediction.prediction import predict
from ..arms import regulariser_arms
from ..predictions import Sheet
from ..setting import Bench


@dataclass(frozen=True)
class ChoiceConfig:
    """The shares of B a step of which one is chosen, and the share of the training questions that it is
    chosen on.
    """

    choose: tuple[float, ...]
    held_out: float = 0.2


def choice(config: ChoiceConfig, bench: Bench, sheet: Sheet, *, seed: int) -> dict[str, Any]:
    """The ensemble's NLL on a held-out part of the training questions, for each strength of decay of B,
    trained on the rest.
    """
    held_out, rest = bench.held_out(share=config.held_out, seed=seed)
    arms = regulariser_arms(bench.shared.learning_rate, decays=config.choose, kl=())[1:]
    run = bench.train(arms, seed=seed, examples=rest)
    prediction = predict(run.ensemble, held_out)
    measured = {}
    for index, arm in enumerate(arms):
        path = ("arms", arm.name)
        measured[arm.name] = sheet.measured(path, prediction.select(run.rows(index)))
    return {
        "shares": list(config.choose),
        "nll": [measured[arm.name]["ensemble"]["nll"] for arm in arms],
        "arms": measured,
        "sizes": {"held_out": len(held_out), "train": len(rest)},
    }


def chosen(config: ChoiceConfig, records: Sequence[Mapping[str, Any]]) -> float:
    """The strength of the lowest NLL on held-out questions, the mean over the records `found`."""
    means = [
        statistics.fmean(values)
        for values in zip(*(record["result"]["nll"] for record in records), strict=True)
    ]
    return config.choose[means.index(min(means))]
