"""The app: routes, errors, checks of requests and their log around one engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.middleware.cors import CORSMiddleware

from ..catalogue import Catalogue, ServedModel
from ..completions.engines import CompletionEngines
from ..engine import Engine
from ..settings import Settings
from .access_log import AccessLog
from .classes import class_routes
from .decisions import decision_routes
from .dispatch import Dispatcher
from .failures import ApiError, answer_with_errors, documented
from .metrics import Metrics
from .page import page_routes
from .reload import Reload
from .replies import ModelCard, ModelList, Status
from .request_checks import RequestChecks
from .rewards import reward_routes
from .text.routes import text_routes

OWNER = "lora-ensembles"


def build_app(
    catalogue: Catalogue,
    engine: Engine,
    completions: CompletionEngines,
    settings: Settings,
    reload: Reload | None = None,
) -> FastAPI:
    """The app that serves the models of a catalogue by engines, which it starts, and stops at its end.

    Raises:
        DataError: an ensemble's held-out examples are too few for the guarantees of the settings.
    """
    metrics = Metrics(engine, completions, catalogue)
    dispatcher = Dispatcher(catalogue, engine, completions, settings, metrics)
    dispatcher.check_guarantees(catalogue)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if reload is not None:
            reload.attach(dispatcher)
        with engine, completions.running():
            yield

    # Pages that show the document would load scripts from another host.
    app = FastAPI(
        title="lora-ensembles",
        version=version("lora-ensembles"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    answer_with_errors(app)
    routers = (
        _models(dispatcher),
        _state(dispatcher),
        decision_routes(dispatcher),
        class_routes(dispatcher),
        reward_routes(dispatcher),
        text_routes(dispatcher),
    )
    for router in (*routers, page_routes()):
        app.include_router(router)
    _without_422(app)
    app.add_middleware(RequestChecks, settings=settings)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )
    app.add_middleware(AccessLog)  # the last one added is the outermost
    return app


def _models(dispatcher: Dispatcher) -> APIRouter:
    router = APIRouter(tags=["models"])

    @router.get("/v1/models", responses={200: {"model": ModelList}, **documented(401, 500)})
    async def models() -> JSONResponse:
        """List the ensembles and their members."""
        return JSONResponse({"object": "list", "data": [_card(model) for model in dispatcher.catalogue]})

    @router.get("/v1/models/{name:path}", responses={200: {"model": ModelCard}, **documented(401, 404, 500)})
    async def model(name: str) -> JSONResponse:
        """Describe one model."""
        try:
            return JSONResponse(_card(dispatcher.catalogue[name]))
        except KeyError as error:
            raise ApiError(404, str(error.args[0]), param="model", code="model_not_found") from None

    return router


def _state(dispatcher: Dispatcher) -> APIRouter:
    router = APIRouter(tags=["server"])

    @router.get("/health", responses={200: {"model": Status}, **documented(500)})
    async def health() -> JSONResponse:
        """Say that the server runs."""
        return JSONResponse({"status": "ok"})

    @router.get("/ready", responses={200: {"model": Status}, **documented(500, 503)})
    async def ready() -> JSONResponse:
        """Say whether requests are taken."""
        if not (dispatcher.engine.alive and dispatcher.completions.alive):
            raise ApiError(503, "no requests are taken", code="not_ready")
        return JSONResponse({"status": "ready"})

    @router.get("/metrics", response_class=PlainTextResponse, responses=documented(401, 500))
    async def metrics() -> PlainTextResponse:
        """Give the metrics as Prometheus reads them."""
        return PlainTextResponse(dispatcher.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router


def _card(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": 0,  # an ensemble does not say when it was made
        "owned_by": OWNER,
        "parent": None if model.member is None else model.name.rpartition("/")[0],
        "routes": model.routes,
        "num_members": model.ensemble.num_members if model.member is None else 1,
        "calibration": model.calibration,
    }


def _without_422(app: FastAPI) -> None:
    """Leave FastAPI's own answer to a wrong field out of the document; here that is 400."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            for operations in made()["paths"].values():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
