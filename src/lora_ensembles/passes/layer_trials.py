"""Quantised linear layers of a base, tried with the inputs of a short pass: whether they treat rows apart,
and whether they pass a gradient to what is below them.

A plain layer does both, and is not tried. Some kernels have a forward pass only, and some layers round their
inputs by a scale that they take over all rows of a batch; a list of classes would soon be out of date.

Shapes: B rows, T tokens, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AdapterError
from ..stack.int8 import chooses_by_batch
from ..stack.layers import is_quantised, linear_layers
from .memory import ran_out_of_memory
from .shortcuts import FAILURES

LOUDER = 30.0
"""Times the input of a layer that rows beside it are larger: it moves every scale that is taken over rows."""
APART = 1e-2
"""Share of a layer's result by which it may change with the rows beside it: 16-bit sums in another order are
within a third of it, 8-bit floats by another scale are beyond it."""
FOLLOWED = 0.5
"""Share of a change that the gradient may miss. Inputs that are rounded to 8 bits are within 0.1; a gradient
that passes through a rounding, or through a scale only, misses about all of it."""

STEP_SEED = 7919
"""Of the step, which must not point along the input: a gradient through a scale alone is right in that
direction."""

ADVICE = "; load the base quantised in another way (bitsandbytes NF4, say), or not quantised"

Trial = Callable[[nn.Module, Tensor], str | None]


def quantised_layers(base: nn.Module) -> dict[str, nn.Module]:
    """The quantised linear layers of a base by name, and those of which a library replaced the forward pass:
    compressed-tensors rounds what enters a plain layer so.

    Example:
        >>> quantised_layers(nn.Sequential(nn.Linear(3, 5)))
        {}
    """
    return {
        name: layer for name, layer in linear_layers(base) if is_quantised(layer) or "forward" in vars(layer)
    }


def rows_together(layer: nn.Module, x: Tensor) -> str | None:
    """What speaks against a layer's treating rows apart; None: nothing does.

    Layers that are asked member by member anyway (`stack.int8`) are not tried.
    """
    if chooses_by_batch(layer):
        return None
    with torch.no_grad():
        quiet = layer(x)
        beside_loud = layer(torch.cat([x, LOUDER * x]))[: len(x)]
    moved, size = (beside_loud - quiet).float().norm(), quiet.float().norm()
    if not (moved.isfinite() and size.isfinite()) or moved <= APART * size:
        return None
    return (
        f"its result for a row changes with the rows beside it, by {float(moved / size):.1%}, so a member's "
        "would change with its neighbours: quantise the weights only, or the inputs of each token by itself"
    )


def gradient_missing(layer: nn.Module, x: Tensor) -> str | None:
    """What speaks against a layer's passing a gradient to its input; None: nothing does.

    With W a layer's weight, y = W x + b, so a step d of the input changes the result by c = W d, and the
    gradient of <c, y> is W^T c, of which <W^T c, d> = |c|^2.
    """
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(STEP_SEED)).to(x)
    step = noise * x.detach().float().std().to(x)
    leaf = x.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            y = layer(leaf)
        if not y.requires_grad:
            return f"its result carries no gradient{ADVICE}"
        with torch.no_grad():
            change = layer(leaf.detach() + step) - y.detach()
        (gradient,) = torch.autograd.grad(y, leaf, change)
    except FAILURES as error:
        if ran_out_of_memory(error):
            raise
        said = str(error).partition("\n")[0]
        return f"its backward pass fails ({type(error).__name__}: {said}){ADVICE}"
    expected = float(change.double().square().sum())
    got = float((gradient.double() * step.double()).sum())
    if abs(got - expected) <= FOLLOWED * expected:
        return None
    return (
        f"its gradient is not that of what it computes ({got:.3g} where a step gives {expected:.3g}){ADVICE}"
    )


@contextmanager
def trying(base: nn.Module, trial: Trial, refused: str) -> Iterator[None]:
    """Context in which each quantised layer that a pass reaches is tried once, with the input that it gets.

    Where gradients are computed, layers whose input needs none are passed over.

    Raises:
        AdapterError: a trial fails; `refused` says what cannot be done.
    """
    trying_now = False  # the trial calls the layer itself

    def attempt(name: str, layer: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
        nonlocal trying_now
        x = arguments[0] if arguments else None
        if trying_now or not isinstance(x, Tensor) or not isinstance(result, Tensor):
            return  # some routers are linear layers that return more
        if torch.is_grad_enabled() and not x.requires_grad:
            return
        trying_now = True
        try:
            reason = trial(layer, x)
        finally:
            trying_now = False
        if reason is not None:
            raise AdapterError(f"layer {name!r} is a {_kind_of(layer)}, on which {refused}: {reason}")

    with ExitStack() as hooks:
        for name, layer in quantised_layers(base).items():
            hook = layer.register_forward_hook(
                lambda module, arguments, result, name=name: attempt(name, module, arguments, result)
            )
            hooks.callback(hook.remove)
        yield


def _kind_of(layer: nn.Module) -> str:
    """The class of a layer, and that of its weight where the library has one of its own for it."""
    weight = type(getattr(layer, "weight", None)).__name__
    plain = weight in ("NoneType", "Tensor", "Parameter")
    return type(layer).__name__ if plain else f"{type(layer).__name__} with a {weight} for its weight"
