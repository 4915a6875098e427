"""Records of the kind `methods`: ways to an ensemble side by side, on the same questions, with what each
costs.

Every method is trained on all training questions. A temperature is fitted on validation questions other than
those that it scales: each of several folds is scaled by the temperature of the others. Few-shot prompts and
BatchEnsemble are methods of causal language models only.

On a CPU seconds are those that the process computed, over all its threads, so that what else runs does not
count; elsewhere they are those of the clock. Only the ratios of one record compare methods. A single member
is trained alone for its time, and so is the one adapter of MC dropout; the metrics of both are means over as
many of them as an ensemble has.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ...baselines import (
    BatchEnsemble,
    FewShot,
    MCDropout,
    SingleMember,
    num_trained_parameters,
)
from ...prediction.prediction import Predictor, predict
from ...training.config import TrainConfig
from ..arms import Arm, ArmsRun
from ..measures import mean_row
from ..predictions import Sheet
from ..setting import Bench
from .paper import EMBEDDED_DECAY_PER_STEP

Row = dict[str, Any]
T = TypeVar("T")

WARM_UP = 32  # questions: what a process does once (threads, packed weights) is in nobody's time
DROPOUT = 0.1


@dataclasses.dataclass(frozen=True)
class MethodsConfig:
    """The settings of the methods.

    Attributes:
        decay: share of B that one step takes away, where members are decayed.
        shots, draws: demonstrations of a few-shot prompt, and how often they are drawn.
        folds: of the validation questions, each scaled by the temperature of the others.
        batch_ensemble_rate: step size of BatchEnsemble, whose parameters are factors and no weights.
    """

    decay: float = EMBEDDED_DECAY_PER_STEP[1]
    shots: int = 3
    draws: int = 10
    folds: int = 5
    batch_ensemble_rate: float = 5e-3


@dataclasses.dataclass(frozen=True)
class _Place:
    """The shared parts of all methods of a record."""

    config: MethodsConfig
    bench: Bench
    sheet: Sheet
    seed: int

    @property
    def members(self) -> int:
        return self.bench.shared.members

    @property
    def training(self) -> TrainConfig:
        return dataclasses.replace(self.bench.config, snapshot_epochs=())

    @property
    def clock(self) -> str:
        return "process" if self.bench.model[0].device.type == "cpu" else "wall"

    def timed(self, work: Callable[[], T]) -> tuple[T, float]:
        """The result of `work`, and the seconds it took, with nothing kept of what the base made of these
        questions before.
        """
        self.bench.kept_states.clear()
        now = time.process_time if self.clock == "process" else time.perf_counter
        begin = now()
        result = work()
        return result, now() - begin

    def trained(self, arm: Arm, members: int) -> tuple[ArmsRun, float]:
        """An arm's members, and the seconds that their training took; the base carries them until they are
        unloaded.
        """
        return self.timed(
            lambda: self.bench.train([arm], config=self.training, members=members, seed=self.seed)
        )

    def row(
        self,
        title: str,
        predictors: Sequence[Predictor],
        *,
        parameters: int,
        training: float,
        by: str = "mean",
    ) -> Row:
        """A method's row, with the mean over several predictors; by "members", its metrics are means over
        those of one predictor.
        """
        names, costs = [], []
        for number, predictor in enumerate(predictors):
            predict(predictor, self.bench.task.validation[:WARM_UP])
            prediction, seconds = self.timed(
                functools.partial(predict, predictor, self.bench.task.validation)
            )
            names.append(f"{title}/{number}")
            self.sheet.keep(
                names[-1], prediction, predict(predictor, self.bench.ood) if self.bench.ood else None
            )
            costs.append(
                {
                    "trained_parameters": parameters,
                    "training_seconds": round(training, 3),
                    "seconds_per_1000": round(1000 * seconds / prediction.num_examples, 3),
                }
            )
        return self.sheet.compute(("methods", title), by, *names) | mean_row(costs)


def methods(config: MethodsConfig, bench: Bench, sheet: Sheet, *, seed: int) -> dict[str, Any]:
    """Each method's metrics, trained parameters, seconds of training, and seconds for 1000 questions
    (`methods`).
    """
    place = _Place(config, bench, sheet, seed)
    once = dataclasses.replace(place.training, epochs=1)
    few = bench.task.train[:WARM_UP]
    warm = bench.train([Arm("warm-up")], config=once, members=1, seed=seed, examples=few)
    warm.ensemble.unload()
    rows = {
        **({} if bench.owned_heads else _few_shot(place)),
        **_adapters(place),
        **_mc_dropout(place),
        **_others(place),
    }
    sizes = {"train": len(bench.task.train), "validation": len(bench.task.validation)}
    return {"methods": rows, "sizes": sizes, "clock": place.clock}


def _few_shot(place: _Place) -> dict[str, Row]:
    config = place.config
    draws = FewShot(
        *place.bench.model, place.bench.task.train, shots=config.shots, draws=config.draws, seed=place.seed
    )
    title = "few-shot base"
    row = place.row(title, [draws], parameters=0, training=0.0, by="members")
    row["seconds_per_1000"] = round(row["seconds_per_1000"] / config.draws, 3)  # a draw is a model of its own
    return {title: row}


def _adapters(place: _Place) -> dict[str, Row]:
    """A single member and the ensemble; both scaled by a temperature; both with decay of B."""
    decay = place.config.decay / place.bench.shared.learning_rate
    rows: dict[str, Row] = {}
    for suffix, arm in (
        ("", Arm("none")),
        (", decay of B", Arm("decay of B", weight_decay_b=decay)),
    ):
        alone, single_seconds = place.trained(arm, 1)
        alone.ensemble.unload()
        run, seconds = place.trained(arm, place.members)
        rows |= _pair(place, run, suffix, single_seconds=single_seconds, seconds=seconds)
        if not suffix:
            rows |= _scaled(place, rows)
        run.ensemble.unload()
    return rows


def _scaled(place: _Place, rows: Mapping[str, Row]) -> dict[str, Row]:
    """The single member and the ensemble, scaled; a temperature is one more parameter, and costs next to
    nothing beside the pass.
    """
    settings = {"folds": place.config.folds, "seed": place.seed}
    scaled = {}
    for name, by in (("single member", "scaled_members"), ("ensemble", "scaled")):
        title = f"{name}, scaled"
        row = place.sheet.compute(("methods", title), by, "ensemble/0", settings=settings)
        costs = {cost: rows[name][cost] for cost in ("training_seconds", "seconds_per_1000")}
        scaled[title] = row | costs | {"trained_parameters": rows[name]["trained_parameters"] + 1}
    return scaled


def _pair(
    place: _Place, run: ArmsRun, suffix: str, *, single_seconds: float, seconds: float
) -> dict[str, Row]:
    """The single member, as the mean over a run's members, and their ensemble."""
    parameters = num_trained_parameters(run.ensemble)
    single, whole = f"single member{suffix}", f"ensemble{suffix}"
    singles = [SingleMember(run.ensemble, index) for index in range(run.members)]
    return {
        single: place.row(single, singles, parameters=parameters, training=single_seconds),
        whole: place.row(whole, [run.ensemble], parameters=run.members * parameters, training=seconds),
    }


