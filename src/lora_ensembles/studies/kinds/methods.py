"""Records of the kind `methods`: ways to an ensemble side by side, on the same questions, with what each
costs.

Every method is trained on all training questions but those with a fitted temperature: there a share of them
is held out, the members are trained on the rest, and the temperature is fitted on what was held out. The same
members unscaled are a method too, so that what scaling gives and what the missing questions take can be told
apart. Nothing is fitted on the questions that are scored. Few-shot prompts and BatchEnsemble are methods of
causal language models only.

On a CPU seconds are those that the process computed, over all its threads, so that what else runs does not
count; elsewhere they are those of the clock. Only the ratios of one record compare methods. A single member
is trained alone for its time, and so is the one adapter of MC dropout; the metrics of both are means over as
many of them as an ensemble has.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ...baselines import (
    BatchEnsemble,
    FewShot,
    MCDropout,
    SingleMember,
    TemperatureScaled,
    num_trained_parameters,
)
from ...data import Example
from ...prediction.prediction import Predictor, predict
from ...training.config import TrainConfig
from ..arms import Arm, ArmsRun
from ..measures import DIGITS, measured
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
        held_out: share of the training questions on which a temperature is fitted, and what it scales is not
            trained.
        batch_ensemble_rate: step size of BatchEnsemble, whose parameters are factors and no weights.
    """

    decay: float = EMBEDDED_DECAY_PER_STEP[1]
    shots: int = 3
    draws: int = 10
    held_out: float = 0.2
    batch_ensemble_rate: float = 5e-3


@dataclasses.dataclass(frozen=True)
class _Place:
    """The shared parts of all methods of a record."""

    config: MethodsConfig
    bench: Bench
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
        found = work()
        return found, now() - begin

    def trained(
        self, arm: Arm, members: int, examples: Sequence[Example] | None = None
    ) -> tuple[ArmsRun, float]:
        """An arm's members, and the seconds that their training took; the base carries them until they are
        unloaded.
        """
        return self.timed(
            lambda: self.bench.train(
                [arm], config=self.training, members=members, seed=self.seed, examples=examples
            )
        )

    def asked(self, predictor: Predictor, *, parameters: int, training: float, ensemble: bool = True) -> Row:
        """A method's row; without `ensemble` its metrics are means over the predictor's members."""
        predict(predictor, self.bench.task.validation[:WARM_UP])
        known, seconds = self.timed(lambda: predict(predictor, self.bench.task.validation))
        found = measured(known, predict(predictor, self.bench.ood) if self.bench.ood else None)
        return {
            **_metrics(
                [found] if ensemble else [_member(found, index) for index in range(known.num_members)]
            ),
            "trained_parameters": parameters,
            "training_seconds": round(training, 3),
            "seconds_per_1000": round(1000 * seconds / known.num_examples, 3),
        }


def methods(config: MethodsConfig, bench: Bench, *, seed: int) -> dict[str, Any]:
    """Each method's metrics, trained parameters, seconds of training, and seconds for 1000 questions
    (`methods`).
    """
    place = _Place(config, bench, seed)
    once = dataclasses.replace(place.training, epochs=1)
    few = bench.task.train[:WARM_UP]
    warm = bench.train([Arm("warm-up")], config=once, members=1, seed=seed, examples=few)
    warm.ensemble.unload()
    held_out, rest = bench.held_out(share=config.held_out, seed=seed)
    found = {
        **({} if bench.owned_heads else _few_shot(place)),
        **_adapters(place),
        **_scaled(place, held_out, rest),
        **_mc_dropout(place),
        **_others(place),
    }
    sizes = {
        "train": len(bench.task.train),
        "held_out": len(held_out),
        "validation": len(bench.task.validation),
    }
    return {"methods": found, "sizes": sizes, "clock": place.clock}


def _few_shot(place: _Place) -> dict[str, Row]:
    config = place.config
    draws = FewShot(
        *place.bench.model, place.bench.task.train, shots=config.shots, draws=config.draws, seed=place.seed
    )
    row = place.asked(draws, parameters=0, training=0.0, ensemble=False)
    row["seconds_per_1000"] = round(row["seconds_per_1000"] / config.draws, 3)  # a draw is a model of its own
    return {"few-shot base": row}


def _adapters(place: _Place) -> dict[str, Row]:
    """A single member, the ensemble, and both with decay of B."""
    decay = place.config.decay / place.bench.shared.learning_rate
    found: dict[str, Row] = {}
    for suffix, arm in (
        ("", Arm("none")),
        (", decay of B", Arm("decay of B", weight_decay_b=decay)),
    ):
        alone, single_seconds = place.trained(arm, 1)
        alone.ensemble.unload()
        run, seconds = place.trained(arm, place.members)
        found |= _pair(place, run, suffix, single_seconds=single_seconds, seconds=seconds)
        run.ensemble.unload()
    return found


