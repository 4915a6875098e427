"""Figures of calibration: accuracy against confidence, and the confidence of wrong answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from ..metrics import ReliabilityBins, ece, reliability_bins
from .density import density_on_unit_interval
from .style import MARKERS, Theme, canvas, check_arms, entry, legend, line_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..prediction import Prediction

LEAST = 10  # questions: the share of right answers among fewer says little
NOISE = 0.95  # probability of the band of noise


def reliability(predictions: Mapping[str, Prediction], *, dark: bool = False) -> Figure:
    """Accuracy against confidence for each arm: on the diagonal a model is calibrated, below it
    overconfident.

    Bins are the 15 of `ece`; neighbours are merged until they hold ten questions, for fewer say little. A
    marker's area grows with its share of the questions. The grey band is what chance alone explains: there
    the accuracy of a calibrated model of the same confidences lies with a probability of 95 %, in each bin by
    itself. Every arm has its own; where they overlap the grey is darker. The legend gives the ECE, which is
    of the bins before they are merged.

    The diagram is DeGroot & Fienberg's (1983), for neural networks as in Guo et al. 2017 (arXiv:1706.04599);
    the band follows Bröcker & Smith 2007. `Differs:` from theirs, which are resampled, by the binomial
    distribution of a bin's mean confidence; questions of one bin differ little in it.

    Args:
        predictions: 1 to 7 labelled predictions by the name of the arm, N questions each.
        dark: light lines on a dark background.

    Returns:
        A figure with one pair of axes; both run from 0 to 1.

    Raises:
        ConfigError: no arms, or more than seven.
        DataError: an unlabelled prediction.
        MissingExtraError: matplotlib is not installed.

    Example:
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> prediction = Prediction(torch.tensor([[[0.9, 0.1], [0.6, 0.4]]]).log(), torch.tensor([0, 1]))
        >>> reliability({"single member": prediction}).axes[0].get_ylabel()
        'accuracy (share of right answers)'
    """
    check_arms(predictions)
    figure, theme = canvas(4.2, dark=dark)
    axes = figure.axes[0]
    for index, (name, prediction) in enumerate(predictions.items()):
        bins = merged_bins(reliability_bins(prediction))
        _noise(axes, bins, theme)
        axes.plot(
            bins.confidences.tolist(),
            bins.accuracies.tolist(),
            linestyle=line_of(prediction),
            color=theme.colours[index],
            marker=MARKERS[index],
            markersize=3,
            linewidth=1.5,
            label=entry(name, f"ECE {ece(prediction):.3f}"),
            zorder=3,
        )
        axes.scatter(
            bins.confidences.tolist(),
            bins.accuracies.tolist(),
            s=(12 + 300 * bins.counts / prediction.num_examples).tolist(),
            color=theme.colours[index],
            marker=MARKERS[index],
            alpha=0.35,
            linewidths=0,
            zorder=3,
        )
    axes.plot([0, 1], [0, 1], color=theme.muted, linewidth=1, zorder=2, label="calibrated")
    axes.plot([], [], color=theme.noise, linewidth=6, label=entry("noise of a calibrated model (95 %)"))
    axes.set(xlim=(0, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    axes.set_xlabel("confidence (mean probability of the chosen option)")
    axes.set_ylabel("accuracy (share of right answers)")
    legend(figure, theme)
    return figure


def wrong_confidence(predictions: Mapping[str, Prediction], *, dark: bool = False) -> Figure:
    """The density of the confidence of each arm's wrong answers: overconfidence piles up near 1.

    As Fig. 1a of arXiv:2310.00035. The density is reflected at 0 and 1, so that each line's area is 1. An arm
    without wrong answers has no line; the legend gives how many each has.

    Args:
        predictions: 1 to 7 labelled predictions by the name of the arm, N questions each.
        dark: light lines on a dark background.

    Returns:
        A figure with one pair of axes: probability, and density per unit of probability.

    Raises:
        ConfigError: no arms, or more than seven.
        DataError: an unlabelled prediction.
        MissingExtraError: matplotlib is not installed.

    Example:
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> prediction = Prediction(torch.tensor([[[0.9, 0.1], [0.6, 0.4]]]).log(), torch.tensor([1, 1]))
        >>> wrong_confidence({"single member": prediction}).axes[0].get_xlabel()
        'confidence of a wrong answer (probability)'
    """
    check_arms(predictions)
    figure, theme = canvas(3.2, dark=dark)
    axes = figure.axes[0]
    grid = torch.linspace(0, 1, 401, dtype=torch.float64)
    for index, (name, prediction) in enumerate(predictions.items()):
        wrong = prediction.choices != prediction.labelled_targets("wrong_confidence")
        density = density_on_unit_interval(prediction.confidence[wrong], grid).tolist() if wrong.any() else []
        axes.plot(
            grid.tolist() if density else [],
            density,
            linestyle=line_of(prediction),
            color=theme.colours[index],
            linewidth=1.8,
            clip_on=False,
            label=entry(name, f"{int(wrong.sum())} of {prediction.num_examples} wrong"),
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("confidence of a wrong answer (probability)")
    axes.set_ylabel("density (per unit of probability)")
    legend(figure, theme)
    return figure


def merged_bins(bins: ReliabilityBins, *, least: int = LEAST) -> ReliabilityBins:
    """The bins, from the least confident on each joined with the next ones until they hold `least` questions;
    what is left at the end joins the last.

    Example:
        >>> few = ReliabilityBins(torch.tensor([0.3, 0.5]), torch.tensor([1.0, 0.0]), torch.tensor([4, 8]))
        >>> [round(values.item(), 3) for values in merged_bins(few)]
        [0.433, 0.333, 12]
    """
    groups: list[list[int]] = [[]]
    for index in range(len(bins.counts)):
        if int(bins.counts[groups[-1]].sum()) >= least:
            groups.append([])
        groups[-1].append(index)
    if len(groups) > 1 and int(bins.counts[groups[-1]].sum()) < least:
        groups[-2:] = [groups[-2] + groups[-1]]
    counts = torch.stack([bins.counts[group].sum() for group in groups])
    confidences, accuracies = (
        torch.stack([(values * bins.counts)[group].sum() for group in groups]) / counts for values in bins[:2]
    )
    return ReliabilityBins(confidences, accuracies, counts)


def noise_band(confidence: float, count: int, *, probability: float = NOISE) -> tuple[float, float]:
    """The shares of right answers, lowest and highest, that `count` answers give in the middle `probability`
    of cases where each is right with probability `confidence`: quantiles of the binomial distribution.

    Example:
        >>> noise_band(0.5, 10)
        (0.2, 0.8)
    """
    right = torch.arange(count + 1, dtype=torch.float64)
    n, p = torch.tensor(float(count), dtype=torch.float64), torch.tensor(confidence, dtype=torch.float64)
    ways = torch.lgamma(n + 1) - torch.lgamma(right + 1) - torch.lgamma(n - right + 1)
    below = (ways + torch.xlogy(right, p) + torch.xlogy(n - right, 1 - p)).exp().cumsum(dim=0)
    tail = (1 - probability) / 2
    low, high = torch.searchsorted(below, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low / count, min(high, count) / count


def _noise(axes: Axes, bins: ReliabilityBins, theme: Theme) -> None:
    """The band from bin to bin; a single bin has one of some width, to be seen at all."""
    ends = [
        noise_band(min(confidence, 1.0), count)
        for confidence, count in zip(bins.confidences.tolist(), bins.counts.tolist(), strict=True)
    ]
    x = bins.confidences.tolist()
    if len(x) == 1:
        x, ends = [x[0] - 0.015, x[0] + 0.015], ends * 2
    low, high = ([pair[side] for pair in ends] for side in (0, 1))
    axes.fill_between(x, low, high, color=theme.noise, alpha=0.5, linewidth=0, zorder=1)
