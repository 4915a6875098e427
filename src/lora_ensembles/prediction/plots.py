"""Figures of predictions. Needs the extra `plots`; matplotlib is imported when a figure is drawn and not
before.

Every figure takes named arms. A single member (M = 1) is a solid line and an ensemble is dashed, as in Fig.
1a of arXiv:2310.00035, so that the two stay apart in print; arms also differ by marker where there are
markers.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ConfigError, DataError, MissingExtraError
from .metrics import accuracy_coverage, ece, reliability_bins

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .prediction import Prediction

# Okabe and Ito's palette, told apart by colour-blind readers; its yellow is left out, too pale for a line on
# white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
# A KDE bandwidth below this shows single answers and not a density.
_MIN_BANDWIDTH = 0.01


def reliability_diagram(predictions: Mapping[str, Prediction]) -> Figure:
    """Accuracy against confidence in 15 equal-width bins for each arm; on the diagonal a model is calibrated,
    below it overconfident.

    A marker's area grows with its bin's share of the examples; the legend gives each arm's ECE.

    Raises:
        ConfigError: no arms, or more than seven.
        DataError: an unlabelled prediction.
        MissingExtraError: matplotlib is not installed.

    Example:
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> prediction = Prediction(torch.tensor([[[0.9, 0.1], [0.6, 0.4]]]).log(), torch.tensor([0, 1]))
        >>> reliability_diagram({"single member": prediction}).axes[0].get_ylabel()
        'accuracy (share of right answers)'
    """
    _check_arms(predictions)
    figure, axes = _figure()
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="calibrated")
    for index, (name, prediction) in enumerate(predictions.items()):
        bins = reliability_bins(prediction)
        label = f"{name} (ECE {ece(prediction):.3f})"
        marker, colour = MARKERS[index], COLOURS[index]
        axes.plot(
            bins.confidences.tolist(),
            bins.accuracies.tolist(),
            linestyle=_line(prediction),
            color=colour,
            marker=marker,
            markersize=4,
            label=label,
        )
        share = bins.counts / prediction.num_examples
        axes.scatter(
            bins.confidences.tolist(),
            bins.accuracies.tolist(),
            s=(20 + 400 * share).tolist(),
            color=colour,
            marker=marker,
            alpha=0.35,
        )
    axes.set(xlim=(0, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.set(
        xlabel="confidence (mean probability of the chosen option)",
        ylabel="accuracy (share of right answers)",
    )
    figure.legend(loc="outside upper left")
    return figure


def wrong_confidence_density(predictions: Mapping[str, Prediction]) -> Figure:
    """The density of the confidence of each arm's wrong answers, as in Fig. 1a of arXiv:2310.00035:
    overconfidence piles up near 1.

    An arm without wrong answers has no line, and the legend says so.

    Raises:
        ConfigError: no arms, or more than seven.
        DataError: an unlabelled prediction.
        MissingExtraError: matplotlib is not installed.

    Example:
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> prediction = Prediction(torch.tensor([[[0.9, 0.1], [0.6, 0.4]]]).log(), torch.tensor([1, 1]))
        >>> wrong_confidence_density({"single member": prediction}).axes[0].get_xlabel()
        'confidence of a wrong answer (probability)'
    """
    _check_arms(predictions)
    figure, axes = _figure()
    grid = torch.linspace(0, 1, 401, dtype=torch.float64)
    for index, (name, prediction) in enumerate(predictions.items()):
        wrong = prediction.choices != prediction.labelled_targets("wrong_confidence_density")
        density = density_on_unit_interval(prediction.confidence[wrong], grid).tolist() if wrong.any() else []
        label = f"{name} ({int(wrong.sum())} of {prediction.num_examples} wrong)"
        x = grid.tolist() if density else []
        axes.plot(x, density, linestyle=_line(prediction), color=COLOURS[index], linewidth=2, label=label)
    axes.set(
        xlim=(0, 1),
        xlabel="confidence of a wrong answer (probability)",
        ylabel="density (per unit of probability)",
    )
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside upper left")
    return figure


def accuracy_coverage_plot(predictions: Mapping[str, Prediction]) -> Figure:
    """Accuracy on the most confident share of the examples, against that share, for each arm; the legend
    gives the area.

    Raises:
        ConfigError: no arms, or more than seven.
        DataError: an unlabelled prediction.
        MissingExtraError: matplotlib is not installed.

    Example:
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> prediction = Prediction(torch.tensor([[[0.9, 0.1], [0.6, 0.4]]]).log(), torch.tensor([0, 1]))
        >>> accuracy_coverage_plot({"single member": prediction}).axes[0].get_xlabel()
        'coverage (share of questions answered, most confident first)'
    """
    _check_arms(predictions)
    figure, axes = _figure()
    for index, (name, prediction) in enumerate(predictions.items()):
        curve = accuracy_coverage(prediction)
        label = f"{name} (area {curve.area:.3f})"
        axes.plot(
            curve.coverages.tolist(),
            curve.accuracies.tolist(),
            linestyle=_line(prediction),
            color=COLOURS[index],
            linewidth=2,
            label=label,
        )
    axes.set(
        xlim=(0, 1),
        xlabel="coverage (share of questions answered, most confident first)",
        ylabel="accuracy on the questions answered",
    )
    figure.legend(loc="outside upper left")
    return figure


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
        >>> figure = selective_panels({"entropy": [0.7, 0.8]}, {"ensemble": torch.tensor([1.0, 0.5])})
        >>> [axes.get_xlabel() for axes in figure.axes]
        ['AUROC of wrong answers (0.5 is chance)', 'coverage (share answered, least doubtful first)']
    """
    _check_arms(curves)
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


