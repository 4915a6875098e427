"""Bootstrap intervals over examples: how far a metric, or a difference of two, could be from what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor

from .errors import ConfigError

if TYPE_CHECKING:
    from .prediction import Prediction

Measured = TypeVar("Measured", bound="Resampled")


class Resampled(Protocol):
    """What a bootstrap draws from: a `Prediction`, or `CompletionScores`."""

    @property
    def num_examples(self) -> int: ...

    def take(self: Measured, rows: Tensor) -> Measured: ...


@dataclass(frozen=True)
class Interval:
    """A measured value with the percentile interval of its bootstrap distribution; `level` is the interval's share, 0.95 say."""

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
    metric: Callable[[Measured], float],
    prediction: Measured,
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The metric with its percentile bootstrap interval over examples; members are kept as they are.

    Each of the `samples` draws takes N examples with replacement. The same seed gives the same interval. What it covers is the choice of
    the examples; that of the training runs is `evaluate_members`' spread.

    Raises:
        ConfigError: fewer than 2 samples, or a level outside 0 to 1.

    Example:
        >>> from lora_ensembles.metrics import accuracy
        >>> from lora_ensembles.prediction import Prediction
        >>> prediction = Prediction(torch.tensor([0.7, 0.3]).log().expand(1, 100, 2), torch.arange(100) % 2)
        >>> interval = bootstrap_interval(accuracy, prediction, samples=200)
        >>> interval.estimate, 0.35 < interval.low < 0.45, 0.55 < interval.high < 0.65  # 0.5 +- 1.96 sqrt(0.25 / 100)
        (0.5, True, True)
    """
    _check(samples, level)
    draws = [metric(prediction.take(rows)) for rows in _resamples(prediction.num_examples, samples, seed)]
    return _percentiles(metric(prediction), draws, level)


def paired_difference(
    metric: Callable[[Prediction], float],
    first: Prediction,
    second: Prediction,
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """metric(first) - metric(second) with its paired bootstrap interval: every draw takes the same examples for both.

    Pairing removes what both share (hard examples are hard for both), so it sees differences that two separate intervals hide.

    Raises:
        ConfigError: the two are not about the same examples in the same order, fewer than 2 samples, or a level outside 0 to 1.

    Example:
        >>> from lora_ensembles.metrics import accuracy
        >>> from lora_ensembles.prediction import Prediction
        >>> targets = torch.arange(100) % 2
        >>> first = Prediction(torch.tensor([0.7, 0.3]).log().expand(1, 100, 2), targets)
        >>> paired_difference(accuracy, first, first, samples=20)
        Interval(estimate=0.0, low=0.0, high=0.0, level=0.95)
    """
    _check(samples, level)
    if first.ids != second.ids:
        raise ConfigError(
            f"the predictions have different examples ({first.num_examples} and {second.num_examples}, compared by id and order); "
            "predict the same examples with both"
        )
    if (
        first.targets is not None
        and second.targets is not None
        and not torch.equal(first.targets, second.targets)
    ):
        raise ConfigError(
            "the predictions have the same ids and different targets; predict the same examples with both"
        )
    resamples = _resamples(first.num_examples, samples, seed)
    draws = [metric(first.take(rows)) - metric(second.take(rows)) for rows in resamples]
    return _percentiles(metric(first) - metric(second), draws, level)


def _resamples(num_examples: int, samples: int, seed: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(samples):
        yield torch.randint(num_examples, (num_examples,), generator=generator)


def _percentiles(estimate: float, draws: list[float], level: float) -> Interval:
    tail = (1.0 - level) / 2.0
    low, high = (
        torch.tensor(draws, dtype=torch.float64)
        .quantile(torch.tensor([tail, 1.0 - tail], dtype=torch.float64))
        .tolist()
    )
    return Interval(estimate, low, high, level)


def _check(samples: int, level: float) -> None:
    if samples < 2:
        raise ConfigError(
            f"{samples} bootstrap samples; use at least 2, and 1000 or more for an interval to report"
        )
    if not 0.0 < level < 1.0:
        raise ConfigError(
            f"level is {level}; it is the interval's share of the draws, between 0 and 1 (0.95, not 95)"
        )
