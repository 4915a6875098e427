"""Figure of selective prediction: the error among the answers that are given, for every share of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..metrics import accuracy_coverage
from .calibration import LEAST
from .style import canvas, check_arms, entry, legend, line_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..prediction import Prediction


def risk_coverage(predictions: Mapping[str, Prediction], *, dark: bool = False) -> Figure:
    """The error rate among the questions answered against the share answered, most confident first: the
    steeper to the right, the better an arm knows what it does not know.

    A dotted line is an arm's error when it answers everything. The legend gives the area under the curve
    (AURC), the mean error over all shares, so that lower is better; the line itself begins at ten questions
    answered, for the error among fewer says little. Equal confidences share their errors evenly, so that the
    order of the questions does not count.

    The curve is El-Yaniv & Wiener's (2010), AURC as in Geifman et al. 2019 (arXiv:1805.08206).

    Args:
        predictions: 1 to 7 labelled predictions by the name of the arm, N questions each.
        dark: light lines on a dark background.

    Returns:
        A figure with one pair of axes; both are shares of questions.

    Raises:
        ConfigError: no arms, or more than seven.
        DataError: an unlabelled prediction.
        MissingExtraError: matplotlib is not installed.

    Example:
        >>> import torch
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> prediction = Prediction(torch.tensor([[[0.9, 0.1], [0.6, 0.4]]]).log(), torch.tensor([0, 1]))
        >>> print(risk_coverage({"single member": prediction}).axes[0].lines[0].get_label())
        single member
        AURC 0.250
    """
    check_arms(predictions)
    figure, theme = canvas(3.4, dark=dark)
    axes = figure.axes[0]
    for index, (name, prediction) in enumerate(predictions.items()):
        curve = accuracy_coverage(prediction)
        risks, start = 1 - curve.accuracies, LEAST - 1 if prediction.num_examples > LEAST else 0
        axes.plot(
            curve.coverages[start:].tolist(),
            risks[start:].tolist(),
            linestyle=line_of(prediction),
            color=theme.colours[index],
            linewidth=1.8,
            label=entry(name, f"AURC {risks.mean().item():.3f}"),
        )
        axes.axhline(risks[-1].item(), color=theme.colours[index], linestyle=":", linewidth=1, zorder=1)
    axes.plot([], [], color=theme.text, linestyle=":", linewidth=1, label="all questions answered")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("coverage (share of questions answered, most confident first)")
    axes.set_ylabel("error rate of the questions answered")
    legend(figure, theme)
    return figure
