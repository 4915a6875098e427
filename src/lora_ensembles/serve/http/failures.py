"""Errors in the shape that OpenAI's API gives them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ...errors import LoraEnsemblesError
from ..engine import EngineStopped, QueueFull

GONE = 499  # of a client that closed its connection; nobody reads it, the log has it
TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    503: "server_error",
    504: "timeout_error",
}
MOST_SHOWN = 2000  # characters of a message: it may quote what was asked


class ErrorBody(BaseModel):
    """One error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorBody


DESCRIPTIONS = {
    400: "The body is no JSON, or a field in it is wrong.",
    401: "No key, or a wrong one.",
    404: "No such model.",
    408: "The body did not come in time.",
    413: "The body is larger than the server takes.",
    429: "The queue is full; `Retry-After` says in how many seconds to try again.",
    500: "A fault of the server.",
    503: "The server is shutting down.",
    504: "The answer took longer than the server lets a request take.",
}


def documented(*codes: int) -> dict[int | str, dict[str, Any]]:
    """The answers that are errors, for the OpenAPI document."""
    return {code: {"model": ErrorResponse, "description": DESCRIPTIONS[code]} for code in codes}


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The fields of `ErrorResponse`."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        said = {"message": self.message[:MOST_SHOWN], "type": kind, "param": self.param, "code": self.code}
        return {"error": said}

    def response(self) -> JSONResponse:
        """The answer itself."""
        return JSONResponse(self.body, status_code=self.status, headers=self.headers)


def as_api_error(error: Exception) -> ApiError:
    """An error of the engine or the library as an answer."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        return ApiError(429, str(error), code="queue_full", headers={"Retry-After": str(error.retry_after)})
    if isinstance(error, EngineStopped):
        return ApiError(503, str(error), code="shutting_down")
    if isinstance(error, LoraEnsemblesError):
        return ApiError(400, str(error), code="invalid_value")
    return ApiError(500, "the server met a fault of its own; its log has more", code="internal_error")


def wrong_field(error: RequestValidationError) -> ApiError:
    """The first field that is wrong in a body, as an answer."""
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"] if part != "body") or None
    return ApiError(400, str(first["msg"]), param=param, code="invalid_value")


def answer_with_errors(app: FastAPI) -> None:
    """Let an app give every error in this shape."""

    async def on_validation(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return wrong_field(error).response()

    async def on_http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
        return ApiError(error.status_code, str(error.detail), code=code, headers=error.headers).response()

    async def on_other(_: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()

    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
    for kind in (ApiError, QueueFull, EngineStopped, LoraEnsemblesError, Exception):
        app.add_exception_handler(kind, on_other)
