"""Uncertainty scores: one number per example, higher where its answer is less to be trusted, by the name of a
column of `predict`.

Shapes: N examples.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..errors import ConfigError, unknown_name
from ..prediction.prediction import Prediction
from ..prediction.rows import UNCERTAINTIES
from .kinds import Score

SCORES: dict[str, Callable[[Prediction], Tensor]] = {
    "confidence": lambda prediction: 1.0 - prediction.confidence,
    **UNCERTAINTIES,
}
"""The score of "confidence" is its complement, 1 - max_c p(c)."""


def uncertainty_score(prediction: Prediction, score: Score) -> Tensor:
    """(N,) float64 score of each example.

    Raises:
        ConfigError: no such score.
    """
    if score not in SCORES:
        raise ConfigError(unknown_name("score", score, SCORES))
    return SCORES[score](prediction).double()
