"""Dropout whose masks a member does not share: each factor is a hash of the member's key and a place, not a
draw.

Shapes: M members, B rows of a member, T tokens, D features.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def stream_key(*parts: int | str) -> int:
    """A number in [0, 2**31) that is a fixed, well-mixed function of `parts`: the name of a random stream.

    Example:
        >>> stream_key(0, 1, "order") == stream_key(0, 1, "order") != stream_key(0, 2, "order")
        True
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _mix(x: Tensor) -> Tensor:
    # An integer hash (two rounds of xor-shift and multiply) on values below 2**32; the factor is below 2**31,
    # so int64 never overflows.
    for _ in range(2):
        x = ((x >> 16) ^ x) * 0x45D9F3B & 0xFFFFFFFF
    return (x >> 16) ^ x


def dropout_factors(
    keys: Tensor,
    probability: Tensor,
    *,
    shape: tuple[int, int, int],
    row_numbers: Tensor | None = None,
    first_feature: int = 0,
) -> Tensor:
    """Dropout factors (M, B * T, D): 0 with `probability` (M,), else 1 / (1 - probability).

    Each factor is a hash of (member's key, row, token, feature), not a draw from a shared generator, so a
    member's mask depends neither on its neighbours nor on padding nor on how a batch is split. Rows count
    from 0, or are those of `row_numbers` (M, B); features count from `first_feature`, where a rank of a
    tensor-parallel base sees some of them.
    """
    rows, tokens, features = shape
    device = keys.device
    row = torch.arange(rows, device=device)[None] if row_numbers is None else row_numbers.to(device)
    place = _mix(row[..., None] * 0x1F123BB + torch.arange(tokens, device=device)).view(-1, rows * tokens, 1)
    member = _mix(keys)[:, None, None]
    feature = _mix(torch.arange(first_feature, first_feature + features, device=device) + 0x3C6EF372)
    uniform = _mix(_mix(place ^ member) ^ feature)
    threshold = (probability.double() * 2**32).long().to(device)[:, None, None]
    return (uniform >= threshold) / (1 - probability.to(device)[:, None, None])
