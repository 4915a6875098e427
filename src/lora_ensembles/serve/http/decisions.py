"""`/v1/decisions`, in the shape of OpenAI's Decisions API, and `/v1/systemone`, in that of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from ...errors import DataError
from ..asking import case_examples, state_of, text_of
from ..catalogue import ServedModel
from ..jobs import Answered, Outcome, Questions
from ..settings import Guarantees
from .bodies import (
    ChoiceQuestion,
    DecisionRequest,
    PredicateQuestion,
    ScoreQuestion,
    SystemOneQuestion,
    SystemOneRequest,
)
from .dispatch import Dispatcher
from .failures import documented
from .replies import DecisionReply, SystemOneReply, beside

CONFIDENCE = "top"  # the calibrated probability of the most probable option; see docs/decisions.md
ERRORS = documented(400, 401, 404, 408, 413, 429, 500, 503, 504)


def decision_routes(dispatcher: Dispatcher) -> APIRouter:
    """The routes for questions about a state."""
    router = APIRouter(tags=["decisions"])

    @router.post("/v1/decisions", responses={200: {"model": DecisionReply}, **ERRORS})
    async def decisions(request: Request, body: DecisionRequest) -> JSONResponse:
        """Answer predicates, choices and scores about an input."""
        asked = [_in_file(question, number) for number, question in enumerate(body.questions)]
        model, answers, outcome = await _answers(
            dispatcher, request, body, lambda: state_of(body.input), asked
        )
        replies = [_reply(question, answer) for question, answer in zip(body.questions, answers, strict=True)]
        tokens = {"input_tokens": outcome.tokens, "output_tokens": 0, "total_tokens": outcome.tokens}
        details = {
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }
        return JSONResponse(_whole(model, replies, {**tokens, **details}))

    @router.post("/v1/systemone", responses={200: {"model": SystemOneReply}, **ERRORS})
    async def systemone(request: Request, body: SystemOneRequest) -> JSONResponse:
        """Answer noul, choice and score questions about a state."""
        asked = [
            {**question.model_dump(), "id": name, "instructions": _text(question.instructions)}
            for name, question in body.questions.items()
        ]
        model, answers, outcome = await _answers(dispatcher, request, body, lambda: body.state, asked)
        replies = {
            name: _named_reply(question, answer)
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
    examples = case_examples(model, said, questions, case=body.id)
    guarantees = Guarantees(body.risk, body.coverage).over(dispatcher.settings.guarantees)
    answers, outcome = await dispatcher.answers(request, model, Questions(examples, guarantees))
    return model, answers, outcome


def _whole(model: ServedModel, answers: object, usage: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": model.name,
        "answers": answers,
        "usage": usage,
        "calibration": model.calibration,
        "confidence_kind": CONFIDENCE,
    }


def _in_file(question: PredicateQuestion | ChoiceQuestion | ScoreQuestion, number: int) -> dict[str, Any]:
    """A question as a row of a file has it."""
    fields = question.model_dump(exclude_none=True)
    return {**fields, "instructions": text_of(question.instructions, f"questions[{number}].instructions")}


def _text(instructions: object) -> str:
    """Instructions of `/v1/systemone`, which may be any JSON.

    Raises:
        DataError: there are none.
    """
    if instructions is None:
        raise DataError("a question without instructions; say what is asked")
    return instructions if isinstance(instructions, str) else json.dumps(instructions, ensure_ascii=False)


def _reply(question: PredicateQuestion | ChoiceQuestion | ScoreQuestion, answer: Answered) -> dict[str, Any]:
    base = {"type": question.type, "name": question.name}
    if isinstance(question, PredicateQuestion):
        return {**base, "probability": answer.probs[0], **beside(answer, [True, False])}
    confidence = answer.probs[answer.best]
    if isinstance(question, ChoiceQuestion):
        values = [choice.value for choice in question.choices]
        probabilities: list[dict[str, Any]] = [
            {"value": value, "probability": prob} for value, prob in zip(values, answer.probs, strict=True)
        ]
        chosen: dict[str, Any] = {"choice": values[answer.best], "confidence": confidence}
        return {**base, **chosen, "probabilities": probabilities, **beside(answer, values)}
    probabilities = [
        {"value": number, "label": level.label, "probability": prob}
        for number, (level, prob) in enumerate(zip(question.levels, answer.probs, strict=True))
    ]
    scored: dict[str, Any] = {"score": _mean_level(answer), "confidence": confidence}
    numbers = list(range(len(answer.probs)))
    return {**base, **scored, "probabilities": probabilities, **beside(answer, numbers)}


def _named_reply(question: SystemOneQuestion, answer: Answered) -> dict[str, Any]:
    if question.type == "noul":
        return {"type": "noul", "noul": answer.probs[0], **beside(answer, [True, False])}
    criteria = question.criteria or []
    confidence = answer.probs[answer.best]
    if question.type == "choice":
        names = [str(one) for one in criteria]
        chosen: dict[str, Any] = {"type": "choice", "choice": names[answer.best], "confidence": confidence}
    else:
        names = [str(number) for number in range(len(answer.probs))]
        legend = dict(zip(names, criteria, strict=True))
        chosen = {
            "type": "score",
            "score": _mean_level(answer),
            "legend": legend,
            "confidence": confidence,
        }
    probabilities = dict(zip(names, answer.probs, strict=True))
    return {**chosen, "probabilities": probabilities, **beside(answer, names)}


def _mean_level(answer: Answered) -> float:
    """The mean of the levels' numbers, counted from 0."""
    return sum(number * prob for number, prob in enumerate(answer.probs))
