"""Does an ensemble gain more where its members agree less?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...claims.contrasts import SIGNS
from .association import association, gains
from .style import (
    DECAY,
    KL,
    METRICS,
    NONE,
    ORANGE,
    PURPLE,
    Key,
    finish,
    heading,
    panels,
)
from .values import Records, by_task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Members' correlation against what the ensemble gains"
NEEDS = ("sweep",)
CAPTION = (
    "What the ensemble gains over its members after the last epoch (accuracy: ensemble minus single member; "
    "NLL in nats and ECE: single member minus ensemble, so that up is better) against the mean correlation, "
    "over pairs of members, of the probabilities they give to the right option. A point is one arm, task "
    "and seed, so that the spread over seeds is that of the points. Above each panel: Spearman's rho over "
    "the arms of a task and seed, as the mean over tasks, with its 95 % t interval over tasks."
)
PAPER = (
    "The paper has no such figure; it supposes that strong regularisers take away the ensemble's gain "
    "because members become alike."
)
FAMILIES = {
    "none": Key("no regulariser", NONE, "", "o"),
    "KL ": Key("KL", KL, "", "s"),
    "decay of B ": Key("decay of B", DECAY, "", "D"),
    "decay of A": Key("decay of A, or of both", PURPLE, "", "^"),
    "dropout": Key("dropout", ORANGE, "", "v"),
}


def draw(records: Records) -> Figure:
    """A panel a metric.

    Raises:
        DataError: records that it needs are missing.
        MissingExtraError: matplotlib is not installed.
    """
    every = [record for runs in by_task(records, "sweep").values() for record in runs]
    figure, grid = panels(1, len(SIGNS), height=2.3)
    for axes, metric in zip(grid[0], SIGNS, strict=True):
        axes.axhline(0, color="0.5", linewidth=1)
        for prefix, key in FAMILIES.items():
            points = [point for record in every for point in gains(record, prefix, metric)]
            x, y = [one[0] for one in points], [one[1] for one in points]
            axes.plot(x, y, linestyle="", marker=key.marker, color=key.colour, markersize=3, alpha=0.7)
        rho = association(records, metric)
        heading(axes, f"rho {rho}" if rho else "")
        axes.set_xlabel("correlation of members")
        axes.set_ylabel(f"gain in {METRICS[metric][:-2]}", labelpad=2)
    return finish(figure, records, list(FAMILIES.values()), columns=5)
