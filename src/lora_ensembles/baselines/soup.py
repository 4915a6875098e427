"""The weight average of an ensemble's members: one adapter in their place.

Shapes: M members, R rank of a member, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..checks import whole_number
from ..data import Example
from ..ensemble import LoraEnsemble
from ..passes.stacked_model import num_trained_parameters
from ..stack.sites import MemberWeights
from .posterior.base import hold


class Soup:
    """A `Predictor` that is one adapter, the weight average of an ensemble's members, which it replaces.

    Nothing is trained, and asking it costs what one model costs. See `mean_of_members`.

    Args:
        ensemble: trained members; afterwards it holds the soup as its one member.
        rank: of the soup; None: exact.

    Raises:
        ConfigError: a rank below 1.

    Example:
        >>> from lora_ensembles import LoraEnsemble, load_base, load_task
        >>> mixed = Soup(LoraEnsemble(*load_base(), num_members=3))
        >>> mixed.member_log_probs(load_task("world-cqa").validation[:4]).shape
        torch.Size([1, 4, 5])
    """

    def __init__(self, ensemble: LoraEnsemble, *, rank: int | None = None):
        self.num_trained_parameters = ensemble.num_members * num_trained_parameters(ensemble)
        self.ensemble = ensemble
        members = [ensemble.stack.member(index) for index in range(ensemble.num_members)]
        hold(ensemble, [mean_of_members(members, rank=rank)])

    def member_log_probs(self, examples: Sequence[Example], *, max_rows: int | None = None) -> Tensor:
        """log p of each label (1, N, C), float32; see `Predictor`."""
        return self.ensemble.member_log_probs(examples, max_rows=max_rows)

    def save_pretrained(self, path: str | Path) -> None:
        """Write the soup as an ensemble of one member, a PEFT adapter folder.

        Raises:
            CheckpointError: `path` already holds an ensemble, or there is no space for it.
        """
        self.ensemble.save_pretrained(path)


def mean_of_members(members: Sequence[MemberWeights], *, rank: int | None = None) -> MemberWeights:
    """The mean of the members' updates s_m B_m A_m as one member, and the mean of their heads.

    The mean is exact at rank M * R: A stacks the members' A, B stands beside each other, s_m / M times each.
    With a smaller `rank`, it is cut to the largest singular values of the mean, the nearest matrix of that
    rank. Source: Wortsman et al. 2022 (arXiv:2203.05482), a uniform soup. `Differs:` the mean is that of the
    updates, which is the mean of the fine-tuned weights; a mean of A and of B would be another model.

    Args:
        members: M of them, on the same layers.
        rank: of the result; None: the sum of the members' ranks, in each layer.

    Raises:
        ConfigError: a rank below 1.

    Example:
        >>> ones = MemberWeights({"q": torch.ones(1, 2)}, {"q": torch.ones(3, 1)}, {"q": 2.0})
        >>> mixed = mean_of_members([ones, ones])
        >>> (mixed.b["q"] @ mixed.a["q"]).tolist()
        [[2.0, 2.0], [2.0, 2.0], [2.0, 2.0]]
    """
    if rank is not None:
        rank = whole_number("rank", rank)
    a, b, scaling = {}, {}, {}
    for name in members[0].a:
        stacked = torch.cat([member.a[name] for member in members])
        beside = torch.cat(
            [member.scaling[name] / len(members) * member.b[name] for member in members], dim=1
        )
        if rank is not None and rank < stacked.shape[0]:
            stacked, beside = _cut(stacked, beside, rank)
        a[name], b[name], scaling[name] = stacked, beside, 1.0
    head = {
        name: torch.stack([member.head[name] for member in members]).mean(dim=0) for name in members[0].head
    }
    return MemberWeights(a, b, scaling, head)


def _cut(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factors of the nearest matrix of a rank to b @ a, without that matrix: QR of both, SVD between."""
    left, upper = torch.linalg.qr(b)
    right, lower = torch.linalg.qr(a.T)
    inner_left, values, inner_right = torch.linalg.svd(upper @ lower.T)
    root = values[:rank].sqrt()
    new_b = left @ (inner_left[:, :rank] * root)
    new_a = (root[:, None] * inner_right[:rank]) @ right.T
    return new_a.contiguous(), new_b.contiguous()
