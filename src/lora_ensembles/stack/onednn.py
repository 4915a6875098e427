"""Products with frozen weights on a CPU, done by oneDNN where torch's own choice leaves half of the processor
unused.

torch multiplies float32 matrices by Intel's MKL, which takes its AVX-512 kernels on Intel's processors only.
oneDNN, which torch carries as well, takes them wherever they are, in the same precision.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

LEAST_ROWS = 16  # below, reordering the operands costs more than the faster kernel saves


@contextmanager
def frozen_products(*, always: bool = False) -> Iterator[None]:
    """Context in which linear layers of frozen float32 weights on the CPU multiply by oneDNN, backward passes
    included.

    Only where that is known to pay: an AVX-512 processor that is not Intel's, and a torch that multiplies by
    MKL; `always` asks for it elsewhere. Other layers, trained weights and other precisions are left alone.

    Example:
        >>> layer, x = torch.nn.Linear(64, 64).requires_grad_(False), torch.randn(32, 64)
        >>> with frozen_products(always=True):
        ...     result = layer(x)
        >>> torch.allclose(result, layer(x), atol=1e-5)
        True
    """
    if not (always or _pays()):
        yield
        return
    with _ByOneDNN():
        yield


@functools.cache
def _pays() -> bool:
    available = (
        torch.backends.mkldnn.is_available()
        and torch.backends.mkl.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
    return (
        available
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "GenuineIntel" not in _processor()
    )


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    return listed.read_text(errors="replace") if listed.is_file() else platform.processor()


class _ByOneDNN(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.linear and not kwargs and _suits(args[0], args[1]):
            return _FrozenLinear.apply(*args[:2], args[2] if len(args) > 2 else None)
        return func(*args, **(kwargs or {}))


def _suits(x: Tensor, weight: Tensor) -> bool:
    # Not a weight that lies over several ranks, which is a tensor of another class.
    plain = (
        type(weight) in (Tensor, nn.Parameter)
        and weight.dim() == 2
        and not weight.requires_grad
        and weight.device.type == "cpu"
    )
    return plain and x.dtype == weight.dtype == torch.float32 and x.numel() >= LEAST_ROWS * weight.shape[1]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


class _FrozenLinear(torch.autograd.Function):
    """x W^T + b, of which x alone has a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _product(gradient, weight.t()), None, None
