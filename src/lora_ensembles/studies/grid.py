"""The grid of the studies: tasks, seeds, the settings that all records share and those of each kind, in full
or quickly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..data import OOD_PAIRS, PAPER_TASKS, PUBLISHED_TASKS
from .arms import DECAY_PER_STEP
from .comparison.measure import ComparisonConfig, ProtocolConfig, TrialsConfig
from .comparison.protocol import ELSEWHERE, PROTOCOL, RATE
from .kinds import KINDS
from .kinds.choice import ChoiceConfig
from .kinds.initialisation import InitialisationConfig
from .kinds.last_layer import LastLayerConfig
from .kinds.methods import MethodsConfig
from .kinds.paper import EMBEDDED_DECAY_PER_STEP, EMBEDDED_KL, PaperConfig
from .kinds.rank import RankConfig
from .kinds.strength import StrengthConfig
from .shared import Asking, Heads, Shared

EMBEDDED = ("world-cqa", "world-obqa", "world-arce", "world-arcc", "world-mmlu-ss", "world-mmlu-stem")
PAPER_KINDS = ("sweep", "randomness", "pool", "few_shot")
WHOLE_KINDS = ("sweep", "few_shot", "last_layer")  # of every task
OPEN_KINDS = ("methods", "initialisation", "rank", "strength")
CHOICE = "choice"  # the kind that the others of a grid with a `choice` depend on
TRIALS, COMPARISON = "trials", "comparison"  # the second depends on the first
BY_PROTOCOL = "published"


@dataclass(frozen=True)
class Grid:
    """Everything that decides which records there are; `quick` and `full` make the two that have a name.

    Attributes:
        few_tasks: tasks of the kinds that need a run of their own on many members, `randomness` and `pool`.
        open_tasks: tasks of the kinds that are about what the paper leaves open, `OPEN_KINDS`.
        open_seeds: how many of the seeds `OPEN_KINDS` have; None: all.
        shared: the settings of every record.
        heads: those of members with heads of their own.
        asking: how a base without such heads is asked.
        choice: how one strength of decay is chosen, which takes the place of those of `paper` and `methods`;
            None: those are as given.
        ood: tasks and the out-of-distribution set of each; others have none, nor have kinds but
            `WHOLE_KINDS`.
        trials, comparison: the settings of the comparison of methods at equal budgets.
        published: those of the comparison by a published protocol.
        elsewhere: tasks and the further sets, of other distributions and with answers, that this one
            measures methods on.
        task_decay: tasks whose one strength of decay is another than that of `paper` and `methods`.
    """

    name: str
    data: str | None = None
    tasks: tuple[str, ...] = EMBEDDED
    seeds: tuple[int, ...] = (0, 1, 2)
    few_tasks: tuple[str, ...] = ("world-cqa", "world-obqa", "world-arcc", "world-mmlu-stem")
    open_tasks: tuple[str, ...] = ("world-arcc",)
    open_seeds: int | None = None
    shared: Shared = field(default_factory=Shared)
    heads: Heads = field(default_factory=Heads)
    asking: Asking = field(default_factory=Asking)
    paper: PaperConfig = field(default_factory=PaperConfig)
    last_layer: LastLayerConfig = field(default_factory=LastLayerConfig)
    methods: MethodsConfig = field(default_factory=MethodsConfig)
    rank: RankConfig = field(default_factory=RankConfig)
    strength: StrengthConfig = field(default_factory=StrengthConfig)
    choice: ChoiceConfig | None = None
    trials: TrialsConfig = field(default_factory=TrialsConfig)
    comparison: ComparisonConfig = field(default_factory=ComparisonConfig)
    published: ProtocolConfig = field(default_factory=ProtocolConfig)
    elsewhere: tuple[tuple[str, tuple[str, ...]], ...] = ()
    ood: tuple[tuple[str, str], ...] = tuple(OOD_PAIRS.items())
    task_decay: tuple[tuple[str, float], ...] = ()

    def settings(self, kind: str, task: str) -> Any:
        """The settings of a kind on a task, beside the shared ones: the frozen config in the kind's file."""
        if kind == "initialisation":
            return InitialisationConfig()
        own = self.paper if kind in PAPER_KINDS else getattr(self, kind)
        shares = dict(self.task_decay)
        return (
            dataclasses.replace(own, decay=shares[task]) if task in shares and hasattr(own, "decay") else own
        )

    def having(
        self,
        *,
        shared: Mapping[str, Any] | None = None,
        heads: Mapping[str, Any] | None = None,
        paper: Mapping[str, Any] | None = None,
        methods: Mapping[str, Any] | None = None,
        rank: Mapping[str, Any] | None = None,
        strength: Mapping[str, Any] | None = None,
    ) -> Grid:
        """The grid with some fields of some groups of settings changed.

        Example:
            >>> FULL.having(shared={"members": 3}).shared.members
            3
        """
        return dataclasses.replace(
            self,
            shared=dataclasses.replace(self.shared, **shared or {}),
            heads=dataclasses.replace(self.heads, **heads or {}),
            paper=dataclasses.replace(self.paper, **paper or {}),
            methods=dataclasses.replace(self.methods, **methods or {}),
            rank=dataclasses.replace(self.rank, **rank or {}),
            strength=dataclasses.replace(self.strength, **strength or {}),
        )

    def decayed(self, share: float) -> Grid:
        """The grid with one strength of decay."""
        return dataclasses.replace(
            self.having(paper={"decays": (share,), "decay": share}, methods={"decay": share}), task_decay=()
        )

    def on(self, tasks: Sequence[str]) -> Grid:
        """The grid on these tasks alone; where none of its few or open tasks is among them, the first takes
        their place.

        Example:
            >>> small = FULL.on(["world-obqa", "world-arce"])
            >>> small.few_tasks, small.open_tasks
            (('world-obqa',), ('world-obqa',))
        """
        few, of_open = (
            tuple(task for task in names if task in tasks) or tuple(tasks[:1])
            for names in (self.few_tasks, self.open_tasks)
        )
        return dataclasses.replace(self, tasks=tuple(tasks), few_tasks=few, open_tasks=of_open)