def _pair(
    place: _Place, run: ArmsRun, suffix: str, *, single_seconds: float, seconds: float
) -> dict[str, Row]:
    """The single member, as the mean over a run's members, and their ensemble."""
    parameters = num_trained_parameters(run.ensemble)
    singles = [
        place.asked(SingleMember(run.ensemble, index), parameters=parameters, training=single_seconds)
        for index in range(run.members)
    ]
    together = place.asked(run.ensemble, parameters=run.members * parameters, training=seconds)
    return {f"single member{suffix}": mean_row(singles), f"ensemble{suffix}": together}


def _scaled(place: _Place, held_out: Sequence[Example], rest: Sequence[Example]) -> dict[str, Row]:
    """Members that were trained on `rest`: as they are, and scaled by a temperature fitted on `held_out`."""
    alone, single_seconds = place.trained(Arm("none"), 1, rest)
    alone.ensemble.unload()
    run, seconds = place.trained(Arm("none"), place.members, rest)
    found = _pair(place, run, ", fewer questions", single_seconds=single_seconds, seconds=seconds)

    def scaled(predictor: Predictor, parameters: int, training: float) -> Row:
        fitted, more = place.timed(lambda: TemperatureScaled.fit(predictor, held_out, trained_on=rest))
        row = place.asked(fitted, parameters=parameters + 1, training=training + more)
        return row | {"temperature": round(fitted.temperature, DIGITS)}

    parameters = num_trained_parameters(run.ensemble)
    singles = [
        scaled(SingleMember(run.ensemble, index), parameters, single_seconds) for index in range(run.members)
    ]
    found |= {
        "single member, scaled": mean_row(singles),
        "ensemble, scaled": scaled(run.ensemble, run.members * parameters, seconds),
    }
    run.ensemble.unload()
    return found


def _mc_dropout(place: _Place) -> dict[str, Row]:
    arm, members = Arm("dropout", dropout=DROPOUT), place.members
    alone, seconds = place.trained(arm, 1)
    alone.ensemble.unload()
    run, _ = place.trained(arm, members)
    models = [
        MCDropout(run.ensemble, member=row, passes=members, dropout=DROPOUT, seed=place.seed)
        for row in range(members)
    ]
    rows = [place.asked(one, parameters=one.num_trained_parameters, training=seconds) for one in models]
    run.ensemble.unload()
    return {"MC dropout": mean_row(rows)}


def _others(place: _Place) -> dict[str, Row]:
    """The ensembles that are no adapters."""
    config, train = place.training, place.bench.task.train
    heads = place.bench.last_layer(seed=place.seed)
    _, seconds = place.timed(lambda: heads.fit(train, config))
    found = {
        "last-layer ensemble": place.asked(
            heads, parameters=place.members * heads.num_trained_parameters, training=seconds
        )
    }
    if place.bench.owned_heads:
        return found
    factors = BatchEnsemble(*place.bench.model, num_members=place.members, seed=place.seed)
    own = dataclasses.replace(config, learning_rate=place.config.batch_ensemble_rate)
    _, seconds = place.timed(lambda: factors.fit(train, own))
    found["BatchEnsemble"] = place.asked(
        factors, parameters=place.members * factors.num_trained_parameters, training=seconds
    )
    factors.unload()
    return found


def mean_row(rows: Sequence[Mapping[str, Any]]) -> Row:
    """The mean of every number of equal rows; of what is missing in one, None.

    Example:
        >>> mean_row([{"ece": 0.1, "ood": {"ece": None}}, {"ece": 0.3, "ood": {"ece": None}}])
        {'ece': 0.2, 'ood': {'ece': None}}
    """
    found: Row = {}
    for name, first in rows[0].items():
        values = [row[name] for row in rows]
        if isinstance(first, dict):
            found[name] = mean_row(values)
        elif isinstance(first, int):
            found[name] = first
        else:
            found[name] = None if None in values else round(statistics.fmean(values), DIGITS)
    return found


def _member(found: Mapping[str, Any], index: int) -> Row:
    """One member of what `measured` gives, as if it were asked alone."""
    row: Row = {"ensemble": found["members"][index]}
    return row | ({"ood": _member(found["ood"], index)} if "ood" in found else {})


def _metrics(rows: Sequence[Mapping[str, Any]]) -> Row:
    row = mean_row([one["ensemble"] for one in rows])
    return row | ({"ood": mean_row([one["ood"]["ensemble"] for one in rows])} if "ood" in rows[0] else {})
