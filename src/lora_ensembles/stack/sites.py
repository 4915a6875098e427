"""Places of adapters: the adapted layers of a base, and the place of each in a member's flat parameters.

Shapes: M members, D features (of this rank, where a base is tensor-parallel), R rank, P parameters of one
member.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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


def _features(name: str, layer: Any) -> tuple[int, int]:
    if isinstance(layer, Conv1D):  # GPT-2 keeps its weight transposed
        return layer.nx, layer.nf
    try:  # some models keep these sizes as tensors
        return operator.index(layer.in_features), operator.index(layer.out_features)
    except (AttributeError, TypeError):
        raise AdapterError(
            f"the adapter has weights for layer {name!r}, which is a {type(layer).__name__} in this base; "
            "is this its base?"
        ) from None


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
