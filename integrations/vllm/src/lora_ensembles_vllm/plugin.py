"""The plugin as vLLM calls it: the route, and what it is answered with."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.datastructures import State

from lora_ensembles.embedded import resolve_tokenizer
from lora_ensembles.errors import LoraEnsemblesError
from lora_ensembles.serve.http.bodies import DecisionRequest
from lora_ensembles.serve.http.failures import GONE, ApiError, as_api_error, documented, wrong_field
from lora_ensembles.serve.http.replies import DecisionReply
from lora_ensembles.serve.http.request_checks import check_json, disconnected

from .decisions import Decisions
from .engine import Engine, add_members, check_engine
from .ensembles import named, read_ensembles
from .settings import read_settings

PATH = "/v1/decisions"


class DecisionsPlugin:
    """Answers `POST /v1/decisions` with ensembles, by one `LoRARequest` for each member.

    It has the form of `vllm.plugins.endpoint_plugins.interface.EndpointPlugin`: vLLM calls `attach_router`
    when it builds its app, and `init_state` when the engine runs.
    """

    name = "lora_ensembles"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Put the route into an app; vLLM lets it take the place of its own."""
        app.router.add_api_route(
            PATH,
            decisions,
            methods=["POST"],
            tags=["decisions"],
            responses={200: {"model": DecisionReply}, **documented(400, 404, 500, 503)},
            route_class_override=ErrorsOfOpenAI,
        )

    async def init_state(self, engine_client: Engine | None, state: State, args: Namespace) -> None:
        """Read the ensembles of the settings, and load their members into the engine.

        Raises:
            ConfigError: no ensemble is named, or vLLM was started without what they need.
            LoraEnsemblesError: a folder that cannot be served.
        """
        if engine_client is None:  # a server that only renders prompts
            return
        config = engine_client.model_config
        settings = read_settings(engine_client.vllm_config.additional_config)
        # Without a network vLLM puts the folder of its cache in place of a model's name.
        models = [getattr(args, "model", None) or config.model, config.model]
        ensembles = await asyncio.to_thread(read_ensembles, settings, models=models)
        check_engine(engine_client, ensembles)
        tokenizer = await asyncio.to_thread(
            resolve_tokenizer, config.tokenizer, revision=config.tokenizer_revision
        )
        requests = await add_members(engine_client, ensembles)
        made = Decisions(engine_client, tokenizer, named(ensembles), requests)
        await asyncio.to_thread(made.check)
        state.lora_ensembles = made


class ErrorsOfOpenAI(APIRoute):
    """A route that gives mistakes of requests in OpenAI's shape; errors of the engine are vLLM's to give."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def checked(request: Request) -> Response:
            try:
                check_json(await request.body())
                return await handler(request)
            except RequestValidationError as error:
                return wrong_field(error).response()
            except (ApiError, LoraEnsemblesError) as error:
                return as_api_error(error).response()

        return checked


async def decisions(request: Request, body: DecisionRequest) -> JSONResponse:
    """Answer predicates, choices and scores about an input."""
    made: Decisions | None = getattr(request.app.state, "lora_ensembles", None)
    if made is None:
        raise ApiError(503, "this server has no engine to ask", code="not_ready")
    return JSONResponse(await _while_wanted(request, made.reply(body)))


async def _while_wanted(request: Request, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """A reply, as long as somebody waits for it; else its reads are ended.

    Raises:
        ApiError: the client has gone.
    """
    reply, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected(request))
    try:
        await asyncio.wait((reply, gone), return_when=asyncio.FIRST_COMPLETED)
        if reply.done():
            return reply.result()
        raise ApiError(GONE, "the client has gone", code="client_closed_request")
    finally:
        reply.cancel()
        gone.cancel()
