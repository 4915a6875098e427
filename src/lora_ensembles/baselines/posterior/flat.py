"""Members' flat weights as adapters, and noise shaped like them.

Shapes: M members, P parameters of a member, R rank, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...stack.buffers import AdapterStack
from ...stack.sites import AdapterSite, MemberWeights


def member_of(stack: AdapterStack, flats: Sequence[Tensor], scaling: dict[str, float]) -> MemberWeights:
    """One member of flat weights (P_a,), (P_b,) and, where members have heads, (P_head,), laid out as the
    stack's.
    """
    a, b, *head = (flat.detach().cpu().float()[None] for flat in flats)
    return MemberWeights(
        {site.name: site.view_a(a)[0].clone() for site in stack.sites},
        {site.name: site.view_b(b)[0].clone() for site in stack.sites},
        scaling,
        {site.name: site.view(head[0])[0].clone() for site in stack.heads.sites} if head else {},
    )


def scaling_of(stack: AdapterStack, member: int) -> dict[str, float]:
    """A member's scaling in each layer."""
    return {site.name: values[member] for site, values in zip(stack.sites, stack.scaling, strict=True)}


def normal_rows(keys: Sequence[int], like: Tensor, *, name: str) -> Tensor:
    """Standard normal noise shaped like (M, P), of each row by its own key and the name of what it is for."""
    rows = []
    for key in keys:
        generator = torch.Generator().manual_seed(key ^ _of_name(name))
        rows.append(torch.randn(like.shape[1], generator=generator))
    return torch.stack(rows).to(like)


def _of_name(name: str) -> int:
    return int.from_bytes(name.encode()[:3].ljust(3, b"."), "big")


def rank_starts(sites: Sequence[AdapterSite]) -> list[slice]:
    """The place of each layer in a vector with a value for each rank of each layer.

    Example:
        >>> rank_starts([AdapterSite("q", 4, 4, 2, 0, 0), AdapterSite("v", 4, 4, 3, 8, 8)])
        [slice(0, 2, None), slice(2, 5, None)]
    """
    starts, first = [], 0
    for site in sites:
        starts.append(slice(first, first + site.rank))
        first += site.rank
    return starts
