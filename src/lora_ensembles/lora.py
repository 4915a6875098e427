"""LoRA adapters of M members as one layer: members are a leading axis of the weights and of the batch.

A batch holds M groups of B rows, member-major: row m * B + b belongs to member m. Folding that axis into the batch and back happens here
and nowhere else.

Shapes: M members, B rows of a member, T tokens, D features, R rank, P parameters of one member.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import NoReturn

import torch
from torch import Tensor, nn

from .dropout import dropout_factors, stream_key
from .errors import AdapterError
from .head_layers import HeadStack
from .sites import AdapterSite, MemberWeights, adapter_sites, grown, replace_module


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
            f"batch of {tensor.shape[0]} rows does not split over {members} members; pass members * batch rows, member-major"
        )
    return tensor.view(members, -1, *tensor.shape[1:])


_ALL = slice(None)


@dataclass
class StackPlan:
    """What the stacked layers of one ensemble share during a forward pass."""

    enabled: bool = True  # off: the layers are the base's own
    tokens: int | None = None  # rows * tokens of the running forward pass; None outside of one
    rows: int = 1  # rows of the running forward pass, over its members
    members: slice = field(default_factory=lambda: _ALL)  # the members whose rows the batch holds
    dropout: Tensor | None = (
        None  # (M,) probability of dropping a feature of the adapters' input; None: no dropout
    )
    dropout_keys: Sequence[int] = ()  # one random stream per member
    first_row: int = 0  # index, in each member's batch, of the first row that the pass holds
    row_numbers: Tensor | None = (
        None  # (M, rows of a member) their indices, where they do not follow each other
    )


class StackedLoraLinear(nn.Module):
    """A frozen linear layer plus one low-rank update per member: row (m, b) gets W x + s_m B_m A_m x.

    Shapes: input (M * B, ..., D_in), output (M * B, ..., D_out); `lora_a` (M, R, D_in), `lora_b` (M, D_out, R), `scaling` (M,).
    Two batched products serve all members, so the number of operator calls does not depend on M. The arithmetic is done in the dtype of
    `lora_a`, which is the base's. Source: Hu et al. 2021 (arXiv:2106.09685), Eq. 3; dropout acts on the update's input as in PEFT.
    """

    def __init__(self, base_layer: nn.Module, *, name: str, index: int, plan: StackPlan):
        super().__init__()
        self.base_layer = base_layer
        self.name = name
        self.index = index
        self.plan = plan
        self.lora_a: nn.Parameter
        self.lora_b: nn.Parameter
        self.scaling: Tensor
        self.common_scaling: float | None = None
        self._transposed: tuple[Tensor, Tensor]

    def bind(self, lora_a: Tensor, lora_b: Tensor, scaling: Sequence[float]) -> None:
        """Take views of the stack's buffers as this layer's weights."""
        self.lora_a, self.lora_b = nn.Parameter(lora_a), nn.Parameter(lora_b)
        self._transposed = lora_a.detach().transpose(1, 2), lora_b.detach().transpose(1, 2)
        self.scaling = torch.tensor(scaling, dtype=lora_a.dtype, device=lora_a.device)
        self.common_scaling = scaling[0] if len(set(scaling)) == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        result = self.base_layer(x)
        plan = self.plan
        if not plan.enabled:
            return result
        if plan.tokens != x.numel() // x.shape[-1]:
            self._refuse_rows(x)
        a, b, alpha = self._weights()
        members = a.shape[0]
        grouped = x.reshape(members, -1, x.shape[-1])
        if grouped.dtype != a.dtype:
            grouped = grouped.to(a.dtype)
        if plan.dropout is not None:
            grouped = grouped * self._dropout_factors(x, members)
        low = torch.bmm(grouped, a)
        if alpha is None:
            low, alpha = low * self.scaling[plan.members, None, None], 1.0
        if result.dtype != a.dtype:  # a quantised layer may answer in another precision than the base's
            update = alpha * torch.bmm(low, b)
            return result + update.to(result.dtype).view(result.shape)
        return torch.baddbmm(result.reshape(members, -1, result.shape[-1]), low, b, alpha=alpha).view(
            result.shape
        )

    def _weights(self) -> tuple[Tensor, Tensor, float | None]:
        """A (M, D_in, R), B (M, R, D_out) and their common scaling, of the members whose rows the batch holds."""
        # Decoding passes here for every layer and token: views that need no gradient are made once.
        a, b = (
            (self.lora_a.transpose(1, 2), self.lora_b.transpose(1, 2))
            if torch.is_grad_enabled()
            else self._transposed
        )
        active = self.plan.members
        return (a, b, self.common_scaling) if active == _ALL else (a[active], b[active], self.common_scaling)

    def _refuse_rows(self, x: Tensor) -> NoReturn:
        expected, given = self.plan.tokens, x.numel() // x.shape[-1]
        if expected is None:
            raise AdapterError(
                "the base model of an ensemble was called by itself, so it is not known which rows belong to which member; "
                "call the ensemble, or the base inside `with ensemble.base_only():`"
            )
        raise AdapterError(
            f"layer {self.name!r} got {given} token vectors where the batch has {expected}: it does not see every row of every "
            "member in order (a layer inside a routed expert does not), so it cannot be stacked; take it out of target_modules"
        )

    def _dropout_factors(self, x: Tensor, members: int) -> Tensor:
        plan = self.plan
        assert plan.dropout is not None
        rows = plan.rows // members  # not from x: some layers see the tokens of all rows in one axis
        keys = [stream_key(key, self.index) for key in plan.dropout_keys[plan.members]]
        return dropout_factors(
            torch.tensor(keys, device=x.device),
            plan.dropout[plan.members],
            shape=(rows, x.numel() // (plan.rows * x.shape[-1]), x.shape[-1]),
            first_row=plan.first_row,
            row_numbers=plan.row_numbers,
        ).to(self.lora_a.dtype)


class AdapterStack:
    """The adapters of all members, as two flat buffers (M, P_a) and (M, P_b) of which every layer holds views; `heads` beside them.

    `a` and `b` are fp32 masters. Where the base computes in another dtype, `refresh` casts them once a step into working copies, which
    are the leaves of autograd; in fp32 master and working copy are the same memory. Per member: 16 bytes a parameter in training (weight,
    gradient, two moments), and the working copy.
    """

    def __init__(self, base: nn.Module, members: Sequence[MemberWeights], *, dtype: torch.dtype):
        self.plan = StackPlan()
        self.dtype = dtype
        modules = dict(base.named_modules())
        self.sites: list[AdapterSite] = adapter_sites(modules, members)
        self.layers = [
            StackedLoraLinear(modules[site.name], name=site.name, index=index, plan=self.plan)
            for index, site in enumerate(self.sites)
        ]
        for site, layer in zip(self.sites, self.layers, strict=True):
            replace_module(base, site.name, layer)
        self.heads = HeadStack(base, members, plan=self.plan, dtype=dtype)
        self._detached = False
        self.working_a: Tensor
        self.working_b: Tensor
        self.set_members(members)

    @property
    def num_members(self) -> int:
        return self.a.shape[0]

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        """All that is trained, flat and fp32: A (M, P_a), B (M, P_b) and, where members have heads, these (M, P_head)."""
        return (self.a, self.b, self.heads.flat) if self.heads.sites else (self.a, self.b)

    def set_members(self, members: Sequence[MemberWeights]) -> None:
        """Replace all members; smaller ranks are padded with zeros, which changes nothing that is computed."""
        self.heads.set_members(members)
        device = next(self.layers[0].base_layer.parameters()).device
        count_a = sum(site.rank * site.in_features for site in self.sites)
        count_b = sum(site.rank * site.out_features for site in self.sites)
        self.a = torch.zeros(len(members), count_a, device=device)
        self.b = torch.zeros(len(members), count_b, device=device)
        self.ranks = [
            {site.name: weights.a[site.name].shape[0] for site in self.sites} for weights in members
        ]
        self.scaling = [[weights.scaling[site.name] for weights in members] for site in self.sites]
        self._fill(0, members)
        self._bind()

    def add_members(self, members: Sequence[MemberWeights]) -> None:
        """Put members behind those that are there, whose weights stay where they are unless one of the new has a larger rank.

        Raises:
            AdapterError: they adapt other layers, or layers of another size.
        """
        modules = {layer.name: layer.base_layer for layer in self.layers}
        if any(set(weights.a) != set(modules) for weights in members):
            raise AdapterError(
                "the members adapt different layers; an ensemble needs the same target modules in every member"
            )
        self.heads.check(members)
        sites, first = adapter_sites(modules, members), self.num_members
        if any(new.rank > old.rank for new, old in zip(sites, self.sites, strict=True)):
            everyone = [*(self.member(index) for index in range(first)), *members]
            self.sites = adapter_sites(modules, everyone)
            self.set_members(everyone)
            return
        self.ranks += [
            {site.name: weights.a[site.name].shape[0] for site in self.sites} for weights in members
        ]
        self.scaling = [
            [*old, *(weights.scaling[site.name] for weights in members)]
            for site, old in zip(self.sites, self.scaling, strict=True)
        ]
        self.heads.add_members(members)
        same, count = self.working_a is self.a, len(members)
        self.a, self.b = grown(self.a, count), grown(self.b, count)
        self._fill(first, members)
        self.working_a, self.working_b = (
            (self.a, self.b) if same else (grown(self.working_a, count), grown(self.working_b, count))
        )
        for working, master in ((self.working_a, self.a), (self.working_b, self.b)):
            if working is not master:
                working[first:] = master[first:]
        self._bind_layers()

    def _fill(self, first: int, members: Sequence[MemberWeights]) -> None:
        for site in self.sites:
            view_a, view_b = site.view_a(self.a), site.view_b(self.b)
            for m, weights in enumerate(members, first):
                rank = weights.a[site.name].shape[0]
                view_a[m, :rank] = weights.a[site.name].to(self.a.device)
                view_b[m, :, :rank] = weights.b[site.name].to(self.b.device)

    def _bind(self) -> None:
        same = self.dtype == torch.float32
        self.working_a = self.a if same else self.a.to(self.dtype)
        self.working_b = self.b if same else self.b.to(self.dtype)
        self._bind_layers()

    def _bind_layers(self) -> None:
        for site, layer, scaling in zip(self.sites, self.layers, self.scaling, strict=True):
            layer.bind(site.view_a(self.working_a), site.view_b(self.working_b), scaling)

    def refresh(self) -> None:
        """Make the working copies equal to the masters again, after the masters changed."""
        if self.working_a is not self.a:
            self.working_a.copy_(self.a)
            self.working_b.copy_(self.b)
            self.heads.refresh()

    def zero_gradients(self) -> tuple[Tensor, ...]:
        """Zeroed flat fp32 gradients, as `buffers`."""
        return tuple(torch.zeros_like(buffer) for buffer in self.buffers)

    def add_gradients(self, loss: Tensor, totals: tuple[Tensor, ...]) -> None:
        """Add the gradients of `loss` to flat fp32 ones: parts of a split step are summed in fp32, whatever the base computes in."""
        parameters = [parameter for layer in self.layers for parameter in (layer.lora_a, layer.lora_b)]
        gradients = torch.autograd.grad(loss, parameters + self.heads.parameters, allow_unused=True)
        views = [view for site in self.sites for view in (site.view_a(totals[0]), site.view_b(totals[1]))]
        views += self.heads.views(totals[-1])
        for view, gradient in zip(views, gradients, strict=True):
            if gradient is not None:  # None: the pass did not reach this layer
                view.add_(gradient)

    def member(self, index: int) -> MemberWeights:
        """A copy of one member's adapter and head, in fp32 on the CPU, at the member's own rank."""
        a, b, scaling = {}, {}, {}
        for site, scalings in zip(self.sites, self.scaling, strict=True):
            rank = self.ranks[index][site.name]
            a[site.name] = site.view_a(self.a)[index, :rank].detach().cpu().clone()
            b[site.name] = site.view_b(self.b)[index, :, :rank].detach().cpu().clone()
            scaling[site.name] = scalings[index]
        return MemberWeights(a, b, scaling, self.heads.member(index))

    def detach(self, base: nn.Module) -> None:
        """Give the base its own layers back; the stack cannot run any more."""
        self._detached = True
        for site, layer in zip(self.sites, self.layers, strict=True):
            replace_module(base, site.name, layer.base_layer)
        self.heads.detach(base)

    @contextmanager
    def running(
        self,
        *,
        rows: int,
        tokens: int,
        members: slice = _ALL,
        first_row: int = 0,
        row_numbers: Tensor | None = None,
    ) -> Iterator[None]:
        """While a forward pass over `rows` rows of `tokens` tokens in all, those of `members`, runs."""
        if self._detached:  # the plain base would answer for every member
            raise AdapterError(
                "this ensemble was unloaded: the base has its own layers back; make or load the ensemble again"
            )
        plan, before = self.plan, replace(self.plan)
        plan.rows, plan.tokens, plan.members, plan.first_row, plan.row_numbers = (
            rows,
            tokens,
            members,
            first_row,
            row_numbers,
        )
        try:
            yield
        finally:
            plan.rows, plan.tokens, plan.members, plan.first_row = (
                before.rows,
                before.tokens,
                before.members,
                before.first_row,
            )
            plan.row_numbers = before.row_numbers

    def remembered(self) -> AbstractContextManager[None]:
        """While a part of the pass that runs now runs once more, later."""
        then = replace(self.plan)

        @contextmanager
        def again() -> Iterator[None]:
            now = replace(self.plan)
            vars(self.plan).update(vars(then))
            try:
                yield
            finally:
                vars(self.plan).update(vars(now))

        return again()

    @contextmanager
    def dropout(self, probability: Tensor, keys: Sequence[int]) -> Iterator[None]:
        """While features of the adapters' inputs are dropped, with a probability (M,) and a random stream for each member."""
        self.plan.dropout, self.plan.dropout_keys = probability, keys
        try:
            yield
        finally:
            self.plan.dropout = None

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """While the base computes as if there were no adapters."""
        before, self.plan.enabled = self.plan.enabled, False
        try:
            yield
        finally:
            self.plan.enabled = before
