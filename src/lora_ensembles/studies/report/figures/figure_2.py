"""Figure 2: accuracy and calibration of one member, and where the ensemble moves them, for every regulariser
and strength.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .style import (
    DECAY,
    FEW_SHOT,
    KL,
    METRICS,
    NONE,
    STOPPED,
    Key,
    finish,
    heading,
    level_line,
    task_panels,
)
from .values import (
    ENSEMBLE,
    MEMBER,
    Record,
    Records,
    Spread,
    by_task,
    epochs_of,
    level_of,
    spread,
    strength,
    value,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "Figure 2: from the single member to the ensemble"
NEEDS = ("sweep",)
CAPTION = (
    "Each arrow leads from the single member (mean of the members' own metrics) to the ensemble of the same "
    "members, on the validation questions after the last epoch; its ends are means over the seeds, and the "
    "dots are the ends for each seed. Towards the lower right both metrics improve. Colour: the kind of "
    "regulariser; the stronger it is, the more opaque. Early stopping: epochs 1, 2 and 3 of the arm without "
    "a regulariser, 1 the strongest. Crosses: the base without training, few-shot (mean over draws and "
    "seeds) and zero-shot. Axes differ from task to task. Dotted: the ECE that the plain ensemble would "
    "show on so many questions if it were calibrated."
)
PAPER = (
    "After 20 epochs of LLaMA-13B on six tasks, most arrows point to the lower right: ensembles of 5 gain "
    "in accuracy and ECE with almost every regulariser and strength. Regularisers usually lower ECE, and "
    "change accuracy in either direction; with strong KL or very early stopping the arrows shrink. Few-shot "
    "is clearly less accurate."
)
STOPS = (1, 2, 3)


@dataclass(frozen=True)
class Arrow:
    """An arm after an epoch, and how it is drawn."""

    arm: str
    epoch: int
    colour: str
    alpha: float


def draw(records: Records) -> Figure:
    """A panel a task.

    Raises:
        DataError: records that it needs are missing.
        MissingExtraError: matplotlib is not installed.
    """
    from matplotlib.ticker import MaxNLocator

    sweeps = by_task(records, "sweep")
    few_shots = by_task(records, "few_shot") if records.get("few_shot") else {}
    figure, grid = task_panels(sweeps, columns=2, height=2.2, sharex=False)
    for name, axes in grid.items():
        runs = sweeps[name]
        for arrow in arrows(runs[0]):
            _draw_arrow(axes, runs, arrow)
        results = [record["result"] for record in few_shots.get(name, [])]
        _draw_base(axes, results, "x")
        _draw_base(axes, [result["zero_shot"] for result in results if "zero_shot" in result], "+")
        axes.margins(0.08)
        level_line(axes, level_of(records, name, "ece"))
        axes.xaxis.set_major_locator(
            MaxNLocator(nbins=6, prune="upper")
        )  # a label at the very end would be cut
        heading(axes, name)
        axes.set_xlabel(METRICS["accuracy"])
        axes.set_ylabel(METRICS["ece"])
    drawn = {arrow.colour for runs in sweeps.values() for arrow in arrows(runs[0])}
    kinds = {"none": NONE, "KL": KL, "decay of B": DECAY, "early stopping": STOPPED}
    keys = [Key(name, colour, marker=">") for name, colour in kinds.items() if colour in drawn]
    keys += [Key("few-shot base", FEW_SHOT, "", "x")] if few_shots else []
    bare = any("zero_shot" in record["result"] for runs in few_shots.values() for record in runs)
    keys += [Key("zero-shot base", FEW_SHOT, "", "+")] if bare else []
    return finish(figure, records, keys, columns=3)


def arrows(record: Record) -> Iterator[Arrow]:
    """Every arrow of a record: its arms in the sweep, and the first epochs of the arm "none"."""
    last = max(epochs_of(record, "none"))
    arms = list(record["result"]["arms"])
    families: list[tuple[str, list[tuple[str, int]]]] = [
        (
            STOPPED,
            [
                ("none", epoch)
                for epoch in reversed(STOPS)
                if epoch < last and epoch in epochs_of(record, "none")
            ],
        ),
        (KL, [(arm, last) for arm in sorted((arm for arm in arms if arm.startswith("KL ")), key=strength)]),
        (
            DECAY,
            [
                (arm, last)
                for arm in sorted((arm for arm in arms if arm.startswith("decay of B ")), key=strength)
            ],
        ),
        (NONE, [("none", last)]),
    ]
    for colour, members in families:
        for rank, (arm, epoch) in enumerate(members, start=1):
            yield Arrow(arm, epoch, colour, 0.25 + 0.75 * rank / len(members))


def _draw_arrow(axes: Axes, runs: Sequence[Record], arrow: Arrow) -> None:
    ends = []
    for who in (MEMBER, ENSEMBLE):
        rows = [row for record in runs if (row := epochs_of(record, arrow.arm).get(arrow.epoch)) is not None]
        x, y = _spread(rows, "accuracy", who), _spread(rows, "ece", who)
        axes.scatter(x.values, y.values, s=5, color=arrow.colour, alpha=0.4 * arrow.alpha, linewidths=0)
        ends.append((x.mean, y.mean))
    style = dict(
        arrowstyle="-|>",
        color=arrow.colour,
        alpha=arrow.alpha,
        linewidth=1.4,
        shrinkA=0,
        shrinkB=0,
        mutation_scale=8,
    )
    axes.annotate("", xy=ends[1], xytext=ends[0], arrowprops=style)


def _draw_base(axes: Axes, rows: Sequence[Record], marker: str) -> None:
    if rows:
        x, y = _spread(rows, "accuracy", MEMBER), _spread(rows, "ece", MEMBER)
        axes.plot([x.mean], [y.mean], marker, color=FEW_SHOT, markersize=6, markeredgewidth=1.6)
        axes.scatter(x.values, y.values, s=5, color=FEW_SHOT, alpha=0.4, linewidths=0)


def _spread(rows: Sequence[Record], metric: str, who: str) -> Spread:
    middle = spread(value(row, metric, who) for row in rows)
    assert middle is not None  # accuracy and ECE are in every record
    return middle
