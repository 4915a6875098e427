"""Noise shaped like members' flat weights, and the rows of A in them, one per rank.

Shapes: M members, P parameters of a member, R rank, K ranks of a member in all layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...stack.buffers import AdapterStack
from ...stack.dropout import stream_key
from ...stack.sites import AdapterSite


def normal_rows(keys: Sequence[int], like: Tensor, *, name: str) -> Tensor:
    """Standard normal noise shaped like (M, P), of each row by its own key and the name of what it is for."""
    generators = (torch.Generator().manual_seed(stream_key(key, name)) for key in keys)
    return torch.stack([torch.randn(like.shape[1], generator=one) for one in generators]).to(like)


def uniform_rows(keys: Sequence[int], like: Tensor, *, name: str) -> Tensor:
    """Uniform noise in [0, 1), as `normal_rows`."""
    generators = (torch.Generator().manual_seed(stream_key(key, name)) for key in keys)
    return torch.stack([torch.rand(like.shape[1], generator=one) for one in generators]).to(like)


def rank_places(sites: Sequence[AdapterSite]) -> list[slice]:
    """The place of each layer in a vector with a value for each rank of each layer.

    Example:
        >>> rank_places([AdapterSite("q", 4, 4, 2, 0, 0), AdapterSite("v", 4, 4, 3, 8, 8)])
        [slice(0, 2, None), slice(2, 5, None)]
    """
    places, first = [], 0
    for site in sites:
        places.append(slice(first, first + site.rank))
        first += site.rank
    return places


def rows_scaled(a: Tensor, scales: Tensor, stack: AdapterStack) -> Tensor:
    """Flat A (M, P_a) with each of its rows, one per rank and layer, times its own of the scales (M, K)."""
    scaled = torch.empty_like(a)
    for site, ranks in zip(stack.sites, rank_places(stack.sites), strict=True):
        torch.mul(site.view_a(a), scales[:, ranks, None], out=site.view_a(scaled))
    return scaled


def rows_dotted(first: Tensor, second: Tensor, stack: AdapterStack) -> Tensor:
    """The products (M, K) of the rows of two flat A (M, P_a), one per rank and layer."""
    return torch.cat([(site.view_a(first) * site.view_a(second)).sum(dim=-1) for site in stack.sites], dim=1)
