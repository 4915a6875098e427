"""Ways to an ensemble side by side: how right and how calibrated each is, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .style import (
    BLACK,
    BLUE,
    GREEN,
    METRICS,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    Key,
    finish,
    heading,
    panels,
)
from .values import Record, Records, Spread, by_task, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "Methods side by side"
NEEDS = ("methods",)
CAPTION = (
    "NLL (nats) and ECE on the validation questions after the last epoch against accuracy, and NLL against "
    "the time to answer in multiples of the single member's in the same run (on a CPU what was computed, "
    "over all threads). Markers: means over the seeds; lines through them: from the lowest to the highest "
    "seed, solid for one model and dashed for an ensemble. The single member and MC dropout are means over "
    "as many models as the ensemble has members. Scaled: trained on four fifths of the training questions, "
    "with a temperature fitted on the other fifth."
)
PAPER = (
    "The paper compares with few-shot, last-layer ensembles and MC dropout; BatchEnsemble it names and "
    "leaves open, and it has no temperature scaling and no costs side by side."
)
KEYS = {
    "few-shot base": Key("few-shot base", BLACK, "-", "X"),
    "single member": Key("single member", VERMILION, "-", "o"),
    "ensemble": Key("ensemble", VERMILION, "--", "D", filled=False),
    "single member, decay of B": Key("single member, decay of B", BLUE, "-", "o"),
    "ensemble, decay of B": Key("ensemble, decay of B", BLUE, "--", "D", filled=False),
    "single member, scaled": Key("single member, scaled", GREEN, "-", "o"),
    "ensemble, scaled": Key("ensemble, scaled", GREEN, "--", "D", filled=False),
    "MC dropout": Key("MC dropout", ORANGE, "-", "^"),
    "BatchEnsemble": Key("BatchEnsemble", PURPLE, "--", "s", filled=False),
    "last-layer ensemble": Key("last-layer ensemble", SKY, "--", "v", filled=False),
}
PANELS = (("accuracy", "nll"), ("accuracy", "ece"), ("time", "nll"))


def draw(records: Records) -> Figure:
    """A row a task.

    Raises:
        DataError: records that it needs are missing.
        MissingExtraError: matplotlib is not installed.
    """
    tasks = by_task(records, "methods")
    figure, grid = panels(len(tasks), len(PANELS), height=1.9, sharex=False)
    for axes, (name, runs) in zip(grid, tasks.items(), strict=True):
        for one, (x, y) in zip(axes, PANELS, strict=True):
            for method, key in KEYS.items():
                across, up = over_seeds(runs, method, x), over_seeds(runs, method, y)
                if across and up:
                    _cross(one, across, up, key)
            one.set_ylabel(METRICS[y], labelpad=2)
            one.set_xlabel("relative time to answer ↓" if x == "time" else METRICS[x])
            one.margins(0.08)
        heading(axes[0], name)
    measured = {name for record in records["methods"] for name in record["result"]["methods"]}
    keys = [key for name, key in KEYS.items() if name in measured]
    return finish(figure, {"methods": records["methods"]}, keys, columns=3)


def over_seeds(runs: Sequence[Record], method: str, metric: str) -> Spread | None:
    """A metric of a method; "time": seconds to answer a question over those of the record's single member."""
    rows = [record["result"]["methods"] for record in runs if method in record["result"]["methods"]]
    if metric == "time":
        return spread(
            row[method]["seconds_per_1000"] / row["single member"]["seconds_per_1000"] for row in rows
        )
    return spread(row[method][metric] for row in rows)


def _cross(axes: Axes, x: Spread, y: Spread, key: Key) -> None:
    axes.plot([x.low, x.high], [y.mean, y.mean], color=key.colour, linestyle=key.line, linewidth=0.8)
    axes.plot([x.mean, x.mean], [y.low, y.high], color=key.colour, linestyle=key.line, linewidth=0.8)
    fill = key.colour if key.filled else "white"
    axes.plot(
        [x.mean], [y.mean], key.marker, color=key.colour, markersize=5, markerfacecolor=fill, linestyle=""
    )
