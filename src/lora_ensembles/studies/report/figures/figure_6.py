"""Figure 6: metrics against the number of members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .style import (
    DECAY,
    LINES,
    METRICS,
    NAMES,
    NONE,
    Key,
    band,
    finish,
    heading,
    level_line,
    panels,
)
from .values import Record, Records, Spread, by_task, level_of, named_decay, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Figure 6: more members"
NEEDS = ("pool",)
CAPTION = (
    "Accuracy, NLL (nats) and ECE on the validation questions after the last epoch against the number of "
    "members M, without a regulariser and with decay of B. Dashed: ensembles of M members drawn at random "
    "from one pool, the mean over the random subsets of all seeds; bands: one standard deviation over "
    "subsets and seeds each way (the whole pool is one subset, so that its band is over seeds alone). "
    "Solid: the level of the single member (M = 1, every member of the pool). Dotted, or named over a "
    "panel: guessing evenly (1/C, ln C), and the ECE that the plain ensemble would show at the end if "
    "it were calibrated."
)
PAPER = (
    "With a pool of 20 members and 5 random draws for each M, every metric improves with M, and each "
    "further member brings less."
)
SHOWN = ("accuracy", "nll", "ece")
ARMS = {"none": ("no regulariser", NONE), "decay of B": ("decay of B", DECAY)}


def draw(records: Records) -> Figure:
    """A row a task, a column a metric.

    Raises:
        DataError: records that it needs are missing.
        MissingExtraError: matplotlib is not installed.
    """
    pools = by_task(records, "pool")
    figure, grid = panels(len(pools), len(SHOWN), height=1.7)
    for axes, (name, runs) in zip(grid, pools.items(), strict=True):
        for one, metric in zip(axes, SHOWN, strict=True):
            for arm, (_, colour) in ARMS.items():
                curve = by_size(runs, arm, metric)
                if 1 in curve:
                    one.axhline(curve[1].mean, color=colour, linestyle="-", linewidth=0.9)
                band(one, curve, colour=colour, line="--", std=True)
            one.set_ylabel(METRICS[metric])
            level_line(one, level_of(records, name, metric))
            sizes = {size for arm in ARMS for size in by_size(runs, arm, metric)}
            one.set_xticks(
                sorted(size for size in sizes if size not in (2, 3) or max(sizes) <= 5)
            )  # else their numbers would overlap
        heading(axes[0], name)
    for one in grid[-1]:
        one.set_xlabel("members M")
    named = named_decay(records["pool"])
    keys = [
        Key(f"{NAMES[who]}, {named if colour == DECAY else label}", colour, LINES[who])
        for label, colour in ARMS.values()
        for who in LINES
    ]
    return finish(figure, records, keys, columns=2)


def by_size(runs: Sequence[Record], arm: str, metric: str) -> dict[int, Spread]:
    """A metric by the number of members, over the subsets of all seeds."""
    sizes = sorted({int(size) for record in runs for size in record["result"].get(arm, {})})
    curve = {}
    for size in sizes:
        at = spread(
            one[metric] for record in runs for one in record["result"].get(arm, {}).get(str(size), [])
        )
        if at:
            curve[size] = at
    return curve
