"""Figure of an ensemble's size: metrics of ensembles of some of its members."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ...errors import ConfigError, unknown_name
from ..metrics import accuracy, brier, coverage_area, ece, nll
from .members import check_several
from .style import Theme, canvas, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..prediction import Prediction

MOST_SUBSETS = 64  # of one size: enough for a mean; of 20 members 10 can be chosen in 184,756 ways
METRICS: dict[str, tuple[Callable[[Prediction], float], str]] = {
    "accuracy": (accuracy, "accuracy ↑"),
    "nll": (nll, "NLL (nats) ↓"),
    "ece": (ece, "ECE ↓"),
    "brier": (brier, "Brier ↓"),
    "coverage_area": (coverage_area, "accuracy-coverage area ↑"),
}


def size_curve(
    prediction: Prediction, *, metrics: Sequence[str] = ("nll", "ece"), seed: int = 0, dark: bool = False
) -> Figure:
    """Metrics of ensembles of 1 to M of the members: whether one more member would help.

    The line is the mean over all subsets of a size, or over 64 drawn ones where there are more; the band goes
    from the lowest to the highest of them, and closes at M, of which there is one. As Fig. 6 of
    arXiv:2310.00035, which has 5 random draws of each size.

    Args:
        prediction: a labelled prediction of M members, 2 or more.
        metrics: some of "accuracy", "nll", "ece", "brier" and "coverage_area"; a panel each.
        seed: of the subsets that are drawn.
        dark: light lines on a dark background.

    Returns:
        A figure with a panel for each metric, in their order, over the number of members.

    Raises:
        ConfigError: a single member, no metrics, or an unknown one.
        DataError: an unlabelled prediction.
        MissingExtraError: matplotlib is not installed.

    Example:
        >>> import torch
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> two = torch.tensor([[[0.9, 0.1], [0.7, 0.3]], [[0.8, 0.2], [0.4, 0.6]]]).log()
        >>> figure = size_curve(Prediction(two, torch.tensor([0, 1])), metrics=["accuracy"])
        >>> figure.axes[0].lines[0].get_ydata().tolist()  # single members: 1/2 and 1; both: 1/2
        [0.75, 0.5]
    """
    check_several(prediction, "size_curve")
    if not metrics:
        raise ConfigError(f"no metrics to draw; give some of {', '.join(METRICS)}")
    for name in metrics:
        if name not in METRICS:
            raise ConfigError(unknown_name("metric", name, METRICS))
    sizes = range(1, prediction.num_members + 1)
    ensembles = [
        [prediction.select(chosen) for chosen in subsets(prediction.num_members, size, seed=seed)]
        for size in sizes
    ]
    columns = min(3, len(metrics))
    rows = -(-len(metrics) // columns)
    figure, theme = canvas(0.7 + 2.4 * rows, dark=dark, rows=rows, columns=columns)
    for axes in figure.axes[len(metrics) :]:
        axes.remove()
    for axes, name in zip(figure.axes, metrics, strict=True):
        metric, words = METRICS[name]
        _panel(axes, [[metric(one) for one in of_size] for of_size in ensembles], theme)
        axes.set(xlabel="members", ylabel=words)
    first = figure.axes[0]
    first.lines[0].set_label("mean over the ensembles of so many members")
    first.collections[0].set_label("from the lowest to the highest of them")
    legend(figure, theme, place="outside upper center", columns=2)
    return figure


def subsets(members: int, size: int, *, seed: int) -> list[tuple[int, ...]]:
    """All subsets of `size` of so many members, or `MOST_SUBSETS` different ones where there are more.

    Example:
        >>> subsets(3, 2, seed=0)
        [(0, 1), (0, 2), (1, 2)]
        >>> len(set(subsets(20, 10, seed=0)))
        64
    """
    if math.comb(members, size) <= MOST_SUBSETS:
        return list(itertools.combinations(range(members), size))
    draw, drawn = random.Random(f"{seed} {size}"), set[tuple[int, ...]]()
    while len(drawn) < MOST_SUBSETS:
        drawn.add(tuple(sorted(draw.sample(range(members), size))))
    return sorted(drawn)


def _panel(axes: Axes, values: Sequence[Sequence[float]], theme: Theme) -> None:
    """The values of ensembles of 1, 2, ... members: their means, and the band around all."""
    from matplotlib.ticker import MaxNLocator

    sizes, colour = range(1, len(values) + 1), theme.colours[0]
    axes.plot(
        sizes,
        list(map(statistics.fmean, values)),
        linestyle="--",
        marker="o",
        markersize=3.5,
        color=colour,
        linewidth=1.5,
    )
    axes.fill_between(
        sizes, list(map(min, values)), list(map(max, values)), color=colour, alpha=0.2, linewidth=0
    )
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    axes.tick_params(labelbottom=True)
