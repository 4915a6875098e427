"""The gain of an ensemble against the NLL of its single member, for every family and strength of regulariser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ...claims.contrasts import SIGNS
from .style import DECAY, KL, NONE, STOPPED, Key, finish, heading, panels
from .values import ENSEMBLE, MEMBER, Record, Records, by_task, epochs_of, spread, strength, value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "The gain of ensembling at the same NLL of the single member"
NEEDS = ("sweep",)
CAPTION = (
    "What the ensemble gains in NLL (nats; single member minus ensemble, so that up is better) against the "
    "NLL of the "
    "single member, on the validation questions. A line leads from no regulariser (the large point) over the "
    "strengths "
    "of one family to the strongest: KL and decay of B after the last epoch, and early stopping back to the "
    "first "
    "epoch. Where two lines lie at the same NLL, the higher one keeps more of the gain. Points: mean over "
    "the seeds; "
    "bars: from the lowest to the highest seed."
)
PAPER = (
    "Figure 2 has the arrows of each regulariser at its own three strengths: they shrink with strong KL and "
    "very early "
    "stopping, and least with decay. It does not compare them where the single member is equally good."
)
METRIC = "nll"


def draw(records: Records) -> Figure:
    """A panel a task.

    Raises:
        DataError: records that it needs are missing.
        MissingExtraError: matplotlib is not installed.
    """
    sweeps = by_task(records, "sweep")
    columns = 3 if len(sweeps) > 2 else len(sweeps)
    figure, grid = panels(-(-len(sweeps) // columns), columns, height=1.8, sharex=False)
    every = [axes for row in grid for axes in row]
    drawn: dict[str, str] = {}
    for axes, (name, runs) in zip(every, sweeps.items(), strict=False):
        for family, (colour, path) in paths(runs[0]).items():
            drawn[family] = colour
            _line(axes, runs, path, colour)
        axes.axhline(0, color="0.7", linewidth=0.8)
        axes.margins(0.08)
        axes.set_xlabel("NLL of the single member")
        axes.set_ylabel("gain in NLL (nats)" if axes in [row[0] for row in grid] else "")
        heading(axes, name)
    for axes in every[len(sweeps) :]:
        axes.remove()
    keys = [
        Key("no regulariser", NONE, "", "o"),
        *(Key(name, colour, "-", "o") for name, colour in drawn.items()),
    ]
    return finish(figure, records, keys, columns=4)


def paths(record: Record) -> Mapping[str, tuple[str, Sequence[tuple[str, int]]]]:
    """Each family's colour and its arms with their epochs, from no regulariser to the strongest."""
    epochs = epochs_of(record, "none")
    last, arms = max(epochs), record["result"]["arms"]
    wanted = {
        "KL": (KL, [(arm, last) for arm in _by_strength(arms, "KL ")]),
        "decay of B": (DECAY, [(arm, last) for arm in _by_strength(arms, "decay of B ")]),
        "early stopping": (STOPPED, [("none", epoch) for epoch in sorted(epochs, reverse=True)[1:]]),
    }
    return {name: (colour, [("none", last), *path]) for name, (colour, path) in wanted.items() if path}


def points(runs: Sequence[Record], arm: str, epoch: int) -> tuple[list[float], list[float]]:
    """The NLL of the single member and the gain, for each seed."""
    rows = [row for record in runs if (row := epochs_of(record, arm).get(epoch)) is not None]
    singles = [value(row, METRIC, MEMBER) for row in rows]
    gains = [
        SIGNS[METRIC] * (whole - single)
        for row, single in zip(rows, singles, strict=True)
        if (whole := value(row, METRIC, ENSEMBLE)) is not None and single is not None
    ]
    return [single for single in singles if single is not None], gains


def _by_strength(arms: Mapping[str, object], prefix: str) -> list[str]:
    return sorted((arm for arm in arms if arm.startswith(prefix)), key=strength)


def _line(axes: Axes, runs: Sequence[Record], path: Sequence[tuple[str, int]], colour: str) -> None:
    x, y = [], []
    for place, (arm, epoch) in enumerate(path):
        at, gain = (spread(values) for values in points(runs, arm, epoch))
        if at is None or gain is None:
            continue
        x.append(at.mean)
        y.append(gain.mean)
        axes.plot([at.mean] * 2, [gain.low, gain.high], color=colour, linewidth=0.8, alpha=0.6)
        axes.plot([at.low, at.high], [gain.mean] * 2, color=colour, linewidth=0.8, alpha=0.6)
        size, dot = (6.0, NONE) if place == 0 else (3.0, colour)
        axes.plot([at.mean], [gain.mean], "o", color=dot, markersize=size, zorder=3 if place else 4)
    axes.plot(x, y, color=colour, linewidth=1.2)
