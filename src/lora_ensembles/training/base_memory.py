"""Bytes of a base that bitsandbytes quantises when it is loaded, from its shapes alone.

The linear layers are quantised; embeddings, norms, biases and the output head stay in the base's dtype, as in
transformers. Source of the sizes: Dettmers et al. 2023 (arXiv:2305.14314), Sec. 3, and Dettmers et al. 2022
(arXiv:2208.07339), Sec. 3.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

BLOCK, NESTED_BLOCK = 64, 256  # weights with a scale, and scales with a scale in double quantisation
LEVELS, NESTED_LEVELS = 16, 256  # of a 4-bit number and of a scale in 8 bits: float32, kept with each layer


def bytes_saved(base: Any, quantization: Any) -> tuple[int, int]:
    """The bytes by which quantised weights are smaller than those that the base holds, and those of the
    largest of them in the base's dtype, in which a pass unpacks it.

    Args:
        base: a model, which may have no data.
        quantization: its quantisation config or the fields of one, as in `config.quantization_config`; None,
            or that of another method than bitsandbytes: nothing is quantised.

    Example:
        >>> from types import SimpleNamespace
        >>> base = nn.Sequential(nn.Linear(64, 64, bias=False))
        >>> base.get_output_embeddings = lambda: None
        >>> bytes_saved(base, {"load_in_8bit": True})
        (12032, 16384)
    """
    fields = quantization if isinstance(quantization, dict) else getattr(quantization, "to_dict", dict)()
    four, eight = bool(fields.get("load_in_4bit")), bool(fields.get("load_in_8bit"))
    if not (four or eight):
        return 0, 0
    head, saved, largest = base.get_output_embeddings(), 0, 0
    for layer in base.modules():
        if layer is head or not (type(layer) is nn.Linear or isinstance(layer, Conv1D)):
            continue
        weight: Any = layer.weight
        rows = weight.shape[1] if isinstance(layer, Conv1D) else weight.shape[0]
        nested = bool(fields.get("bnb_4bit_use_double_quant"))
        packed = _four_bit(weight.numel(), nested=nested) if four else weight.numel() + 4 * rows
        whole = weight.numel() * weight.element_size()
        saved, largest = saved + whole - packed, max(largest, whole)
    return saved, largest


def _four_bit(weights: int, *, nested: bool) -> int:
    blocks = -(-weights // BLOCK)
    scales = 4 * blocks
    if nested:  # scales in 8 bits around an offset, with scales of their own
        scales = blocks + 4 * (-(-blocks // NESTED_BLOCK) + NESTED_LEVELS + 1)
    return -(-weights // 2) + scales + 4 * LEVELS
