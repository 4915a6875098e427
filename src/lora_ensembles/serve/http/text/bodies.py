"""The bodies of requests for text. Fields of OpenAI's that change nothing here are accepted, those that would
change the text but cannot be followed are refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr

from ...completions.params import MOST_TOP
from ..bodies import Body, Content

MOST_CHOICES = 128  # as in OpenAI's API
MOST_STOPS = 16
Nothing = Annotated[float, Field(ge=0, le=0, description="0; nothing else can be followed")]
Ids = Annotated[list[Annotated[StrictInt, Field(ge=0)]], Field(min_length=1)]
Stop = Annotated[StrictStr, Field(min_length=1, max_length=1000)]


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: StrictBool = False
    include_obfuscation: Any = None


class TextRequest(Body):
    """The fields of every request for text."""

    model: StrictStr
    temperature: float | None = Field(
        None, ge=0, le=2, description="0 takes the most probable token; default 1"
    )
    top_p: float | None = Field(None, gt=0, le=1)
    n: StrictInt | None = Field(None, ge=1, le=MOST_CHOICES, description="texts of each prompt")
    seed: StrictInt | None = Field(
        None, ge=-(2**63), lt=2**63 - MOST_CHOICES, description="the text of number i is drawn with seed + i"
    )
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: Nothing | None = None
    presence_penalty: Nothing | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    user: Any = None
    metadata: Any = None
    prompt_cache_key: Any = None
    safety_identifier: Any = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CompletionRequest(TextRequest):
    """A request of `/v1/completions`."""

    prompt: (
        StrictStr
        | Ids
        | Annotated[list[StrictStr], Field(min_length=1)]
        | Annotated[list[Ids], Field(min_length=1)]
    )
    max_tokens: StrictInt | None = Field(None, ge=1, description="default 16")
    logprobs: StrictInt | None = Field(None, ge=0, le=MOST_TOP)
    echo: Literal[False] | None = None
    suffix: None = None
    best_of: StrictInt | None = Field(None, ge=1, le=1)


class ChatMessage(Body):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content
    name: StrictStr | None = None
    tool_call_id: StrictStr | None = None
    refusal: None = None


class TextFormat(Body):
    """The format of an answer: text."""

    type: Literal["text"]


class ChatRequest(TextRequest):
    """A request of `/v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: StrictInt | None = Field(None, ge=1, description="default: as many as there is room for")
    max_completion_tokens: StrictInt | None = Field(None, ge=1)
    logprobs: StrictBool | None = None
    top_logprobs: StrictInt | None = Field(None, ge=0, le=MOST_TOP)
    response_format: TextFormat | None = None
    store: Literal[False] | None = None
