"""LoRA adapters of M members as one layer: members are a leading axis of the weights and of the batch.

A batch holds M groups of B rows, member-major: row m * B + b belongs to member m. Folding that axis into the
batch and back happens here and nowhere else.

Shapes: M members, B rows of a member, T tokens, D features, R rank, P parameters of one member.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..errors import AdapterError, ConfigError
from .context import ALL_MEMBERS, ForwardContext
from .dropout import dropout_factors, stream_key
from .sharding.cut import Cut


def fold_members(tensor: Tensor) -> Tensor:
    """(M, B, ...) as the batch (M * B, ...) that the base model sees, member-major.

    Example:
        >>> fold_members(torch.arange(6).view(2, 3)).tolist()
        [0, 1, 2, 3, 4, 5]
    """
    return tensor.reshape(-1, *tensor.shape[2:])


def unfold_members(tensor: Tensor, members: int) -> Tensor:
    """A member-major batch (M * B, ...) as (M, B, ...).

    Raises:
        AdapterError: the rows do not split evenly over the members.

    Example:
        >>> unfold_members(torch.arange(6), 2).tolist()
        [[0, 1, 2], [3, 4, 5]]
    """
    if tensor.shape[0] % members:
        raise AdapterError(
            f"batch of {tensor.shape[0]} rows does not split over {members} members; "
            "pass members * batch rows, member-major"
        )
    return tensor.view(members, -1, *tensor.shape[1:])


def rows_of_members(input_ids: Tensor, members: int) -> Tensor:
    """Ids (M, B, T) of ids (B, T) that all members read, or of what is that already.

    Raises:
        ConfigError: ids of another shape.
    """
    if input_ids.dim() == 2:
        return input_ids.expand(members, -1, -1)
    if input_ids.dim() != 3 or input_ids.shape[0] != members:
        raise ConfigError(
            f"input_ids is {tuple(input_ids.shape)}; pass (B, T) or (M, B, T) with M = {members} members"
        )
    return input_ids


class StackedLoraLinear(nn.Module):
    """A frozen linear layer plus one low-rank update per member: row (m, b) gets W x + s_m B_m A_m x.

    Shapes: input (M * B, ..., D_in), output (M * B, ..., D_out); `lora_a` (M, R, D_in), `lora_b` (M, D_out,
    R), `scaling` (M,). Two batched products serve all members, so the number of operator calls does not
    depend on M. The arithmetic is done in the dtype of `lora_a`, which is the base's. Source: Hu et al. 2021
    (arXiv:2106.09685), Eq. 3; dropout acts on the update's input as in PEFT.

    `cut` says which part of a tensor-parallel layer is this rank's; D_in and D_out are then those of the
    part.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        *,
        name: str,
        index: int,
        context: ForwardContext,
        cut: Cut | None = None,
    ):
        super().__init__()
        self.base_layer = base_layer
        self.name = name
        self.index = index
        self.context = context
        self.cut = cut
        self.lora_a: nn.Parameter
        self.lora_b: nn.Parameter
        self.scaling: Tensor
        self.common_scaling: float | None = None
        self.by_row = (
            False  # whether it sees rows in front, with any number of tokens; else all tokens of all rows
        )
        self.perturbation: nn.Parameter | None = None  # (M, R, D_in), of A; see `add_gradients` of the stack
        self._transposed: tuple[Tensor, Tensor]

    def bind(self, lora_a: Tensor, lora_b: Tensor, scaling: Sequence[float]) -> None:
        """Take views of the stack's buffers as this layer's weights."""
        self.lora_a, self.lora_b = nn.Parameter(lora_a), nn.Parameter(lora_b)
        self._transposed = lora_a.detach().transpose(1, 2), lora_b.detach().transpose(1, 2)
        self.scaling = torch.tensor(scaling, dtype=lora_a.dtype, device=lora_a.device)
        self.common_scaling = scaling[0] if len(set(scaling)) == 1 else None

    @property
    def weight(self) -> Any:
        """The base layer's weight: a model may ask a layer for it, most often for its dtype."""
        return self.base_layer.weight

    @property
    def bias(self) -> Any:
        """The base layer's bias."""
        return self.base_layer.bias

    @property
    def in_features(self) -> int:
        """Features of the input."""
        return self.lora_a.shape[2]

    @property
    def out_features(self) -> int:
        """Features of the output."""
        return self.lora_b.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        result = self.base_layer(x)
        context = self.context
        if not context.enabled:
            return result
        if context.tokens is None or not self.sees_all(x):
            self._refuse_rows(x)
        a, b, alpha = self._weights()
        members = a.shape[0]
        grouped = x.reshape(members, -1, x.shape[-1])
        if grouped.dtype != a.dtype:
            grouped = grouped.to(a.dtype)
        if context.dropout is not None:
            grouped = grouped * self._dropout_factors(x)
        low = torch.bmm(grouped, a)
        if self.perturbation is not None:
            low = low + self._perturbed(grouped, x)
        if self.cut is not None:
            low = self.cut.exchanged(low)
        if alpha is None:
            low, alpha = low * self.scaling[context.members, None, None], 1.0
        if result.dtype != a.dtype:  # a quantised layer may answer in another precision than the base's
            update = alpha * torch.bmm(low, b)
            return result + update.to(result.dtype).view(result.shape)
        return torch.baddbmm(result.reshape(members, -1, result.shape[-1]), low, b, alpha=alpha).view(
            result.shape
        )

    def _perturbed(self, grouped: Tensor, x: Tensor) -> Tensor:
        """The perturbation of A's output (M, B * T, R), with signs of its own for each token's features and
        ranks: Flipout, Wen et al. 2018 (arXiv:1803.04386), Eq. 4.
        """
        assert self.perturbation is not None
        active = self.perturbation[self.context.members]
        into = self._signs(x, x.shape[-1], "in")
        out = self._signs(x, active.shape[1], "out")
        return torch.bmm(grouped * into, active.transpose(1, 2)) * out

    def _signs(self, x: Tensor, features: int, name: str) -> Tensor:
        """Random signs (M, B * T, features), by the same hash as dropout."""
        keys = [stream_key(key, self.index, name) for key in self.context.sign_keys[self.context.members]]
        half = torch.full((len(keys),), 0.5, device=x.device)
        return self._factors(x, keys, half, features) - 1.0

    def sees_all(self, x: Tensor) -> bool:
        """Whether an input holds every row of every member, in order."""
        return (
            x.shape[0] == self.context.rows
            if self.by_row
            else self.context.tokens == x.numel() // x.shape[-1]
        )

    def _weights(self) -> tuple[Tensor, Tensor, float | None]:
        """A (M, D_in, R), B (M, R, D_out) and their common scaling, of the members whose rows the batch
        holds.
        """
        # Decoding passes here for every layer and token: views that need no gradient are made once.
        a, b = (
            (self.lora_a.transpose(1, 2), self.lora_b.transpose(1, 2))
            if torch.is_grad_enabled()
            else self._transposed
        )
        active = self.context.members
        return (
            (a, b, self.common_scaling)
            if active == ALL_MEMBERS
            else (a[active], b[active], self.common_scaling)
        )

    def _refuse_rows(self, x: Tensor) -> NoReturn:
        expected, received = self.context.tokens, f"{x.numel() // x.shape[-1]} token vectors"
        if self.by_row:
            expected, received = self.context.rows, f"{x.shape[0]} rows"
        if self.context.tokens is None:
            raise AdapterError(
                "the base model of an ensemble was called by itself, so it is not known which rows belong "
                "to which member; call the ensemble, or the base inside `with ensemble.base_only():`"
            )
        raise AdapterError(
            f"layer {self.name!r} got {received} where the batch has {expected}: it does not see every row "
            "of every member in order (a layer inside a routed expert does not), so it cannot be stacked; "
            "take it out of target_modules"
        )

    def _dropout_factors(self, x: Tensor) -> Tensor:
        context = self.context
        assert context.dropout is not None
        keys = [stream_key(key, self.index) for key in context.dropout_keys[context.members]]
        return self._factors(x, keys, context.dropout[context.members], x.shape[-1])

    def _factors(self, x: Tensor, keys: Sequence[int], probability: Tensor, features: int) -> Tensor:
        """`dropout_factors` (M, B * T, features) for the tokens of an input."""
        context = self.context
        rows = context.rows // len(keys)  # not from x: some layers see the tokens of all rows in one axis
        return dropout_factors(
            torch.tensor(keys, device=x.device),
            probability,
            shape=(rows, x.numel() // (context.rows * x.shape[-1]), features),
            row_numbers=context.row_numbers,
            first_feature=0 if self.cut is None else self.cut.first_input,
        ).to(self.lora_a.dtype)
