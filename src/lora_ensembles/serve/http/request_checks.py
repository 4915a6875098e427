"""Checks in front of all routes: keys, the size of bodies, and JSON that can be used; pure ASGI."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Mapping
from typing import Any, NoReturn

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...data.formats import half_character
from ..settings import Settings
from .failures import ApiError

OPEN = ("/", "/health", "/ready")  # for probes, which have no key, and the page, which asks for one


class RequestChecks:
    """Middleware that refuses requests without a key, and bodies that are too large or no JSON."""

    def __init__(self, app: ASGIApp, settings: Settings):
        self._app, self._limits = app, settings.limits
        self._keys = [key.encode() for key in settings.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = dict(reversed(scope["headers"]))  # of a name that comes twice the first
            if self._keys and scope["path"] not in OPEN:
                self._check_key(headers)
            inner = await self._read(scope, headers, receive) if scope["method"] == "POST" else receive
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        await self._app(scope, inner, send)

    def _check_key(self, headers: Mapping[bytes, bytes]) -> None:
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        # Every key is compared, in constant time: how long it takes says nothing about any of them.
        same = [hmac.compare_digest(given.strip(), key) for key in self._keys]
        if kind.lower() != b"bearer" or not any(same):
            raise ApiError(
                401,
                "a key of this server is needed: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _read(self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive) -> Receive:
        """The whole body, checked, as a channel that gives it and then what the client does next."""
        said = headers.get(b"content-length", b"")
        if said.isdigit() and int(said[:20]) > self._limits.body_bytes:
            self._refuse_size()
        try:
            async with asyncio.timeout(self._limits.seconds):
                body = await self._whole(receive)
        except TimeoutError:
            raise ApiError(408, "the body did not come in time", code="timeout") from None
        if b"json" in headers.get(b"content-type", b""):
            check_json(body)
        parts = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return parts.pop() if parts else await receive()

        return replay

    async def _whole(self, receive: Receive) -> bytes:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ApiError(400, "the body ended too early", code="incomplete_body")
            body += message.get("body", b"")
            if len(body) > self._limits.body_bytes:
                self._refuse_size()
            if not message.get("more_body", False):
                return bytes(body)

    def _refuse_size(self) -> NoReturn:
        raise ApiError(
            413,
            f"the body is larger than {self._limits.body_bytes} bytes, the most that this server takes",
            code="request_too_large",
        )


def check_json(body: bytes) -> None:
    """Refuse a body that is no JSON, or holds text that cannot be encoded again.

    Raises:
        ApiError: as it says.
    """
    try:
        content = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply", code="invalid_json") from None
    except ValueError as error:  # also of bytes that are no UTF-8, and numbers too long to be read
        raise ApiError(400, f"the body is no JSON: {error}", code="invalid_json") from None
    if rb"\ud" in body.lower() and (half := _half(content)):
        raise ApiError(400, f"the body holds {half}, one half of a character", code="invalid_json")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _half(content: Any) -> str | None:
    """A half of a character anywhere in a content, as its escape."""
    return half_character(json.dumps(content, ensure_ascii=False))


async def disconnected(request: Request) -> None:
    """Wait until the client of a request, whose body has been read, goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
