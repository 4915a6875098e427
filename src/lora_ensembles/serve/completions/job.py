"""A request for one text: what it asks, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..catalogue import ServedModel
from .params import CompletionToken, SamplingParams

FinishReason = Literal["stop", "length"]
OnToken = Callable[[CompletionToken], None]


@dataclass(frozen=True)
class Completion:
    """A text that is finished.

    Attributes:
        text: without special tokens and without the stop text.
        tokens: all tokens that were written, the end-of-sequence token and those of the stop text included.
        finish_reason: "stop" behind an end-of-sequence token or a stop text, "length" at the most tokens.
        waited, computed: seconds before the first token, and from it to the last.
    """

    text: str
    tokens: tuple[CompletionToken, ...]
    finish_reason: FinishReason
    waited: float
    computed: float


class CompletionJob:
    """A text that a request asks for; an engine adds its tokens, and its future gets the `Completion`.

    Args:
        model: that writes.
        prompt: token ids.
        params: how it is written.
        ends: the end-of-sequence tokens.
        on_token: called in the engine's thread with each token as soon as it is chosen.
    """

    def __init__(
        self,
        model: ServedModel,
        prompt: tuple[int, ...],
        params: SamplingParams,
        *,
        ends: frozenset[int],
        on_token: OnToken | None = None,
    ):
        self.model, self.prompt, self.params, self.ends = model, prompt, params, ends
        self.future: Future[Completion] = Future()
        self.generator = None
        if params.temperature > 0:
            self.generator = torch.Generator()
            self.generator.manual_seed(params.seed) if params.seed is not None else self.generator.seed()
        self.tokens: list[CompletionToken] = []
        self._on_token = on_token
        self._text = _GrowingText(model.ensemble.tokenizer, params.stop)
        self._since = time.monotonic()
        self._first: float | None = None

    def __deepcopy__(self, _: dict[int, Any]) -> CompletionJob:
        return self  # transformers' engine copies a request that it puts off

    @property
    def done(self) -> bool:
        """Whether nothing more is to be written."""
        return self.future.done()

    def add(
        self,
        token: int,
        log_prob: float,
        top: tuple[tuple[int, float], ...],
        members: tuple[float, ...],
        uncertainty: dict[str, float],
    ) -> None:
        """Take the next token; a token that ends the text finishes the job."""
        if self.done:  # cancelled since the pass began
            return
        if self._first is None:
            self._first = time.monotonic()
        piece, released, stopped = self._text.add(token)
        reason: FinishReason | None = None
        if stopped or token in self.ends:
            reason = "stop"
        elif len(self.tokens) + 1 >= self.params.max_tokens:
            reason = "length"
        if reason is not None and not stopped:
            released += self._text.rest()
        made = CompletionToken(token, piece, released, log_prob, top, members, uncertainty)
        self.tokens.append(made)
        if self._on_token is not None:
            self._on_token(made)
        if reason is not None:
            now = time.monotonic()
            text = "".join(one.released for one in self.tokens)
            self._finish(
                Completion(text, tuple(self.tokens), reason, self._first - self._since, now - self._first)
            )

    def fail(self, error: Exception) -> None:
        """End the job with an error, unless it has ended."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def _finish(self, completion: Completion) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(completion)


class _GrowingText:
    """The text of tokens that come one by one, up to the first stop text."""

    def __init__(self, tokenizer: Any, stop: tuple[str, ...]):
        self._tokenizer, self._stop = tokenizer, stop
        self._ids: list[int] = []
        self._whole = ""  # up to the last character that is complete
        self._shown = 0

    def add(self, token: int) -> tuple[str, str, bool]:
        """The text that the token adds, the text that may be shown since the last call, and whether a stop
        text came.
        """
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        before, self._whole = self._whole, self._whole if text.endswith("�") else text
        piece = self._whole[len(before) :]
        places = [place for stop in self._stop if (place := self._whole.find(stop, self._shown)) >= 0]
        if places:
            return piece, self._show(min(places)), True
        held = max((_overlap(self._whole[self._shown :], stop) for stop in self._stop), default=0)
        return piece, self._show(len(self._whole) - held), False

    def rest(self) -> str:
        """The rest of the whole text, which is finished."""
        self._whole = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return self._show(len(self._whole))

    def _show(self, end: int) -> str:
        shown, self._shown = self._whole[self._shown : end], max(self._shown, end)
        return shown


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of a text that is a beginning of a stop text, but not the whole."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
