"""The budget that every method of a comparison has, and the trials that it may choose its settings by."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import ConfigError

SHARES = (0.25, 0.5, 1.0)  # of the epochs that the budget allows
RATES = (0.25, 4.0)  # multiples of the base's step size
STREAM = 0  # of the trials, which are the same for every method


@dataclass(frozen=True)
class Budget:
    """The same for every method.

    Attributes:
        passes: of one member over the training questions, at most: M members have `passes` / M epochs each.
        rows: of the base for one question, at most: members, samples or passes of a prediction.
        trials: settings that are tried on held-out training questions.
        held_out: their share.
        folds: of the validation questions, each scaled by a temperature that was fitted on the others.

    Raises:
        ConfigError: fewer passes than members to share them.
    """

    passes: int = 15
    rows: int = 5
    trials: int = 4
    held_out: float = 0.2
    folds: int = 5

    def __post_init__(self) -> None:
        if self.passes < self.rows:
            raise ConfigError(
                f"a budget of {self.passes} passes for {self.rows} members, each of which needs one; "
                f"give --budget {self.rows} or more, or fewer --members"
            )


@dataclass(frozen=True)
class Settings:
    """One trial of a method.

    Attributes:
        learning_rate: the step size.
        epochs: of each member.
        own: the value of the method's own setting.
    """

    learning_rate: float
    epochs: int
    own: float

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-able values."""
        return dataclasses.asdict(self)


def places(trials: int) -> list[tuple[float, float, float]]:
    """The trials as places in the unit cube, of a scrambled Sobol sequence: they cover it evenly, however few
    they are.

    Example:
        >>> first = places(4)
        >>> len(first), places(8)[:4] == first
        (4, True)
    """
    drawn = torch.quasirandom.SobolEngine(3, scramble=True, seed=STREAM).draw(trials)
    return [(rate, share, own) for rate, share, own in drawn.tolist()]


def between(low: float, high: float, place: float) -> float:
    """The number at a place in [0, 1) of a range, on a scale of logarithms, to three digits.

    Example:
        >>> between(0.01, 100.0, 0.5)
        1.0
    """
    return float(f"{math.exp(math.log(low) + place * math.log(high / low)):.3g}")


def epochs_at(place: float, most: int) -> int:
    """The epochs at a place in [0, 1): a share of the most that the budget allows.

    Example:
        >>> [epochs_at(place, 15) for place in (0.1, 0.5, 0.9)]
        [4, 8, 15]
    """
    return max(1, math.ceil(SHARES[int(place * len(SHARES))] * most))
