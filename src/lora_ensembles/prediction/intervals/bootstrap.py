"""Intervals over examples: how far a metric, or a difference of two, could be from its value in the
population the examples come from.

Accuracy, a share of N answers, has Wilson's interval, and differences of it Bonett & Price's, which are right
where few answers are wrong too. The calibration error, which is biased upwards, has one that is found by
trying population values (`ece`). Means over examples (NLL, Brier, of open answers too) and the
coverage area have the bootstrap-t (`studentised`), every other metric the bias-corrected and accelerated
bootstrap (BCa; Efron 1987). `benchmarks/interval_coverage.py` simulates how often each holds the population
value; docs/statistics.md has its numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor

from ...errors import ConfigError
from ..completions import (
    answer_nll,
    answer_nll_per_token,
    answer_perplexity,
    exp_or_inf,
    nll_of_each_answer,
)
from ..metrics import (
    accuracy,
    brier,
    brier_of_each,
    coverage_area,
    doubt_of_each,
    ece,
    nll,
    nll_of_each,
)
from .bca import BCa
from .clusters import clusters_of, each_by_itself, over_groups
from .ece import ece_difference_range, ece_range
from .shares import accuracy_difference, wilson
from .studentised import Studentised, coverage_area_of, ratio

if TYPE_CHECKING:
    from ..prediction import Prediction

Measured = TypeVar("Measured", bound="Resampled")


class Resampled(Protocol):
    """Something that a bootstrap draws from: a `Prediction`, or `CompletionScores`."""

    @property
    def num_examples(self) -> int: ...

    def take(self: Measured, rows: Tensor) -> Measured: ...


@dataclass(frozen=True)
class Interval:
    """A measured value and an interval around the population's: it holds that in a share `level` of samples,
    0.95 say.

    The estimate of a biased metric can lie outside: an ECE of 0.09 measured on 100 calibrated answers has an
    interval that begins at 0, and may lie below the estimate.
    """

    estimate: float
    low: float
    high: float
    level: float

    @property
    def excludes_zero(self) -> bool:
        """True if zero lies outside the interval: for a difference, the two are told apart at this level."""
        return self.low > 0 or self.high < 0

    def to_dict(self) -> dict[str, float]:
        """The fields as a dictionary."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.estimate:.4f} [{self.low:.4f}, {self.high:.4f}]"


