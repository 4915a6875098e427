"""The bodies of answers that hold text, whole and in chunks; `uncertainty` is ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel

from ...completions.params import CompletionToken
from ..replies import Usage

Reason = Literal["stop", "length"]


class TokenUncertainties(BaseModel):
    """The uncertainty of each token of a text, in nats; `agreement` is the share of members whose most
    probable token it is, `member_logprobs` the log-probability that each member gives it.
    """

    tokens: list[str]
    total: list[float]
    aleatoric: list[float]
    epistemic: list[float]
    agreement: list[float]
    member_logprobs: list[list[float]]


class TopLogprob(BaseModel):
    """A probable token in some place of a chat's answer."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token of a chat's answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """The tokens of a chat's answer."""

    content: list[TokenLogprob]
    refusal: None


class CompletionLogprobs(BaseModel):
    """The tokens of a completion."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class ChatAnswer(BaseModel):
    """The message that a chat is answered by."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    """One answer to a chat."""

    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None
    finish_reason: Reason
    uncertainty: TokenUncertainties


class ChatReply(BaseModel):
    """The answers to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionChoice(BaseModel):
    """One text."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Reason
    uncertainty: TokenUncertainties


class CompletionReply(BaseModel):
    """The texts of a request."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


def uncertainty_of(tokens: Sequence[CompletionToken]) -> dict[str, Any]:
    """The fields of `TokenUncertainties`."""
    parts = {
        name: [one.uncertainty[name] for one in tokens]
        for name in ("total", "aleatoric", "epistemic", "agreement")
    }
    return {
        "tokens": [one.piece for one in tokens],
        **parts,
        "member_logprobs": [list(one.members) for one in tokens],
    }


def chat_logprobs(tokens: Sequence[CompletionToken], tokenizer: Any) -> dict[str, Any]:
    """The fields of `ChatLogprobs`."""
    content = []
    for one in tokens:
        top = [_named(tokenizer.decode([token]), value) for token, value in one.top]
        content.append(
            {**_named(one.piece or tokenizer.decode([one.token]), one.log_prob), "top_logprobs": top}
        )
    return {"content": content, "refusal": None}


def completion_logprobs(
    tokens: Sequence[CompletionToken], tokenizer: Any, *, offset: int = 0
) -> dict[str, Any]:
    """The fields of `CompletionLogprobs`, of tokens whose text begins at `offset`."""
    offsets = []
    for one in tokens:
        offsets.append(offset)
        offset += len(one.piece)
    return {
        "tokens": [one.piece or tokenizer.decode([one.token]) for one in tokens],
        "token_logprobs": [one.log_prob for one in tokens],
        "top_logprobs": [{tokenizer.decode([token]): value for token, value in one.top} for one in tokens],
        "text_offset": offsets,
    }


def _named(token: str, log_prob: float) -> dict[str, Any]:
    return {"token": token, "logprob": log_prob, "bytes": list(token.encode())}
