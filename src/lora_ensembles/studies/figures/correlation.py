"""Does an ensemble gain more where its members agree less?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .style import DECAY, KL, METRICS, NONE, ORANGE, PURPLE, Key, finish, panels
from .values import ENSEMBLE, MEMBER, Record, Records, by_task, last_row, value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Members' correlation against what the ensemble gains"
NEEDS = ("sweep",)
CAPTION = (
    "What the ensemble gains over its members after the last epoch (accuracy: ensemble minus single member; NLL in nats and ECE: single "
    "member minus ensemble, so that up is better) against the mean correlation, over pairs of members, of the probabilities they give to "
    "the right option. A point is one arm, task and seed, so that the spread over seeds is that of the points."
)
PAPER = "The paper has no such figure; it supposes that strong regularisers take away the ensemble's gain because members become alike."
FAMILIES = {
    "none": Key("no regulariser", NONE, "", "o"),
    "KL ": Key("KL", KL, "", "s"),
    "decay of B ": Key("decay of B", DECAY, "", "D"),
    "decay of A": Key("decay of A, or of both", PURPLE, "", "^"),
    "dropout": Key("dropout", ORANGE, "", "v"),
}
SHOWN = {"accuracy": 1, "nll": -1, "ece": -1}


def draw(records: Records) -> Figure:
    """A panel a metric.

    Raises:
        DataError: records that it needs are missing.
        MissingExtraError: matplotlib is not installed.
    """
    every = [record for found in by_task(records, "sweep").values() for record in found]
    figure, grid = panels(1, len(SHOWN), height=2.3)
    for axes, (metric, sign) in zip(grid[0], SHOWN.items(), strict=True):
        axes.axhline(0, color="0.5", linewidth=1)
        for prefix, key in FAMILIES.items():
            points = [point for record in every for point in gains(record, prefix, metric, sign)]
            x, y = [one[0] for one in points], [one[1] for one in points]
            axes.plot(x, y, linestyle="", marker=key.marker, color=key.colour, markersize=3, alpha=0.7)
        axes.set_xlabel("correlation of members")
        axes.set_ylabel(f"gain in {METRICS[metric][:-2]}", labelpad=2)
    return finish(figure, records, list(FAMILIES.values()), columns=5)


def gains(record: Record, prefix: str, metric: str, sign: int) -> list[tuple[float, float]]:
    """(correlation, gain) of the record's arms whose name begins so."""
    points = []
    for name, arm in record["result"]["arms"].items():
        row = last_row(record, name)
        if not name.startswith(prefix) or row is None or arm.get("correlation") is None:
            continue
        member, ensemble = value(row, metric, MEMBER), value(row, metric, ENSEMBLE)
        if member is not None and ensemble is not None:
            points.append((arm["correlation"], sign * (ensemble - member)))
    return points
