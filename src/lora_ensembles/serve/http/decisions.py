"""`/v1/decisions`, in the shape of OpenAI's Decisions API, and `/v1/systemone`, in that of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from ...errors import DataError
from ..asking import case_examples, state_of
from ..catalogue import ServedModel
from ..jobs import Answered, Outcome, Questions
from ..settings import Guarantees
from .bodies import DecisionRequest, SystemOneRequest, as_row
from .dispatch import Dispatcher
from .failures import documented
from .replies import (
    DecisionReply,
    SystemOneReply,
    decision_usage,
    named_reply_to,
    reply_to,
    whole_reply,
)

ERRORS = documented(400, 401, 404, 408, 413, 429, 500, 503, 504)


def decision_routes(dispatcher: Dispatcher) -> APIRouter:
    """The routes for questions about a state."""
    router = APIRouter(tags=["decisions"])

    @router.post("/v1/decisions", responses={200: {"model": DecisionReply}, **ERRORS})
    async def decisions(request: Request, body: DecisionRequest) -> JSONResponse:
        """Answer predicates, choices and scores about an input."""
        asked = [as_row(question, number) for number, question in enumerate(body.questions)]
        model, answers, outcome = await _answers(
            dispatcher, request, body, lambda: state_of(body.input), asked
        )
        replies = [
            reply_to(question, answer) for question, answer in zip(body.questions, answers, strict=True)
        ]
        return JSONResponse(_whole(model, replies, decision_usage(outcome.tokens)))

    @router.post("/v1/systemone", responses={200: {"model": SystemOneReply}, **ERRORS})
    async def systemone(request: Request, body: SystemOneRequest) -> JSONResponse:
        """Answer noul, choice and score questions about a state."""
        asked = [
            {**question.model_dump(), "id": name, "instructions": _text(question.instructions)}
            for name, question in body.questions.items()
        ]
        model, answers, outcome = await _answers(dispatcher, request, body, lambda: body.state, asked)
        replies = {
            name: named_reply_to(question, answer)
            for (name, question), answer in zip(body.questions.items(), answers, strict=True)
        }
        usage = {"input_tokens": outcome.tokens, "output_tokens": 0}
        return JSONResponse(_whole(model, replies, usage))

    return router


async def _answers(
    dispatcher: Dispatcher,
    request: Request,
    body: DecisionRequest | SystemOneRequest,
    state: Callable[[], object],
    questions: Sequence[Mapping[str, Any]],
) -> tuple[ServedModel, list[Answered], Outcome]:
    """The answers to questions that are written as in a file, and the model that gave them."""
    model = dispatcher.model(request, body.model, task="decisions", questions=len(questions))
    said = state()
    dispatcher.check_length(said if isinstance(said, str) else json.dumps(said, ensure_ascii=False))
    examples = case_examples(model.ensemble.info, said, questions, case=body.id)
    guarantees = Guarantees(body.risk, body.coverage).over(dispatcher.settings.guarantees)
    answers, outcome = await dispatcher.answers(request, model, Questions(examples, guarantees))
    return model, answers, outcome


def _whole(model: ServedModel, answers: object, usage: Mapping[str, Any]) -> dict[str, Any]:
    return whole_reply(model.name, answers, usage, calibration=model.calibration)


def _text(instructions: object) -> str:
    """Instructions of `/v1/systemone`, which may be any JSON.

    Raises:
        DataError: there are none.
    """
    if instructions is None:
        raise DataError("a question without instructions; say what is asked")
    return instructions if isinstance(instructions, str) else json.dumps(instructions, ensure_ascii=False)
