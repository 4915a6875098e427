"""Records of the kinds `trials` and `comparison`: the settings that each method chooses on held-out training
questions, and what it gives with them on the validation questions, with what it costs.

On a CPU seconds are those that the process computed, over all its threads. FLOPs are counted by torch on a
fit to a few questions: those of the frozen base and of all that is trained, forward and backward.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from ...data import Example
from ...errors import ConfigError, DataError, TrainingError
from ...prediction.prediction import Prediction, Predictor, predict
from ..predictions import Sheet, name_of, predictions_file, read_sheet
from ..setting import Bench
from ..store import cell, record_file
from .budget import Budget, Settings, places
from .methods import METHODS, VARIANTS, Method, Place

COUNTED = 4  # batches of the fit whose FLOPs are counted
Chosen = Mapping[str, Mapping[str, Any]]  # settings by method


@dataclass(frozen=True)
class TrialsConfig:
    """The settings of the trials of a task."""

    budget: Budget = field(default_factory=Budget)


@dataclass(frozen=True)
class ComparisonConfig:
    """The settings of a comparison on a task.

    Attributes:
        chosen: the settings of each method, from the task's trials.
    """

    budget: Budget = field(default_factory=Budget)
    chosen: Chosen = field(default_factory=dict, hash=False)  # a grid is a key

    @property
    def folds(self) -> int:
        """Folds of the budget."""
        return self.budget.folds

    def place(self, bench: Bench, *, seed: int) -> Place:
        """The place in which methods are trained."""
        return Place(bench, self.budget, seed)


@dataclass(frozen=True)
class ProtocolConfig:
    """The settings of a comparison by a published protocol: the same steps for every member, and no trials.

    Attributes:
        steps: of each member or mode.
        members: of an ensemble.
        samples: of a posterior, or passes of a prediction.
        folds: as in `Budget`.
        chosen: the settings of each method, whose epochs are not read.
    """

    steps: int = 5000
    members: int = 3
    samples: int = 10
    folds: int = 5
    chosen: Chosen = field(default_factory=dict, hash=False)

    def place(self, bench: Bench, *, seed: int) -> Place:
        """The place in which methods are trained."""
        return Place(bench, Budget(rows=self.samples), seed, members=self.members, steps=self.steps)


def trials(config: TrialsConfig, bench: Bench, sheet: Sheet, *, seed: int) -> dict[str, Any]:
    """Every method's trials: settings with the NLL of the ensemble's mean on what was held out (`trials`),
    those of the lowest (`chosen`), and the FLOPs that one question of training takes with them. A trial that
    cannot be trained has a reason (`failed`), and so have methods that cannot be used here (`missing`).
    """
    held_out, rest = bench.held_out(share=config.budget.held_out, seed=seed)
    place = Place(bench, config.budget, seed)

    def measure(name: str, own: Sheet) -> dict[str, Any]:
        method = METHODS[name]
        rows = []
        for number, at in enumerate(places(config.budget.trials)):
            settings = method.settings(at, bench.shared.learning_rate, config.budget)
            path = ("methods", name, "trials", number, "metrics")
            try:
                with place.fitted(method, settings, rest) as fitted:
                    own.keep(name_of(path), _mean(predict(fitted.predictor, held_out)))
            except (ConfigError, DataError, TrainingError) as error:
                rows.append(settings.to_dict() | {"failed": str(error)})
                continue
            metrics = own.compute(path, "compared", name_of(path))
            rows.append(settings.to_dict() | {"metrics": metrics})
        done = [row for row in rows if "metrics" in row]
        if not done:
            return {"own": method.own, "trials": rows}
        chosen = min(done, key=lambda row: row["metrics"]["nll"])
        settings = Settings(chosen["learning_rate"], chosen["epochs"], chosen["own"])
        return {
            "own": method.own,
            "trials": rows,
            "chosen": settings.to_dict(),
            "training_flops": _flops(method, place, settings, rest[: COUNTED * bench.config.batch_size]),
        }

    sizes = {"held_out": len(held_out), "train": len(rest)}
    return {**_of_each(bench, sheet, measure, config), "sizes": sizes}


def comparison(
    config: ComparisonConfig | ProtocolConfig, bench: Bench, sheet: Sheet, *, seed: int
) -> dict[str, Any]:
    """Every method with its chosen settings, trained on all training questions: metrics as it answers (`raw`)
    and scaled by a temperature (`scaled`), and costs; `elsewhere`, the metrics on further sets, where the
    temperature is that of the task's own questions.
    """
    place = config.place(bench, seed=seed)

    def measure(name: str, own: Sheet) -> dict[str, Any]:
        settings = Settings(**config.chosen[name])
        bench.kept_states.clear()
        now = time.process_time if bench.model[0].device.type == "cpu" else time.perf_counter
        times = [now()]
        with place.fitted(_methods()[name], settings, bench.task.train) as fitted:
            times.append(now())
            prediction = predict(fitted.predictor, bench.task.validation)
            times.append(now())
            other = _of_others(fitted.predictor, bench.ood)
            further = {one: _of_others(fitted.predictor, asked) for one, asked in bench.elsewhere.items()}
        training, answering = times[1] - times[0], times[2] - times[1]
        kept = f"methods/{name}"
        own.keep(kept, prediction, other)
        folds = {"folds": config.folds, "seed": seed}
        return {
            **_elsewhere(name, further, own),
            "raw": own.compute(("methods", name, "raw"), "compared", kept),
            "scaled": own.compute(("methods", name, "scaled"), "compared_scaled", kept, settings=folds),
            "trained_parameters": fitted.parameters,
            "training_passes": fitted.passes,
            "rows": fitted.rows,
            "training_seconds": round(training, 3),
            "seconds_per_1000": round(1000 * answering / prediction.num_examples, 3),
        }

    sizes = {"train": len(bench.task.train), "validation": len(bench.task.validation), "ood": len(bench.ood)}
    sizes |= {name: len(examples) for name, examples in bench.elsewhere.items()}
    return {**_of_each(bench, sheet, measure, config, names=config.chosen), "sizes": sizes}


def _methods() -> dict[str, Method]:
    return METHODS | {name: METHODS[of] for name, of in VARIANTS.items() if of in METHODS}


def _elsewhere(name: str, further: Mapping[str, Prediction | None], own: Sheet) -> dict[str, Any]:
    """The part of a method about further sets; nothing where there are none."""
    parts = {}
    for other, prediction in further.items():
        if prediction is None:
            continue
        kept, path = f"methods/{name}/{other}", ("methods", name, "elsewhere", other)
        own.keep(kept, prediction, of=other)
        parts[other] = {
            "raw": own.compute((*path, "raw"), "compared", kept),
            "scaled": own.compute((*path, "scaled"), "compared_elsewhere", kept, f"methods/{name}"),
        }
    return {"elsewhere": parts} if further else {}


def _of_each(
    bench: Bench,
    sheet: Sheet,
    measure: Callable[[str, Sheet], dict[str, Any]],
    config: object,
    *,
    names: Collection[str] = METHODS.keys(),
) -> dict[str, Any]:
    """The part of each method that can be used, kept in a file of its own until the record is whole: a study
    that is stopped goes on with the next one.
    """
    parts, missing = {}, {}
    for name, method in _methods().items():
        if name not in names:
            continue
        if reason := method.missing(bench):
            missing[name] = reason
            continue
        folder = bench.under_way.run(config, name) if bench.under_way else None
        own = Sheet()
        parts[name] = measure(name, own) if folder is None else _kept(folder, name, measure, own)
        sheet.take_in(own)
    return {"methods": parts, "missing": missing}


def _kept(folder: Path, name: str, measure: Callable[[str, Sheet], dict[str, Any]], own: Sheet) -> Any:
    path = folder / f"{record_file('part', {'method': name})}.json"
    there = path.exists()
    record = cell(folder, "part", {"method": name}, lambda: measure(name, own), sheet=own)
    if there and "predictions" in record:  # none, where every trial failed
        own.take_in(read_sheet(predictions_file(path)))
    return record["result"]


def _of_others(predictor: Predictor, examples: Sequence[Example]) -> Prediction | None:
    """None where there are none, or the predictor knows nothing of some of their labels."""
    try:
        return predict(predictor, examples) if examples else None
    except DataError:
        return None


def _mean(prediction: Prediction) -> Prediction:
    return dataclasses.replace(prediction, member_log_probs=prediction.log_probs[None])


def _flops(method: Method, place: Place, settings: Settings, examples: Sequence[Example]) -> float:
    """FLOPs of a fit for each question that it is fitted to."""
    place.bench.kept_states.clear()
    with FlopCounterMode(display=False) as counter, place.fitted(method, settings, examples):
        pass
    return float(f"{counter.get_total_flops() / len(examples):.4g}")
