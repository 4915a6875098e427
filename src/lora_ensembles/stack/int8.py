"""8-bit layers whose result for a row depends on the rows beside it: they are asked member by member.

Shapes: M members, B rows of a member, D features.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def chooses_by_batch(module: nn.Module) -> bool:
    """Whether a layer chooses what it computes in 16 bits over all rows that it sees.

    bitsandbytes' 8-bit layers do where they have a threshold (6 by default in transformers): a feature is an
    outlier for every row where it is one in any. Source: Dettmers et al. 2022 (arXiv:2208.07339), Sec. 3.
    """
    state: Any = getattr(module, "state", None)
    return type(module).__name__ == "Linear8bitLt" and float(getattr(state, "threshold", 0.0) or 0.0) > 0


def per_member(forward: Callable[[Tensor], Tensor], groups: Callable[[], int]) -> Callable[[Tensor], Tensor]:
    """A layer's `forward` that is called once for each of `groups()` members, whose rows (M * B, ..., D) are
    member-major.
    """

    @functools.wraps(forward)
    def run(x: Tensor) -> Tensor:
        count = groups()
        if count == 1 or x.shape[0] % count:
            return forward(x)
        return torch.cat([forward(rows) for rows in x.chunk(count)])

    return run
