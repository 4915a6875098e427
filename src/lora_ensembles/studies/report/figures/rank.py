"""The rank of the adapters, against how right and how calibrated they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .initialisation import over_seeds
from .style import (
    BLACK,
    LINES,
    METRICS,
    NAMES,
    VERMILION,
    Key,
    band,
    finish,
    heading,
    panels,
)
from .values import ENSEMBLE, MEMBER, Record, Records, Spread, by_task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "The rank of the adapters"
NEEDS = ("rank",)
CAPTION = (
    "Accuracy, NLL (nats) and ECE on the validation questions after the last epoch, and the mean "
    "correlation over pairs of members of the probabilities they give to the right option, against the rank "
    "r, on a logarithmic axis. Alpha is 4 r, so that the scaling alpha / r is the paper's 4 at every rank. "
    "Solid: single member (mean of the members' own metrics); dashed: ensemble. Lines: mean over the seeds; "
    "bands: from the lowest to the highest seed."
)
PAPER = "The paper has rank 8 and no other, and leaves open what a rank does to an ensemble."
SHOWN = ("accuracy", "nll", "ece", "correlation")


def draw(records: Records) -> Figure:
    """A row a task, a column a metric.

    Raises:
        DataError: records that it needs are missing.
        MissingExtraError: matplotlib is not installed.
    """
    tasks = by_task(records, "rank")
    figure, grid = panels(len(tasks), len(SHOWN), height=1.6)
    for axes, (name, runs) in zip(grid, tasks.items(), strict=True):
        for one, metric in zip(axes, SHOWN, strict=True):
            if metric == "correlation":
                band(one, by_rank(runs, metric, ENSEMBLE), colour=BLACK, line="-", marker="s")
            else:
                for who, line in LINES.items():
                    band(
                        one,
                        by_rank(runs, metric, who),
                        colour=VERMILION,
                        line=line,
                        marker="o" if who == MEMBER else "D",
                    )
            one.set_ylabel(METRICS.get(metric, "correlation of members"), labelpad=2)
            one.set_xscale("log", base=2)
            sizes = list(by_rank(runs, metric, ENSEMBLE))
            one.set_xticks(sizes, list(map(str, sizes)))
            one.minorticks_off()
        heading(axes[0], name)
    for one in grid[-1]:
        one.set_xlabel("rank r")
    keys = [Key(NAMES[who], VERMILION, line, "o" if who == MEMBER else "D") for who, line in LINES.items()]
    return finish(figure, {"rank": records["rank"]}, [*keys, Key("correlation", BLACK, "-", "s")])


def by_rank(runs: Sequence[Record], metric: str, who: str) -> dict[int, Spread]:
    """A metric by rank, over the seeds."""
    ranks = {name: int(arm["rank"]) for record in runs for name, arm in record["result"]["arms"].items()}
    curve = {
        size: over_seeds(runs, name, metric, who)
        for name, size in sorted(ranks.items(), key=lambda pair: pair[1])
    }
    return {size: values for size, values in curve.items() if values}
