"""Predictive uncertainty of an ensemble and its parts: aleatoric (members are unsure alike: expected entropy)
and epistemic (members contradict each other: mutual information).

Every function but `split_entropy` takes a `Prediction` of M members, N examples and C options and returns an
(N,) float32 tensor. Entropies are in nats. Sums are done in float64, because mutual information is a small
difference of two entropies. An absent option contributes exactly 0.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import one_hot

if TYPE_CHECKING:
    from .prediction import Prediction


def split_entropy(member_log_probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Total entropy, expected entropy and mutual information (...,), in nats and float64, of members'
    distributions (M, ..., C).

    Mutual information, total minus expected, is clamped at 0: where members agree, the difference of two
    rounded numbers can be -1e-16.

    Example:
        >>> total, expected, mutual = split_entropy(torch.tensor([[[0.5, 0.5]], [[0.5, 0.5]]]).log())
        >>> total.item(), mutual.item()
        (0.693, 0.0)
    """
    log_probs = member_log_probs.double()
    # Not a Prediction's own mean: that is rounded to float32, and the rounding would show in a difference of
    # entropies.
    total = _entropy(log_probs.logsumexp(dim=0) - math.log(log_probs.shape[0]))
    expected = _entropy(log_probs).mean(dim=0)
    return total, expected, (total - expected).clamp_min(0.0)


def total_entropy(prediction: Prediction) -> Tensor:
    """(N,) predictive entropy, that of the ensemble's distribution, H[mean_m p_m], in nats; 0 to log C.

    Args:
        prediction: of N examples; targets are not needed.

    Returns:
        (N,) float32, in nats.

    Example:
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> sure_but_opposed = Prediction(torch.tensor([[[0.99, 0.01]], [[0.01, 0.99]]]).log())
        >>> round(total_entropy(sure_but_opposed).item(), 4)  # log 2
        0.6931
    """
    return split_entropy(prediction.member_log_probs)[0].float()


def expected_entropy(prediction: Prediction) -> Tensor:
    """(N,) aleatoric uncertainty: the mean of the members' own entropies, mean_m H[p_m], in nats; 0 to log C.

    It is the part of the predictive entropy that no further member takes away. Source: Depeweg et al. 2018
    (arXiv:1710.07283), Eq. 8.

    Args:
        prediction: of N examples; targets are not needed.

    Returns:
        (N,) float32, in nats.

    Example:
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> sure_but_opposed = Prediction(torch.tensor([[[0.99, 0.01]], [[0.01, 0.99]]]).log())
        >>> round(expected_entropy(sure_but_opposed).item(), 4)
        0.056
    """
    return split_entropy(prediction.member_log_probs)[1].float()


def mutual_information(prediction: Prediction) -> Tensor:
    """(N,) epistemic uncertainty: the mutual information of the answer and the member (BALD), in nats; 0 to
    log min(M, C).

    H[mean_m p_m] - mean_m H[p_m] (Houlsby et al. 2011, arXiv:1112.5745). It is never negative by Jensen's
    inequality, since entropy is concave, and 0 for a single member.

    Args:
        prediction: of N examples; targets are not needed.

    Returns:
        (N,) float32, in nats.

    Example:
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> sure_but_opposed = Prediction(torch.tensor([[[0.99, 0.01]], [[0.01, 0.99]]]).log())
        >>> round(mutual_information(sure_but_opposed).item(), 4)
        0.6371
    """
    return split_entropy(prediction.member_log_probs)[2].float()


def disagreement(prediction: Prediction) -> Tensor:
    """(N,) share of the pairs of members that choose different options; 0 to 1, and 0 for a single member.

    2 / (M (M - 1)) sum_{i<j} [choice_i != choice_j] = 1 - sum_c n_c (n_c - 1) / (M (M - 1)), with n_c the
    votes for option c.

    Args:
        prediction: of N examples; targets are not needed.

    Returns:
        (N,) float32.

    Example:
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> two_against_one = Prediction(torch.tensor([[[0.9, 0.1]], [[0.8, 0.2]], [[0.4, 0.6]]]).log())
        >>> round(disagreement(two_against_one).item(), 4)  # 2 of 3 pairs
        0.6667
    """
    members = prediction.num_members
    if members == 1:
        return torch.zeros(prediction.num_examples)
    votes_nc = _votes(prediction)
    agreeing = (votes_nc * (votes_nc - 1)).sum(dim=-1)
    return 1.0 - agreeing.float() / (members * (members - 1))


def variation_ratio(prediction: Prediction) -> Tensor:
    """(N,) share of the members that do not choose the option with the most votes, 1 - max_c n_c / M; 0 to 1
    - 1 / min(M, C).

    Example:
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> two_against_one = Prediction(torch.tensor([[[0.9, 0.1]], [[0.8, 0.2]], [[0.4, 0.6]]]).log())
        >>> round(variation_ratio(two_against_one).item(), 4)
        0.3333
    """
    return 1.0 - _votes(prediction).amax(dim=-1).float() / prediction.num_members


def _entropy(log_probs: Tensor) -> Tensor:
    # entr(p) = -p log p is 0 at p = 0, where p * log p would be 0 * -inf = NaN; entr of 1 + 1e-7 is -1e-7,
    # hence the clamp.
    entropy: Tensor = torch.special.entr(log_probs.exp()).sum(dim=-1).clamp_min(0.0)
    return entropy


def _votes(prediction: Prediction) -> Tensor:
    return one_hot(prediction.member_choices, prediction.num_options).sum(dim=0)
