"""What the studies run: tasks, seeds, arms and sizes, in full or quickly, and one function for each kind of record.

Shapes: M members an arm, N questions.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..baselines import FewShot, LastLayerEnsemble, MCDropout, num_trained_parameters
from ..config import TrainConfig
from ..prediction import Prediction, Predictor, predict
from ..presets import PAPER_BATCH_SIZES
from ..tasks import OOD_PAIRS, PAPER_TASKS, Example, Task, load_ood, load_task
from .arms import DECAY_PER_STEP, KL_WEIGHTS, Arm, ArmsRun, decay_arms, randomness_arms, regulariser_arms, train_arms
from .measures import by_size, described, measured
from .store import cell

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DROPOUT = 0.1
# A step of AdamW and its decay balance where an element of B is 1 / lambda at most, so lambda says how far an update may grow beside the
# base's weights, which are drawn as 1 / sqrt(width). The embedded base is 128 wide and LLaMA-13B is 5,120: the paper's lambda of 1e2, 5e2
# and 1e3 over sqrt(40) is 16, 80 and 160, which at a learning rate of 2e-3 takes these shares of B a step.
EMBEDDED_DECAY_PER_STEP = (0.032, 0.16, 0.32)
EMBEDDED = ("world-cqa", "world-obqa", "world-arce", "world-arcc", "world-mmlu-ss", "world-mmlu-stem")


@dataclass(frozen=True)
class Grid:
    """Everything that decides which records there are; `quick` and `full` make the two that have a name.

    Attributes:
        decay: share of B that one step takes away in the arms that have one strength.
        snapshots: epochs after which members are measured; the first three are early stopping, the last is the end.
        pool: members of the ensemble-size study.
        few_tasks: tasks of the kinds that need a run of their own on many members: `pool` and `randomness`.
        limit: most training, validation and out-of-distribution questions; None: all.
    """

    name: str
    base: str = "embedded"
    data: str | None = None
    tasks: tuple[str, ...] = EMBEDDED
    seeds: tuple[int, ...] = (0, 1, 2)
    members: int = 5
    learning_rate: float = 2e-3
    batch_size: int = 16
    snapshots: tuple[int, ...] = (1, 2, 3, 5, 10)
    kl: tuple[float, ...] = KL_WEIGHTS
    decays: tuple[float, ...] = EMBEDDED_DECAY_PER_STEP
    decay: float = EMBEDDED_DECAY_PER_STEP[1]
    pool: int = 20
    few_tasks: tuple[str, ...] = ("world-cqa", "world-arcc")
    subsets: int = 5
    shots: int = 3
    draws: int = 10
    limit: tuple[int | None, int | None, int | None] = (200, 400, 250)

    def config(self, task: str) -> TrainConfig:
        """The settings that all arms share; the paper's batch size for one of its tasks."""
        return TrainConfig(
            epochs=self.snapshots[-1],
            batch_size=PAPER_BATCH_SIZES.get(task, self.batch_size),
            learning_rate=self.learning_rate,
            snapshot_epochs=list(self.snapshots),
        )


FULL = Grid("full")
PAPER = Grid(
    "paper",
    base="",
    tasks=PAPER_TASKS,
    learning_rate=5e-5,
    decays=DECAY_PER_STEP,
    decay=DECAY_PER_STEP[1],
    snapshots=(1, 2, 3, 5, 10, 20),
    few_tasks=("cqa", "arcc", "mmlu-ss"),
    limit=(None,) * 3,
)
QUICK = Grid(
    "quick",
    tasks=("world-cqa", "world-mmlu-stem"),
    snapshots=(1, 2, 3, 6),
    kl=(0.05,),
    decays=EMBEDDED_DECAY_PER_STEP[1:2],
    pool=10,
    few_tasks=("world-mmlu-stem",),
    draws=4,
    limit=(150, 150, 150),
)


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


def sweep(grid: Grid, bench: Bench, *, seed: int) -> dict[str, Any]:
    """Every regulariser, decay placed on A, B and both, and dropout; each measured after chosen epochs.

    All arms are one stacked run but dropout's, whose masks would be drawn, at 0, for every member of the stack.
    """
    arms = regulariser_arms(grid.learning_rate, decays=grid.decays, kl=grid.kl)
    arms += [arm for arm in decay_arms(grid.learning_rate, grid.decay) if arm.name != "decay of B"]
    settings: dict[str, Any] = dict(members=grid.members, seed=seed)
    run = train_arms(bench.model, arms, bench.task.train, grid.config(bench.task.name), **settings)
    found: dict[str, Any] = _measure_run(run, bench, epochs=grid.snapshots)["arms"]
    parameters = num_trained_parameters(run.ensemble)
    model = run.ensemble.unload(), bench.model[1]
    dropped = train_arms(model, [Arm("dropout", dropout=DROPOUT)], bench.task.train, grid.config(bench.task.name), **settings)
    found |= _measure_run(dropped, bench, epochs=grid.snapshots)["arms"]
    found["MC dropout"] = _mc_dropout(dropped, bench, seed=seed)
    sizes = {"train": len(bench.task.train), "validation": len(bench.task.validation), "options": bench.task.options}
    return {"arms": found, "sizes": sizes, "trained_parameters": parameters}


