"""The part of an adapted layer that one rank of a tensor-parallel base holds.

A colwise layer (queries, keys, values, gate, up) gives each rank some of its output features: A is whole on
every rank, and of B it has the rows of these features. A rowwise layer (output, down) takes some of the input
features: of A the rank has their columns, and B is whole. What the ranks exchange is the activation of rank
R between A and B, in one direction each. Source: Shoeybi et al. 2019 (arXiv:1909.08053), Sec. 3, whose f and
g stand here at the low rank in place of the input and the output.

Shapes: M members, B rows of a member, T tokens, D features, R rank, S ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from ...distributed.ranks import Ranks


@dataclass(frozen=True)
class Cut:
    """A rank's part of an adapted layer.

    Attributes:
        kind: the side that is cut: the outputs of a "colwise" layer, the inputs of a "rowwise" one.
        whole: features of the whole layer on that side, a multiple of S.
        ranks: S ranks.
    """

    kind: Literal["colwise", "rowwise"]
    whole: int
    ranks: Ranks

    @property
    def size(self) -> int:
        """Features of this rank."""
        return self.whole // self.ranks.size

    @property
    def first_input(self) -> int:
        """The place, among all input features of the layer, of the first that this rank sees."""
        return self.ranks.rank * self.size if self.kind == "rowwise" else 0

    def own_a(self, a: Tensor) -> Tensor:
        """This rank's part of A (..., R, D_in)."""
        return a if self.kind == "colwise" else a.narrow(-1, self.ranks.rank * self.size, self.size)

    def own_b(self, b: Tensor) -> Tensor:
        """This rank's part of B (..., D_out, R)."""
        return b if self.kind == "rowwise" else b.narrow(-2, self.ranks.rank * self.size, self.size)

    def whole_a(self, parts: Tensor) -> Tensor:
        """A (M, R, D_in) from the parts of all ranks (S, M, R, D)."""
        return parts[0] if self.kind == "colwise" else parts.permute(1, 2, 0, 3).flatten(2)

    def whole_b(self, parts: Tensor) -> Tensor:
        """B (M, D_out, R) from the parts of all ranks (S, M, D, R)."""
        return parts[0] if self.kind == "rowwise" else parts.transpose(0, 1).flatten(1, 2)

    def exchanged(self, low: Tensor) -> Tensor:
        """A's result (M, B * T, R) as B takes it: summed over the ranks where each saw some of the inputs;
        else as it is, and its gradient is summed, since each rank's outputs add to it.
        """
        function = _SummedForward if self.kind == "rowwise" else _SummedBackward
        result: Tensor = function.apply(low, self.ranks.group)
        return result


class _SummedForward(torch.autograd.Function):
    """The sum over ranks, whose gradient is the same on all of them already: Megatron's g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _SummedBackward(torch.autograd.Function):
    """The tensor itself, whose gradient is summed over ranks: Megatron's f."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None
