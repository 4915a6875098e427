"""One forward pass of a causal language model with its head at chosen positions only.

Shapes: B rows, T tokens, K chosen positions of a row, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def answer_logits(model: nn.Module, input_ids: Tensor, positions: Tensor, *, extra_hidden: Tensor | None = None) -> Tensor:
    """Next-token logits (B, K, V) at `positions` (B, K) of right-padded `input_ids` (B, T).

    The model runs through its own `forward`, so whatever it does behind its head (soft caps, scales) is done; only the hidden states are
    narrowed to the chosen positions in between. `extra_hidden` (B', K, H), hidden states from an earlier pass, go through the head behind the
    others: the result is then (B + B', K, V).

    No attention mask is passed: a causal model never looks right, where all padding is, and without a mask attention takes its fast path.
    The key-value cache is off: nothing is generated.
    """

    def narrow(hidden: Tensor) -> Tensor:
        chosen = take_positions(hidden, positions)
        return chosen if extra_hidden is None else torch.cat([chosen, extra_hidden])

    with _hidden_states_through(model, narrow):
        return model(input_ids=input_ids, use_cache=False).logits


def answer_hidden(model: nn.Module, input_ids: Tensor, positions: Tensor) -> Tensor:
    """The last hidden states (B, K, H) at `positions` (B, K): what the head would see."""
    return take_positions(_body(model)(input_ids=input_ids, use_cache=False)[0], positions)


def take_positions(hidden: Tensor, positions: Tensor) -> Tensor:
    """Rows of (B, T, H) at `positions` (B, K): (B, K, H)."""
    rows = torch.arange(hidden.shape[0], device=hidden.device)[:, None]
    return hidden[rows, positions]


def _body(model: nn.Module) -> nn.Module:
    return getattr(model, model.base_model_prefix)  # type: ignore[arg-type]


@contextmanager
def _hidden_states_through(model: nn.Module, function: Any) -> Iterator[None]:
    def hook(_module: nn.Module, _arguments: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (function(output[0]), *output[1:])
        output.last_hidden_state = function(output.last_hidden_state)
        return output

    handle = _body(model).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
