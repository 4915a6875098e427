"""Metrics of whatever an ensemble said: labels of questions, or the tokens of given answers."""

from __future__ import annotations

from typing import overload

from ..errors import ConfigError
from . import metrics
from .completions import (
    CompletionMetrics,
    CompletionScores,
    evaluate_completion_members,
    evaluate_completions,
)
from .metrics import MemberSpread, Metrics
from .prediction import Prediction


@overload
def evaluate(result: Prediction, *, ood: Prediction | None = None) -> Metrics: ...
@overload
def evaluate(result: CompletionScores) -> CompletionMetrics: ...
def evaluate(
    result: Prediction | CompletionScores, *, ood: Prediction | None = None
) -> Metrics | CompletionMetrics:
    """The ensemble's metrics.

    Args:
        result: what `predict` or `score_completions` returned.
        ood: a prediction of out-of-distribution examples by the same predictor, for `ood_auroc`; of questions
            only.

    Returns:
        `Metrics` (accuracy, NLL, ECE, Brier, ...) of a `Prediction`; `CompletionMetrics` (NLL, perplexity) of
            `CompletionScores`.

    Raises:
        DataError: the prediction is unlabelled.
        ConfigError: `ood` with scores of given answers, which have no options.

    Example:
        >>> import torch
        >>> scores = CompletionScores(torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[True, True]]))
        >>> evaluate(scores).perplexity
        2.0
    """
    if isinstance(result, CompletionScores):
        _refuse_ood(ood)
        return evaluate_completions(result)
    return metrics.evaluate(result, ood=ood)


def evaluate_members(
    result: Prediction | CompletionScores, *, ood: Prediction | None = None
) -> dict[str, MemberSpread]:
    """`evaluate` of every member on its own, by metric name: the values, with mean and standard deviation.

    Raises:
        DataError, ConfigError: as `evaluate`.
    """
    if isinstance(result, CompletionScores):
        _refuse_ood(ood)
        return evaluate_completion_members(result)
    return metrics.evaluate_members(result, ood=ood)


def _refuse_ood(ood: object) -> None:
    if ood is not None:
        raise ConfigError(
            "ood= with scores of given answers: they have no options to be unsure between; leave it out"
        )
