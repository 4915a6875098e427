"""Heads of M members as stacked layers: each linear layer that a member owns has one weight matrix and one
bias for every member.

Shapes: M members, B rows of a member, T tokens, D features, P parameters of one member's head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import AdapterError
from .context import ALL_MEMBERS, ForwardContext
from .sites import MemberWeights, grown, replace_module


@dataclass(frozen=True)
class HeadSite:
    """One parameter of a head: its name in the base, its shape, and where it lies in a member's flat
    parameters.
    """

    name: str
    shape: torch.Size
    start: int

    def view(self, flat: Tensor) -> Tensor:
        """The (M, *shape) view of flat parameters (M, P)."""
        return flat[:, self.start : self.start + self.shape.numel()].view(-1, *self.shape)


class StackedLinear(nn.Module):
    """A linear layer that every member has for itself: row (m, b) gets W_m x + bias_m.

    Shapes: input (M * B, ..., D_in), output (M * B, ..., D_out); `head_weight` (M, D_out, D_in), `head_bias`
    (M, D_out) or None. One batched product serves all members. With the stack off, the layer is the base's
    own. The bias of a single output is not trained.
    """

    def __init__(self, base_layer: nn.Linear, *, name: str, context: ForwardContext):
        super().__init__()
        self.base_layer = base_layer
        self.name = name
        self.context = context
        self.head_weight: nn.Parameter
        self.head_bias: nn.Parameter | None = None

    def bind(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take views of the stack's buffer as this layer's weights."""
        self.head_weight = nn.Parameter(weight)
        self.head_bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        context = self.context
        if not context.enabled:
            return self.base_layer(x)
        if context.tokens is None or x.shape[0] != context.rows:
            expected = "none" if context.tokens is None else context.rows
            raise AdapterError(
                f"the members' heads ({self.name!r}) got {x.shape[0]} rows where the batch has {expected}: "
                "call the ensemble, or the base inside `with ensemble.base_only():`"
            )
        weight, bias = self.head_weight, self.head_bias
        if context.members != ALL_MEMBERS:
            weight = weight[context.members]  # type: ignore[assignment]
            bias = None if bias is None else bias[context.members]  # type: ignore[assignment]
        if bias is not None and weight.shape[1] == 1:
            # Of one score an option the loss sees differences alone: this bias has no gradient but rounding,
            # which Adam would magnify.
            bias = bias.detach()  # type: ignore[assignment]
        grouped = x.reshape(weight.shape[0], -1, x.shape[-1]).to(weight.dtype)
        transposed = weight.transpose(1, 2)
        result = (
            torch.bmm(grouped, transposed)
            if bias is None
            else torch.baddbmm(bias[:, None], grouped, transposed)
        )
        return result.view(*x.shape[:-1], -1)


class HeadStack:
    """The heads of all members as one flat fp32 buffer (M, P) of which every stacked layer holds views; empty
    where members have none.

    As the adapters' buffers are, it is a master: where the base computes in another dtype, `refresh` casts it
    into a working copy.
    """

    def __init__(
        self,
        base: nn.Module,
        members: Sequence[MemberWeights],
        *,
        context: ForwardContext,
        dtype: torch.dtype,
    ):
        self.dtype = dtype
        modules = dict(base.named_modules())
        names = list(dict.fromkeys(name.rpartition(".")[0] for name in members[0].head))
        names.sort(key=list(modules).index)
        self.layers = [StackedLinear(_linear(modules, name), name=name, context=context) for name in names]
        self.sites = _sites(self.layers)
        self.attach(base)
        self.flat: Tensor
        self.working: Tensor

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The leaves of autograd, in the order of `sites`."""
        return [
            leaf for layer in self.layers for leaf in (layer.head_weight, layer.head_bias) if leaf is not None
        ]

    def views(self, flat: Tensor) -> list[Tensor]:
        """The views of a buffer shaped like `flat`, in the order of `sites`."""
        return [site.view(flat) for site in self.sites]

    def check(self, members: Sequence[MemberWeights]) -> None:
        """Refuse members whose heads are not of these layers and sizes.

        Raises:
            AdapterError: as it says.
        """
        expected = {site.name: site.shape for site in self.sites}
        for weights in members:
            shapes = {name: tensor.shape for name, tensor in weights.head.items()}
            if shapes != expected:
                raise AdapterError(
                    f"a member's head is {_described(shapes)} and the ensemble's {_described(expected)}; "
                    "they must be the same"
                )

    def set_members(self, members: Sequence[MemberWeights]) -> None:
        """Replace the heads of all members."""
        self.check(members)
        device = self.layers[0].base_layer.weight.device if self.layers else "cpu"
        self.flat = torch.zeros(len(members), sum(site.shape.numel() for site in self.sites), device=device)
        self._fill(0, members)
        self.working = self.flat if self.dtype == torch.float32 else self.flat.to(self.dtype)
        self._bind()

    def add_members(self, members: Sequence[MemberWeights]) -> None:
        """Put heads behind those that are there."""
        first, same = len(self.flat), self.working is self.flat
        self.flat = grown(self.flat, len(members))
        self._fill(first, members)
        if same:
            self.working = self.flat
        else:
            self.working = grown(self.working, len(members))
            self.working[first:] = self.flat[first:]
        self._bind()

    def refresh(self) -> None:
        """Make the working copy equal to the master again."""
        if self.working is not self.flat:
            self.working.copy_(self.flat)

    def member(self, index: int) -> dict[str, Tensor]:
        """A copy of one member's head, in fp32 on the CPU."""
        return self.weights(self.flat[index])

    def weights(self, flat: Tensor) -> dict[str, Tensor]:
        """A copy of one member's head by its flat parameters (P,), in fp32 on the CPU."""
        return {site.name: site.view(flat[None])[0].detach().cpu().clone() for site in self.sites}

    def attach(self, base: nn.Module) -> None:
        """Put the stacked layers in the place of the base's own."""
        for layer in self.layers:
            replace_module(base, layer.name, layer)

    def detach(self, base: nn.Module) -> None:
        """Give the base its own layers back."""
        for layer in self.layers:
            replace_module(base, layer.name, layer.base_layer)

    def _fill(self, first: int, members: Sequence[MemberWeights]) -> None:
        for site in self.sites:
            view = site.view(self.flat)
            for m, weights in enumerate(members, first):
                view[m] = weights.head[site.name].to(self.flat.device)

    def _bind(self) -> None:
        views = dict(zip((site.name for site in self.sites), self.views(self.working), strict=True))
        for layer in self.layers:
            layer.bind(views[f"{layer.name}.weight"], views.get(f"{layer.name}.bias"))


def _linear(modules: dict[str, nn.Module], name: str) -> nn.Linear:
    module = modules.get(name)
    if type(module) is not nn.Linear:
        reason = (
            "which the base does not have"
            if module is None
            else f"which is a {type(module).__name__} in the base"
        )
        raise AdapterError(
            f"a member's head has weights for {name!r}, {reason}; heads are stacked on nn.Linear layers: "
            "is this its base?"
        )
    return module


def _sites(layers: Sequence[StackedLinear]) -> list[HeadSite]:
    sites: list[HeadSite] = []
    start = 0
    for layer in layers:
        for name, parameter in layer.base_layer.named_parameters():
            sites.append(HeadSite(f"{layer.name}.{name}", parameter.shape, start))
            start += parameter.numel()
    return sites


def _described(shapes: dict[str, torch.Size]) -> str:
    return ", ".join(f"{name} {tuple(shape)}" for name, shape in sorted(shapes.items())) or "none"
