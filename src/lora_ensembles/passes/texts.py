"""Rows of token ids, and one pass of a base over texts that its head scores.

Shapes: B texts, T tokens, K scores of a text.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .decoder import Places, last_layer_at
from .hooks import one_pass
from .shared_prefix import context_window

Token = Literal["first", "last"]


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Right-padded token ids (B, T)."""
    length = max(map(len, rows))
    return torch.tensor([[*row, *[pad_id] * (length - len(row))] for row in rows], device=device)


@dataclass(frozen=True)
class Texts:
    """Rows for one pass: ids (B, T), mask (B, T) of the tokens that are no padding, types (B, T) or None.

    `numbers` (B,), on the CPU, says which of the table's texts they are.
    """

    ids: Tensor
    mask: Tensor
    types: Tensor | None
    numbers: Tensor

    def repeated(self, copies: int) -> Texts:
        """`copies` times the same rows, one after the other."""
        types = None if self.types is None else self.types.repeat(copies, 1)
        return Texts(
            self.ids.repeat(copies, 1), self.mask.repeat(copies, 1), types, self.numbers.repeat(copies)
        )


def text_scores(model: nn.Module, texts: Texts, *, token: Token | None = None) -> Tensor:
    """The scores of a model's head for each text: (B, K), K = 1 for a model that scores options.

    With the `token` that `token_read` found, the last layer computes that one only.
    """
    named = {"input_ids": texts.ids, "attention_mask": texts.mask, "token_type_ids": texts.types}
    inputs: dict[str, Any] = {name: tensor for name, tensor in named.items() if tensor is not None}
    if any(ancestor.__name__.endswith("ForMultipleChoice") for ancestor in type(model).__mro__):
        inputs = {
            name: tensor[:, None] for name, tensor in inputs.items()
        }  # questions of one option each: the model folds them
    cache = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    shape = (texts.ids.shape[0], texts.ids.shape[1])
    with nullcontext() if token is None else last_layer_at(model, token_places(model, texts, token), shape):
        logits: Tensor = one_pass(model, inputs | cache).logits
    return logits


def last_tokens(model: nn.Module, ids: Tensor) -> Tensor:
    """The place where a decoder's head finds the end of each text of ids (B, T), padded on the right: its
    last token that is no padding token (B,).

    A text that ends in the padding token itself, as chats do where that is the token of the end, ends for the
    head before it.
    """
    config: Any = model.config
    places = torch.arange(ids.shape[1], device=ids.device)
    return torch.where(ids != config.get_text_config().pad_token_id, places, 0).amax(dim=1)


def token_places(model: nn.Module, texts: Texts, token: Token) -> Places:
    rows = torch.arange(len(texts.ids), device=texts.ids.device)
    return Places(rows, torch.zeros_like(rows) if token == "first" else last_tokens(model, texts.ids))


def text_window(base: nn.Module) -> int | None:
    """The number of tokens of a text that a base can see: its window, less the positions that RoBERTa and its
    like keep for padding.
    """
    window = context_window(base)
    if window is None:
        return None
    for name, module in base.named_modules():
        if (
            name.endswith("position_embeddings")
            and isinstance(module, nn.Embedding)
            and module.padding_idx is not None
        ):
            return window - module.padding_idx - 1
    return window
