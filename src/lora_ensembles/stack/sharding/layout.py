"""The way in which a base lies over ranks, read from the base itself.

"replicate": each rank has the base whole, and some of the members. "fsdp" (FSDP2): every weight is cut over
the ranks and gathered for a pass, and each rank holds some of the members. "tp" (tensor parallelism): every
rank computes a part of each layer, for all members.

Shapes: M members in all, m of this rank, S ranks.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...distributed.lockstep import Lockstep
from ...distributed.ranks import ALONE, Ranks
from ...errors import AdapterError, ConfigError
from .cut import Cut

Thing = TypeVar("Thing")
Kind = Literal["none", "replicate", "fsdp", "tp"]
CUT_DIMENSIONS = {"colwise": 0, "rowwise": 1}  # of a linear layer's weight (D_out, D_in)
QUANTISED = ("Params4bit", "Int8Params")
QUANTISED_REASON = (
    "gathering such weights is broken upstream: bitsandbytes' parameters lose their type on the way "
    "(huggingface/accelerate#3983), and NF4 that is stored as bf16 is changed (bitsandbytes#1945)"
)


@dataclass(frozen=True)
class Sharding:
    """The way in which a base lies over ranks.

    Attributes:
        kind: "none" of a base that this process has whole.
        ranks: those that it lies on.
        plan: of tensor parallelism, the style of each kind of layer, by its name with * for numbers.
    """

    kind: Kind = "none"
    ranks: Ranks = ALONE
    plan: Mapping[str, str] = field(default_factory=dict)

    @property
    def splits_members(self) -> bool:
        """Whether each rank holds some of the members, instead of all."""
        return self.kind in ("replicate", "fsdp")

    def members_in_all(self, here: int) -> int:
        """M, where each rank has m = `here` members."""
        return here * self.ranks.size if self.splits_members else here

    def own_members(self, count: int) -> range:
        """The indices of this rank's members, of `count` in all.

        Raises:
            ConfigError: they do not split evenly.
        """
        if not self.splits_members:
            return range(count)
        size = self.ranks.size
        if count % size:
            fitting = sorted({max(1, count // size) * size, (count // size + 1) * size})
            raise ConfigError(
                f"{count} members do not split evenly over {size} ranks, which must make the same passes; "
                f"take {' or '.join(map(str, fitting))}"
            )
        each = count // size
        return range(self.ranks.rank * each, (self.ranks.rank + 1) * each)

    def own(self, values: Sequence[Thing], *, here: int | None = None) -> Sequence[Thing]:
        """Of one value for each of M members, those of this rank's; values for `here` members are these."""
        if len(values) == here:
            return values
        own = self.own_members(len(values))
        return values[own.start : own.stop]

    def of_all(self, values: Tensor) -> Tensor:
        """The values (M, ...) of all members, from this rank's (m, ...)."""
        return self.ranks.gathered(values).flatten(0, 1) if self.splits_members else values

    def lockstep(self, context: AbstractContextManager[None]) -> AbstractContextManager[None]:
        """A context of a part of a pass; see `Lockstep`."""
        return context if self.ranks.size == 1 else Lockstep(self.ranks, context)

    def check_all_here(self, what: str) -> None:
        """Refuse what needs all members in one process.

        Raises:
            ConfigError: each rank holds some of them.
        """
        if self.splits_members:
            raise ConfigError(
                f"{what} needs all members in one process, and each of the {self.ranks.size} ranks of this "
                "base holds some of them; save the ensemble, and load it on a base that lies whole on one "
                "device or is loaded by shard='tp'"
            )

    def check_one_process(self, what: str) -> None:
        """Refuse what a base over several ranks cannot do.

        Raises:
            ConfigError: the base lies over several ranks.
        """
        if self.ranks.size > 1:
            raise ConfigError(
                f"{what}: its base lies over {self.ranks.size} ranks, each with a device of its own; "
                "save the ensemble, and load it on a base that lies whole on one device"
            )

    def cut(self, name: str, layer: nn.Module, *, features: tuple[int, int]) -> Cut | None:
        """This rank's part of an adapted layer of (D_in, D_out) `features`; None where it has it whole.

        Raises:
            AdapterError: the base's plan cuts the layer in a way, or by a size, that adapters do not follow.
        """
        if self.kind != "tp":
            return None
        style = self.plan.get(kind_of_layer(name))
        advice = (
            f"leave it out by exclude_modules=[{name.rpartition('.')[2]!r}], or load the base by shard='fsdp'"
        )
        if style not in CUT_DIMENSIONS:
            has = f"is {style!r} in" if style else "has no place in"
            raise AdapterError(
                f"layer {name!r} {has} the base's plan of tensor parallelism; adapters are cut as 'colwise' "
                f"and 'rowwise' layers are, and as no others: {advice}"
            )
        whole = features[1 - CUT_DIMENSIONS[style]]
        if whole % self.ranks.size:
            raise AdapterError(
                f"layer {name!r} has {whole} features on the side that is cut, which {self.ranks.size} ranks "
                f"do not share evenly; take another number of ranks, or {advice}"
            )
        placed = getattr(getattr(layer, "weight", None), "placements", ())
        if [getattr(placement, "dim", None) for placement in placed] != [CUT_DIMENSIONS[style]]:
            raise AdapterError(
                f"layer {name!r} is {style!r} in the base's plan of tensor parallelism, and its weight lies "
                f"otherwise ({', '.join(map(str, placed)) or 'whole on every rank'}): {advice}"
            )
        return Cut("colwise" if style == "colwise" else "rowwise", whole, self.ranks)


WHOLE = Sharding()
REPLICATED = "_members_over_ranks"
"""Of a base that is whole on each rank, where the ranks share the members: the attribute that says so."""


