"""Flat parameters over ranks: a rank's part of them, and the whole from the parts of all.

What is whole has the layout of one process, so that a checkpoint goes on with another number of ranks.

Shapes: M members in all, m of this rank, P parameters of a member here, W in all, S ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..sites import AdapterSite, MemberWeights
from .layout import Sharding

Described = tuple[list[int], list[float]]  # a member's rank and scaling in each layer
A, B = 0, 1  # the buffers of a stack that are cut; the third holds heads, which every rank has whole


def whole_flat(sharding: Sharding, sites: Sequence[AdapterSite], buffer: int, flat: Tensor) -> Tensor:
    """The flat parameters (M, W) of all members, from this rank's (m, P) of the buffer of that number."""
    if sharding.kind == "none":
        return flat
    parts = sharding.ranks.gathered(flat)
    if sharding.splits_members:
        return parts.flatten(0, 1)
    if buffer not in (A, B):
        return parts[0]
    columns = []
    for site in sites:
        view = site.view_a if buffer == A else site.view_b
        pieces = torch.stack([view(part) for part in parts])
        if site.cut is None:
            columns.append(pieces[0].flatten(1))
            continue
        joined = site.cut.whole_a(pieces) if buffer == A else site.cut.whole_b(pieces)
        columns.append(joined.flatten(1))
    return torch.cat(columns, dim=1)


def own_flat(sharding: Sharding, sites: Sequence[AdapterSite], buffer: int, whole: Tensor) -> Tensor:
    """This rank's part (m, P) of the flat parameters (M, W) of all members: the inverse of `whole_flat`."""
    if sharding.kind == "none":
        return whole
    if sharding.splits_members:
        own = sharding.own_members(len(whole))
        return whole[own.start : own.stop]
    if buffer not in (A, B):
        return whole
    columns, start = [], 0
    for site in sites:
        inner, outer = site.whole_features
        shape = (-1, site.rank, inner) if buffer == A else (-1, outer, site.rank)
        count = shape[1] * shape[2]
        matrices = whole[:, start : start + count].reshape(shape)
        start += count
        if site.cut is not None:
            matrices = site.cut.own_a(matrices) if buffer == A else site.cut.own_b(matrices)
        columns.append(matrices.flatten(1))
    return torch.cat(columns, dim=1)


def norms(sharding: Sharding, sites: Sequence[AdapterSite], gradients: Sequence[Tensor]) -> Tensor:
    """Each member's gradient norm (m,) over all its parameters: parts are summed over ranks, and what every
    rank has whole counts once.
    """
    squares = [gradient.square() for gradient in gradients]
    parts, wholes = torch.zeros(2, len(squares[0]), device=squares[0].device)
    for buffer, square in enumerate(squares):
        if buffer not in (A, B):
            wholes = wholes + square.sum(dim=1)
            continue
        for site in sites:
            own = (site.view_a if buffer == A else site.view_b)(square).sum(dim=(1, 2))
            cut = site.cut is not None and site.cut.kind == ("rowwise" if buffer == A else "colwise")
            if cut:
                parts = parts + own
            else:
                wholes = wholes + own
    return (sharding.ranks.summed(parts) + wholes).sqrt()


def member_weights(
    sites: Sequence[AdapterSite], a: Tensor, b: Tensor, head: dict[str, Tensor], described: Described
) -> MemberWeights:
    """A copy of a member's weights on the CPU, from its whole flat A and B (W,), and its ranks and
    scalings.
    """
    weights, start_a, start_b = MemberWeights({}, {}, {}, head), 0, 0
    for site, rank, scaling in zip(sites, *described, strict=True):
        inner, outer = site.whole_features
        count_a, count_b = site.rank * inner, site.rank * outer
        matrix_a = a[start_a : start_a + count_a].view(site.rank, inner)[:rank]
        matrix_b = b[start_b : start_b + count_b].view(outer, site.rank)[:, :rank]
        weights.a[site.name] = matrix_a.detach().cpu().clone()
        weights.b[site.name] = matrix_b.detach().cpu().clone()
        weights.scaling[site.name] = scaling
        start_a, start_b = start_a + count_a, start_b + count_b
    return weights
