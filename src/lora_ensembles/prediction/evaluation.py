"""Metrics of whatever an ensemble said: labels of questions, the tokens of given answers, or rewards."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import overload

from ..errors import ConfigError
from .completions import (
    CompletionMetrics,
    CompletionScores,
    evaluate_completion_members,
    evaluate_completions,
)
from .metrics import MemberSpread, accuracy, brier, coverage_area, ece, kl_from_targets, nll, ood_auroc
from .orders import order_flips
from .prediction import Prediction
from .rewards import RewardMetrics, RewardPrediction, evaluate_rewards
from .uncertainty import disagreement, expected_entropy, mutual_information, total_entropy

Result = Prediction | CompletionScores | RewardPrediction


@dataclass(frozen=True)
class Metrics:
    """Every metric of one prediction; `ood_auroc` is None without out-of-distribution examples,
    `kl_from_targets` without soft labels, to which NLL and Brier score refer where there are such, and
    `order_flips`, the share of pairs of orders of the options that give different answers, without such
    orders.

    `total_entropy`, `expected_entropy`, `mutual_information` (nats) and `disagreement` (0 to 1) are means
    over the examples.
    """

    num_members: int
    num_examples: int
    accuracy: float
    nll: float
    ece: float
    brier: float
    coverage_area: float
    total_entropy: float
    expected_entropy: float
    mutual_information: float
    disagreement: float
    ood_auroc: float | None = None
    kl_from_targets: float | None = None
    order_flips: float | None = None

    def to_dict(self) -> dict[str, int | float | None]:
        """The fields as a dictionary that `json.dumps` takes."""
        return asdict(self)

    def __str__(self) -> str:
        values = {
            name.replace("_", " "): value for name, value in self.to_dict().items() if value is not None
        }
        return "\n".join(
            f"{name:<18} {value:>8.4f}" if isinstance(value, float) else f"{name:<18} {value:>8}"
            for name, value in values.items()
        )


@overload
def evaluate(result: Prediction, *, ood: Prediction | None = None) -> Metrics: ...
@overload
def evaluate(result: CompletionScores) -> CompletionMetrics: ...
@overload
def evaluate(result: RewardPrediction) -> RewardMetrics: ...
def evaluate(result: Result, *, ood: Prediction | None = None) -> Metrics | CompletionMetrics | RewardMetrics:
    """The ensemble's metrics, all computed from the same mean of its members' probabilities.

    Args:
        result: what `predict`, `score_completions` or `predict_rewards` returned.
        ood: a prediction of out-of-distribution examples by the same predictor, for `ood_auroc`; of a
            `Prediction` only.

    Returns:
        `Metrics` (accuracy, NLL, ECE, Brier, ...) of a `Prediction`; `CompletionMetrics` (NLL, perplexity) of
            `CompletionScores`; `RewardMetrics` (spread and correlation of the members) of a
            `RewardPrediction`, which has no labels.

    Raises:
        DataError: the prediction is unlabelled.
        ConfigError: `ood` has another number of members, or comes with answers or rewards, which have no
            options.

    Example:
        >>> import torch
        >>> log_probs = torch.tensor([[[0.9, 0.1], [0.25, 0.75]]]).log()
        >>> metrics = evaluate(Prediction(log_probs, torch.tensor([0, 1])))
        >>> metrics.accuracy, metrics.ood_auroc
        (1.0, None)
        >>> scores = CompletionScores(torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[True, True]]))
        >>> evaluate(scores).perplexity
        2.0
    """
    if isinstance(result, CompletionScores):
        _refuse_ood(ood)
        return evaluate_completions(result)
    if isinstance(result, RewardPrediction):
        _refuse_ood(ood)
        return evaluate_rewards(result)
    return _evaluate(result, ood)


def evaluate_members(
    result: Prediction | CompletionScores, *, ood: Prediction | None = None
) -> dict[str, MemberSpread]:
    """`evaluate` of every member on its own, by metric name: the values, with mean and standard deviation.

    Args:
        result: what `predict` or `score_completions` returned.
        ood: as for `evaluate`; without it there is no `ood_auroc`.

    Returns:
        For each metric's name, M values with their mean and standard deviation.

    Raises:
        DataError, ConfigError: as `evaluate`.

    Example:
        >>> import torch
        >>> members = torch.tensor([[[0.9, 0.1], [0.8, 0.2]], [[0.6, 0.4], [0.3, 0.7]]]).log()
        >>> print(evaluate_members(Prediction(members, torch.tensor([0, 1])))["accuracy"])
        0.7500 ± 0.3536
    """
    if isinstance(result, CompletionScores):
        _refuse_ood(ood)
        return evaluate_completion_members(result)
    if not isinstance(result, Prediction):
        raise ConfigError(
            "evaluate_members of rewards: they have no labels to judge a member by; see `evaluate`"
        )
    if ood is not None and ood.num_members != result.num_members:
        raise ConfigError(
            f"{result.num_members} members in distribution and {ood.num_members} out of it; "
            "pass the same predictor's"
        )
    members = [
        _evaluate(result.member(m), None if ood is None else ood.member(m)) for m in range(result.num_members)
    ]
    # num_members is 1 by construction, and a lone member has neither mutual information nor disagreement
    names = ["accuracy", "nll", "ece", "brier", "coverage_area", "total_entropy"]
    names += [] if ood is None else ["ood_auroc"]
    names += [] if result.target_probs is None else ["kl_from_targets"]
    return {name: MemberSpread(tuple(getattr(member, name) for member in members)) for name in names}


def _evaluate(prediction: Prediction, ood: Prediction | None) -> Metrics:
    return Metrics(
        num_members=prediction.num_members,
        num_examples=prediction.num_examples,
        accuracy=accuracy(prediction),
        nll=nll(prediction),
        ece=ece(prediction),
        brier=brier(prediction),
        coverage_area=coverage_area(prediction),
        total_entropy=total_entropy(prediction).mean().item(),
        expected_entropy=expected_entropy(prediction).mean().item(),
        mutual_information=mutual_information(prediction).mean().item(),
        disagreement=disagreement(prediction).mean().item(),
        ood_auroc=None if ood is None else ood_auroc(prediction, ood),
        kl_from_targets=None if prediction.target_probs is None else kl_from_targets(prediction),
        order_flips=None
        if prediction.order_choices is None
        else order_flips(prediction.order_choices).mean().item(),
    )


def _refuse_ood(ood: object) -> None:
    if ood is not None:
        raise ConfigError(
            "ood= with given answers or rewards: they have no options to be unsure between; leave it out"
        )
