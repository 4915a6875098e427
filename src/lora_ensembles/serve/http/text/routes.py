"""`/v1/completions` and `/v1/chat/completions`, in the shape of OpenAI's."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from ....data import Message, Prompt
from ...asking import text_of
from ...completions.job import Completion
from ...completions.params import CompletionToken
from ..decisions import ERRORS
from ..dispatch import Dispatcher
from ..failures import as_api_error
from .bodies import ChatRequest, CompletionRequest, TextRequest
from .replies import ChatReply, CompletionReply, chat_logprobs, completion_logprobs, uncertainty_of
from .work import DEFAULT_TOKENS, Given, Wanted, stream, wanted, whole

# The fields of a choice, of tokens whose text begins at an offset.
Choice = Callable[[Sequence[CompletionToken], int], dict[str, Any]]
STREAMED = {"content": {"text/event-stream": {"schema": {"type": "string"}}}}


def text_routes(dispatcher: Dispatcher) -> APIRouter:
    """The routes for text."""
    router = APIRouter(tags=["text"])

    @router.post("/v1/completions", responses={200: {"model": CompletionReply, **STREAMED}, **ERRORS})
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Go on with prompts."""
        asked = wanted(
            dispatcher,
            request,
            body,
            _prompts(body),
            max_tokens=body.max_tokens or DEFAULT_TOKENS,
            top=body.logprobs or 0,
        )
        tokenizer = asked.model.ensemble.tokenizer

        def choice(tokens: Sequence[CompletionToken], offset: int) -> dict[str, Any]:
            logprobs = None
            if body.logprobs is not None:
                logprobs = completion_logprobs(tokens, tokenizer, offset=offset)
            text = "".join(one.released for one in tokens)
            return {"text": text, "logprobs": logprobs, "uncertainty": uncertainty_of(tokens)}

        head = _head("cmpl", "text_completion", body)
        if body.stream:
            return await _streamed(dispatcher, asked, body, head, choice, first=None)
        return JSONResponse(_whole(head, asked, await whole(dispatcher, request, asked), choice))

    @router.post("/v1/chat/completions", responses={200: {"model": ChatReply, **STREAMED}, **ERRORS})
    async def chat(request: Request, body: ChatRequest) -> Response:
        """Answer a chat."""
        asked = wanted(
            dispatcher,
            request,
            body,
            [_chat(body)],
            max_tokens=body.max_completion_tokens or body.max_tokens,
            top=body.top_logprobs or 0 if body.logprobs else 0,
        )
        tokenizer, field = asked.model.ensemble.tokenizer, "delta" if body.stream else "message"

        def choice(tokens: Sequence[CompletionToken], _: int) -> dict[str, Any]:
            text = "".join(one.released for one in tokens)
            said = (
                {"content": text} if body.stream else {"role": "assistant", "content": text, "refusal": None}
            )
            logprobs = chat_logprobs(tokens, tokenizer) if body.logprobs else None
            return {field: said, "logprobs": logprobs, "uncertainty": uncertainty_of(tokens)}

        if body.stream:
            head = _head("chatcmpl", "chat.completion.chunk", body)
            first = {"delta": {"role": "assistant", "content": ""}}
            return await _streamed(dispatcher, asked, body, head, choice, first=first)
        head = _head("chatcmpl", "chat.completion", body)
        return JSONResponse(_whole(head, asked, await whole(dispatcher, request, asked), choice))

    return router


def _prompts(body: CompletionRequest) -> list[Given]:
    given: Any = body.prompt
    several = isinstance(given, list) and not isinstance(given[0], int)
    return list(given) if several else [given]


def _chat(body: ChatRequest) -> Prompt:
    """The messages as a prompt; "developer" is a newer name of "system"."""
    return tuple(
        Message(
            "system" if message.role == "developer" else message.role,
            text_of(message.content, f"messages[{place}].content"),
        )
        for place, message in enumerate(body.messages)
    )


def _head(kind: str, name: str, body: TextRequest) -> dict[str, Any]:
    made = {"id": f"{kind}-{uuid.uuid4().hex}", "object": name, "created": int(time.time())}
    return {**made, "model": body.model}


def _whole(
    head: dict[str, Any], asked: Wanted, texts: Sequence[Completion], choice: Choice
) -> dict[str, Any]:
    choices = [
        {"index": number, **choice(text.tokens, 0), "finish_reason": text.finish_reason}
        for number, text in enumerate(texts)
    ]
    return {**head, "choices": choices, "usage": _usage(asked, texts)}


def _usage(asked: Wanted, texts: Sequence[Completion]) -> dict[str, int]:
    read, written = asked.prompt_tokens, sum(len(text.tokens) for text in texts)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


async def _streamed(
    dispatcher: Dispatcher,
    asked: Wanted,
    body: TextRequest,
    head: dict[str, Any],
    choice: Choice,
    *,
    first: dict[str, Any] | None,
) -> StreamingResponse:
    """The texts as server-sent events; what is wrong before the first token is an answer of its own."""
    events = stream(dispatcher, asked)
    await anext(events)  # the jobs are accepted
    usage = body.stream_options is not None and body.stream_options.include_usage

    def chunk(choices: list[dict[str, Any]], used: dict[str, int] | None = None) -> str:
        beside = {"usage": used} if usage else {}
        return f"data: {json.dumps({**head, 'choices': choices, **beside})}\n\n"

    async def parts() -> AsyncIterator[str]:
        texts: list[Completion] = []
        offsets = [0] * (len(asked.prompts) * asked.number)
        try:
            if first is not None:
                for number in range(len(offsets)):
                    yield chunk([{"index": number, **choice((), 0), **first, "finish_reason": None}])
            async for number, event in events:
                if event is None:
                    continue
                if isinstance(event, Completion):
                    texts.append(event)
                    last = {
                        "index": number,
                        **choice((), offsets[number]),
                        "finish_reason": event.finish_reason,
                    }
                    yield chunk([last])
                else:
                    yield chunk(
                        [{"index": number, **choice([event], offsets[number]), "finish_reason": None}]
                    )
                    offsets[number] += len(event.piece)
            if usage:
                yield chunk([], _usage(asked, texts))
            yield "data: [DONE]\n\n"
        except Exception as error:  # noqa: BLE001 - the answer has begun; its end says what happened
            yield f"data: {json.dumps(as_api_error(error).body)}\n\n"
        finally:
            await events.aclose()

    return StreamingResponse(parts(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
