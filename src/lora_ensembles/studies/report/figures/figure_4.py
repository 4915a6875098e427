"""Figure 4: MC dropout between one member and the ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ....errors import DataError
from .style import BLACK, DROPOUT, METRICS, NONE, Key, finish, panels, whisker
from .values import (
    ENSEMBLE,
    MEMBER,
    Record,
    Records,
    Spread,
    by_task,
    last_row,
    level_of,
    spread,
    value,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Figure 4: MC dropout against the ensemble"
NEEDS = ("sweep",)
CAPTION = (
    "Accuracy, NLL (nats) and ECE on the validation questions after the last epoch. Five rows of a task: "
    "the single member and the ensemble as usual; and, of members trained with dropout on the input of "
    "LoRA, the single member with dropout off, one member asked as often as the ensemble has members with "
    "dropout on (MC dropout, mean over the members), and the ensemble. Single members: mean of the members' "
    "own metrics. Markers: mean over the seeds; whiskers: from the lowest to the highest seed, solid for "
    "one member's weights and dashed for an ensemble. Dotted: the single member trained without dropout, "
    "which is what the paper compares with. Thick grey: guessing evenly, 1 / C and ln C, and the ECE that a "
    "calibrated ensemble would show."
)
PAPER = (
    "MC dropout with 5 passes is only slightly better than a single model; the LoRA ensemble of 5 gains "
    "much more in accuracy and calibration."
)
SHOWN = ("accuracy", "nll", "ece")
KEYS = (
    Key("single member", NONE, "-", "o"),
    Key("ensemble", NONE, "--", "D", filled=False),
    Key("single member, dropout", DROPOUT, "-", "o"),
    Key("MC dropout", BLACK, "-", "^"),
    Key("ensemble, dropout", DROPOUT, "--", "D", filled=False),
)


def draw(records: Records) -> Figure:
    """A panel a metric, five rows a task.

    Raises:
        DataError: records that it needs are missing.
        MissingExtraError: matplotlib is not installed.
    """
    sweeps = {name: runs for name, runs in by_task(records, "sweep").items() if passes(runs)}
    if not sweeps:
        raise DataError("no record of a sweep holds MC dropout")
    figure, grid = panels(1, len(SHOWN), height=0.8 * len(sweeps) + 0.4, sharex=False)
    for axes, metric in zip(grid[0], SHOWN, strict=True):
        for row, (name, runs) in enumerate(sweeps.items()):
            if level := level_of(records, name, metric):
                axes.plot([level.at] * 2, [row - 0.4, row + 0.4], color="0.82", linewidth=2.5, zorder=0)
            for place, (key, values) in enumerate(zip(KEYS, compared(runs, metric), strict=True)):
                whisker(axes, row + 0.16 * (place - 2), values, key, vertical=False)
                if not place:
                    axes.plot([values.mean] * 2, [row - 0.4, row + 0.4], ":", color="0.6", linewidth=0.9)
        axes.set_yticks(range(len(sweeps)), list(sweeps) if metric == SHOWN[0] else [""] * len(sweeps))
        axes.set_ylim(len(sweeps) - 0.5, -0.5)
        axes.set_xlabel(METRICS[metric])
        axes.margins(x=0.08)
    return finish(figure, records, KEYS, columns=3)


def passes(runs: Sequence[Record]) -> list[Record]:
    """The records that hold MC dropout."""
    return [record for record in runs if record["result"]["arms"].get("MC dropout", {}).get("passes")]


def compared(runs: Sequence[Record], metric: str) -> list[Spread]:
    """The rows of `KEYS`, over the seeds."""
    runs = passes(runs)
    rows, plain = (
        [row for record in runs if (row := last_row(record, arm)) is not None] for arm in ("dropout", "none")
    )
    asked = [
        spread(one[metric] for one in record["result"]["arms"]["MC dropout"]["passes"]) for record in runs
    ]
    five = (
        spread(value(row, metric, MEMBER) for row in plain),
        spread(value(row, metric, ENSEMBLE) for row in plain),
        spread(value(row, metric, MEMBER) for row in rows),
        spread(one.mean for one in asked if one),
        spread(value(row, metric, ENSEMBLE) for row in rows),
    )
    if any(one is None for one in five):
        raise DataError("a record of a sweep holds MC dropout and not the members that were asked")
    return [one for one in five if one]
