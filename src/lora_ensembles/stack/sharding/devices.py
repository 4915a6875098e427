"""Devices that a base lies on: one, or one of each rank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ...errors import AdapterError

ADVICE = (
    "members' weights lie on one device, with the whole base: load it without device_map, or by "
    "device_map={'': 0}; for a base that is too large for one GPU, load it quantised, or start a process for "
    "each GPU by torchrun and use load_base(name, shard='fsdp')"
)


def check_one_device(base: nn.Module) -> None:
    """Refuse a base that accelerate's hooks spread over several devices, or keep elsewhere until a layer
    runs.

    Raises:
        AdapterError: as it says.
    """
    places = getattr(base, "hf_device_map", None) or {}
    devices = sorted({str(place) for place in places.values()})
    if len(devices) > 1:
        raise AdapterError(
            f"the base is dispatched over several devices ({', '.join(devices)}), as device_map='auto' does; "
            f"{ADVICE}"
        )
    for name, module in base.named_modules():
        if any(getattr(hook, "offload", False) for hook in _hooks(module)):
            raise AdapterError(
                f"layer {name!r} of the base is offloaded, and comes to the device when it runs; {ADVICE}"
            )
    lying = sorted({str(parameter.device) for parameter in base.parameters()})
    if len(lying) > 1:
        raise AdapterError(f"the base lies on several devices ({', '.join(lying)}); {ADVICE}")


def _hooks(module: nn.Module) -> Iterator[Any]:
    """accelerate's hooks on a module."""
    hook: Any = getattr(module, "_hf_hook", None)
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))
