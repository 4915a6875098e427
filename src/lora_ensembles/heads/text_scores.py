"""One pass of a base over texts that its head scores, and which token of a text that head reads.

Shapes: B texts, T tokens, K scores of a text, H hidden size.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..decoder import Places, last_layer_at, model_layers
from ..products import frozen_products
from ..shortcuts import FAILURES
from .table import Texts

Token = Literal["first", "last"]
_log = logging.getLogger(__name__)


def text_scores(model: nn.Module, texts: Texts, *, token: Token | None = None) -> Tensor:
    """What a model's head says of each text: (B, K), K = 1 for a model that scores options.

    With the `token` that `token_read` found, the last layer computes that one only.
    """
    named = {"input_ids": texts.ids, "attention_mask": texts.mask, "token_type_ids": texts.types}
    given = {name: tensor for name, tensor in named.items() if tensor is not None}
    if any(known.__name__.endswith("ForMultipleChoice") for known in type(model).__mro__):
        given = {
            name: tensor[:, None] for name, tensor in given.items()
        }  # questions of one option each: the model folds them
    cache = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    shape = (texts.ids.shape[0], texts.ids.shape[1])
    with (
        nullcontext() if token is None else last_layer_at(model, _places(model, texts, token), shape),
        frozen_products(),
    ):
        logits: Tensor = model(**given, **cache).logits
    return logits


@torch.no_grad()
def token_read(model: nn.Module) -> Token | None:
    """The one token of a text that a model's head reads of the last layer, or None where it reads more, or is of another build.

    No table of architectures knows this for every checkpoint, so it is tried: of two short texts all other tokens are made NaN behind the
    last layer, and the scores tell whether they were read; then the last layer computes that token only, and the scores must stay.
    """
    layers, texts = model_layers(model), _two_texts(model)
    if not layers:
        return None
    tokens: tuple[Token, ...] = get_args(Token)
    try:
        return next((token for token in tokens if _reads_only(model, layers[-1], texts, token)), None)
    except FAILURES:
        return None


def _reads_only(model: nn.Module, last_layer: nn.Module, texts: Texts, token: Token) -> bool:
    with _lost(last_layer, _places(model, texts, token)):
        scores = text_scores(model, texts)
    if not scores.isfinite().all():
        return False
    return _same(text_scores(model, texts, token=token), text_scores(model, texts))


@torch.no_grad()
def padding_is_read(model: nn.Module) -> bool:
    """Whether the score of a text changes with padding behind it, for all that its mask says: some convolutions and hashes do that."""
    padded = _two_texts(model)
    length = 5  # of the second text, as its mask says
    alone = Texts(padded.ids[1:, :length], torch.ones_like(padded.ids[1:, :length]), None, torch.arange(1))
    try:
        read = not _same(text_scores(model, padded)[1:], text_scores(model, alone))
    except FAILURES:
        return False  # such a text is none of its own, as for a model that wants a token at the end
    if read:
        _log.warning(
            "%s reads padding: texts are scored with others of their length only; in training a batch's padding counts, "
            "as it does in PEFT",
            type(model).__name__,
        )
    return read


def _same(scores: Tensor, expected: Tensor) -> bool:
    share = (
        1e-4 if expected.dtype == torch.float32 else 2e-2
    )  # another product for the same numbers, and no more
    return torch.allclose(scores, expected, rtol=0, atol=share * max(1e-3, float(expected.abs().max())))


def last_tokens(model: nn.Module, ids: Tensor) -> Tensor:
    """Where a decoder's head finds the end of each text of ids (B, T), padded on the right: its last token that is no padding token (B,).

    A text that ends in the padding token itself, as chats do where that is the token of the end, ends for the head before it.
    """
    config: Any = model.config
    places = torch.arange(ids.shape[1], device=ids.device)
    return torch.where(ids != config.get_text_config().pad_token_id, places, 0).amax(dim=1)


def _places(model: nn.Module, texts: Texts, token: Token) -> Places:
    rows = torch.arange(len(texts.ids), device=texts.ids.device)
    return Places(rows, torch.zeros_like(rows) if token == "first" else last_tokens(model, texts.ids))


def _two_texts(model: nn.Module) -> Texts:
    config: Any = model.config
    pad = getattr(config.get_text_config(), "pad_token_id", None) or 0
    ids = torch.tensor([number for number in range(9) if number != pad][:8]).repeat(2, 1)
    mask = torch.ones_like(ids)
    ids[1, 4:], mask[1, 5:] = pad, 0  # the second text ends in a padding token of its own
    device = next(model.parameters()).device
    return Texts(ids.to(device), mask.to(device), None, torch.arange(2))


@contextmanager
def _lost(layer: nn.Module, places: Places) -> Iterator[None]:
    """While what a layer makes of all tokens but those at the places is NaN."""

    def lose(_module: nn.Module, _arguments: tuple[Any, ...], result: Any) -> Any:
        hidden = result[0] if isinstance(result, tuple) else result
        left = torch.full_like(hidden, math.nan)
        left[places.rows, places.positions] = hidden[places.rows, places.positions]
        return (left, *result[1:]) if isinstance(result, tuple) else left

    handle = layer.register_forward_hook(lose)
    try:
        yield
    finally:
        handle.remove()
