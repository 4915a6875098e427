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


def rank(pool: Prediction, *, by: Score = "mutual_information", top: int | None = None) -> list[int]:
    """The rows of a pool that are worth labelling next: those of the highest score first.

    Mutual information finds rows on which the members contradict each other, which more labels can settle
    (BALD, Houlsby et al. 2011, arXiv:1112.5745); the entropies and the confidence also find rows that are
    ambiguous in themselves, which labels do not settle.

    Args:
        pool: a prediction of N examples; they need no targets.
        by: a score; see `risk_threshold`.
        top: how many rows; None: all N.

    Returns:
        Row numbers, counted from 0, of equal scores in the order of the pool.

    Raises:
        ConfigError: no such score, or fewer than one row.

    Example:
        >>> import torch
        >>> members = torch.tensor([[[0.9, 0.1], [0.5, 0.5]], [[0.1, 0.9], [0.5, 0.5]]]).log()
        >>> rank(Prediction(members)), rank(Prediction(members), by="expected_entropy", top=1)
        ([0, 1], [1])
    """
    if top is not None and top < 1:
        raise ConfigError(f"top={top}; at least one row is needed")
    order = uncertainty_score(pool, by).argsort(descending=True, stable=True).tolist()
    return order if top is None else order[:top]