def save_figure(figure: Figure, path: Path) -> None:
    """The figure as `path`.png, the same bytes on every run; of 128 colours, which is a third of the size."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})
    palette = Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    palette.save(path.with_suffix(".png"), optimize=True)


def density_on_unit_interval(
    values: Tensor, grid: Tensor, *, least_bandwidth: float = _MIN_BANDWIDTH
) -> Tensor:
    """The Gaussian kernel density of probabilities, at the points of `grid`, in float64.

    Values are reflected at 0 and 1, so that no mass leaks out of the interval: without it the peak at 1 of an
    overconfident model halves. The bandwidth is Silverman's rule, 0.9 min(std, IQR / 1.34) n^(-1/5), at least
    `least_bandwidth`: for values that were counted in bins give the bins' width, below which the kernels
    would show the bins.

    Raises:
        DataError: no values.

    Example:
        >>> grid = torch.linspace(0, 1, 101)
        >>> density = density_on_unit_interval(torch.tensor([0.2, 0.9, 1.0]), grid)
        >>> round(torch.trapezoid(density, grid.double()).item(), 2)
        1.0
    """
    if len(values) == 0:
        raise DataError("no values to estimate a density from; give at least one")
    values, grid = values.double(), grid.double()
    lower, upper = values.quantile(torch.tensor([0.25, 0.75], dtype=torch.float64)).tolist()
    # A middle half of equal values has IQR 0 although the rest is spread: then the standard deviation alone
    # sets the width.
    spreads = [spread for spread in (values.std(correction=0).item(), (upper - lower) / 1.34) if spread > 0]
    bandwidth = max(0.9 * min(spreads, default=0.0) * len(values) ** -0.2, least_bandwidth)
    steps = (grid[:, None] - torch.cat([values, -values, 2 - values])) / bandwidth
    density: Tensor = (-0.5 * steps.square()).exp().sum(dim=1) / (
        len(values) * bandwidth * math.sqrt(2 * math.pi)
    )
    return density


def new_figure(
    size: tuple[float, float], *, rows: int = 1, columns: int = 1, dpi: int = 150, sharex: bool = False
) -> Figure:
    """An empty figure of `size` (width, height) in inches with rows * columns axes, in reading order in its
    `axes`.

    Raises:
        MissingExtraError: matplotlib is not installed.

    Example:
        >>> len(new_figure((6.0, 4.0), rows=2, columns=3).axes)
        6
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            'figures need matplotlib, which is not installed; run: pip install "lora-ensembles[plots]"'
        ) from error
    # A Figure of its own and not pyplot's: nothing stays registered, and no window system is looked for.
    figure = Figure(figsize=size, dpi=dpi, layout="constrained")
    figure.subplots(nrows=rows, ncols=columns, sharex=sharex)
    for axes in figure.axes:
        axes.grid(color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure


def _figure() -> tuple[Figure, Any]:
    figure = new_figure((5.5, 6.0))  # a single legend goes above the axes: lines may cross any of its corners
    return figure, figure.axes[0]


def _line(prediction: Prediction) -> str:
    return "-" if prediction.num_members == 1 else "--"


def _check_arms(predictions: Mapping[str, object]) -> None:
    if not 1 <= len(predictions) <= len(COLOURS):
        raise ConfigError(
            f"{len(predictions)} arms to draw; give 1 to {len(COLOURS)}, more cannot be told apart "
            "in one figure"
        )
