"""What every kind of record needs: a task's questions with the model that is asked, and arms measured after chosen epochs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..prediction import Prediction, Predictor, predict
from ..tasks import OOD_PAIRS, Example, Task, load_ood, load_task
from .arms import ArmsRun
from .measures import described, measured

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .grid import Grid


@dataclass(frozen=True)
class Bench:
    """A task's questions, its out-of-distribution set, and the model that is asked."""

    task: Task
    ood: tuple[Example, ...]
    model: tuple[PreTrainedModel, PreTrainedTokenizerBase] = field(repr=False)

    def ask(self, predictor: Predictor) -> tuple[Prediction, Prediction | None]:
        """The predictions in and out of distribution; the latter is None where the task has no such set."""
        return predict(predictor, self.task.validation), predict(predictor, self.ood) if self.ood else None


def load_bench(grid: Grid, name: str, load_model: Callable[[], tuple[Any, Any]]) -> Bench:
    """A task's part of the grid; its out-of-distribution questions are the same for every seed."""
    full, (train, validation, strange) = load_task(name, data=grid.data), grid.limit
    ood: tuple[Example, ...] = ()
    if name in OOD_PAIRS:
        every = load_ood(OOD_PAIRS[name], data=grid.data)
        ood = every if strange is None or strange >= len(every) else tuple(random.Random(0).sample(list(every), strange))
    return Bench(Task(name, full.train[:train], full.validation[:validation]), ood, load_model())


def measure_run(run: ArmsRun, bench: Bench, *, epochs: Sequence[int]) -> dict[str, Any]:
    """Every arm of a run after `epochs`, of which the last is described as well; the run's members are left at the last."""
    arms: dict[str, Any] = {arm.name: {"epochs": {}} for arm in run.arms}
    for epoch in epochs:
        run.ensemble.stack.set_members(run.trained.snapshots[epoch])
        known, strange = bench.ask(run.ensemble)
        for index, arm in enumerate(run.arms):
            rows = run.rows(index)
            own, other = known.select(rows), None if strange is None else strange.select(rows)
            arms[arm.name]["epochs"][str(epoch)] = measured(own, other)
            if epoch == epochs[-1]:
                arms[arm.name] |= described(own)
    for index, arm in enumerate(run.arms):
        history = run.trained.history[-1]
        arms[arm.name]["train_accuracy"] = [history["train_accuracy"][row] for row in run.rows(index)]
    return {"arms": arms}
