"""Layers of a base that adapters can stand on: their sizes, whether their weights are quantised, and what
PEFT makes of them.

No table of quantisation methods is kept. A layer is one that takes D_in features to D_out and that PEFT
adapts by adding s B A x to its result; whether it treats rows apart and has a gradient is tried
(`passes.layer_trials`).

Shapes: D_in, D_out features.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora import LoraLayer, layer as peft_layers
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..errors import AdapterError


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


def is_plain(weight: object) -> bool:
    """Whether a weight is a tensor of floating-point numbers of 16 bits or more.

    torchao and quanto have classes of tensors of their own, which say that they are such and are not.

    Example:
        >>> is_plain(nn.Linear(3, 5).weight), is_plain(torch.zeros(3, dtype=torch.uint8))
        (True, False)
    """
    if not isinstance(weight, torch.Tensor) or type(weight).__module__.partition(".")[0] != "torch":
        return False
    return weight.is_floating_point() and weight.dtype.itemsize >= 2


def is_quantised(layer: nn.Module) -> bool:
    """Whether a linear layer keeps its weight in another form than a plain one.

    Example:
        >>> is_quantised(nn.Linear(3, 5))
        False
    """
    return features(layer) is not None and not is_plain(getattr(layer, "weight", None))


def linear_layers(base: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The linear layers of a base by their names in it, whether it carries a stack or not."""
    for name, module in base.named_modules():
        if features(module) is not None and not hasattr(module, "base_layer"):
            yield name.removesuffix(".base_layer"), module


def device_of(layer: nn.Module) -> torch.device | None:
    """The device of a layer, whose weights may be buffers; None: it holds no tensor."""
    tensors = (*layer.parameters(), *layer.buffers())
    return tensors[0].device if tensors else getattr(layer, "device", None)


def keep_differentiable(base: nn.Module) -> None:
    """Stop bitsandbytes from repacking a 4-bit base for its CPU inference kernel, and undo where it has.

    On CPUs with AVX512-BF16 a layer in evaluation mode is repacked at its first input without gradient, for
    good; from then on its result carries no gradient. A frozen base is always in evaluation mode here, so the
    layers below it would silently stop learning.
    """
    for module in base.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.state_dict()  # bitsandbytes unpacks a layer whenever its state is asked for
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


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
    kind = f"a {kind_of(layer)}"
    if isinstance(module, peft_layers.ParamWrapper):
        kind += f", of which PEFT adapts the bare parameter {module.parameter_name!r}"
    raise AdapterError(
        f"target {name!r} is {kind}; adapters are stacked on nn.Linear, GPT-2's Conv1D and quantised "
        "linear layers that say their in_features and out_features; "
        f"leave it out by exclude_modules=[{name.rpartition('.')[2]!r}]"
    )


def kind_of(module: nn.Module) -> str:
    """The name of a module's class, with its module where the name alone is that of a torch layer."""
    kind = type(module)
    return f"{kind.__module__}.{kind.__name__}" if hasattr(nn, kind.__name__) else kind.__name__
