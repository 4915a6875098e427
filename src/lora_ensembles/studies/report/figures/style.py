"""Shared style of the studies' figures: sizes for a printed column, colours, lines with bands, and the note
of a smaller grid.

A single member is a solid line and an ensemble a dashed one, everywhere. Colours are Okabe and Ito's.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ....prediction.plots.style import COLOURS, DPI, MARKERS, SMALL, TEXT, WIDTH, new_figure, small_print
from ...claims.views import decay_arm
from .values import ENSEMBLE, MEMBER, Level, Record, Records, Spread, level_of, over_epochs, smaller_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = COLOURS
NONE, DECAY, KL, STOPPED, DROPOUT, FEW_SHOT = VERMILION, BLUE, GREEN, PURPLE, ORANGE, BLACK
Line = Literal["-", "--", ":", ""]
LINES: dict[str, Line] = {MEMBER: "-", ENSEMBLE: "--"}
NAMES = {MEMBER: "single member", ENSEMBLE: "ensemble"}
METRICS = {"accuracy": "accuracy ↑", "nll": "NLL (nats) ↓", "ece": "ECE ↓", "ood_auroc": "AUROC"}
LEVEL = "level"  # the gid of a level's name over its panel


@dataclass(frozen=True)
class Key:
    """One entry of a legend."""

    label: str
    colour: str
    line: Line = "-"
    marker: str = ""
    filled: bool = True
    alpha: float = 1.0


def panels(rows: int, columns: int, *, height: float, sharex: bool = True) -> tuple[Figure, list[list[Axes]]]:
    """A figure as wide as the text, of rows of axes that are `height` inches high, with small print."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure((WIDTH, rows * height + 0.7), rows=rows, columns=columns, dpi=DPI, sharex=sharex)
    for axes in figure.axes:
        small_print(axes)
        # as many ticks at every height: else a layout that changes it can cut off the wider labels of others
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    return figure, [figure.axes[row * columns : (row + 1) * columns] for row in range(rows)]


