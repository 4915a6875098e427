"""Whether a score of doubt finds the wrong answers: AUROC against correctness, and accuracy on what the score
lets through.

Shapes: N answers. A score is any number that is higher where an answer is less to be trusted; only its order
counts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import DataError


class AccuracyCoverage(NamedTuple):
    """Selective prediction: the accuracy on the most confident share of the examples, for every share.

    Attributes:
        coverages: (N,) shares 1/N, 2/N, ..., 1.
        accuracies: (N,) accuracy on that share, 0 to 1; the last is the accuracy on all.
    """

    coverages: Tensor
    accuracies: Tensor

    @property
    def area(self) -> float:
        """The mean accuracy over all coverages, 0 to 1; one minus it is the area under the risk-coverage
        curve (AURC).
        """
        return self.accuracies.mean().item()


def accuracy_by_doubt(doubt: Tensor, correct: Tensor) -> AccuracyCoverage:
    """The accuracy on the k least doubtful answers for k = 1 to N, in float64; `doubt` (N,) numbers,
    `correct` (N,) bool.

    Answers of equal doubt have no order among themselves: each counts as the mean correctness of all of them,
    so the curve does not depend on the order of the answers.

    Example:
        >>> accuracy_by_doubt(torch.tensor([0.1, 0.4, 0.9]), torch.tensor([True, True, False])).accuracies
        tensor([1.0000, 1.0000, 0.6667], dtype=torch.float64)
    """
    doubt, order = doubt.sort()
    _, group, sizes = torch.unique_consecutive(doubt, return_inverse=True, return_counts=True)
    share = (
        torch.zeros(len(sizes), dtype=torch.float64)
        .index_add_(0, group, correct[order].double())
        .div_(sizes)[group]
    )
    ranks = torch.arange(1, len(share) + 1, dtype=torch.float64)
    return AccuracyCoverage(coverages=ranks / len(share), accuracies=share.cumsum(0) / ranks)


def error_auroc(doubt: Tensor, correct: Tensor) -> float:
    """The area under the ROC curve for telling wrong answers from right ones by their doubt, 0 to 1; 0.5 is
    chance.

    The probability that a wrong answer is more doubtful than a right one, equal doubts counting half. The
    score's rank stands for the score: torchmetrics squashes scores outside 0 to 1 through a sigmoid, which
    would make large ones equal.

    Raises:
        DataError: all answers are right, or all wrong, so there is nothing to tell apart.

    Example:
        >>> error_auroc(torch.tensor([0.1, 7.0, 9.0]), torch.tensor([True, False, True]))
        0.5
    """
    if bool(correct.all()) or not bool(correct.any()):
        raise DataError(
            f"all {len(correct)} answers are {'right' if bool(correct.all()) else 'wrong'}; "
            "AUROC needs some of both"
        )
    _, ranks = doubt.unique(sorted=True, return_inverse=True)
    from torchmetrics.functional.classification import binary_auroc

    return binary_auroc(ranks.double() / max(1, int(ranks.max())), (~correct).long()).item()
