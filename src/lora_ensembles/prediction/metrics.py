"""Metrics of how good and how calibrated a prediction is: torchmetrics where it has the metric, a formula
where it has not.

A metric is a function of one whole `Prediction` (M members, N examples, C options), which is scored as the
mean of its members' probabilities. It sees all N examples at once: a mean over batches would weigh the
examples of a short last batch more, and the bins of a calibration error would differ between batches.
Logarithms are natural; absent options have probability exactly 0.

torchmetrics is imported by the functions that call it: it takes two seconds, and a prediction needs none.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from .selective import AccuracyCoverage, accuracy_by_doubt
from .soft_labels import cross_entropy

if TYPE_CHECKING:
    from .prediction import Prediction

NUM_BINS = 15
"""Bins of the calibration error, as in arXiv:2310.00035 and the works it compares with."""


def accuracy(prediction: Prediction) -> float:
    """The share of examples whose most probable option is the target, 0 to 1; on a tie the first option
    counts.

    Args:
        prediction: a labelled prediction of N examples, C options.

    Returns:
        A number from 0 to 1.

    Raises:
        DataError: the prediction is unlabelled.

    Example:
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> accuracy(Prediction(torch.tensor([[[0.6, 0.4], [0.9, 0.1]]]).log(), torch.tensor([0, 1])))
        0.5
    """
    from torchmetrics.functional.classification import multiclass_accuracy

    targets = prediction.labelled_targets("accuracy")
    share = multiclass_accuracy(
        prediction.probs, targets, num_classes=prediction.num_options, average="micro"
    ).item()
    return (
        round(share * prediction.num_examples) / prediction.num_examples
    )  # 0.225 and not float32's 0.22499999


def nll(prediction: Prediction) -> float:
    """The mean negative log-likelihood of the targets in nats, -1/N sum_n log(mean_m p_m(target_n)); 0 or
    more, always finite. With soft labels q, the mean cross-entropy -1/N sum_n sum_c q_nc log(mean_m p_m(c)).

    It is taken from log-probabilities: a target whose probability underflows (below 1e-45 in float32) still
    has a finite logarithm, where log(0) would turn the mean into inf. No probability is floored or smoothed.
    A target of log-probability -inf is an absent option, which `Prediction` refuses.

    Args:
        prediction: a labelled prediction of N examples, C options.

    Returns:
        Nats, 0 or more.

    Raises:
        DataError: the prediction is unlabelled.

    Example:
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> nll(Prediction(torch.tensor([[[-200.0, 0.0]]]), torch.tensor([0])))
        200.0
    """
    return nll_of_each(prediction).mean().item() + 0.0  # + 0.0 makes -0.0 a plain zero


def nll_of_each(prediction: Prediction) -> Tensor:
    """The negative log-likelihood of each target (N,) in nats, float64: `nll` is their mean.

    Raises:
        DataError: the prediction is unlabelled.
    """
    targets = prediction.labelled_targets("nll")
    if prediction.target_probs is not None:
        return cross_entropy(prediction.log_probs.double(), prediction.target_probs)
    return -prediction.log_probs.gather(1, targets[:, None])[:, 0].double()


def ece(prediction: Prediction) -> float:
    """The expected calibration error of the top label, sum_b n_b / N |accuracy_b - confidence_b|, 0 to 1.

    torchmetrics' definition (l1 norm): 15 equal-width bins [0, 1/15), ..., [14/15, 1) and one more for a
    confidence of exactly 1.

    Args:
        prediction: a labelled prediction of N examples, C options.

    Returns:
        A number from 0 to 1; lower is better.

    Raises:
        DataError: the prediction is unlabelled.

    Example:
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> round(ece(Prediction(torch.tensor([[[0.8, 0.2], [0.8, 0.2]]]).log(), torch.tensor([0, 1]))), 4)
        0.3
    """
    targets = prediction.labelled_targets("ece")
    from torchmetrics.functional.classification import multiclass_calibration_error

    return multiclass_calibration_error(
        prediction.probs, targets, num_classes=prediction.num_options, n_bins=NUM_BINS, norm="l1"
    ).item()


def brier(prediction: Prediction) -> float:
    """The mean over examples of the squared error summed over options, sum_c (p_c - [c = target])^2: 0 to 2.
    With soft labels q, sum_c (p_c - q_c)^2.

    torchmetrics has no multiclass Brier score. `Differs:` from the binary convention, which keeps one option
    only and ranges to 1.

    Args:
        prediction: a labelled prediction of N examples, C options.

    Returns:
        A number from 0 to 2; lower is better.

    Raises:
        DataError: the prediction is unlabelled.

    Example:
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> prediction = Prediction(torch.tensor([[[0.75, 0.25]]]).log(), torch.tensor([1]))
        >>> round(brier(prediction), 4)  # 0.75^2 + 0.75^2
        1.125
    """
    return brier_of_each(prediction).mean().item()


def brier_of_each(prediction: Prediction) -> Tensor:
    """The squared error of each example's probabilities, summed over options (N,), float64: `brier` is their
    mean.

    Raises:
        DataError: the prediction is unlabelled.
    """
    return (prediction.probs.double() - prediction.labelled_probs("brier")).square().sum(dim=-1)


def kl_from_targets(prediction: Prediction) -> float:
    """The mean divergence of the ensemble's distribution from the soft labels,
    1/N sum_n sum_c q_nc log(q_nc / p_nc), in nats: the NLL less the entropy of the soft labels. 0 or more;
    0 where both are the same.

    Args:
        prediction: a prediction of N examples with soft labels.

    Returns:
        Nats, 0 or more.

    Raises:
        DataError: no soft labels.

    Example:
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> soft = torch.tensor([[0.5, 0.5]])
        >>> round(kl_from_targets(Prediction(torch.tensor([[[0.8, 0.2]]]).log(), target_probs=soft)), 4)
        0.2231
    """
    q = prediction.target_probs
    if q is None:
        raise DataError(
            "kl_from_targets needs soft labels, and these examples have none; nll is the same up to a "
            "constant where each has one right answer"
        )
    return (nll_of_each(prediction) + q.xlogy(q).sum(dim=-1)).mean().item()


def ood_auroc(prediction: Prediction, ood: Prediction) -> float:
    """The area under the ROC curve for telling out-of-distribution examples (1) from in-distribution ones
    (0); 0.5 is chance.

    The score of an example is -(its largest option probability); equal scores count half. No targets are
    needed. `Differs:` in the last digits only. The score is taken as 1 - p, the sum of the other options'
    probabilities: near 1 the p themselves are all equal once rounded to float32, and torchmetrics squashes
    scores outside 0 to 1 through a sigmoid.

    Args:
        prediction: in-distribution examples, usually the validation set.
        ood: out-of-distribution examples, predicted by the same predictor.

    Returns:
        A number from 0 to 1; 0.5 is chance.

    Raises:
        ConfigError: the two have different numbers of members, so they are not from one predictor.

    Example:
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> known = Prediction(torch.tensor([[[0.9, 0.1], [0.8, 0.2]]]).log())
        >>> strange = Prediction(torch.tensor([[[0.6, 0.4], [0.15, 0.85]]]).log())
        >>> ood_auroc(known, strange)
        0.75
    """
    if prediction.num_members != ood.num_members:
        raise ConfigError(
            f"{prediction.num_members} members in distribution and {ood.num_members} out of it; "
            "score the predictions of one predictor"
        )
    scores = torch.cat([doubt_of_each(prediction), doubt_of_each(ood)])
    labels = torch.cat(
        [
            torch.zeros(prediction.num_examples, dtype=torch.int64),
            torch.ones(ood.num_examples, dtype=torch.int64),
        ]
    )
    from torchmetrics.functional.classification import binary_auroc

    return binary_auroc(scores, labels).item()


def accuracy_coverage(prediction: Prediction) -> AccuracyCoverage:
    """The accuracy on the k most confident examples for k = 1 to N, in float64.

    Confidence is the largest option probability, as precise as in `ood_auroc`; equal confidences are treated
    as `accuracy_by_doubt` does.

    Raises:
        DataError: the prediction is unlabelled.

    Example:
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> probs = torch.tensor([[[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]])
        >>> accuracy_coverage(Prediction(probs.log(), torch.tensor([0, 1, 1]))).accuracies.tolist()[:2]
        [1.0, 1.0]
    """
    return accuracy_by_doubt(
        doubt_of_each(prediction), prediction.choices == prediction.labelled_targets("accuracy_coverage")
    )


def coverage_area(prediction: Prediction) -> float:
    """The area under the accuracy-coverage curve: the mean accuracy over all coverages, 0 to 1, higher is
    better.

    Args:
        prediction: a labelled prediction of N examples, C options.

    Returns:
        A number from 0 to 1; higher is better.

    Raises:
        DataError: the prediction is unlabelled.

    Example:
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> prediction = Prediction(torch.tensor([[[0.9, 0.1], [0.4, 0.6]]]).log(), torch.tensor([0, 0]))
        >>> coverage_area(prediction)  # (1 + 1/2) / 2
        0.75
    """
    return accuracy_coverage(prediction).area


class ReliabilityBins(NamedTuple):
    """Confidence against accuracy in equal-width bins of the top label's probability; empty bins are left
    out.

    Attributes:
        confidences: (bins,) mean confidence in the bin.
        accuracies: (bins,) share of right answers in the bin.
        counts: (bins,) int64 number of examples in the bin.
    """

    confidences: Tensor
    accuracies: Tensor
    counts: Tensor


def reliability_bins(prediction: Prediction, *, bins: int = NUM_BINS) -> ReliabilityBins:
    """The points of a reliability diagram, with the bins of `ece`: sum |accuracy - confidence| * count / N is
    the ECE.

    Like there, a confidence of exactly 1 has a bin of its own after the last.

    Raises:
        ConfigError: fewer than one bin.
        DataError: the prediction is unlabelled.

    Example:
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> log_probs = torch.tensor([[[0.75, 0.25], [0.75, 0.25]]]).log()
        >>> points = reliability_bins(Prediction(log_probs, torch.tensor([0, 1])))
        >>> points.confidences.tolist(), points.accuracies.tolist(), points.counts.tolist()
        ([0.75], [0.5], [2])
    """
    if bins < 1:
        raise ConfigError(f"{bins} bins; use at least 1")
    correct = (prediction.choices == prediction.labelled_targets("reliability_bins")).double()
    confidence = prediction.confidence
    index = torch.bucketize(confidence, torch.linspace(0, 1, bins + 1), right=True) - 1
    counts = torch.bincount(index, minlength=bins + 1)
    filled = counts > 0
    confidences = (
        torch.bincount(index, weights=confidence.double(), minlength=bins + 1)[filled] / counts[filled]
    )
    accuracies = torch.bincount(index, weights=correct, minlength=bins + 1)[filled] / counts[filled]
    return ReliabilityBins(confidences, accuracies, counts[filled])


def ece_floor(confidences: Sequence[float], counts: Sequence[int]) -> float:
    """The ECE that a perfectly calibrated predictor shows on average, for so many examples of these mean
    confidences in each bin: it is not 0, since the share of right answers of a few differs from what is
    expected.

    sum_b n_b / N * E|X_b / n_b - p_b| with X_b of a binomial of n_b and p_b, whose mean deviation is
    2 v (1 - p) P(X = v) with v = floor(n p) + 1 (de Moivre; Diaconis & Zabell 1991).

    Example:
        >>> ece_floor([0.5], [1])  # right or wrong: off by a half either way
        0.5
        >>> round(ece_floor([0.7] * 10, [40] * 10), 3)
        0.057
    """
    off = 0.0
    for p, n in zip(confidences, counts, strict=True):
        v = min(math.floor(n * p) + 1, n)
        log_p = (
            math.lgamma(n + 1) - math.lgamma(v + 1) - math.lgamma(n - v + 1)
            + v * math.log(max(p, 1e-300)) + (n - v) * math.log(max(1 - p, 1e-300))
        )  # fmt: skip
        off += 2 * v * (1 - p) * math.exp(log_p)
    return off / sum(counts)


@dataclass(frozen=True)
class MemberSpread:
    """One metric of each member on its own: the values in member order, their mean and their spread."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over members: the paper's "LoRA (M = 1)"."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float:
        """The sample standard deviation over members (divisor M - 1); 0 for a single member."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    def to_dict(self) -> dict[str, float]:
        """`{"mean": ..., "std": ...}`."""
        return {"mean": self.mean, "std": self.std}

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.std:.4f}"


def single_member(metric: Callable[[Prediction], float], prediction: Prediction) -> MemberSpread:
    """The metric of one member alone: the members' own metrics, never the metric of their mean.

    Raises:
        DataError: the prediction is unlabelled and the metric needs targets.

    Example:
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> members = torch.tensor([[[0.9, 0.1], [0.8, 0.2]], [[0.6, 0.4], [0.3, 0.7]]]).log()
        >>> single_member(accuracy, Prediction(members, torch.tensor([0, 1]))).values
        (0.5, 1.0)
    """
    return MemberSpread(tuple(metric(prediction.member(m)) for m in range(prediction.num_members)))


def doubt_of_each(prediction: Prediction) -> Tensor:
    """(N,) float64 1 - (largest probability), 0 to 1, as the sum of the other options' probabilities: 1 - p
    of a float32 p above 1 - 3e-8 would be 0 for all, and fine-tuned members are that sure."""
    others_nc = prediction.log_probs.double().exp().scatter(1, prediction.choices[:, None], 0.0)
    return others_nc.sum(dim=-1).clamp_max(1.0)
