"""The grid of the studies: tasks, seeds, arms and sizes, in full or quickly, and the settings that each
record depends on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..data import PAPER_TASKS
from ..heads import HeadKind
from ..training.config import PAPER_BATCH_SIZES, TrainConfig
from .arms import DECAY_PER_STEP, KL_WEIGHTS
from .kinds import KINDS

# A step of AdamW and its decay balance where an element of B is 1 / lambda at most, so lambda says how far an
# update may grow beside the base's weights, which are drawn as 1 / sqrt(width). The embedded base is 128 wide
# and LLaMA-13B is 5,120: the paper's lambda of 1e2, 5e2 and 1e3 over sqrt(40) is 16, 80 and 160, which at a
# learning rate of 2e-3 takes these shares of B a step.
EMBEDDED_DECAY_PER_STEP = (0.032, 0.16, 0.32)
EMBEDDED = ("world-cqa", "world-obqa", "world-arce", "world-arcc", "world-mmlu-ss", "world-mmlu-stem")


@dataclass(frozen=True)
class Grid:
    """Everything that decides which records there are; `quick` and `full` make the two that have a name.

    Attributes:
        decay: share of B that one step takes away in the arms that have one strength.
        snapshots: epochs after which members are measured; the first three are early stopping, the last is
            the end.
        pool: members of the ensemble-size study.
        few_tasks: tasks of the kinds that need a run of their own on many members, `randomness` and `pool`.
        open_tasks: tasks of the kinds that are about what the paper leaves open, `OPEN_KINDS`.
        limit: most training, validation and out-of-distribution questions; None: all.
        open_seeds: how many of the seeds `OPEN_KINDS` have; None: all.
        held_out: share of the training questions on which a temperature is fitted, and what it scales is not
            trained.
        batch_ensemble_rate: step size of BatchEnsemble, whose parameters are factors and no weights.
        ranks, wide_kl, wide_decays: what the kinds `rank` and `strength` go through; the decays are shares of
            B a step.
        head: what members say about an example; `max_length` is that of its texts, where members have heads
            of their own: longer ones lose their beginning.
        layers: the base's layers that carry adapters; none named: all.
        choose: shares of B a step of which one is chosen by what it makes of a held-out part of the training
            questions, and takes the place of `decays` and `decay`; none: those are as given.
        length_window: that of `TrainConfig`; texts for heads differ more in length than prompts that hold all
            options.
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
    open_tasks: tuple[str, ...] = ("world-arcc",)
    subsets: int = 5
    shots: int = 3
    draws: int = 10
    limit: tuple[int | None, int | None, int | None] = (200, 400, 250)
    open_seeds: int | None = None
    held_out: float = 0.2
    batch_ensemble_rate: float = 5e-3
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    wide_kl: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    wide_decays: tuple[float, ...] = (0.001, 0.005, 0.02, 0.08, 0.16, 0.32, 0.8)
    head: HeadKind = "causal-lm"
    max_length: int | None = None
    layers: tuple[int, ...] = ()
    choose: tuple[float, ...] = ()
    length_window: int | None = None

    def config(self, task: str) -> TrainConfig:
        """The settings that all arms share; the paper's batch size for one of its tasks."""
        return TrainConfig(
            epochs=self.snapshots[-1],
            batch_size=PAPER_BATCH_SIZES.get(task, self.batch_size),
            learning_rate=self.learning_rate,
            snapshot_epochs=list(self.snapshots),
            length_window=self.length_window,
            overlong="error" if self.max_length is None else "left",
        )

    def on(self, tasks: Sequence[str]) -> Grid:
        """The grid on these tasks alone; where none of its few or open tasks is among them, the first takes
        their place.

        Example:
            >>> small = FULL.on(["world-obqa", "world-arcc"])
            >>> small.few_tasks, small.open_tasks
            (('world-arcc',), ('world-arcc',))
        """
        few, of_open = (
            tuple(task for task in known if task in tasks) or tuple(tasks[:1])
            for known in (self.few_tasks, self.open_tasks)
        )
        return dataclasses.replace(self, tasks=tuple(tasks), few_tasks=few, open_tasks=of_open)


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
    open_tasks=("cqa", "arcc", "mmlu-ss"),
    limit=(None,) * 3,
    wide_decays=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2),
    batch_ensemble_rate=1.25e-4,
)
# For public encoders of some 20M parameters on a CPU. Their heads are newly initialised: there is no
# distribution of the base to stay close to. The strength of decay is chosen.
ENCODER = dataclasses.replace(
    PAPER,
    name="encoder",
    learning_rate=4e-3,
    snapshots=(1, 2, 3, 6),
    length_window=8,
    kl=(),
    wide_kl=(),
    few_tasks=("arce",),
    open_tasks=("arce",),
    pool=10,
    limit=(240, 240, 120),
    head="multiple-choice",
    max_length=128,
    choose=(0.1, 0.3, 0.6, 0.9),
)
QUICK = Grid(
    "quick",
    tasks=("world-cqa", "world-mmlu-stem"),
    snapshots=(1, 2, 3, 5),
    kl=(0.05,),
    decays=EMBEDDED_DECAY_PER_STEP[1:2],
    pool=10,
    few_tasks=("world-mmlu-stem",),
    open_tasks=("world-mmlu-stem",),
    draws=4,
    limit=(120, 120, 100),
    open_seeds=1,
    ranks=(1, 8, 64),
    wide_kl=(0.001, 0.03, 1.0),
    wide_decays=(0.001, 0.16, 0.8),
)


