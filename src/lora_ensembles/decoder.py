"""The layers of a causal language model, and how to run no more of them than the answers need.

Shapes: B rows, T tokens, n chosen places in all, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .lora import StackedLoraLinear

MLP_NAMES = ("mlp", "ffn")
ATTENTION_OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj")
WORTH_NARROWING = 0.5  # share of a batch's tokens that are chosen, from which on gathering and scattering them gains nothing


@dataclass(frozen=True)
class Places:
    """n places of a batch (B, T), in any order: rows (n,) and positions (n,). Where gradients are taken, no two are the same."""

    rows: Tensor
    positions: Tensor

    def take(self, values: Tensor) -> Tensor:
        """The values (n, ...) at the places of (B, T, ...)."""
        # Not values[rows, positions]: the gradient of that sorts its indices on a GPU, in some ten kernels.
        return values.flatten(0, 1).index_select(0, self.rows * values.shape[1] + self.positions)

    def put(self, values: Tensor, shape: tuple[int, int]) -> Tensor:
        """(B, T, ...) that holds the values (n, ...) at the places, and zeros elsewhere."""
        empty = values.new_zeros(shape[0] * shape[1], *values.shape[1:])
        return empty.index_copy(0, self.rows * shape[1] + self.positions, values).unflatten(0, shape)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder's layers in the order in which they run; empty where the model is not built as a plain stack of them."""
    find: Callable[[], nn.Module] | None = getattr(model, "get_decoder", None)
    decoder = find() if find is not None else None
    if decoder is None:
        return []
    config: Any = model.config
    count = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    lists = [list(child) for child in decoder.children() if isinstance(child, nn.ModuleList) and len(child) == count]
    plain = len(lists) == 1 and len({type(layer) for layer in lists[0]}) == 1
    return lists[0] if plain else []


@contextmanager
def last_layer_at(model: nn.Module, places: Places, shape: tuple[int, int]) -> Iterator[None]:
    """While the last layer computes at some places of a batch (B, T) only: what comes behind its attention.

    No later layer reads the others, so the hidden states at the places stay what they were; elsewhere they are of no use. Of a model of
    L layers this saves about 0.7 / L of a pass, forward and backward. A part that carries adapters is left whole: its rows are counted.
    """
    layers = decoder_layers(model)
    if not layers or len(places.rows) > WORTH_NARROWING * shape[0] * shape[1]:
        yield
        return
    with ExitStack() as stack:
        for module in _narrowable(layers[-1]):
            stack.enter_context(_narrowed(module, places, shape))
        yield


def _narrowable(layer: nn.Module) -> list[nn.Module]:
    found = []
    for name, child in layer.named_children():
        if name in MLP_NAMES:
            found.append(child)
        else:
            found += [inner for inner_name, inner in child.named_children() if inner_name in ATTENTION_OUTPUTS]
    return [module for module in found if all(map(_by_position, module.modules()))]


def _by_position(module: nn.Module) -> bool:
    """Whether a module's own weights treat each token vector alike: a matrix, or a norm; no routed expert, and no adapter."""
    own = list(module.parameters(recurse=False))
    plain = isinstance(module, nn.Linear | Conv1D) or all(parameter.dim() == 1 for parameter in own)
    return plain and not isinstance(module, StackedLoraLinear | nn.ModuleList)


@contextmanager
def _narrowed(module: nn.Module, places: Places, shape: tuple[int, int]) -> Iterator[None]:
    narrowed = False

    def before(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal narrowed
        narrowed = bool(arguments) and isinstance(arguments[0], Tensor) and arguments[0].shape[:2] == shape
        return tuple(places.take(one) if isinstance(one, Tensor) and one.shape[:2] == shape else one for one in arguments)

    def after(_module: nn.Module, _arguments: tuple[Any, ...], result: Tensor) -> Tensor:
        return places.put(result, shape) if narrowed else result

    handles = module.register_forward_pre_hook(before), module.register_forward_hook(after)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
