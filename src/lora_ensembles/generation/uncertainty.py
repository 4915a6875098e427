"""Uncertainty of M members about each token of a text.

Shapes: M members, K written tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..heads.whole_model import mean_log_probs
from ..prediction.uncertainty import split_entropy


@dataclass(frozen=True)
class TokenUncertainty:
    """Uncertainty of M members about each written token; entropies are in nats, over the whole vocabulary.

    Attributes:
        log_probs: (..., K) log-probability of the token under the ensemble, log mean_m p_m (Eq. 2 of
            arXiv:2310.00035).
        member_log_probs: (M, ..., K) its log-probability under each member.
        total_entropy: (..., K) entropy of the ensemble's distribution in the token's place.
        expected_entropy: (..., K) mean of the members' own entropies there.
        mutual_information: (..., K) the difference of the two: what the members contradict each other about.
        agreement: (..., K) share of the members whose most probable token it is, 0 to 1.
    """

    log_probs: Tensor
    member_log_probs: Tensor
    total_entropy: Tensor
    expected_entropy: Tensor
    mutual_information: Tensor
    agreement: Tensor

    def to_dict(self) -> dict[str, Any]:
        """The tensors as nested lists, rounded to six digits behind the point."""
        return {name: _rounded(value) for name, value in vars(self).items()}

    def summary(self) -> dict[str, Any]:
        """One number a sequence, of a row (K,): sums of log-probabilities, means over tokens of the rest.

        A sequence's log-probability under the ensemble is the sum over its tokens, each after those before
        it; it is what decoding maximises. The mean of the entropies is their sum, the chain rule's estimate
        for the sequence, in nats a token.
        """
        return {
            "log_prob": _rounded(self.log_probs.sum(dim=-1)),
            "member_log_probs": _rounded(self.member_log_probs.sum(dim=-1)),
            **{
                name: _rounded(getattr(self, name).mean(dim=-1))
                for name in ("total_entropy", "expected_entropy", "mutual_information")
            },
            "largest_mutual_information": _rounded(self.mutual_information.amax(dim=-1)),
            "agreement": _rounded(self.agreement.mean(dim=-1)),
        }


def token_uncertainty(member_log_probs: Tensor, tokens: Tensor) -> TokenUncertainty:
    """The uncertainty of `tokens` (..., K) under members' next-token log-probabilities (M, ..., K, V).

    Example:
        >>> split = token_uncertainty(torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]]).log(), torch.tensor([0]))
        >>> split.log_probs.exp()
        tensor([0.7000])
        >>> split.agreement
        tensor([1.])
    """
    chosen = tokens.expand(member_log_probs.shape[:-1])[..., None]
    of_members = member_log_probs.gather(-1, chosen)[..., 0]
    total, expected, mutual = split_entropy(member_log_probs)
    own = member_log_probs.argmax(dim=-1) == chosen[..., 0]
    return TokenUncertainty(
        mean_log_probs(of_members),
        of_members,
        total.float(),
        expected.float(),
        mutual.float(),
        own.float().mean(dim=0),
    )


def _rounded(values: Tensor) -> Any:
    return torch.round(values.double(), decimals=6).tolist()