FULL = Grid("full", paper=PaperConfig(kl=EMBEDDED_KL))
# Fig. 3 and those after it have one strength of decay: lambda = 1e2 on four tasks, 1e3 on the two MMLU sets.
PAPER = Grid(
    "paper",
    task_decay=tuple((task, DECAY_PER_STEP[2 if task.startswith("mmlu") else 0]) for task in PAPER_TASKS),
    tasks=PAPER_TASKS,
    few_tasks=("cqa", "arcc", "mmlu-ss"),
    open_tasks=("cqa", "arcc", "mmlu-ss"),
    shared=Shared(base="", learning_rate=5e-5, snapshots=(1, 2, 3, 5, 10, 20), limit=(None,) * 3),
    paper=PaperConfig(decays=DECAY_PER_STEP, decay=DECAY_PER_STEP[0]),
    methods=MethodsConfig(decay=DECAY_PER_STEP[0], batch_ensemble_rate=1.25e-4),
    strength=StrengthConfig(wide_decays=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2)),
)
# For public encoders of some 20M parameters on a CPU. Their heads are newly initialised: there is no
# distribution of the base to stay close to. The strength of decay is chosen.
ENCODER = dataclasses.replace(
    PAPER.having(
        shared={"learning_rate": 4e-3, "snapshots": (1, 2, 3, 6), "limit": (240, 240, 120)},
        paper={"kl": (), "pool": 10},
        strength={"wide_kl": ()},
    ),
    name="encoder",
    few_tasks=("arce",),
    open_tasks=("arce",),
    heads=Heads("multiple-choice", max_length=128, length_window=8),
    choice=ChoiceConfig((0.1, 0.3, 0.6, 0.9)),
)
# For SmolLM2-135M-Instruct on two cores: answered in the options' words, with adapters on the top six of 30
# layers, whose trunk is read once. `benchmarks/smollm2.py trial` chose the step size, and the number of steps
# on held-out training questions: by then members know their training questions, and their NLL on others has
# risen. The two smaller of the paper's lambdas over sqrt(5,120 / 576), the widths' ratio, take these shares
# of B a step. A sweep is 35 members x 120 questions x 5 epochs, at an estimated 0.13 s of a core each, and
# 25,000 answers of a member at 0.05 s to measure: about an hour of a core for each task and seed.
SMOLLM2 = dataclasses.replace(
    PAPER.having(
        shared={
            "base": "smollm2",
            "learning_rate": 2e-3,
            "snapshots": (1, 2, 3, 5),
            "limit": (120, 150, 60),
        },
        paper={"kl": (1.0,), "decays": (0.067, 0.34), "decay": 0.067, "pool": 10, "draws": 3},
        methods={"decay": 0.067, "draws": 3, "batch_ensemble_rate": 5e-3},
        rank={"ranks": (1, 8, 64)},
        strength={"wide_kl": (0.1, 1.0), "wide_decays": (0.03, 0.34)},
    ),
    # Rows of the head for every token of an answer are many: at the adapters' step size they overfit at once.
    last_layer=LastLayerConfig(factors=(0.01, 0.03, 0.1, 0.3, 1.0)),
    name="smollm2",
    tasks=("arce", "obqa", "arcc", "cqa"),
    seeds=(0, 1),
    few_tasks=("arce",),
    open_tasks=("arce",),
    asking=Asking("text", "labels", (24, 25, 26, 27, 28, 29), batch_size=8),
    ood=tuple((task, "mmlu") for task in ("arce", "obqa", "arcc", "cqa")),
    task_decay=(),
)
PUBLISHED = Grid(
    "published",
    tasks=PUBLISHED_TASKS,
    shared=Shared(base="", members=3, learning_rate=RATE, batch_size=4, snapshots=(1,), limit=(None,) * 3),
    asking=Asking(loss="labels", batch_size=4, alpha=16),
    published=PROTOCOL,
    elsewhere=ELSEWHERE,
    ood=(),
)
QUICK = Grid(
    "quick",
    tasks=("world-cqa", "world-mmlu-stem"),
    few_tasks=("world-mmlu-stem",),
    open_tasks=("world-mmlu-stem",),
    open_seeds=1,
    shared=Shared(snapshots=(1, 2, 3, 5), limit=(120, 120, 100)),
    paper=PaperConfig(kl=(0.05,), decays=EMBEDDED_DECAY_PER_STEP[1:2], pool=10, draws=4),
    methods=MethodsConfig(draws=4),
    rank=RankConfig((1, 8, 64)),
    strength=StrengthConfig((0.001, 0.03, 1.0), (0.001, 0.16, 0.8)),
)


