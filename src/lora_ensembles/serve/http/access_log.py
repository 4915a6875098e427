"""The log of requests: one line of JSON on standard error for each."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

NOTES = "lora_ensembles.notes"  # of a request's scope: what routes add to its line


class AccessLog:
    """Middleware that writes a line for each request, when it has been answered."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 500  # of a request that ends without an answer
        scope[NOTES] = {}

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            line = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round(1000 * (time.perf_counter() - begin), 2),
                **scope[NOTES],
            }
            with contextlib.suppress(OSError, ValueError):  # a log that cannot be written stops no answer
                print(json.dumps(line), file=sys.stderr, flush=True)


def notes_of(scope: MutableMapping[str, Any]) -> dict[str, Any]:
    """The notes that the line of a request says beside the usual, to be added to."""
    notes: dict[str, Any] = scope.setdefault(NOTES, {})
    return notes
