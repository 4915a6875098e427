"""Figure 7: what makes members differ, initial weights or the order of the data."""

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
    finish,
    heading,
    level_line,
    panels,
    whisker,
)
from .values import ENSEMBLE, MEMBER, Record, Records, by_task, last_row, level_of, named_decay, spread, value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "Figure 7: sources of randomness"
NEEDS = ("randomness",)
CAPTION = (
    "Accuracy, NLL (nats) and ECE on the validation questions after the last epoch, for members that differ "
    "by their initial weights alone, by the order of their data alone, and by both, without a regulariser "
    "and with decay of B. Filled: single member (mean of the members' own metrics); open: ensemble; the "
    "arrow between them is what the members' diversity gains. Markers: mean over the seeds; whiskers: from "
    "the lowest to the highest seed, solid for the single member and dashed for the ensemble. Dotted, or "
    "named over a panel: guessing evenly (1/C, ln C), and the ECE that the plain ensemble would "
    "show at the end if it were calibrated."
)
PAPER = (
    "On cqa, with 5 trials a setting, ensembles work with either source of randomness alone (the gap "
    "between single member and ensemble); with a regulariser, data order alone gives more than "
    "initialisation alone."
)
SHOWN = ("accuracy", "nll", "ece")
SOURCES = {"init": "initial\nweights", "order": "data\norder", "init and order": "both"}
ARMS = {"": ("no regulariser", NONE, -0.2), ", decay of B": ("decay of B", DECAY, 0.2)}
MARKERS = {MEMBER: "o", ENSEMBLE: "D"}


def draw(records: Records) -> Figure:
    """A row a task, a column a metric.

    Raises:
        DataError: records that it needs are missing.
        MissingExtraError: matplotlib is not installed.
    """
    tasks = by_task(records, "randomness")
    figure, grid = panels(len(tasks), len(SHOWN), height=1.4)
    for axes, (name, runs) in zip(grid, tasks.items(), strict=True):
        for one, metric in zip(axes, SHOWN, strict=True):
            _panel(one, runs, metric)
            level_line(one, level_of(records, name, metric))
        heading(axes[0], name)
    for one in grid[-1]:
        one.set_xlabel("members differ by")
    named = named_decay(records["randomness"])
    keys = [
        Key(
            f"{NAMES[who]}, {named if colour == DECAY else label}",
            colour,
            LINES[who],
            MARKERS[who],
            who == MEMBER,
        )
        for label, colour, _ in ARMS.values()
        for who in (MEMBER, ENSEMBLE)
    ]
    return finish(figure, records, keys, columns=2)


def _panel(axes: Axes, runs: Sequence[Record], metric: str) -> None:
    for place, source in enumerate(SOURCES):
        for suffix, (_, colour, shift) in ARMS.items():
            rows = [row for record in runs if (row := last_row(record, source + suffix)) is not None]
            means = {}
            for who, aside in ((MEMBER, -0.07), (ENSEMBLE, 0.07)):
                values = spread(value(row, metric, who) for row in rows)
                if values:
                    means[who] = (place + shift + aside, values.mean)
                    key = Key("", colour, LINES[who], MARKERS[who], filled=who == MEMBER)
                    whisker(axes, place + shift + aside, values, key, vertical=True)
            if len(means) == 2:
                style = dict(
                    arrowstyle="->", color=colour, linewidth=0.8, shrinkA=3, shrinkB=3, mutation_scale=6
                )
                axes.annotate("", xy=means[ENSEMBLE], xytext=means[MEMBER], arrowprops=style)
    axes.set_xticks(range(len(SOURCES)), list(SOURCES.values()))
    axes.set_xlim(-0.5, len(SOURCES) - 0.5)
    axes.margins(y=0.12)
    axes.set_ylabel(METRICS[metric])
