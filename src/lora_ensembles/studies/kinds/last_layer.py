"""Records of the kind `last_layer`: an ensemble of output heads on the frozen base, with a step size of its
own.

Heads move by other steps than adapters do. So the step size is the one of the lowest NLL on training
questions that were held out, among multiples of the adapters'; the accuracy on the training questions says
whether what is left is too little room or too little training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...baselines import LastLayerEnsemble, LastLayerHeads
from ...data import Example
from ...prediction.metrics import accuracy, nll
from ...prediction.prediction import predict
from ..measures import DIGITS
from ..predictions import Sheet
from ..setting import Bench


@dataclass(frozen=True)
class LastLayerConfig:
    """The multiples of the adapters' step size of which one is chosen, and the share of the training
    questions that it is chosen on.
    """

    factors: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0, 100.0)
    held_out: float = 0.2


def last_layer(config: LastLayerConfig, bench: Bench, sheet: Sheet, *, seed: int) -> dict[str, Any]:
    """The ensemble's metrics at the step size that was chosen (`learning_rate`), the NLL of each on what was
    held out (`tried`), and the accuracy on the training questions.
    """
    held_out, rest = bench.held_out(share=config.held_out, seed=seed)
    rates = [factor * bench.shared.learning_rate for factor in config.factors]
    tried = {
        f"{rate:g}": round(nll(predict(_fitted(bench, rest, rate, seed=seed), held_out)), DIGITS)
        for rate in rates
    }
    best = min(rates, key=lambda rate: tried[f"{rate:g}"])
    ensemble = _fitted(bench, bench.task.train, best, seed=seed)
    return {
        **sheet.measured((), *bench.ask(ensemble)),
        "trained_parameters": ensemble.num_trained_parameters,
        "train_accuracy": round(accuracy(predict(ensemble, bench.task.train)), DIGITS),
        "learning_rate": best,
        "tried": tried,
    }


def _fitted(
    bench: Bench, examples: Sequence[Example], learning_rate: float, *, seed: int
) -> LastLayerEnsemble | LastLayerHeads:
    ensemble = bench.last_layer(seed=seed)
    config = dataclasses.replace(
        bench.config, snapshot_epochs=(), loss="auto", learning_rate=learning_rate
    )  # they have no loss over labels
    ensemble.fit(examples, config)
    return ensemble
