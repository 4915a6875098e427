"""Loading a base over several ranks, each of which keeps a part of it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, cast

from ..errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..distributed.ranks import Ranks

Shard = Literal["replicate", "fsdp", "tp"]
SHARDS = ("replicate", "fsdp", "tp")
NEEDED: dict[str, dict[str, tuple[int, int]]] = {
    "replicate": {},
    "fsdp": {"torch": (2, 8), "transformers": (5, 14)},
    "tp": {"torch": (2, 8), "transformers": (5, 17)},
}
"""The oldest releases with each way: transformers loads by FSDP2 with torch 2.8, and for tensor parallelism
it cuts into DTensors, which say how they are cut, from 5.17 on."""


def check_shard(shard: object) -> Shard:
    """The way in which a base is cut over ranks, where this machine's releases know it.

    Raises:
        ConfigError: an unknown way, or a release that is too old for it.

    Example:
        >>> check_shard("fdsp")
        Traceback (most recent call last):
        ...
        lora_ensembles.errors.ConfigError: shard='fdsp'; it is 'fsdp' (every weight cut over the ranks, ...
    """
    if shard not in SHARDS:
        raise ConfigError(
            f"shard={shard!r}; it is 'fsdp' (every weight cut over the ranks, members split over them), "
            "'tp' (every layer computed by all ranks together), 'replicate' (the base whole on each rank, "
            "members split over them), or None"
        )
    for package, needed in NEEDED[str(shard)].items():
        found = version(package)
        if tuple(int(part) for part in found.split(".")[:2]) < needed:
            least = ".".join(map(str, needed))
            raise ConfigError(
                f"shard={shard!r} needs {package} {least} or newer, and {found} is installed; "
                f"pip install '{package}>={least}'"
            )
    return cast("Shard", shard)


def load_sharded(
    auto_class: Any, source: str, *, config: Any, shard: Shard, how: Mapping[str, Any]
) -> PreTrainedModel:
    """The model that `auto_class.from_pretrained(source, **how)` loads, cut over the ranks that torchrun
    started; all of them call this.

    By "replicate" each rank loads all of it. By "fsdp", transformers reads of each weight the part of this
    rank; a model whose layers it has no plan for is loaded whole into each rank's main memory, and cut layer
    by layer then.

    Raises:
        ConfigError: this process is no rank of several; a quantised base; or for "tp", a model without a
            plan, or with heads that the ranks do not share evenly.
    """
    from ..distributed.ranks import join_ranks
    from ..stack.sharding.layout import QUANTISED_REASON, REPLICATED, check_heads

    if shard == "replicate":
        ranks = join_ranks()
        whole: PreTrainedModel = auto_class.from_pretrained(source, **how)
        if whole.device != ranks.device:
            whole.to(ranks.device)  # type: ignore[arg-type]
        setattr(whole, REPLICATED, ranks)
        return whole
    if how.get("quantization_config") or getattr(config, "quantization_config", None) is not None:
        raise ConfigError(
            f"shard={shard!r} with a quantised base: {QUANTISED_REASON}; load it in bfloat16, "
            "or quantised and whole on one device"
        )
    ranks = join_ranks()
    if shard == "tp":
        check_heads(config, ranks.size)
    empty = _without_weights(auto_class, config)
    if shard == "tp" and not getattr(empty, "tp_plan", None):
        raise ConfigError(
            f"{type(empty).__name__} has no plan of tensor parallelism in transformers; load it by "
            "shard='fsdp', which needs none"
        )
    if shard == "fsdp" and not _plan_has_layers(empty):
        return _cut_by_hand(auto_class.from_pretrained(source, **how), ranks)
    from transformers.distributed import DistributedConfig

    asked = DistributedConfig.from_dict({f"{shard}_size": ranks.size})
    model: PreTrainedModel = auto_class.from_pretrained(source, distributed_config=asked, **how)
    return model


def _without_weights(auto_class: Any, config: Any) -> PreTrainedModel:
    """The model as it would be loaded, on no device: it says which plans there are."""
    import torch

    with torch.device("meta"):
        model: PreTrainedModel = auto_class.from_config(config)
    return model


def _plan_has_layers(model: Any) -> bool:
    """Whether transformers' plan of FSDP2 cuts the layers of a model one by one."""
    from ..passes.decoder import model_layers
    from ..stack.sharding.layout import kind_of_layer

    plan, layers = getattr(model, "fsdp_plan", None) or {}, set(model_layers(model))
    return any(module in layers and kind_of_layer(name) in plan for name, module in model.named_modules())


def _cut_by_hand(model: Any, ranks: Ranks) -> PreTrainedModel:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from ..passes.decoder import model_layers

    layers = model_layers(model)
    if not layers:
        raise ConfigError(
            f"{type(model).__name__} is no plain stack of layers, so it is not known what to cut; "
            "pass a model that you have cut yourself by torch.distributed.fsdp.fully_shard"
        )
    mesh = init_device_mesh(ranks.device.type, (ranks.size,), mesh_dim_names=("fsdp",))
    for part in (*layers, model):
        fully_shard(part, mesh=mesh)
    cut: PreTrainedModel = model
    return cut
