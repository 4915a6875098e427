"""Text that is handed on token by token as it is made, each with its uncertainty.

Shapes: M members, K written tokens, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from .uncertainty import TokenUncertainty, token_uncertainty

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OnToken = Callable[[str, TokenUncertainty], None]


class UncertaintyStreamer(BaseStreamer):
    """Hands on each token of a single row as it is made, with its uncertainty.

    It watches the passes of the model that generates, so close it, or use it as a context manager; not with
    beams or chunked prefill.

    Args:
        model: the causal language model, from `as_causal_lm`, that generates.
        tokenizer: its tokenizer.
        write: called with the text that a token adds and its `TokenUncertainty` (one token, so (M,) and
            scalars).

    Example:
        >>> import torch
        >>> from lora_ensembles import LoraEnsemble, load_base
        >>> base, tokenizer = load_base()
        >>> model, heard = LoraEnsemble(base, tokenizer, num_members=2).as_causal_lm(), []
        >>> with UncertaintyStreamer(model, tokenizer, lambda text, split: heard.append(text)) as streamer:
        ...     ids = torch.tensor([[1, 5, 7]])
        ...     _ = model.generate(ids, max_new_tokens=4, min_new_tokens=4, streamer=streamer)
        >>> len(heard)
        4
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, write: OnToken):
        self._tokenizer: Any = tokenizer
        self._write = write
        self._passes: deque[Tensor] = deque()
        self._ids: list[int] | None = None  # None: the prompt has not come yet
        self._shown = ""
        self._handle = model.register_forward_hook(
            lambda _model, _given, output: self._passes.append(output.member_log_probs[:, 0])
        )

    def __enter__(self) -> UncertaintyStreamer:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching the model."""
        self._handle.remove()
        self._passes.clear()

    def put(self, value: Tensor) -> None:
        """Take the prompt, at first, and then the tokens that one pass gave."""
        if self._ids is None:
            self._ids = []
            return
        tokens = value.flatten()
        member_log_probs = self._passes.popleft()[
            :, : len(tokens)
        ]  # a pass over guessed tokens has a place for each, and some were wrong
        split = token_uncertainty(member_log_probs, tokens.to(member_log_probs.device))
        for place, token in enumerate(tokens.tolist()):
            self._ids.append(token)
            text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
            text = self._shown if text.endswith("�") else text
            self._write(
                text[len(self._shown) :],
                TokenUncertainty(**{name: tensor[..., place] for name, tensor in vars(split).items()}),
            )
            self._shown = text

    def end(self) -> None:
        """The text is finished."""
        self._ids, self._shown = None, ""
