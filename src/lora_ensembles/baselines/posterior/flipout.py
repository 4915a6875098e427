"""A perturbation of every member's A in a pass, with signs of its own for each token.

Shapes: M members, P_a entries of a member's A matrices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...stack.buffers import AdapterStack


@contextmanager
def perturbed(
    stack: AdapterStack, perturbation: Tensor, keys: Sequence[int], *, gradient: Tensor | None = None
) -> Iterator[None]:
    """Context in which A of every layer is perturbed, (M, P_a), with random signs for each token by the
    members' keys (Flipout); `AdapterStack.add_gradients` adds the perturbation's own gradient to `gradient`.
    """
    stack.context.sign_gradient = torch.zeros_like(perturbation) if gradient is None else gradient
    stack.context.sign_keys = keys
    for site, layer in zip(stack.sites, stack.layers, strict=True):
        layer.perturbation = nn.Parameter(site.view_a(perturbation).to(stack.dtype))
    try:
        yield
    finally:
        for layer in stack.layers:
            layer.perturbation = None
