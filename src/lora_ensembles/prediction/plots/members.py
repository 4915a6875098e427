"""Figures of the members: whether agreeing means being right, and what their diversity is worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ...errors import ConfigError, unknown_name
from ..intervals.shares import wilson
from ..metrics import nll_of_each
from ..uncertainty import disagreement, mutual_information
from .style import MARKERS, SMALL, Theme, canvas, check_arms, entry, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..prediction import Prediction

Z = NormalDist().inv_cdf(0.975)  # standard deviations of a normal distribution within which 95 % of it lie
Measure = Literal["disagreement", "mutual_information"]
MEASURES: dict[str, tuple[Callable[[Prediction], Tensor], str]] = {
    "disagreement": (disagreement, "disagreement of the members (mean share of pairs)"),
    "mutual_information": (mutual_information, "mutual information (mean, nats)"),
}


def agreement(prediction: Prediction, *, dark: bool = False) -> Figure:
    """Accuracy by the number of members that choose the ensemble's option, and the share of questions with so
    many: unanimous answers should be right more often.

    A whisker is the 95 % interval of the accuracy, Wilson's (1927), which is wide where there are few
    questions; the dotted line is the accuracy on all of them. Votes as a measure of doubt are those of query
    by committee (Seung et al. 1992).

    Args:
        prediction: a labelled prediction of 2 or more members.
        dark: light bars on a dark background.

    Returns:
        A figure with accuracy above and the share of questions below; both run from 0 to 1.

    Raises:
        ConfigError: a single member, who has no one to agree with.
        DataError: an unlabelled prediction.
        MissingExtraError: matplotlib is not installed.

    Example:
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> two = torch.tensor([[[0.9, 0.1], [0.7, 0.3]], [[0.8, 0.2], [0.4, 0.6]]]).log()
        >>> figure = agreement(Prediction(two, torch.tensor([0, 1])))
        >>> [text.get_text() for text in figure.axes[0].texts]  # 1 of 2, and both
        ['0.00', '1.00']
    """
    check_several(prediction, "agreement")
    right = prediction.choices == prediction.labelled_targets("agreement")
    votes = (prediction.member_choices == prediction.choices).sum(dim=0)
    figure, theme = canvas(4.0, dark=dark, rows=2)
    above, below = figure.axes
    numbers = range(int(votes.min()), prediction.num_members + 1)
    for number in numbers:
        rotation = 0 if len(numbers) <= 10 else 90
        _votes_bars((above, below), number, right[votes == number], len(votes), theme, rotation=rotation)
    whole = right.double().mean().item()
    said = entry("all questions", f"{whole:.2f}")
    above.axhline(whole, color=theme.text, linestyle=":", linewidth=1, label=said)
    above.plot([], [], color=theme.text, linewidth=1, label="95 % interval")
    above.set(ylim=(0, 1.03), ylabel="accuracy")
    below.set(ylim=(0, 1.4 * below.get_ylim()[1]), ylabel="share of questions")
    below.set_xlabel(f"members that choose the ensemble's option (of {prediction.num_members})")
    below.set_xticks(numbers)
    for axes in (above, below):
        axes.grid(visible=False, axis="x")
        axes.locator_params(axis="y", nbins=5)
    legend(figure, theme)
    return figure


def diversity_gain(
    predictions: Mapping[str, Prediction], *, measure: Measure = "disagreement", dark: bool = False
) -> Figure:
    """The ensemble's gain in NLL over its mean member against the diversity of the members, a point for each
    arm: an ensemble of members that all say the same gains nothing.

    The gain is 1/M sum_m NLL_m - NLL, in nats, which is 0 or more by Jensen's inequality. Bars are 95 %
    intervals over the questions (1.96 standard errors of the mean each way). Fort et al. 2019
    (arXiv:1912.02757) compare ensembles so, by the members' accuracy in place of the gain.

    Args:
        predictions: 1 to 7 labelled predictions of 2 or more members, by the name of the arm.
        measure: of diversity: "disagreement", the share of pairs of members that choose different options;
            or "mutual_information", in nats.
        dark: light points on a dark background.

    Returns:
        A figure with one pair of axes.

    Raises:
        ConfigError: no arms, more than seven, an arm of a single member, or an unknown measure.
        DataError: an unlabelled prediction.
        MissingExtraError: matplotlib is not installed.

    Example:
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> two = torch.tensor([[[0.9, 0.1], [0.7, 0.3]], [[0.8, 0.2], [0.4, 0.6]]]).log()
        >>> figure = diversity_gain({"two members": Prediction(two, torch.tensor([0, 1]))})
        >>> figure.axes[0].get_ylabel()
        'gain in NLL over the mean member (nats)'
    """
    check_arms(predictions)
    if measure not in MEASURES:
        raise ConfigError(unknown_name("measure of diversity", measure, MEASURES))
    for name, prediction in predictions.items():
        check_several(prediction, f"diversity_gain of {name!r}")
    figure, theme = canvas(3.6, dark=dark)
    axes = figure.axes[0]
    of_each, words = MEASURES[measure]
    for index, (name, prediction) in enumerate(predictions.items()):
        x, x_error = _mean_and_error(of_each(prediction))
        gain, gain_error = _mean_and_error(gain_of_each(prediction))
        colour = theme.colours[index]
        axes.plot([x - x_error, x + x_error], [gain] * 2, color=colour, linewidth=1, alpha=0.7)
        axes.plot([x] * 2, [gain - gain_error, gain + gain_error], color=colour, linewidth=1, alpha=0.7)
        axes.plot(
            [x],
            [gain],
            linestyle="",
            marker=MARKERS[index],
            color=colour,
            markersize=6,
            label=entry(name, f"gain {gain:.3f} nats"),
        )
    axes.plot([], [], color=theme.muted, linewidth=1, label="95 % interval")
    axes.margins(0.08)
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.set(xlabel=words, ylabel="gain in NLL over the mean member (nats)")
    legend(figure, theme)
    return figure


def gain_of_each(prediction: Prediction) -> Tensor:
    """(N,) float64 mean of the members' negative log-likelihoods minus the ensemble's, in nats.

    Raises:
        DataError: the prediction is unlabelled.

    Example:
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> gain_of_each(Prediction(torch.tensor([[[0.9, 0.1]], [[0.9, 0.1]]]).log(), torch.tensor([0])))
        tensor([0.0000], dtype=torch.float64)
    """
    ensemble = nll_of_each(prediction)
    members = [nll_of_each(prediction.member(index)) for index in range(prediction.num_members)]
    return torch.stack(members).mean(dim=0) - ensemble


def check_several(prediction: Prediction, what: str) -> None:
    """Refuse a single member where members are compared.

    Raises:
        ConfigError: one member.
    """
    if prediction.num_members < 2:
        raise ConfigError(f"{what} compares members, and there is 1; give a prediction of 2 or more")


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean, and half the 95 % interval; 0 for a single value, which has no spread."""
    values = values.double()
    spread = values.std().item() if len(values) > 1 else 0.0
    return values.mean().item(), Z * spread / math.sqrt(len(values))


def _votes_bars(
    panels: tuple[Axes, Axes], number: int, right: Tensor, of: int, theme: Theme, *, rotation: int
) -> None:
    """The bars of the questions with so many votes, of which `right` says whether they are answered right:
    accuracy, and their share of all.
    """
    above, below = panels
    count, share = len(right), len(right) / of
    below.bar(number, share, width=0.7, color=theme.muted)
    below.annotate(
        f"{count}" if rotation else f"{share:.2f}\n{count} questions",
        (number, share),
        xytext=(0, 2),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=SMALL,
        rotation=rotation,
        color=theme.text,
    )
    if not count:
        return
    accuracy = right.double().mean().item()
    above.bar(number, accuracy, width=0.7, color=theme.colours[0], alpha=0.5)
    above.plot([number] * 2, wilson(accuracy, count), color=theme.text, linewidth=1)
    above.text(
        number - 0.06,
        0.03,
        f"{accuracy:.2f}",
        ha="right",
        va="bottom",
        fontsize=SMALL,
        rotation=rotation,
        color=theme.text,
    )
