"""Quantised bases as transformers loads them: the two ways that have a flag, their bytes, and what a method
needs to be loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..errors import DataError, LoraEnsemblesError

NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}
QUANTIZE: dict[str, dict[str, Any]] = {"nf4": NF4 | {"bnb_4bit_use_double_quant": True}, "int8": INT8}
"""Fields of a quantisation config by the word of --quantize; NF4 with double quantisation is that of QLoRA
(Dettmers et al. 2023, arXiv:2305.14314, Sec. 3)."""

BLOCK, NESTED_BLOCK = 64, 256  # weights with a scale, and scales with a scale in double quantisation
LEVELS, NESTED_LEVELS = 16, 256  # of a 4-bit number and of a scale in 8 bits: float32, kept with each layer

PACKAGES = {
    "bitsandbytes": "'lora-ensembles[bnb]'",
    "gptq": "gptqmodel optimum",
    "awq": "gptqmodel",
    "compressed-tensors": "compressed-tensors",
    "torchao": "torchao",
    "hqq": "hqq",
    "quanto": "optimum-quanto",
    "aqlm": "'aqlm[cpu,gpu]'",
    "vptq": "vptq",
    "spqr": "'spqr_quant[gpu]'",
    "higgs": "flute-kernel fast_hadamard_transform",
    "eetq": "kernels",
    "mxfp4": "kernels",
    "nvfp4": "kernels",
    "fp8": "kernels",
    "mxfp8": "kernels",
    "metal": "kernels",
    "fbgemm_fp8": "fbgemm-gpu-genai",
    "fp_quant": "fp_quant",
    "fouroversix": "fouroversix",
    "quark": "amd-quark",
    "auto-round": "auto-round",
    "sinq": "sinq",
}
"""The packages by which transformers loads a base of a method, as pip takes them."""


def method_of(config: Any, asked: Mapping[str, Any] | None) -> str | None:
    """The method by which a base is quantised: a checkpoint's own, else that of the fields asked for; None:
    it is not.

    Example:
        >>> from types import SimpleNamespace
        >>> method_of(SimpleNamespace(quantization_config={"quant_method": "gptq"}), NF4)
        'gptq'
    """
    fields = getattr(config, "quantization_config", None) or asked
    if not fields:
        return None
    named = fields.get("quant_method") if isinstance(fields, Mapping) else fields.quant_method
    return str(getattr(named, "value", named) or "bitsandbytes")


def fields_for(config: Any, asked: Mapping[str, Any], *, dtype: str) -> dict[str, Any]:
    """The fields asked for, with the base's dtype for the products of a 4-bit base where they name none:
    transformers would take float32.

    Args:
        config: of the base.
        asked: fields of a quantisation config.
        dtype: in which the base is loaded; "auto": as it is stored.
    """
    if not asked.get("load_in_4bit") or "bnb_4bit_compute_dtype" in asked:
        return dict(asked)
    stored = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return dict(asked) | {"bnb_4bit_compute_dtype": stored if dtype == "auto" else dtype}


def same_method(config: Any, asked: Mapping[str, Any]) -> bool:
    """Whether a loaded base is quantised by the method and in the bits that are asked for."""
    own = config.quantization_config
    fields = own if isinstance(own, Mapping) else own.to_dict()
    bits = ("load_in_4bit", "load_in_8bit")
    same = all(bool(fields.get(name)) == bool(asked.get(name)) for name in bits)
    return same and method_of(config, None) == method_of(None, asked)


@contextmanager
def loading(name: str, method: str | None) -> Iterator[None]:
    """Context in which transformers loads the base `name`, whose errors say what a quantised one needs.

    Raises:
        DataError: a package of the method is missing, or this machine cannot run it.
    """
    try:
        yield
    except LoraEnsemblesError:
        raise
    # NameError: transformers uses names of a package that it has found missing.
    except (ImportError, RuntimeError, ValueError, NameError, AttributeError) as error:
        if method is None or "out of memory" in str(error):
            raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        needed = f"a device that {method} runs on, and pip install {PACKAGES.get(method, method)}"
        raise DataError(
            f"base model {name!r} cannot be loaded: it is quantised by {method}, and transformers says: "
            f"{reason} (it needs {needed})"
        ) from error


def bytes_saved(base: Any, quantization: Any) -> tuple[int, int]:
    """The bytes by which weights are smaller that bitsandbytes quantises, and those of the largest of them in
    the base's dtype, in which a pass unpacks it; from shapes alone.

    The linear layers are quantised; embeddings, norms, biases and the output head stay in the base's dtype.
    Source of the sizes: Dettmers et al. 2023 (arXiv:2305.14314), Sec. 3, and Dettmers et al. 2022
    (arXiv:2208.07339), Sec. 3.

    Args:
        base: a model, which may have no data.
        quantization: its quantisation config or the fields of one, as in `config.quantization_config`; None,
            or that of another method than bitsandbytes: nothing is quantised.

    Example:
        >>> from torch import nn
        >>> base = nn.Sequential(nn.Linear(64, 64, bias=False))
        >>> base.get_output_embeddings = lambda: None
        >>> bytes_saved(base, {"load_in_8bit": True})
        (12032, 16384)
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

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
