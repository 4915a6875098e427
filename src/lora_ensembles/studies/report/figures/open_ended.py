"""Open answers: how well each score of doubt finds the wrong ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ....prediction.plots.style import COLOURS, check_arms, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def selective_panels(points: Mapping[str, Sequence[float]], curves: Mapping[str, Tensor]) -> Figure:
    """Left: the AUROC of each score of doubt, a point a seed and a bar at their mean. Right: accuracy against
    coverage, an arm a line.

    Args:
        points: by the name of a score.
        curves: (N,) accuracies on the k least doubtful of N answers, by the name of an arm; an ensemble's
            name begins with "ensemble".

    Raises:
        ConfigError: no arms, or more than seven.
        MissingExtraError: matplotlib is not installed.

    Example:
        >>> import torch
        >>> figure = selective_panels({"entropy": [0.7, 0.8]}, {"ensemble": torch.tensor([1.0, 0.5])})
        >>> [axes.get_xlabel() for axes in figure.axes]
        ['AUROC of wrong answers (0.5 is chance)', 'coverage (share answered, least doubtful first)']
    """
    check_arms(curves)
    figure = new_figure((11.0, 4.5), columns=2)
    left, right = figure.axes
    for row, values in enumerate(points.values()):
        mean = sum(values) / len(values)
        left.barh(row, mean - 0.5, left=0.5, height=0.6, color=COLOURS[0], alpha=0.35)
        left.plot(list(values), [row] * len(values), "o", color=COLOURS[1], markersize=4)
    left.set_yticks(range(len(points)), list(points))
    left.invert_yaxis()
    left.set(xlim=(0.4, 1.0), xlabel="AUROC of wrong answers (0.5 is chance)")
    left.axvline(0.5, color="0.4", linewidth=1)
    for index, (name, accuracies) in enumerate(curves.items()):
        coverage = [(place + 1) / len(accuracies) for place in range(len(accuracies))]
        line = "--" if name.startswith("ensemble") else "-"
        label = f"{name} (area {accuracies.mean().item():.3f})"
        right.plot(
            coverage, accuracies.tolist(), linestyle=line, color=COLOURS[index], linewidth=2, label=label
        )
    right.set(
        xlim=(0, 1), xlabel="coverage (share answered, least doubtful first)", ylabel="share of right answers"
    )
    right.legend(loc="best")
    return figure
