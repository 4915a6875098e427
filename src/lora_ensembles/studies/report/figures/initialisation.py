"""Initialisations of A and B, against what the ensemble gains from each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...kinds.initialisation import REGIMES, STARTS
from .style import (
    BLUE,
    LINES,
    METRICS,
    NAMES,
    VERMILION,
    Key,
    finish,
    heading,
    panels,
    whisker,
)
from .values import (
    ENSEMBLE,
    MEMBER,
    Record,
    Records,
    Spread,
    by_task,
    last_row,
    spread,
    value,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "How A and B start"
NEEDS = ("initialisation",)
CAPTION = (
    "Accuracy, NLL (nats) and ECE on the validation questions after the last epoch, and the mean "
    "correlation over pairs of members of the probabilities they give to the right option, for four of "
    "PEFT's initialisations and a smaller one. Kaiming is the paper's. Kaiming and Gaussian start B at "
    "zero, orthogonal starts A and B away from zero with a product of zero, random B does not start at the "
    "base. Same order: all members see the data in one order, so that only their start differs. Markers: "
    "mean over the seeds; whiskers: from the lowest to the highest seed, solid for the single member and "
    "dashed for the ensemble."
)
PAPER = (
    "The paper has one initialisation, Kaiming for A and zero for B, and leaves open what others would do "
    "to the members' diversity."
)
SHOWN = ("accuracy", "nll", "ece", "correlation")
COLOUR = dict(zip(REGIMES, (VERMILION, BLUE), strict=True))
KEYS = {
    (suffix, who): Key(
        f"{NAMES[who]}{suffix}", COLOUR[suffix], line, "o" if who == MEMBER else "D", filled=who == MEMBER
    )
    for suffix in REGIMES
    for who, line in LINES.items()
}


def draw(records: Records) -> Figure:
    """A row of panels a task, in each a row a start.

    Raises:
        DataError: records that it needs are missing.
        MissingExtraError: matplotlib is not installed.
    """
    tasks = by_task(records, "initialisation")
    figure, grid = panels(len(tasks), len(SHOWN), height=1.9, sharex=False)
    for axes, (name, runs) in zip(grid, tasks.items(), strict=True):
        for one, metric in zip(axes, SHOWN, strict=True):
            for row, start in enumerate(STARTS):
                for place, ((suffix, who), key) in enumerate(KEYS.items()):
                    values = over_seeds(runs, f"{start}{suffix}", metric, who)
                    if values and (metric != "correlation" or who == ENSEMBLE):
                        whisker(one, row + 0.17 * (place - 1.5), values, key, vertical=False)
            one.set_yticks(range(len(STARTS)), list(STARTS) if one is axes[0] else [""] * len(STARTS))
            one.set_ylim(len(STARTS) - 0.5, -0.5)
            one.set_xlabel(METRICS.get(metric, "correlation of members"))
            one.margins(x=0.1)
        heading(axes[0], name)
    return finish(figure, {"initialisation": records["initialisation"]}, list(KEYS.values()), columns=2)


def over_seeds(runs: Sequence[Record], arm: str, metric: str, who: str) -> Spread | None:
    """A metric of an arm after the last epoch, or the correlation of its members."""
    if metric == "correlation":
        return spread(record["result"]["arms"].get(arm, {}).get("correlation") for record in runs)
    return spread(value(row, metric, who) for record in runs if (row := last_row(record, arm)) is not None)
