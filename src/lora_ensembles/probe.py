"""What a base must be before members are put on it."""

from __future__ import annotations

from torch import nn

from .errors import AdapterError


def check_plain(base: nn.Module) -> None:
    """Refuse a base that is wrapped already, or lies on several devices.

    Raises:
        AdapterError: as it says.
    """
    if hasattr(base, "peft_config"):
        raise AdapterError(
            "the base is wrapped by PEFT already; pass the plain model (`model.unload()`), or its folders to from_adapters"
        )
    if any(hasattr(module, "lora_a") and hasattr(module, "plan") for module in base.modules()):
        raise AdapterError(
            "the base carries another ensemble; call `unload()` on that one first, or load the base again"
        )
    devices = {parameter.device for parameter in base.parameters()}
    if len(devices) > 1:
        raise AdapterError(
            f"the base lies on several devices ({', '.join(map(str, devices))}); load it on one"
        )