def quick(grid: Grid) -> Grid:
    """A grid of another base, as small as `QUICK`; its strengths stay its own: what a share of B does depends
    on the learning rate.

    Example:
        >>> quick(PAPER).decays, quick(PAPER).decay, quick(PAPER).wide_decays
        ((0.025,), 0.025, (0.001, 0.025, 0.2))
    """
    sizes: dict[str, Any] = {
        name: getattr(QUICK, name) for name in ("pool", "draws", "limit", "snapshots", "ranks", "open_seeds")
    }
    own: dict[str, Any] = {
        "kl": grid.kl[1:2],
        "decays": (grid.decay,),
        "wide_kl": grid.wide_kl[::3],
        "wide_decays": grid.wide_decays[::3],
    }
    return dataclasses.replace(grid, name=f"{grid.name}, quick", **sizes, **own)


CHOICE = "choice"  # the kind that the others of a grid with `choose` depend on
_SHARED = ("base", "members", "learning_rate", "batch_size", "snapshots", "limit")
_FIRST = (*_SHARED, "kl", "decays", "decay", "pool", "subsets", "shots", "draws")
# The fields of the grid that a kind's records are keyed by: with one more, the records that there are would
# be those of another grid.
FIELDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("sweep", "randomness", "pool", "few_shot", "last_layer"), _FIRST),
    "methods": (*_SHARED, "decay", "shots", "draws", "held_out", "batch_ensemble_rate"),
    "initialisation": _SHARED,
    "rank": (*_SHARED, "ranks"),
    "strength": (*_SHARED, "wide_kl", "wide_decays"),
    CHOICE: (*_SHARED, "choose", "held_out"),
}
_OF_HEADS = ("head", "max_length", "layers", "length_window")
WHOLE_KINDS = ("sweep", "few_shot", "last_layer")  # of every task
OPEN_KINDS = ("methods", "initialisation", "rank", "strength")


def cells(grid: Grid, kinds: Sequence[str] = KINDS) -> Iterator[tuple[str, str, int]]:
    """Every (kind, task, seed) of a grid, whole seeds first, so that an early stop leaves whole comparisons."""
    for seed in grid.seeds:
        for task in grid.tasks:
            for kind in kinds:
                if _asked(grid, kind, task, seed):
                    yield kind, task, seed


def _asked(grid: Grid, kind: str, task: str, seed: int) -> bool:
    if kind == "few_shot" and grid.head != "causal-lm":
        return False
    if kind in OPEN_KINDS:
        return task in grid.open_tasks and seed in grid.seeds[: grid.open_seeds]
    return kind in WHOLE_KINDS or task in grid.few_tasks


def settings_of(grid: Grid, kind: str, task: str, seed: int) -> dict[str, Any]:
    """The settings that a record depends on."""
    names = FIELDS[kind] if grid.head == "causal-lm" else (*FIELDS[kind], *_OF_HEADS)
    fields: dict[str, Any] = {name: getattr(grid, name) for name in names}
    chosen = (
        {"decay_chosen_on": f"{grid.held_out:g} of the training questions, held out"}
        if grid.choose and "decay" in names
        else {}
    )
    return (
        {"kind": kind, "task": task, "seed": seed}
        | {name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()}
        | chosen
    )