def bootstrap_interval(
    metric: Callable[..., float],
    prediction: Measured,
    *,
    ood: Measured | None = None,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The metric with its interval over examples; members are kept as they are.

    Each of the `samples` draws takes N examples with replacement, or where examples come in groups (questions
    about one case) as many groups. The same seed gives the same interval. What it covers is the choice of the
    examples; that of the training runs is `evaluate_members`' spread. The functions of `metrics` and
    `completion_metrics` have intervals of their own kind, see the module; a function that wraps one has not,
    so pass them as they are.

    Args:
        metric: of a prediction, or of a prediction and `ood`.
        prediction: N examples.
        ood: a second set of examples, which is drawn on its own; then the metric takes both, as
            `metrics.ood_auroc` does.
        samples: draws of the bootstrap.
        level: the share of samples in which the interval holds the population's value.
        seed: of the draws.

    Returns:
        The metric of all examples, with its ends.

    Raises:
        ConfigError: fewer than 2 samples, or a level outside 0 to 1.
        DataError: the metric has no value for the examples, or for most of the draws.

    Example:
        >>> from lora_ensembles.prediction.metrics import accuracy
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> prediction = Prediction(torch.tensor([0.7, 0.3]).log().expand(1, 100, 2), torch.arange(100) % 2)
        >>> interval = bootstrap_interval(accuracy, prediction)
        >>> # 0.5 +- 1.96 sqrt(0.25 / 100)
        >>> interval.estimate, 0.35 < interval.low < 0.45, 0.55 < interval.high < 0.65
        (0.5, True, True)
    """
    _check(samples, level)
    sets = (prediction,) if ood is None else (prediction, ood)
    estimate = metric(*sets)
    untyped_metric: Any = metric
    groups = [clusters_of(one) for one in sets]
    if any(groups):
        every = tuple(own or each_by_itself(one) for one, own in zip(sets, groups, strict=True))
        of_each = _OF_EACH[untyped_metric](prediction) if ood is None and untyped_metric in _OF_EACH else None
        drawn_groups = BCa(every, estimate, samples, level, seed)
        return Interval(estimate, *over_groups(metric, drawn_groups, of_each=of_each), level)
    if untyped_metric is accuracy:
        return Interval(estimate, *wilson(estimate, prediction.num_examples, level=level), level)
    if untyped_metric is ece:
        drawn: Any = prediction
        return Interval(estimate, *ece_range(drawn, samples=samples, level=level, seed=seed), level)
    studentised = _STUDENTISED[untyped_metric](prediction) if untyped_metric in _STUDENTISED else None
    if studentised and (ends := studentised.ends(samples=samples, level=level, seed=seed)):
        return Interval(estimate, *ends, level)
    return Interval(estimate, *BCa(sets, estimate, samples, level, seed).ends(metric), level)


def paired_difference(
    metric: Callable[[Prediction], float],
    first: Prediction,
    second: Prediction,
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """metric(first) - metric(second) with its paired interval: every draw takes the same examples for both.

    Pairing removes what both share (hard examples are hard for both), so it sees differences that two
    separate intervals hide. Two predictions that say the same of every example have the interval 0 to 0,
    however few the examples are.

    Args:
        metric: of a prediction.
        first: a prediction of N examples.
        second: another of the same examples, in the same order.
        samples: draws of the bootstrap.
        level: the share of samples in which the interval holds the population's difference.
        seed: of the draws.

    Returns:
        The difference of the two metrics, with its ends.

    Raises:
        ConfigError: the two are not about the same examples in the same order, fewer than 2 samples, or a
            level outside 0 to 1.
        DataError: the metric has no value for the examples, or for most of the draws.

    Example:
        >>> from lora_ensembles.prediction.metrics import accuracy
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> targets = torch.arange(100) % 2
        >>> first = Prediction(torch.tensor([0.7, 0.3]).log().expand(1, 100, 2), targets)
        >>> paired_difference(accuracy, first, first, samples=20)
        Interval(estimate=0.0, low=0.0, high=0.0, level=0.95)
    """
    _check(samples, level)
    _check_pair(first, second)
    estimate = metric(first) - metric(second)
    untyped_metric: Any = metric
    groups = clusters_of(first, of=_Pair(first, second))
    if groups is not None:
        values = _OF_EACH.get(untyped_metric)
        of_each = None if values is None else values(first).double() - values(second).double()
        drawn = BCa((groups,), estimate, samples, level, seed)
        difference = over_groups(
            lambda pair: metric(pair.first) - metric(pair.second), drawn, of_each=of_each
        )
        return Interval(estimate, *difference, level)
    if untyped_metric is ece:
        return Interval(
            estimate, *ece_difference_range(first, second, samples=samples, level=level, seed=seed), level
        )
    if untyped_metric is accuracy:
        return Interval(estimate, *accuracy_difference(first, second, level), level)
    if untyped_metric in _MEANS:
        mean = ratio(_MEANS[untyped_metric](first) - _MEANS[untyped_metric](second))
        if ends := mean.ends(samples=samples, level=level, seed=seed):
            return Interval(estimate, *ends, level)
    both = BCa((_Pair(first, second),), estimate, samples, level, seed)
    return Interval(estimate, *both.ends(lambda pair: metric(pair.first) - metric(pair.second)), level)


def _coverage_area(prediction: Prediction) -> Studentised | None:
    right = prediction.choices == prediction.labelled_targets("coverage_area")
    return coverage_area_of(doubt_of_each(prediction), right)


def _positive(value: float) -> float:
    return max(0.0, value)


_MEANS: dict[Any, Callable[[Prediction], Tensor]] = {nll: nll_of_each, brier: brier_of_each}
_STUDENTISED: dict[Any, Callable[[Any], Studentised | None]] = {
    nll: lambda prediction: ratio(nll_of_each(prediction), back=_positive),
    brier: lambda prediction: ratio(brier_of_each(prediction), back=lambda value: min(2.0, _positive(value))),
    coverage_area: _coverage_area,
    answer_nll: lambda scores: ratio(nll_of_each_answer(scores), back=_positive),
    answer_nll_per_token: lambda scores: ratio(nll_of_each_answer(scores), scores.counted.sum(-1), _positive),
    answer_perplexity: lambda scores: ratio(
        nll_of_each_answer(scores), scores.counted.sum(-1), lambda value: exp_or_inf(_positive(value))
    ),
}


def _right(prediction: Prediction) -> Tensor:
    return (prediction.choices == prediction.labelled_targets("accuracy")).double()


_OF_EACH: dict[Any, Callable[[Any], Tensor]] = {accuracy: _right, **_MEANS}


@dataclass(frozen=True)
class _Pair:
    """Two predictions of the same examples, drawn together."""

    first: Prediction
    second: Prediction

    @property
    def num_examples(self) -> int:
        return self.first.num_examples

    def take(self, rows: Tensor) -> _Pair:
        return _Pair(self.first.take(rows), self.second.take(rows))


def _check_pair(first: Prediction, second: Prediction) -> None:
    if first.ids != second.ids:
        raise ConfigError(
            f"the predictions have different examples ({first.num_examples} and {second.num_examples}, "
            "compared by id and order); predict the same examples with both"
        )
    if (
        first.targets is not None
        and second.targets is not None
        and not torch.equal(first.targets, second.targets)
    ):
        raise ConfigError(
            "the predictions have the same ids and different targets; predict the same examples with both"
        )


def _check(samples: int, level: float) -> None:
    if samples < 2:
        raise ConfigError(
            f"{samples} bootstrap samples; use at least 2, and 1000 or more for an interval to report"
        )
    if not 0.0 < level < 1.0:
        raise ConfigError(
            f"level is {level}; it is the share of samples in which the interval holds the population's "
            "value, between 0 and 1 (0.95, not 95)"
        )