def _mc_dropout(place: _Place) -> dict[str, Row]:
    arm, members = Arm("dropout", dropout=DROPOUT), place.members
    alone, seconds = place.trained(arm, 1)
    alone.ensemble.unload()
    run, _ = place.trained(arm, members)
    models = [
        MCDropout(run.ensemble, member=row, passes=members, dropout=DROPOUT, seed=place.seed)
        for row in range(members)
    ]
    title, parameters = "MC dropout", models[0].num_trained_parameters
    row = place.row(title, models, parameters=parameters, training=seconds)
    run.ensemble.unload()
    return {title: row}


def _others(place: _Place) -> dict[str, Row]:
    """The ensembles that are no adapters."""
    config = dataclasses.replace(place.training, loss="auto")  # they have no loss over labels
    train = place.bench.task.train
    heads = place.bench.last_layer(seed=place.seed)
    _, seconds = place.timed(lambda: heads.fit(train, config))
    title, parameters = "last-layer ensemble", place.members * heads.num_trained_parameters
    rows = {title: place.row(title, [heads], parameters=parameters, training=seconds)}
    if place.bench.owned_heads:
        return rows
    factors = BatchEnsemble(*place.bench.model, num_members=place.members, seed=place.seed)
    own = dataclasses.replace(config, learning_rate=place.config.batch_ensemble_rate)
    _, seconds = place.timed(lambda: factors.fit(train, own))
    title, parameters = "BatchEnsemble", place.members * factors.num_trained_parameters
    rows[title] = place.row(title, [factors], parameters=parameters, training=seconds)
    factors.unload()
    return rows
