"""`/score` and `/rerank`, in the shape of vLLM's: rewards of prompts with their answers."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from ...errors import DataError
from ..jobs import Scored
from .bodies import Document, RerankRequest, ScoreRequest
from .classes import listed
from .decisions import ERRORS
from .dispatch import Dispatcher
from .replies import RerankReply, ScoreReply, usage_of

PAIRS = (("queries", "documents"), ("text_1", "text_2"), ("data_1", "data_2"))


def reward_routes(dispatcher: Dispatcher) -> APIRouter:
    """The routes for rewards; those that begin with /v1 and /v2 are the same under the names that clients
    use.
    """
    router = APIRouter(tags=["rewards"])

    @router.post("/v1/score", include_in_schema=False)
    @router.post("/score", responses={200: {"model": ScoreReply}, **ERRORS})
    async def score(request: Request, body: ScoreRequest) -> JSONResponse:
        """Score answers to prompts."""
        firsts, seconds = pairs_of(body)
        model = dispatcher.model(request, body.model, task="rewards", questions=len(seconds))
        texts = [first + second for first, second in zip(firsts, seconds, strict=True)]
        scores, outcome = await dispatcher.scores(request, model, texts)
        data = [
            {"index": number, "object": "score", "score": one.mean, **_beside(one, body.k)}
            for number, one in enumerate(scores)
        ]
        return JSONResponse({**listed("score", body.model), "data": data, "usage": usage_of(outcome)})

    @router.post("/v2/rerank", include_in_schema=False)
    @router.post("/v1/rerank", include_in_schema=False)
    @router.post("/rerank", responses={200: {"model": RerankReply}, **ERRORS})
    async def rerank(request: Request, body: RerankRequest) -> JSONResponse:
        """Put answers to a prompt in the order of their rewards."""
        documents = [one.text if isinstance(one, Document) else one for one in body.documents]
        model = dispatcher.model(request, body.model, task="rewards", questions=len(documents))
        scores, outcome = await dispatcher.scores(request, model, [body.query + text for text in documents])
        results = [
            {
                "index": number,
                "document": {"text": documents[number]},
                "relevance_score": _rank(one, body),
                **_beside(one, body.k),
            }
            for number, one in enumerate(scores)
        ]
        results.sort(key=lambda result: -float(str(result["relevance_score"])))
        return JSONResponse(
            {
                "id": f"rerank-{uuid.uuid4().hex}",
                "model": body.model,
                "results": results[: body.top_n or None],
                "usage": usage_of(outcome),
            }
        )

    return router


def pairs_of(body: ScoreRequest) -> tuple[Sequence[str], Sequence[str]]:
    """Prompts and answers of a request, as many of each; one prompt may stand before several answers.

    Raises:
        DataError: other than one pair of names, or numbers that do not fit each other.
    """
    given = [pair for pair in PAIRS if any(getattr(body, name) is not None for name in pair)]
    if len(given) != 1 or any(getattr(body, name) is None for name in given[0]):
        names = ", ".join(" and ".join(pair) for pair in PAIRS)
        raise DataError(f"give prompts and answers by one of these pairs of names: {names}")
    firsts, seconds = (_listed(getattr(body, name)) for name in given[0])
    if not firsts or not seconds:
        raise DataError(f"{given[0][0]} and {given[0][1]}: give at least one text each")
    if len(firsts) not in (1, len(seconds)):
        raise DataError(f"{len(firsts)} {given[0][0]} for {len(seconds)} {given[0][1]}; give one, or as many")
    return (firsts if len(firsts) == len(seconds) else firsts * len(seconds)), seconds


def _listed(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


def _beside(score: Scored, k: float) -> dict[str, Any]:
    return {"std": score.std, "lower_bound": score.lower_bound(k), "members": score.members}


def _rank(score: Scored, body: RerankRequest) -> float:
    return score.mean if body.rank_by == "mean" else score.lower_bound(body.k)
