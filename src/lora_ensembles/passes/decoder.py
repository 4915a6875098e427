"""The layers of a model, and how to run no more of them than needed: the last where it is read, the lowest
once for all members.

Shapes: B rows, T tokens, n chosen places in all, H hidden size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from ..stack.lora import StackedLoraLinear
from ..stack.onednn import frozen_products
from .hooks import HIDDEN, Arguments, changed, read_at, replaced, rewritten
from .shortcuts import FAILURES

MLP_NAMES = ("mlp", "ffn", "intermediate", "output")  # the last two are the halves of BERT's
ATTENTION_OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj", "out_lin", "output")
# Share of a batch's tokens that are chosen, from which on gathering and scattering them gains nothing.
WORTH_NARROWING = 0.5


@dataclass(frozen=True)
class Places:
    """n places of a batch (B, T), in any order: rows (n,) and positions (n,). Where gradients are taken, no
    two are the same.
    """

    rows: Tensor
    positions: Tensor

    def take(self, values: Tensor) -> Tensor:
        """The values (n, ...) at the places of (B, T, ...)."""
        # Not values[rows, positions]: the gradient of that sorts its indices on a GPU, in some ten kernels.
        return values.flatten(0, 1).index_select(0, self.rows * values.shape[1] + self.positions)

    def put(self, values: Tensor, shape: tuple[int, int]) -> Tensor:
        """(B, T, ...) that holds the values (n, ...) at the places, and zeros elsewhere."""
        empty = values.new_zeros(shape[0] * shape[1], *values.shape[1:])
        return empty.index_copy_(0, self.rows * shape[1] + self.positions, values).unflatten(0, shape)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder's layers in the order in which they run; empty where the model is not built as a plain
    stack of them.
    """
    find: Callable[[], nn.Module] | None = getattr(model, "get_decoder", None)
    decoder = find() if find is not None else None
    if decoder is None:
        return []
    config: Any = model.config
    count = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    lists = [
        list(child)
        for child in decoder.children()
        if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    plain = len(lists) == 1 and len({type(layer) for layer in lists[0]}) == 1
    return lists[0] if plain else []


@contextmanager
def last_layer_at(model: nn.Module, places: Places, shape: tuple[int, int]) -> Iterator[None]:
    """Context in which the last layer computes at some places of a batch (B, T) only: what comes behind its
    attention.

    No later layer reads the others, so the hidden states at the places stay what they were; elsewhere they
    are of no use. Of a model of L layers this saves about 0.7 / L of a pass, forward and backward. A part
    that carries adapters is left whole: its rows are counted.
    """
    layers = model_layers(model)
    if not layers or len(places.rows) > WORTH_NARROWING * shape[0] * shape[1]:
        yield
        return
    with ExitStack() as stack:
        for module in _narrowable(layers[-1]):
            stack.enter_context(_narrowed(module, places, shape))
        yield


def _narrowable(layer: nn.Module) -> list[nn.Module]:
    layers = []
    for name, child in layer.named_children():
        if name in MLP_NAMES:
            layers.append(child)
        else:
            layers += [
                inner for inner_name, inner in child.named_children() if inner_name in ATTENTION_OUTPUTS
            ]
    return [module for module in layers if all(map(_by_position, module.modules()))]


def _by_position(module: nn.Module) -> bool:
    """Whether a module's own weights treat each token vector alike: a matrix, or a norm; no routed expert,
    and no adapter.
    """
    own = list(module.parameters(recurse=False))
    plain = isinstance(module, nn.Linear | Conv1D) or all(parameter.dim() == 1 for parameter in own)
    return plain and not isinstance(module, StackedLoraLinear | nn.ModuleList)


@contextmanager
def _narrowed(module: nn.Module, places: Places, shape: tuple[int, int]) -> Iterator[None]:
    narrowed = False

    def before(arguments: tuple[Any, ...], named: dict[str, Any]) -> Arguments:
        nonlocal narrowed
        narrowed = bool(arguments) and isinstance(arguments[0], Tensor) and arguments[0].shape[:2] == shape
        chosen = (
            places.take(value) if isinstance(value, Tensor) and value.shape[:2] == shape else value
            for value in arguments
        )
        return tuple(chosen), named

    with rewritten(
        module, before=before, after=lambda result: places.put(result, shape) if narrowed else result
    ):
        yield


@contextmanager
def recomputed(model: nn.Module, remembered: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Context in which all layers but the last keep nothing of a pass but their inputs, and compute again in
    the backward pass, with its result.

    `remembered`, called in the pass, says under what conditions it runs; the layer computes again under the
    same.
    """
    around = functools.partial(_recomputing, remembered=remembered)
    with ExitStack() as stack:
        for layer in model_layers(model)[:-1]:
            if "forward" not in vars(layer):  # one that is skipped has nothing to compute again
                stack.enter_context(replaced(layer, around))
        yield


def model_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a decoder or an encoder in the order in which they run; empty where the model is no plain
    stack of them.
    """
    return decoder_layers(model) or _encoder_layers(model)


def _encoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of an encoder in the order in which they run: the one list of as many modules of a kind as
    its config says.
    """
    count = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    lists = [
        list(module)
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    plain = len(lists) == 1 and len({type(layer) for layer in lists[0]}) == 1
    return lists[0] if plain else []


def _recomputing(
    forward: Callable[..., Any], *, remembered: Callable[[], AbstractContextManager[None]]
) -> Callable[..., Any]:
    def conditions() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _both(remembered(), frozen_products())

    @functools.wraps(forward)
    def run(*arguments: Any, **named: Any) -> Any:
        part = functools.partial(forward, **named)
        return checkpoint(
            part, *arguments, use_reentrant=False, preserve_rng_state=False, context_fn=conditions
        )

    return run


@contextmanager
def _both(first: AbstractContextManager[None], second: AbstractContextManager[None]) -> Iterator[None]:
    with first, second:
        yield


@dataclass(frozen=True)
class Trunk:
    """The layers below the first that carries adapters: they compute the same for every member, so rows can
    be read by them once.

    `top` is the first adapted layer. `outputs` is how many things a layer returns, 0 for a bare tensor.
    """

    layers: list[nn.Module]
    top: nn.Module
    outputs: int = 0

    @torch.no_grad()
    def states(self, run: Callable[[], object]) -> Tensor:
        """The hidden states (B, T, H) that enter `top` in the pass that `run` begins; it ends there."""
        return read_at(self.top, run, side="before")

    @contextmanager
    def skipped(self, states: Tensor) -> Iterator[None]:
        """Context in which passes over (B, T) rows take these states (B, T, H) for what the trunk's layers
        would give.
        """

        with ExitStack() as stack:
            stack.enter_context(changed(self.top, before=lambda _: states))
            for layer in self.layers:
                stack.enter_context(replaced(layer, self._passing_on))
            yield

    def _passing_on(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def pass_on(*arguments: Any, **named: Any) -> Any:
            hidden = arguments[0] if arguments else named[HIDDEN]
            return (hidden, *[None] * (self.outputs - 1)) if self.outputs else hidden

        return pass_on


def in_place_of_trunk(
    trunk: Trunk | None, states: Tensor | None, copies: int
) -> AbstractContextManager[None]:
    """Context in which passes over `copies` times the same rows take these states (B, T, H) of each for what
    a trunk would give, if there is one.
    """
    return (
        nullcontext()
        if trunk is None or states is None
        else trunk.skipped(states.repeat(copies, *[1] * (states.dim() - 1)))
    )


@torch.no_grad()
def trunk_below_adapters(model: nn.Module, run: Callable[[Tensor], Tensor]) -> Trunk | None:
    """The trunk of a model whose lowest layers carry no adapters; None where there is none, or where skipping
    it changes what comes out.

    `run` is a pass of the model over ids (1, T), which gives its logits or scores. Whether skipping changes
    them is tried on a few tokens with the adapters off: a model may carry things past its layers in ways that
    no rule foresees.
    """
    layers = model_layers(model)
    adapted = [any(isinstance(module, StackedLoraLinear) for module in layer.modules()) for layer in layers]
    inside = {module for layer in layers for module in layer.modules()}
    outside = any(
        isinstance(module, StackedLoraLinear) and module not in inside for module in model.modules()
    )
    if outside or not any(adapted) or adapted[0]:
        return None
    first = adapted.index(True)
    ids = torch.arange(1, 9, device=next(model.parameters()).device)[None]
    outputs: list[int] = []

    def count(result: Any) -> Any:
        outputs.append(len(result) if isinstance(result, tuple) else 0)
        return result

    try:
        with rewritten(layers[0], after=count):
            expected = run(ids)
        trunk = Trunk(layers[:first], layers[first], outputs[0])
        states = trunk.states(lambda: run(ids))
        if states.shape[:2] != ids.shape:
            return None  # rows are made longer inside, each batch to a length of its own
        run(ids.flip(1))  # what a layer may have left lying about is now that of other tokens
        with trunk.skipped(states):
            logits = run(ids)
    except FAILURES:
        return None
    share = (
        1e-4 if expected.dtype == torch.float32 else 1e-2
    )  # another product for the same numbers, and no more
    return (
        trunk if torch.allclose(logits, expected, rtol=0, atol=share * float(expected.abs().max())) else None
    )
