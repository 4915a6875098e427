"""Measures that a record keeps of an arm's predictions: metrics of the ensemble and of each member, in and
out of distribution, as plain numbers.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..calibration.temperature import best_temperature, scaled_log_probs
from ..prediction.evaluation import Metrics, evaluate
from ..prediction.intervals.ece import debiased_ece
from ..prediction.metrics import accuracy_coverage, reliability_bins
from ..prediction.prediction import Prediction

DIGITS = 6
KEPT = (
    "accuracy",
    "nll",
    "ece",
    "brier",
    "coverage_area",
    "total_entropy",
    "mutual_information",
    "disagreement",
    "ood_auroc",
)
CONFIDENCE_BINS = 50
SELECTED = 0.8  # of the questions, the most confident ones, that a selective risk is of


def measured(prediction: Prediction, ood: Prediction | None = None) -> dict[str, Any]:
    """Metrics of the ensemble (`ensemble`), and of each member alone (`members`); `ood` holds the same of the
    other distribution.
    """
    row: dict[str, Any] = {"ensemble": of_ensemble(prediction, ood), "members": []}
    for index in range(prediction.num_members):
        row["members"].append(
            of_ensemble(prediction.member(index), None if ood is None else ood.member(index))
        )
    if ood is not None and ood.targets is not None:
        row["ood"] = measured(ood)
    return row


def of_ensemble(prediction: Prediction, ood: Prediction | None = None) -> dict[str, float | None]:
    """The ensemble's metrics alone."""
    return _metrics(evaluate(prediction, ood=ood))


def compared(prediction: Prediction, ood: Prediction | None = None) -> dict[str, float | None]:
    """The metrics by which methods are compared: those of `of_ensemble` that say how good answers are, the
    ECE without the bias of few questions, and the share of wrong answers among the most confident ones.
    """
    every = of_ensemble(prediction, ood)
    kept = {name: every[name] for name in ("accuracy", "nll", "ece", "brier", "ood_auroc")}
    curve = accuracy_coverage(prediction)
    answered = math.ceil(SELECTED * prediction.num_examples) - 1
    return kept | {
        "ece_debiased": round(debiased_ece(prediction), DIGITS),
        "selective_risk": round(1 - curve.accuracies[answered].item(), DIGITS),
    }


def described(prediction: Prediction) -> dict[str, Any]:
    """Data for pictures beside metrics: reliability, confidence of wrong answers, agreement of members."""
    return {
        "reliability": {
            "ensemble": _reliability(prediction),
            "member": _reliability(prediction.member(0)),
        },
        **wrong_confidences(prediction),
        "agreement": _agreement(prediction),
        "correlation": _correlation(prediction),
    }


def wrong_confidences(prediction: Prediction) -> dict[str, Any]:
    """Confidences of wrong answers, the ensemble's and its members' own."""
    singles = [prediction.member(index) for index in range(prediction.num_members)]
    return {
        "wrong_confidence": {
            "ensemble": wrong_confidence([prediction]),
            "members": wrong_confidence(singles),
        }
    }


def by_size(
    prediction: Prediction, sizes: Sequence[int], *, subsets: int, seed: int
) -> dict[str, list[dict[str, float | None]]]:
    """For each size, the ensemble's metrics for `subsets` random choices of that many members; every member
    once for size 1.
    """
    generator = torch.Generator().manual_seed(seed)
    metrics = {}
    for size in sizes:
        chosen: list[list[int]] = [[index] for index in range(prediction.num_members)] if size == 1 else []
        while not chosen or (size > 1 and len(chosen) < (1 if size == prediction.num_members else subsets)):
            chosen.append(torch.randperm(prediction.num_members, generator=generator)[:size].tolist())
        metrics[str(size)] = [_metrics(evaluate(prediction.select(members))) for members in chosen]
    return metrics


def cross_scaled(
    prediction: Prediction, ood: Prediction | None = None, *, folds: int, seed: int
) -> tuple[Prediction, Prediction | None, float]:
    """An ensemble scaled by a temperature, every question by one that was fitted on the other folds; out of
    distribution by one that was fitted on all questions, which is the third value.
    """
    order = torch.randperm(prediction.num_examples, generator=torch.Generator().manual_seed(seed))
    scaled = torch.empty_like(prediction.log_probs)
    for fold in range(folds):
        fitted = prediction.take(torch.cat([order[other::folds] for other in range(folds) if other != fold]))
        rows = order[fold::folds]
        scaled[rows] = scaled_log_probs(prediction.take(rows), best_temperature(fitted))
    temperature = best_temperature(prediction)
    other = None if ood is None else scaled_elsewhere(ood, prediction)
    return _with(prediction, scaled), other, temperature


def scaled_elsewhere(prediction: Prediction, fitted: Prediction) -> Prediction:
    """An ensemble's answers to other questions, scaled by the temperature that suits those it is `fitted`
    to.
    """
    return _with(prediction, scaled_log_probs(prediction, best_temperature(fitted)))


def _with(prediction: Prediction, log_probs: Tensor) -> Prediction:
    return Prediction(log_probs[None], prediction.targets, prediction.ids)


def wrong_confidence(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The number of wrong answers, and how their confidences fall into 50 equal bins of 0 to 1, over all the
    predictions.
    """
    counts, total = torch.zeros(CONFIDENCE_BINS, dtype=torch.int64), 0
    for prediction in predictions:
        wrong = prediction.choices != prediction.labelled_targets("wrong_confidence")
        bins = (prediction.confidence[wrong] * CONFIDENCE_BINS).long().clamp(max=CONFIDENCE_BINS - 1)
        counts += torch.bincount(bins, minlength=CONFIDENCE_BINS)
        total += prediction.num_examples
    return {"counts": counts.tolist(), "of": total}


def mean_row(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of every number of equal rows; of what is missing in one, None.

    Example:
        >>> mean_row([{"ece": 0.1, "ood": {"ece": None}}, {"ece": 0.3, "ood": {"ece": None}}])
        {'ece': 0.2, 'ood': {'ece': None}}
    """
    means: dict[str, Any] = {}
    for name, first in rows[0].items():
        values = [row[name] for row in rows]
        if isinstance(first, dict):
            means[name] = mean_row(values)
        elif isinstance(first, int):
            means[name] = first
        else:
            means[name] = None if None in values else round(statistics.fmean(values), DIGITS)
    return means


def _metrics(metrics: Metrics) -> dict[str, float | None]:
    values = {name: getattr(metrics, name) for name in KEPT}
    return {name: None if value is None else round(value, DIGITS) for name, value in values.items()}


def _reliability(prediction: Prediction) -> dict[str, list[float]]:
    bins = reliability_bins(prediction)
    return {
        name: [round(value, DIGITS) for value in getattr(bins, name).tolist()]
        for name in ("confidences", "accuracies", "counts")
    }


def _agreement(prediction: Prediction) -> list[list[float]]:
    choices = prediction.member_choices
    return [[round((one == other).float().mean().item(), 4) for other in choices] for one in choices]


def _correlation(prediction: Prediction) -> float | None:
    """The mean over pairs of members of the correlation of their probabilities of the right option."""
    if prediction.num_members == 1:
        return None
    targets = prediction.labelled_targets("correlation")
    right = prediction.member_log_probs.exp()[:, torch.arange(len(targets)), targets]
    matrix = torch.corrcoef(right.double())
    pairs = list(itertools.combinations(range(prediction.num_members), 2))
    return round(sum(matrix[i, j].item() for i, j in pairs) / len(pairs), DIGITS)
