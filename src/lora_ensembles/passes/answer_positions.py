"""One forward pass of a causal language model with its head at chosen places only.

Shapes: B rows, T tokens, K chosen positions of a row, n chosen places in all, H hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from ..errors import AdapterError
from .branches import Branches, arguments_of
from .compat import CACHE
from .decoder import Places, last_layer_at
from .hooks import changed, one_pass
from .shortcuts import shortcuts_of

LOGIT_BUDGET = 2**27
"""Most logits made at once, where the head runs apart from the body: 512 MiB in float32. What a loss makes of
them (softmax, gradient) comes to a few times as much; a chunk of 1,000 positions of a vocabulary of 128,000
is large enough to fill a device."""


@dataclass(frozen=True)
class Prefix:
    """The keys and values of rows (B, T) that were read, which other rows go on from; made
    by `read_prefix`.
    """

    cache: DynamicCache
    rows: int

    def repeated(self, rows: int) -> DynamicCache:
        """A copy for `rows` rows, a multiple of B: row b goes before rows b * rows / B and those after it."""
        cache = copy.deepcopy(self.cache)  # a pass adds its own keys and values to the cache that it is given
        cache.batch_repeat_interleave(rows // self.rows)
        return cache


def read_prefix(model: nn.Module, input_ids: Tensor) -> Prefix | None:
    """The prefix that rows (B, T) without padding leave for those that begin with them.

    None where the model keeps another kind of cache, or one from which its passes do not go on to the same
    logits.
    """
    if not shortcuts_of(model).prefix:
        return None
    rows = torch.arange(input_ids.shape[0], device=input_ids.device)
    last = Places(rows, torch.full_like(rows, input_ids.shape[1] - 1))
    with _at_places(model, last, input_ids.shape, lambda hidden: last.take(hidden)[None, :1]):
        cache = one_pass(model, {"input_ids": input_ids, "use_cache": True}).get(CACHE)
    if not isinstance(cache, DynamicCache) or {type(layer) for layer in cache.layers} - {
        DynamicLayer,
        DynamicSlidingWindowLayer,
    }:
        return None
    return Prefix(cache, len(rows))


def answer_logits(
    model: nn.Module, input_ids: Tensor, positions: Tensor, *, after: Prefix | None = None
) -> Tensor:
    """Next-token logits (B, K, V) at `positions` (B, K) of right-padded `input_ids` (B, T), which may follow
    a prefix that was read.

    Raises:
        AdapterError: the model does not call the head that it names.
    """
    rows = torch.arange(input_ids.shape[0], device=input_ids.device)[:, None].expand_as(positions)
    places = Places(rows.flatten(), positions.flatten())
    return logits_at(model, input_ids, places, after=after).unflatten(0, positions.shape)


def logits_at(
    model: nn.Module,
    input_ids: Tensor,
    places: Places,
    *,
    extra_hidden: Tensor | None = None,
    after: Prefix | None = None,
    branches: Branches | None = None,
) -> Tensor:
    """Next-token logits (n, V) at some places of right-padded `input_ids` (B, T).

    The model runs through its own `forward`, so whatever it does behind its head (soft caps, scales) is done;
    only what enters the head is narrowed to the places. `extra_hidden` (n, H), from `hidden_at`, goes through
    the head with the others: the result is then (2, n, V).

    No attention mask is passed: a causal model never looks right, where all padding is, and without a mask
    attention takes its fast path; rows with `branches` have one of their own. The key-value cache is off,
    unless the rows follow a prefix: nothing is generated.

    Raises:
        AdapterError: the model does not call the head that it names.
    """

    def narrow(hidden: Tensor) -> Tensor:
        chosen = places.take(hidden)
        return chosen[None] if extra_hidden is None else torch.stack([chosen, extra_hidden])

    more = {} if after is None else {CACHE: after.repeated(input_ids.shape[0])}
    more |= arguments_of(branches, model)
    with _at_places(model, places, input_ids.shape, narrow):
        logits: Tensor = one_pass(
            model, {"input_ids": input_ids, "use_cache": after is not None, **more}
        ).logits
    return logits[0] if extra_hidden is None else logits


def hidden_at(
    model: nn.Module, input_ids: Tensor, places: Places, *, branches: Branches | None = None
) -> Tensor:
    """The last hidden states (n, H) at some places of `input_ids` (B, T): what enters the head.

    Raises:
        AdapterError: the model does not call the head that it names.
    """
    caught: list[Tensor] = []

    def narrow(hidden: Tensor) -> Tensor:
        caught.append(places.take(hidden))
        return caught[-1][
            None, :1
        ]  # the head's own answer is thrown away; one position of it costs next to nothing

    with _at_places(model, places, input_ids.shape, narrow):
        one_pass(model, {"input_ids": input_ids, "use_cache": False, **arguments_of(branches, model)})
    return caught[0]


def head_logits(model: nn.Module, hidden: Tensor) -> Tensor:
    """The logits (..., n, V) of hidden states (..., n, H) from `hidden_at`, by the model's head and all that
    it does behind it.

    The model's own `forward` runs on a single token, and the states take its place at the head's entrance;
    gradients flow into them. Call it where the model computes as the base alone: the token's own way through
    the body means nothing.

    Raises:
        AdapterError: the model does not call the head that it names.
    """
    token = torch.zeros(1, 1, dtype=torch.int64, device=hidden.device)
    with _into_head(model, lambda _: hidden.reshape(1, -1, hidden.shape[-1])):
        logits: Tensor = one_pass(model, {"input_ids": token, "use_cache": False}).logits
    return logits.view(*hidden.shape[:-1], -1)


def places_at_once(model: nn.Module, *, copies: int = 1) -> int:
    """The number of places that may have their logits at once within `LOGIT_BUDGET`, `copies` of them each;
    at least 1.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    config: Any = model.config
    vocabulary = getattr(head, "out_features", None) or config.get_text_config().vocab_size
    return max(1, LOGIT_BUDGET // (copies * int(vocabulary)))


@contextmanager
def _at_places(
    model: nn.Module, places: Places, shape: torch.Size, narrow: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Context in which a pass over a batch (B, T) runs whose head sees `narrow` of the last hidden states,
    which are right at the places only.
    """
    allowed = shortcuts_of(model).narrowed
    last_layer = last_layer_at(model, places, (shape[0], shape[1])) if allowed else nullcontext()
    with _into_head(model, narrow), last_layer:
        yield


@contextmanager
def _into_head(model: nn.Module, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    # At the head's entrance, not at the body's exit: OPT's head is fed by a part of its body, which itself is
    # never called.
    calls = 0

    def entering(hidden: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return function(hidden)

    head = model.get_output_embeddings()  # type: ignore[operator]
    with nullcontext() if head is None else changed(head, before=entering):
        yield
    if calls != 1:
        raise AdapterError(
            f"{type(model).__name__} calls its output head {calls} times in a pass, so logits cannot be "
            "narrowed to the answers; a causal language model whose head is a layer called once is needed"
        )