def sharding_of(base: nn.Module) -> Sharding:
    """The way in which a base lies over ranks.

    Raises:
        AdapterError: in a way that members cannot follow: two ways at once, quantised, in pipeline or expert
            parallelism, or by a release or a wrapper that cuts it otherwise.
    """
    replicated: Ranks | None = vars(base).get(REPLICATED)
    if replicated is not None:
        return Sharding("replicate", replicated)
    parameter = _cut_parameter(base)
    if parameter is None:
        _check_no_other(base)
        return WHOLE
    _check_plain_cut(base)
    mesh = parameter.device_mesh
    if mesh.ndim != 1 or mesh.size() != dist.get_world_size():
        raise AdapterError(
            f"the base lies over {'x'.join(map(str, mesh.shape))} of {dist.get_world_size()} ranks; "
            "members follow one way over all ranks: DistributedConfig(fsdp_size=N) or (tp_size=N)"
        )
    ranks = Ranks(dist.get_rank(), mesh.size(), parameter.to_local().device, mesh.get_group())
    if _is_fsdp(base):
        return Sharding("fsdp", ranks)
    return Sharding("tp", ranks, dict(getattr(base, "tp_plan", None) or {}))


def check_heads(config: Any, size: int) -> None:
    """Refuse tensor parallelism over more ranks than there are heads to share.

    Raises:
        ConfigError: as it says.
    """
    own = config.get_text_config()
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(own, name, None)
        if isinstance(heads, int) and heads % size:
            raise ConfigError(
                f"the base has {name}={heads}, which {size} ranks do not share evenly; "
                "take another number of ranks, or load it by shard='fsdp'"
            )


def whole(parameter: Tensor) -> Tensor:
    """A parameter with all its values, wherever they lie; all ranks ask for it together."""
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def whole_copy(module: nn.Module) -> nn.Module:
    """A copy of a module that has all values of its parameters, for which all ranks call this."""
    copied = copy.deepcopy(module)
    for part in copied.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if hasattr(parameter, "full_tensor"):
                setattr(part, name, nn.Parameter(whole(parameter), requires_grad=parameter.requires_grad))
    return copied


@contextmanager
def as_if_whole(base: Any) -> Iterator[None]:
    """Context in which a base that lies over ranks has weights of their whole size, of zeros that take no
    memory: PEFT, which would make a rank's part of an adapter, makes the adapter that one process gets.
    """
    mesh = vars(base).get("_device_mesh")
    cut = [
        (module, name, parameter)
        for module in base.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if hasattr(parameter, "full_tensor")
    ]
    for module, name, parameter in cut:
        zero = torch.zeros(1, dtype=parameter.dtype, device=parameter.device)
        module._parameters[name] = nn.Parameter(zero.expand(parameter.shape), requires_grad=False)
    if mesh is not None:
        base._device_mesh = None
    try:
        yield
    finally:
        for module, name, parameter in cut:
            module._parameters[name] = parameter
        if mesh is not None:
            base._device_mesh = mesh


def kind_of_layer(name: str) -> str:
    """A layer's name with * for the numbers in it, as plans have it."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def _cut_parameter(base: nn.Module) -> Any:
    """A parameter that lies over ranks; None where there is none."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    from torch.distributed.tensor import DTensor

    return next((parameter for parameter in base.parameters() if isinstance(parameter, DTensor)), None)


def _is_fsdp(base: nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in base.modules())


def _check_plain_cut(base: Any) -> None:
    kinds = {type(parameter).__name__ for parameter in base.parameters()}
    kinds |= {
        type(parameter.to_local()).__name__
        for parameter in base.parameters()
        if hasattr(parameter, "to_local")
    }
    if kinds & {*QUANTISED} or getattr(base.config, "quantization_config", None) is not None:
        raise AdapterError(
            f"the base is quantised and lies over several ranks; {QUANTISED_REASON}. "
            "Load it in bfloat16, or whole on one device"
        )
    asked: Any = getattr(base.config, "distributed_config", None)
    sizes = {
        name: getattr(asked, f"{name}_size", 1) or 1 for name in ("tp", "fsdp", "pp", "ep", "dp_replicate")
    }
    ways = [f"{name}_size={size}" for name, size in sizes.items() if size > 1]
    fsdp = _is_fsdp(base)
    if len(ways) > 1 or sizes["pp"] * sizes["ep"] * sizes["dp_replicate"] > 1 or (fsdp and sizes["tp"] > 1):
        raise AdapterError(
            f"the base lies over ranks by {', '.join(ways)}; members follow one way alone: "
            "DistributedConfig(fsdp_size=N) or DistributedConfig(tp_size=N)"
        )
    if not fsdp and sizes["tp"] == 1:
        raise AdapterError(
            "the base's weights are DTensors that neither FSDP2 nor transformers' tensor parallelism cut; "
            "load it by load_base(name, shard='fsdp') or shard='tp'"
        )
    if sizes["tp"] > 1:
        check_heads(base.config, sizes["tp"])


def _check_no_other(base: Any) -> None:
    """Refuse a base that is cut, though none of its parameters says so."""
    if (getattr(base, "_tp_size", None) or 1) > 1:
        raise AdapterError(
            "the base is tensor-parallel by a release of transformers whose weights do not say how they are "
            "cut; members follow those of transformers 5.17 and newer: pip install 'transformers>=5.17'"
        )
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in base.modules()):
        raise AdapterError(
            "the base is wrapped by the first FSDP, which flattens its weights; use FSDP2: "
            "load_base(name, shard='fsdp'), or torch.distributed.fsdp.fully_shard on its layers"
        )
