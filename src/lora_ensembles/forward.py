"""One forward pass of a causal language model with its head at chosen positions only.

Shapes: B rows, T tokens, K chosen positions of a row, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .errors import AdapterError


def answer_logits(model: nn.Module, input_ids: Tensor, positions: Tensor, *, extra_hidden: Tensor | None = None) -> Tensor:
    """Next-token logits (B, K, V) at `positions` (B, K) of right-padded `input_ids` (B, T).

    The model runs through its own `forward`, so whatever it does behind its head (soft caps, scales) is done; only what enters the head is
    narrowed to the chosen positions. `extra_hidden` (B', K, H), from `answer_hidden`, goes through the head behind the others: the result
    is then (B + B', K, V).

    No attention mask is passed: a causal model never looks right, where all padding is, and without a mask attention takes its fast path.
    The key-value cache is off: nothing is generated.

    Raises:
        AdapterError: the model does not call the head that it names.
    """

    def narrow(hidden: Tensor) -> Tensor:
        chosen = take_positions(hidden, positions)
        return chosen if extra_hidden is None else torch.cat([chosen, extra_hidden])

    with _into_head(model, narrow):
        return model(input_ids=input_ids, use_cache=False).logits


def answer_hidden(model: nn.Module, input_ids: Tensor, positions: Tensor) -> Tensor:
    """The last hidden states (B, K, H) at `positions` (B, K): what enters the head.

    Raises:
        AdapterError: the model does not call the head that it names.
    """
    caught: list[Tensor] = []

    def narrow(hidden: Tensor) -> Tensor:
        caught.append(take_positions(hidden, positions))
        return caught[-1][:, :1]  # the head's own answer is thrown away; one position of it costs next to nothing

    with _into_head(model, narrow):
        model(input_ids=input_ids, use_cache=False)
    return caught[0]


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or the computer, has no memory left."""
    said = any(words in str(error) for words in ("allocate memory", "bad_alloc"))
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and said)


def take_positions(hidden: Tensor, positions: Tensor) -> Tensor:
    """Rows of (B, T, H) at `positions` (B, K): (B, K, H)."""
    rows = torch.arange(hidden.shape[0], device=hidden.device)[:, None]
    return hidden[rows, positions]


@contextmanager
def _into_head(model: nn.Module, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    # At the head's entrance, not at the body's exit: OPT's head is fed by a part of its body, which itself is never called.
    calls = 0

    def hook(_head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal calls
        calls += 1
        return (function(arguments[0]), *arguments[1:])

    head = model.get_output_embeddings()  # type: ignore[operator]
    handle = head.register_forward_pre_hook(hook) if head is not None else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
    if calls != 1:
        raise AdapterError(
            f"{type(model).__name__} calls its output head {calls} times in a pass, so logits cannot be narrowed to the answers; "
            "a causal language model whose head is a layer called once is needed"
        )
