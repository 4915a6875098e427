"""Scores of doubt: one number an answer, higher where it is less to be trusted, by the name a user gives.

Shapes: N examples.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..errors import ConfigError, unknown_name
from ..prediction.prediction import Prediction
from ..prediction.uncertainty import disagreement, mutual_information, total_entropy
from .kinds import Score

DOUBTS: dict[Score, Callable[[Prediction], Tensor]] = {
    "confidence": lambda prediction: 1.0 - prediction.confidence,
    "total_entropy": total_entropy,
    "mutual_information": mutual_information,
    "disagreement": disagreement,
}
"""By the name of a column of `predict`; "confidence" counts as its complement, 1 - max_c p(c)."""


def doubt(prediction: Prediction, score: Score) -> Tensor:
    """(N,) float64 doubt about each answer.

    Raises:
        ConfigError: no such score.
    """
    if score not in DOUBTS:
        raise ConfigError(unknown_name("score", score, DOUBTS))
    return DOUBTS[score](prediction).double()
