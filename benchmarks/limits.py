"""The least that a piece of work can cost, from operations counted on paper and from what the device can do.

Names as in docs/performance.md: P body parameters in linears, Q the head, f the share of tokens whose logits
are needed, s mean causal length, L layers, d head size, n heads, F peak FLOP/s, BW memory bandwidth in bytes
a second.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from workloads import Shape

STATE_BYTES = 16  # of a LoRA parameter in training: fp32 weight, gradient, two moments
RANK = 8


@dataclass(frozen=True)
class Peak:
    """What a device does at most: FLOP/s of a large matrix product, and bytes a second that a copy reads and
    writes together.
    """

    flops: float
    bandwidth: float
    source: str

    def to_dict(self) -> dict[str, float | str]:
        return asdict(self)


# The bandwidth is the data sheet's, which no kernel reaches: a copy was measured at 4.3e12.
KNOWN = {
    "H200": Peak(
        788e12, 4.8e12, "H200: a bf16 product of 8192^3 as measured, and the bandwidth of its data sheet"
    )
}


@functools.cache
def peak(device: torch.device | str = "cpu", *, dtype: torch.dtype = torch.float32) -> Peak:
    """That of a known device, else measured once: the best of several products and copies."""
    kind = torch.device(device)
    if kind.type == "cuda" and dtype == torch.bfloat16:
        for name, known in KNOWN.items():
            if name in torch.cuda.get_device_name(kind):
                return known
    size = 8192 if kind.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=kind).to(dtype) for _ in range(2))
    products: list[Callable[[], object]] = [lambda: left @ right]
    if kind.type == "cpu" and hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    ):  # twice as fast as torch's own on some processors
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], ""))
    target = torch.empty(2**28 if kind.type == "cuda" else 2**25, device=kind)  # far beyond any cache
    source = torch.ones_like(target)
    product = min(_best_seconds(one, kind) for one in products)
    copied = _best_seconds(lambda: target.copy_(source), kind)
    moved = 2 * source.numel() * source.element_size()
    source_said = (
        f"measured in this run: a product of {size}^3 in {str(dtype).removeprefix('torch.')}, "
        f"a copy of {moved} bytes"
    )
    return Peak(2 * size**3 / product, moved / copied, source_said)


def _best_seconds(run: Callable[[], object], kind: torch.device, *, times: int = 24) -> float:
    best = float("inf")
    for _ in range(times):
        begin = time.perf_counter()
        run()
        if kind.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return best


def body(shape: Shape) -> int:
    """P: parameters of the linears in the decoder's layers."""
    queries, keys = shape.hidden**2, shape.hidden * shape.kv_heads * shape.head_size
    return shape.layers * (2 * queries + 2 * keys + 3 * shape.hidden * shape.intermediate)


def head(shape: Shape) -> int:
    """Q: parameters of the output head."""
    return shape.hidden * shape.vocabulary


def lora_parameters(shape: Shape, *, rank: int = RANK) -> int:
    """Parameters of one member's adapters on the query and value projections."""
    return (
        shape.layers * rank * (shape.hidden + shape.hidden + shape.hidden + shape.kv_heads * shape.head_size)
    )


def training_flops(shape: Shape, *, length: float, answers: float = 1.0) -> float:
    """Of one token of a row of `length` tokens: 4 (P + Q f) + 12 L n d s + 6 P_lora. No weight gradients: the
    base is frozen.
    """
    attention = 12 * shape.layers * shape.hidden * length / 2
    return 4 * (body(shape) + head(shape) * answers / length) + attention + 6 * lora_parameters(shape)


def scoring_flops(shape: Shape, *, length: float, lora: bool = True, answers: float = 1.0) -> float:
    """Of one token of a row of `length` tokens, the logits of some of which are needed: the forward half of
    `training_flops`.
    """
    attention = 4 * shape.layers * shape.hidden * length / 2
    return (
        2 * (body(shape) + head(shape) * answers / length)
        + attention
        + (2 * lora_parameters(shape) if lora else 0)
    )


def decode_seconds(shape: Shape, peak: Peak, *, members: int, rows: int, seen: float, element: int) -> float:
    """Of one new token for every row: max of reading (base once, adapters, keys and values of every row) and
    of computing.
    """
    keys = 2 * shape.layers * shape.kv_heads * shape.head_size
    read = element * (
        body(shape) + head(shape) + members * lora_parameters(shape) + members * rows * seen * keys
    )
    computed = members * rows * (2 * (body(shape) + head(shape)) + 4 * shape.layers * shape.hidden * seen)
    return max(read / peak.bandwidth, computed / peak.flops)


def prompt_seconds(shape: Shape, peak: Peak, *, members: int, rows: int, length: int) -> float:
    """Of reading a prompt: the computing of `scoring_flops` on every member's rows."""
    return members * rows * length * scoring_flops(shape, length=length) / peak.flops


def member_bytes(shape: Shape, *, rank: int = RANK, dtype: torch.dtype = torch.float32) -> int:
    """What one more member takes in training, besides activations: 16 bytes a LoRA parameter, and a working
    copy where not in fp32.
    """
    working = 0 if dtype == torch.float32 else dtype.itemsize
    return (STATE_BYTES + working) * lora_parameters(shape, rank=rank)


def storages(tensors: list[Tensor]) -> set[int]:
    """The pieces of memory that tensors lie in, by address."""
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}