def task_panels(
    sweeps: Mapping[str, Sequence[Record]], *, columns: int, height: float, sharex: bool = True
) -> tuple[Figure, dict[str, Axes]]:
    """A figure with a panel a task, in at most so many columns."""
    columns = min(columns, len(sweeps))
    figure, grid = panels(-(-len(sweeps) // columns), columns, height=height, sharex=sharex)
    every = [axes for row in grid for axes in row]
    for axes in every[len(sweeps) :]:
        axes.remove()
    return figure, dict(zip(sweeps, every, strict=False))


def heading(axes: Axes, text: str, *, below: str = "") -> None:
    """A panel's title, at its left, above a second line in smaller print and the name of a level."""
    named = any(one.get_gid() == LEVEL for one in axes.texts)
    pad = 12 if below or named else 4
    axes.set_title(text, loc="left", fontsize=TEXT, fontweight="bold", pad=pad)
    if below:
        line = axes.text(
            0, 1.02, below, transform=axes.transAxes, fontsize=SMALL - 0.5, color="0.3", va="bottom"
        )
        line.set_in_layout(False)  # a line wider than its panel would push the columns apart


def finish(figure: Figure, records: Records | None, keys: Sequence[Key], *, columns: int = 4) -> Figure:
    """Add the legend above everything, and below everything in what the grid is smaller than the full one."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            color=key.colour,
            linestyle=key.line,
            marker=key.marker,
            markersize=4.5,
            markerfacecolor=key.colour if key.filled else "white",
            linewidth=1.5,
            alpha=key.alpha,
            label=key.label,
        )
        for key in keys
    ]
    if handles:
        figure.legend(
            handles=handles,
            loc="outside upper center",
            ncols=columns,
            fontsize=TEXT,
            frameon=False,
            handlelength=2.6,
        )
    smaller = smaller_grid(records) if records is not None else ""
    if smaller:
        figure.supxlabel(
            "\n".join(textwrap.wrap(f"Smaller grid: {smaller}.", 120)), fontsize=SMALL - 0.5, color="0.35"
        )
    return figure


def band(
    axes: Axes,
    curve: Mapping[int, Spread] | Mapping[float, Spread],
    *,
    colour: str,
    line: Line,
    marker: str = "o",
    width: float = 1.4,
    std: bool = False,
) -> None:
    """A line through the means, and around it a band from the lowest to the highest value, or one standard
    deviation wide each way.
    """
    x = list(curve)
    low = [one.mean - one.std if std else one.low for one in curve.values()]
    high = [one.mean + one.std if std else one.high for one in curve.values()]
    axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(
        x,
        [one.mean for one in curve.values()],
        color=colour,
        linestyle=line,
        linewidth=width,
        marker=marker,
        markersize=2 * width,
    )


def level_line(axes: Axes, level: Level | None) -> None:
    """A grey dotted line at a level, where the panel's values reach it; else, over the panel, its name and
    whether it lies above or below.
    """
    if level is None:
        return
    low, high = axes.get_ylim()
    room = 0.35 * (high - low)
    if low - room <= level.at <= high + room:
        axes.axhline(level.at, color="0.55", linestyle=":", linewidth=0.9, zorder=0)
        return
    axes.text(
        1.0,
        1.01,
        f"{level.name} {level.at:.2f} {'↑' if level.at > high else '↓'}",
        transform=axes.transAxes,
        ha="right",
        va="bottom",
        fontsize=SMALL - 1.5,
        color="0.45",
        gid=LEVEL,
    )


def epoch_panels(
    axes: Sequence[Axes],
    runs: Sequence[Record],
    arms: Mapping[str, str],
    metrics: Sequence[str],
    *,
    where: str = "",
    levels: Mapping[str, Level | None] | None = None,
) -> None:
    """One task's row: a metric a panel over the epochs, for each arm (by its colour) the single member and
    the ensemble; and a line at the level of a metric.
    """
    from matplotlib.ticker import MaxNLocator

    for one, metric in zip(axes, metrics, strict=True):
        one.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 5, 10]))
        for (arm, colour), marker in zip(arms.items(), MARKERS, strict=False):
            for who, line in LINES.items():
                # AUROC compares two distributions, so that it stands with the metrics of the first
                inside = None if metric == "ood_auroc" else where or None
                # arms may coincide: the first of several shows at the rims of the others
                width = 2.4 if len(arms) > 2 and marker == MARKERS[0] else 1.4
                curve = over_epochs(runs, arm, metric, who, where=inside)
                band(one, curve, colour=colour, line=line, marker=marker, width=width)
        one.set_ylabel(METRICS[metric], labelpad=2)
        level_line(one, (levels or {}).get(metric))


def task_rows(
    sweeps: Mapping[str, Sequence[Record]],
    arms: Mapping[str, tuple[str, str]],
    metrics: Sequence[str],
    *,
    height: float,
    records: Records | None = None,
    where: str = "",
) -> tuple[Figure, list[list[Axes]]]:
    """A figure with a row a task and a column a metric, over the epochs; `decay of B` is each task's own
    strength. With `records` metrics have the level to hold them against.
    """
    figure, grid = panels(len(sweeps), len(metrics), height=height)
    for axes, (name, runs) in zip(grid, sweeps.items(), strict=True):
        colours = {
            decay_arm(runs[0]) if arm == "decay of B" else arm: colour for arm, (_, colour) in arms.items()
        }
        levels = None if records is None else {one: level_of(records, name, one) for one in metrics}
        epoch_panels(axes, runs, colours, metrics, where=where, levels=levels)
        heading(axes[0], name)
    for one in grid[-1]:
        one.set_xlabel("epoch")
    return figure, grid


def arms_keys(arms: Mapping[str, tuple[str, str]]) -> list[Key]:
    """A legend of arms (label and colour), single member and ensemble each."""
    return [
        Key(f"{NAMES[who]}, {label}", colour, LINES[who], marker)
        for (label, colour), marker in zip(arms.values(), MARKERS, strict=False)
        for who in LINES
    ]


def whisker(axes: Axes, at: float, value: Spread, key: Key, *, vertical: bool) -> None:
    """A marker at the mean and a line from the lowest to the highest value."""
    ends: Any = ([value.low, value.high], [at, at])
    point: Any = ([value.mean], [at])
    if vertical:
        ends, point = ends[::-1], point[::-1]
    axes.plot(*ends, color=key.colour, linestyle=key.line, linewidth=1.2)
    axes.plot(
        *point,
        color=key.colour,
        marker=key.marker,
        markersize=5,
        markerfacecolor=key.colour if key.filled else "white",
        markeredgecolor=key.colour,
        linestyle="",
    )