def _measure_run(run: ArmsRun, bench: Bench, *, epochs: Sequence[int]) -> dict[str, Any]:
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


def _mc_dropout(run: ArmsRun, bench: Bench, *, seed: int) -> dict[str, Any]:
    """Each member of the dropout arm, asked as many times as an ensemble has members; the mean over members is the baseline's value."""
    found = []
    for row in range(run.members):
        known, strange = bench.ask(MCDropout(run.ensemble, member=row, passes=run.members, dropout=DROPOUT, seed=seed))
        found.append(measured(known, strange)["ensemble"])
    return {"passes": found}


def randomness(grid: Grid, bench: Bench, *, seed: int) -> dict[str, Any]:
    """Members that differ by initial weights, by data order or by both, with and without decay of B."""
    arms = randomness_arms(grid.learning_rate, grid.decay)
    run = train_arms(bench.model, arms, bench.task.train, grid.config(bench.task.name), members=grid.members, seed=seed)
    return _measure_run(run, bench, epochs=grid.snapshots[-1:])


def pool(grid: Grid, bench: Bench, *, seed: int) -> dict[str, Any]:
    """Ensembles of 1 to the pool's size, each size over random subsets, with and without decay of B."""
    arms = [Arm("none"), Arm("decay of B", weight_decay_b=grid.decay / grid.learning_rate)]
    run = train_arms(bench.model, arms, bench.task.train, grid.config(bench.task.name), members=grid.pool, seed=seed)
    known, _ = bench.ask(run.ensemble)
    sizes = [size for size in (1, 2, 3, 5, 10, 15, 20) if size <= grid.pool]
    return {arm.name: by_size(known.select(run.rows(index)), sizes, subsets=grid.subsets, seed=seed) for index, arm in enumerate(arms)}


def few_shot(grid: Grid, bench: Bench, *, seed: int) -> dict[str, Any]:
    """The untouched base with demonstrations; every draw is one member of the prediction."""
    asked = FewShot(*bench.model, bench.task.train, shots=grid.shots, draws=grid.draws, seed=seed)
    known, strange = bench.ask(asked)
    return {**measured(known, strange), "wrong_confidence": described(known)["wrong_confidence"]}


def last_layer(grid: Grid, bench: Bench, *, seed: int) -> dict[str, Any]:
    """An ensemble of output heads on the frozen base."""
    ensemble = LastLayerEnsemble(*bench.model, members=grid.members, seed=seed)
    ensemble.fit(bench.task.train, dataclasses.replace(grid.config(bench.task.name), snapshot_epochs=()))
    return {**measured(*bench.ask(ensemble)), "trained_parameters": ensemble.num_trained_parameters}


KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "sweep": sweep,
    "randomness": randomness,
    "pool": pool,
    "few_shot": few_shot,
    "last_layer": last_layer,
}


def cells(grid: Grid, kinds: Sequence[str] = tuple(KINDS)) -> Iterator[tuple[str, str, int]]:
    """Every (kind, task, seed) of a grid, whole seeds first, so that an early stop leaves whole comparisons."""
    for seed in grid.seeds:
        for task in grid.tasks:
            for kind in kinds:
                if kind not in ("pool", "randomness") or task in grid.few_tasks:
                    yield kind, task, seed


def settings_of(grid: Grid, kind: str, task: str, seed: int) -> dict[str, Any]:
    """What a record depends on."""
    shared = {
        name: value for name, value in dataclasses.asdict(grid).items() if name not in ("name", "tasks", "seeds", "few_tasks", "data")
    }
    return {"kind": kind, "task": task, "seed": seed} | {name: list(v) if isinstance(v, tuple) else v for name, v in shared.items()}


def run_grid(
    grid: Grid, out: Path, load_model: Callable[[], tuple[Any, Any]], *, kinds: Sequence[str] = tuple(KINDS), say: Callable[[str], None]
) -> dict[str, list[Mapping[str, Any]]]:
    """Every record of the grid, by kind; what is in `out` already is read, what is not is measured."""
    found: dict[str, list[Mapping[str, Any]]] = {kind: [] for kind in kinds}
    wanted = list(cells(grid, kinds))
    for number, (kind, task, seed) in enumerate(wanted, start=1):

        def measure(kind: str = kind, task: str = task, seed: int = seed, number: int = number) -> dict[str, Any]:
            say(f"{number} of {len(wanted)}: {kind}, {task}, seed {seed}")
            begin = time.monotonic()
            result = KINDS[kind](grid, load_bench(grid, task, load_model), seed=seed)
            return {**result, "seconds": round(time.monotonic() - begin, 1)}

        found[kind].append(cell(out, f"{kind}-{task}", settings_of(grid, kind, task, seed), measure))
    return found
