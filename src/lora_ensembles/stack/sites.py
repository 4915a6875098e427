"""Places of adapters: the adapted layers of a base, and the place of each in a member's flat parameters.

Shapes: M members, D features, R rank, P parameters of one member.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..errors import AdapterError
from .layers import features


@dataclass(frozen=True)
class AdapterSite:
    """One adapted layer: its name in the base model, its sizes, and where it lies in a member's flat
    parameters.
    """

    name: str
    in_features: int
    out_features: int
    rank: int
    start_a: int
    start_b: int

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


def adapter_sites(modules: Mapping[str, nn.Module], members: Sequence[MemberWeights]) -> list[AdapterSite]:
    """The layers that the members adapt, of all that a base has by name, at the largest rank that a member
    has there.

    Raises:
        AdapterError: members that adapt different layers, or layers that the base does not have, or has in
            another size.
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
        for weights in members:
            shape = (weights.a[name].shape[1], weights.b[name].shape[0])
            if shape != (in_features, out_features):
                raise AdapterError(
                    f"layer {name!r} of the base maps {in_features} to {out_features} features, "
                    f"the adapter {shape[0]} to {shape[1]}; it was trained on another base model"
                )
        sites.append(AdapterSite(name, in_features, out_features, rank, start_a, start_b))
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