def quick(grid: Grid) -> Grid:
    """A grid of another base, as small as `QUICK`; its strengths stay its own: what a share of B does depends
    on the learning rate.

    Example:
        >>> small = quick(PAPER)
        >>> small.paper.decays, small.paper.decay, small.strength.wide_decays
        ((0.005, 0.05), 0.005, (0.001, 0.025, 0.2))
    """
    paper, strength = grid.paper, grid.strength
    small = grid.having(
        shared={"limit": QUICK.shared.limit, "snapshots": QUICK.shared.snapshots},
        paper={
            "kl": paper.kl[1:2],
            "decays": tuple(sorted({paper.decay, *dict(grid.task_decay).values()})),
            "pool": QUICK.paper.pool,
            "draws": QUICK.paper.draws,
        },
        methods={"draws": QUICK.methods.draws},
        strength={"wide_kl": strength.wide_kl[::3], "wide_decays": strength.wide_decays[::3]},
    )
    return dataclasses.replace(
        small, name=f"{grid.name}, quick", open_seeds=QUICK.open_seeds, rank=QUICK.rank
    )


def cells(grid: Grid, kinds: Sequence[str] = KINDS) -> Iterator[tuple[str, str, int]]:
    """Every (kind, task, seed) of a grid, whole seeds first: an early stop leaves whole comparisons."""
    for seed in grid.seeds:
        for task in grid.tasks:
            for kind in kinds:
                if _asked(grid, kind, task, seed):
                    yield kind, task, seed


def _asked(grid: Grid, kind: str, task: str, seed: int) -> bool:
    if kind == "few_shot" and not grid.heads.of_base:
        return False
    if kind in OPEN_KINDS:
        return task in grid.open_tasks and seed in grid.seeds[: grid.open_seeds]
    return kind in WHOLE_KINDS or task in grid.few_tasks


def settings_of(grid: Grid, kind: str, task: str, seed: int) -> dict[str, Any]:
    """The settings that a record depends on, which are its key."""
    own = grid.settings(kind, task)
    fields = dataclasses.asdict(grid.shared) | dataclasses.asdict(own)
    if not grid.heads.of_base:
        fields |= dataclasses.asdict(grid.heads)
    if grid.asking != Asking():
        fields |= {name: one for name, one in dataclasses.asdict(grid.asking).items() if one is not None}
    if kind in (*WHOLE_KINDS, COMPARISON) and task in dict(grid.ood):
        fields["ood"] = dict(grid.ood)[task]
    if kind == BY_PROTOCOL and task in dict(grid.elsewhere):
        fields["elsewhere"] = dict(grid.elsewhere)[task]
    if grid.choice and hasattr(own, "decay"):
        fields["decay_chosen_on"] = f"{grid.choice.held_out:g} of the training questions, held out"
    return {"kind": kind, "task": task, "seed": seed} | {
        name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()
    }
