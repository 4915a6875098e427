"""Quantised linear layers of a base: which they are, and what is tried on them in a short pass.

A plain layer treats rows apart and passes a gradient to what is below it, and is not tried. Some kernels have
a forward pass only, and some layers round their inputs by a scale that they take over all rows of a batch; a
list of classes would soon be out of date.

Shapes: M members, B rows of a member, T tokens, D features.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AdapterError
from .sites import features

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
FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)


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


def quantised_layers(base: nn.Module) -> dict[str, nn.Module]:
    """The quantised linear layers of a base by name, and those of which a library replaced the forward pass:
    compressed-tensors rounds what enters a plain layer so. A layer that lies over ranks has another forward
    pass as well, and is never quantised.

    Example:
        >>> quantised_layers(nn.Sequential(nn.Linear(3, 5)))
        {}
    """
    return {
        name: layer
        for name, layer in linear_layers(base)
        if is_quantised(layer) or ("forward" in vars(layer) and not hasattr(layer.weight, "full_tensor"))
    }


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


def chooses_by_batch(module: nn.Module) -> bool:
    """Whether a layer chooses what it computes in 16 bits over all rows that it sees.

    bitsandbytes' 8-bit layers do where they have a threshold (6 by default in transformers): a feature is an
    outlier for every row where it is one in any. Source: Dettmers et al. 2022 (arXiv:2208.07339), Sec. 3.
    """
    state: Any = getattr(module, "state", None)
    return type(module).__name__ == "Linear8bitLt" and float(getattr(state, "threshold", 0.0) or 0.0) > 0


def per_member(forward: Callable[[Tensor], Tensor], groups: Callable[[], int]) -> Callable[[Tensor], Tensor]:
    """A layer's `forward` that is called once for each of `groups()` members, whose rows (M * B, ..., D) are
    member-major.
    """

    @functools.wraps(forward)
    def run(x: Tensor) -> Tensor:
        count = groups()
        if count == 1 or x.shape[0] % count:
            return forward(x)
        return torch.cat([forward(rows) for rows in x.chunk(count)])

    return run


def rows_together(layer: nn.Module, x: Tensor) -> str | None:
    """The reason why a layer does not treat rows apart; None: it does.

    Layers that are asked member by member anyway are not tried.
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
    """The reason why a layer passes no gradient to its input, or a wrong one; None: it passes the right one.

    With W a layer's weight, y = W x + b, so a step d of the input changes the result by c = W d, and the
    gradient of <u, y> is W^T u, of which <W^T u, d> = <u, c>; here u points along c.
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
            direction = change / change.abs().amax().clamp(min=1e-6)  # float16 would overflow otherwise
        (gradient,) = torch.autograd.grad(y, leaf, direction)
    except torch.OutOfMemoryError:
        raise
    except FAILURES as error:
        said = str(error).partition("\n")[0]
        return f"its backward pass fails ({type(error).__name__}: {said}){ADVICE}"
    expected = float((direction.double() * change.double()).sum())
    got = float((gradient.double() * step.double()).sum())
    if not math.isfinite(expected) or abs(got - expected) <= FOLLOWED * expected:
        return None  # values that are not finite are named by training
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
