"""Agreement: how often members give the same answer."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

from .style import SMALL, TEXT, finish, heading, panels
from .values import Record, Records, by_task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

TITLE = "Members' agreement"
NEEDS = ("sweep",)
CAPTION = (
    "Share of the validation questions to which two members of the arm without a regulariser give the same "
    "answer after the last epoch, "
    "mean over the seeds; the colours span the values outside the diagonals. Above each panel: the mean over "
    "pairs, with the lowest and "
    "the highest seed."
)
PAPER = (
    "The paper has no such matrix; it names the members' diversity as what an ensemble lives on, "
    "and shows it as gaps in Figure 7."
)


def draw(records: Records) -> Figure:
    """A matrix a task.

    Raises:
        DataError: records that it needs are missing.
        MissingExtraError: matplotlib is not installed.
    """
    sweeps = by_task(records, "sweep")
    columns = min(3, len(sweeps))
    figure, grid = panels(
        -(-len(sweeps) // columns), columns, height=2.2 if columns == 3 else 3.0, sharex=False
    )
    every = [axes for row in grid for axes in row]
    matrices = {name: mean_matrix(runs) for name, runs in sweeps.items()}
    others = [share for matrix in matrices.values() for share in outside_diagonal(matrix)]
    low, high = (min(others), max(others)) if others else (0.0, 1.0)
    for axes, (name, runs) in zip(every, sweeps.items(), strict=False):
        image = _panel(axes, matrices[name], low, high)
        means = [statistics.fmean(pairs) for record in runs if (pairs := outside_diagonal(_matrix(record)))]
        said = f"mean {statistics.fmean(means):.2f} ({min(means):.2f} to {max(means):.2f})" if means else ""
        heading(axes, name, below=said)
    for axes in every[len(sweeps) :]:
        axes.remove()
    bar = figure.colorbar(image, ax=figure.axes, shrink=0.6, aspect=30, pad=0.02)
    bar.set_label("share of equal answers", fontsize=TEXT)
    bar.ax.tick_params(labelsize=SMALL)
    return finish(figure, records, [])


def mean_matrix(runs: list[Record]) -> list[list[float]]:
    """The mean of the records' matrices, (members, members)."""
    matrices = [_matrix(record) for record in runs]
    return [
        [statistics.fmean(cells) for cells in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)
    ]


def outside_diagonal(matrix: list[list[float]]) -> list[float]:
    """The cells of pairs of different members, each pair once."""
    return [matrix[one][other] for one in range(len(matrix)) for other in range(one)]


def _matrix(record: Record) -> list[list[float]]:
    matrix: list[list[float]] = record["result"]["arms"]["none"]["agreement"]
    return matrix


def _panel(axes: Axes, matrix: list[list[float]], low: float, high: float) -> AxesImage:
    axes.grid(False)
    others = [
        [math.nan if one == other else share for other, share in enumerate(row)]
        for one, row in enumerate(matrix)
    ]
    axes.set_facecolor("0.9")  # what the diagonal shows
    image = axes.imshow(others, cmap="cividis", vmin=low, vmax=high)
    for one, row in enumerate(matrix):
        for other, share in enumerate(row):
            dark = one != other and share < low + 0.55 * (high - low)
            axes.text(
                other,
                one,
                f"{share:.2f}",
                ha="center",
                va="center",
                fontsize=SMALL - 1,
                color="white" if dark else "black",
            )
    axes.set_xticks(range(len(matrix)))
    axes.set_yticks(range(len(matrix)))
    axes.set_xlabel("member")
    axes.set_ylabel("member")
    return image
