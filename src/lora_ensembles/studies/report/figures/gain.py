"""The gain of an ensemble against the NLL of its single member, for every regulariser and strength."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...claims.contrasts import SIGNS
from ...claims.regularisers import paths
from ...claims.views import View
from .style import DECAY, KL, NONE, STOPPED, Key, finish, heading, task_panels
from .values import MEMBER, Records, by_task, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "The gain of ensembling at the same NLL of the single member"
NEEDS = ("sweep",)
CAPTION = (
    "What the ensemble gains in NLL (nats; single member minus ensemble, so that up is better) against the "
    "NLL of the single member, on the validation questions. A line leads from no regulariser (the large "
    "point) over the strengths of one family to the strongest: KL and decay of B after the last epoch, and "
    "early stopping back to the first epoch. Where two lines lie at the same NLL, the higher one keeps more "
    "of the gain. Points: mean over the seeds; bars: from the lowest to the highest seed."
)
PAPER = (
    "Figure 2 has the arrows of each regulariser at its own three strengths: they shrink with strong KL and "
    "very early stopping, and least with decay. It does not compare them where the single member is equally "
    "good."
)
METRIC = "nll"
COLUMNS = 3
COLOURS = {"KL": KL, "decay of B": DECAY, "early stopping": STOPPED}


def draw(records: Records) -> Figure:
    """A panel a task.

    Raises:
        DataError: records that it needs are missing.
        MissingExtraError: matplotlib is not installed.
    """
    sweeps = by_task(records, "sweep")
    figure, grid = task_panels(sweeps, columns=COLUMNS, height=1.8, sharex=False)
    drawn: dict[str, None] = {}
    for place, (name, axes) in enumerate(grid.items()):
        view = View({"sweep": sweeps[name]})
        for family, path in paths(view).items():
            drawn[family] = None
            _line(axes, view, path, COLOURS[family])
        axes.axhline(0, color="0.7", linewidth=0.8)
        axes.margins(0.08)
        axes.set_xlabel("NLL of the single member (nats)")
        axes.set_ylabel("" if place % COLUMNS else "gain in NLL (nats)")
        heading(axes, name)
    keys = [
        Key("no regulariser", NONE, "", "o"),
        *(Key(name, COLOURS[name], "-", "o") for name in drawn),
    ]
    return finish(figure, records, keys, columns=4)


def _line(axes: Axes, view: View, path: Sequence[tuple[str, int]], colour: str) -> None:
    x, y = [], []
    for place, (arm, epoch) in enumerate(path):
        at = spread(view.values(METRIC, arm=arm, who=MEMBER, epoch=epoch).values())
        gain = spread(SIGNS[METRIC] * one for one in view.gain(METRIC, arm=arm, epoch=epoch).values())
        assert at is not None
        assert gain is not None  # NLL is in every record
        x.append(at.mean)
        y.append(gain.mean)
        axes.plot([at.mean] * 2, [gain.low, gain.high], color=colour, linewidth=0.8, alpha=0.6)
        axes.plot([at.low, at.high], [gain.mean] * 2, color=colour, linewidth=0.8, alpha=0.6)
        size, dot = (6.0, NONE) if place == 0 else (3.0, colour)
        axes.plot([at.mean], [gain.mean], "o", color=dot, markersize=size, zorder=3 if place else 4)
    axes.plot(x, y, color=colour, linewidth=1.2)
