"""Readers, which ask a base for what a head needs of it: logits of tokens, or scores of texts.

Shapes: B rows, T tokens, V vocabulary, K scores of a text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .texts import Texts, Token, text_scores
from .token_probe import padding_is_read, token_read


class Reader(ABC):
    """A way to ask a base, with what is known of how it answers.

    Attributes:
        causal: whether it answers with logits of the next token.
    """

    causal: bool

    @abstractmethod
    def whole_pass(self, base: nn.Module, ids: Tensor) -> Tensor:
        """The base's answer to ids (B, T) without padding."""

    def token_read(self, base: nn.Module) -> Token | None:
        """The token of a text that the base's head reads, where it is one alone."""
        return None

    def padding_is_read(self, base: nn.Module) -> bool:
        """Whether the base's head reads the padding behind a text."""
        return False


class LogitReader(Reader):
    """Reads logits (B, T, V) of a causal language model."""

    causal = True

    def whole_pass(self, base: nn.Module, ids: Tensor) -> Tensor:
        logits: Tensor = base(input_ids=ids, use_cache=False).logits
        return logits


class TextReader(Reader):
    """Reads scores (B, K) of texts."""

    causal = False

    def whole_pass(self, base: nn.Module, ids: Tensor) -> Tensor:
        return text_scores(base, Texts(ids, torch.ones_like(ids), None, torch.arange(len(ids))))

    def token_read(self, base: nn.Module) -> Token | None:
        return token_read(base)

    def padding_is_read(self, base: nn.Module) -> bool:
        return padding_is_read(base)
