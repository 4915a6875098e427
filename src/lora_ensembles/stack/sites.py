"""Places of adapters: the layers of a base that can carry them, and the place of each in a member's flat
parameters.

No table of kinds of layers is kept: a layer is one that takes D_in features to D_out, and that PEFT adapts by
adding s B A x to its result.

Shapes: M members, D features (of this rank, where a base is tensor-parallel), R rank, P parameters of one
member.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora import LoraLayer, layer as peft_layers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import AdapterError
from .sharding.cut import Cut
from .sharding.layout import WHOLE, Sharding


@dataclass(frozen=True)
class AdapterSite:
    """One adapted layer: its name in the base model, its sizes, and where it lies in a member's flat
    parameters.

    Of a layer that lies over several ranks, `cut` says which part is this rank's, and the sizes are those of
    the part.
    """

    name: str
    in_features: int
    out_features: int
    rank: int
    start_a: int
    start_b: int
    cut: Cut | None = None

    @property
    def whole_features(self) -> tuple[int, int]:
        """(D_in, D_out) of the whole layer."""
        if self.cut is None:
            return self.in_features, self.out_features
        colwise = self.cut.kind == "colwise"
        return (
            self.in_features if colwise else self.cut.whole,
            self.cut.whole if colwise else self.out_features,
        )

    def view_a(self, flat: Tensor) -> Tensor:
        """The (M, R, D_in) view of flat A parameters (M, P_a)."""
        count = self.rank * self.in_features
        return flat[:, self.start_a : self.start_a + count].view(-1, self.rank, self.in_features)

    def view_b(self, flat: Tensor) -> Tensor:
        """The (M, D_out, R) view of flat B parameters (M, P_b)."""
        count = self.rank * self.out_features
        return flat[:, self.start_b : self.start_b + count].view(-1, self.out_features, self.rank)


@dataclass(frozen=True)
class MemberWeights:
    """One member: per adapted layer its A (R, D_in), B (D_out, R) and scaling; R may differ from member to
    member.

    `head` holds the parameters of the member's own head by their names in the base; empty for a causal
    language model.
    """

    a: dict[str, Tensor]
    b: dict[str, Tensor]
    scaling: dict[str, float]
    head: dict[str, Tensor] = field(default_factory=dict)


def adapter_sites(
    modules: Mapping[str, nn.Module], members: Sequence[MemberWeights], *, sharding: Sharding = WHOLE
) -> list[AdapterSite]:
    """The layers that the members adapt, of all that a base has by name, at the largest rank that a member
    has there; of a base over several ranks, the parts of this one.

    Raises:
        AdapterError: members that adapt different layers, or layers that the base does not have, or has in
            another size, or that are cut in a way that adapters do not follow.
    """
    # In the base's order, not that of the weights: a layer's place names its random stream, which must be the
    # same after loading.
    places = {name: place for place, name in enumerate(modules)}
    names = sorted(members[0].a, key=lambda name: places.get(name, -1))
    sites: list[AdapterSite] = []
    start_a = start_b = 0
    for name in names:
        if any(set(weights.a) != set(names) for weights in members):
            raise AdapterError(
                "the members adapt different layers; an ensemble needs the same target modules "
                "in every member"
            )
        if name not in modules:
            raise AdapterError(
                f"the adapter has weights for layer {name!r}, which the base model does not have; "
                "is this its base?"
            )
        in_features, out_features = _features(name, modules[name])
        rank = max(weights.a[name].shape[0] for weights in members)
        if sharding.splits_members:
            rank = sharding.ranks.largest(rank)
        for weights in members:
            shape = (weights.a[name].shape[1], weights.b[name].shape[0])
            if shape != (in_features, out_features):
                raise AdapterError(
                    f"layer {name!r} of the base maps {in_features} to {out_features} features, "
                    f"the adapter {shape[0]} to {shape[1]}; it was trained on another base model"
                )
        cut = sharding.cut(name, modules[name], features=(in_features, out_features))
        if cut is not None and cut.kind == "colwise":
            out_features = cut.size
        elif cut is not None:
            in_features = cut.size
        sites.append(AdapterSite(name, in_features, out_features, rank, start_a, start_b, cut))
        start_a, start_b = start_a + rank * in_features, start_b + rank * out_features
    return sites


def _features(name: str, layer: nn.Module) -> tuple[int, int]:
    sizes = features(layer)
    if sizes is None:
        raise AdapterError(
            f"the adapter has weights for layer {name!r}, which is a {type(layer).__name__} in this base; "
            "is this its base?"
        )
    return sizes


def features(layer: Any) -> tuple[int, int] | None:
    """The numbers of features (D_in, D_out) that a linear layer says it has; None: it says none.

    Example:
        >>> features(nn.Linear(3, 5))
        (3, 5)
    """
    if isinstance(layer, Conv1D):  # GPT-2 keeps its weight transposed
        return layer.nx, layer.nf
    try:  # some models keep these sizes as tensors
        return operator.index(layer.in_features), operator.index(layer.out_features)
    except (AttributeError, TypeError):
        return None


def device_of(layer: nn.Module) -> torch.device | None:
    """The device of a layer, whose weights may be buffers; None: it holds no tensor."""
    tensors = (*layer.parameters(), *layer.buffers())
    return tensors[0].device if tensors else getattr(layer, "device", None)


def check_target(name: str, module: LoraLayer) -> None:
    """Refuse a layer that PEFT adapted otherwise than by adding s B A x to its result.

    Raises:
        AdapterError: as it says.
    """
    layer: Any = module.get_base_layer()
    matrices = (module.lora_A, module.lora_B)
    linear = all("default" in pair and isinstance(pair["default"], nn.Linear) for pair in matrices)
    if isinstance(module, peft_layers.ParamWrapper):  # PEFT has it for routers and fused experts
        linear = False
    if linear and features(layer) is not None:
        return
    kind = f"a {_kind_of(layer)}"
    if isinstance(module, peft_layers.ParamWrapper):
        kind += f", of which PEFT adapts the bare parameter {module.parameter_name!r}"
    raise AdapterError(
        f"target {name!r} is {kind}; adapters are stacked on nn.Linear, GPT-2's Conv1D and quantised "
        "linear layers that say their in_features and out_features; "
        f"leave it out by exclude_modules=[{name.rpartition('.')[2]!r}]"
    )


def _kind_of(module: nn.Module) -> str:
    """The name of a module's class, with its module where the name alone is that of a torch layer."""
    kind = type(module)
    return f"{kind.__module__}.{kind.__name__}" if hasattr(nn, kind.__name__) else kind.__name__


def grown(flat: Tensor, count: int) -> Tensor:
    """(M + count, P) with the rows of `flat` (M, P), and zeros; within its memory where there is room, as
    there is after it grew once.
    """
    rows, width = flat.shape[0] + count, flat.shape[1]
    if flat.untyped_storage().nbytes() < rows * width * flat.element_size():
        roomy = flat.new_empty(
            rows * 3 // 2, width
        )  # or adding members one by one would copy all of them each time
        roomy[: flat.shape[0]] = flat
        flat = roomy[: flat.shape[0]]
    more = flat.as_strided((rows, width), (width, 1))
    more[flat.shape[0] :] = 0
    return more


def replace_module(base: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module where the base has another one of that name."""
    parent, _, child = name.rpartition(".")
    setattr(base.get_submodule(parent), child, module)
