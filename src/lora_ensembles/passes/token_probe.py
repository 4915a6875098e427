"""The tokens that a task head reads of a text, found by trial: one token of the last layer, or the padding
behind the text too.

Shapes: B texts, T tokens, K scores of a text, H hidden size.
"""

from __future__ import annotations

import logging
import math
from contextlib import AbstractContextManager
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ..distributed.lockstep import ran_out_of_memory
from .decoder import Places, model_layers
from .hooks import changed
from .probe import Tolerance, token_ids
from .shortcuts import FAILURES
from .texts import Texts, Token, text_scores, text_window, token_places

TRIED_LENGTHS = 14, 9, 6  # tokens of the texts on which padding is tried
_log = logging.getLogger(__name__)


@torch.no_grad()
def token_read(model: nn.Module) -> Token | None:
    """The one token of a text that a model's head reads of the last layer, or None where it reads more, or is
    of another build.

    No table of architectures knows this for every checkpoint, so it is tried: of two short texts all other
    tokens are made NaN behind the last layer, and the scores tell whether they were read; then the last layer
    computes that token only, and the scores must stay.
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
    with _lost(last_layer, token_places(model, texts, token)):
        scores = text_scores(model, texts)
    if not scores.isfinite().all():
        return False
    return _same(text_scores(model, texts, token=token), text_scores(model, texts))


@torch.no_grad()
def padding_is_read(model: nn.Module) -> bool:
    """Whether the score of a text changes with the padding behind it, for all that its mask says: some
    convolutions and hashes do that.

    It is tried on texts of clearly different lengths, each of them padded beside the longest and alone, and
    what counts is the largest change of a score. In half precision the middle one of the changes counts:
    rounding alone moves some scores by 0.03 of the largest, though few by more than 0.01 (random BERT,
    ModernBERT and Llama of 12 to 24 layers in bfloat16).
    """
    texts, tolerance, exact = _texts_of_many_lengths(model), Tolerance.of(model), model.dtype == torch.float32
    lengths = texts.mask.sum(dim=1).tolist()
    padded = [number for number, length in enumerate(lengths) if length < max(lengths)]
    if not padded:
        return False  # a window of a single token
    try:
        together = text_scores(model, texts).float()
        alone = torch.cat([text_scores(model, _alone(texts, number, lengths[number])) for number in padded])
    except FAILURES as error:
        if ran_out_of_memory(error):
            raise
        return False  # such a text is none of its own; what is wrong with it is said where it is read
    off, scale = (together[padded] - alone.float()).abs().amax(dim=1), float(together.abs().max())
    share = (1 if exact else 2) * tolerance.dropped or tolerance.refused
    read = float(off.max() if exact else off.median()) > share * scale
    if read:
        _log.warning(
            "%s reads padding: texts are scored and trained on with others of their length only, so that no "
            "text depends on its neighbours; that takes more passes (in training fewer with a length_window)",
            type(model).__name__,
        )
    return read


def _texts_of_many_lengths(model: Any) -> Texts:
    """Twice as many texts as there are lengths, padded to the longest; each ends in the token that ends a
    text, where there is one.
    """
    window = text_window(model) or max(TRIED_LENGTHS)
    lengths = [
        max(1, length * min(window, TRIED_LENGTHS[0]) // TRIED_LENGTHS[0]) for length in TRIED_LENGTHS
    ] * 2
    pad = getattr(model.config.get_text_config(), "pad_token_id", None) or 0
    ids = token_ids(model, len(lengths) * max(lengths)).view(len(lengths), -1)
    ends = torch.tensor(lengths, device=ids.device)[:, None]
    places, end = torch.arange(ids.shape[1], device=ids.device), getattr(model.config, "eos_token_id", None)
    if isinstance(end, int):
        ids = torch.where(places == ends - 1, end, ids)
    return Texts(ids.where(places < ends, pad), (places < ends).long(), None, torch.arange(len(ids)))


def _alone(texts: Texts, number: int, length: int) -> Texts:
    row = slice(number, number + 1)
    return Texts(texts.ids[row, :length], texts.mask[row, :length], None, texts.numbers[row])


def _same(scores: Tensor, expected: Tensor) -> bool:
    share = (
        1e-4 if expected.dtype == torch.float32 else 2e-2
    )  # another product for the same numbers, and no more
    return torch.allclose(scores, expected, rtol=0, atol=share * max(1e-3, float(expected.abs().max())))


def _two_texts(model: nn.Module) -> Texts:
    config: Any = model.config
    pad = getattr(config.get_text_config(), "pad_token_id", None) or 0
    ids = torch.tensor([number for number in range(9) if number != pad][:8]).repeat(2, 1)
    mask = torch.ones_like(ids)
    ids[1, 4:], mask[1, 5:] = pad, 0  # the second text ends in a padding token of its own
    device = next(model.parameters()).device
    return Texts(ids.to(device), mask.to(device), None, torch.arange(2))


def _lost(layer: nn.Module, places: Places) -> AbstractContextManager[None]:
    """Context in which what a layer makes of all tokens but those at the places is NaN."""

    def lose(hidden: Tensor) -> Tensor:
        left = torch.full_like(hidden, math.nan)
        left[places.rows, places.positions] = hidden[places.rows, places.positions]
        return left

    return changed(layer, after=lose)
