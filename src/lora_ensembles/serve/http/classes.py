"""`/classify`, in the shape of vLLM's."""

from __future__ import annotations

import time
import uuid
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from ..asking import class_examples
from ..jobs import Answered, Questions
from ..settings import Guarantees
from .bodies import ClassifyRequest
from .decisions import ERRORS
from .dispatch import Dispatcher
from .replies import CONFIDENCE, ClassifyReply, beside, usage_of


def class_routes(dispatcher: Dispatcher) -> APIRouter:
    """The route for texts with classes."""
    router = APIRouter(tags=["classes"])

    @router.post("/classify", responses={200: {"model": ClassifyReply}, **ERRORS})
    async def classify(request: Request, body: ClassifyRequest) -> JSONResponse:
        """Give each text a class."""
        texts = [body.input] if isinstance(body.input, str) else body.input
        model = dispatcher.model(request, body.model, task="classes", questions=len(texts))
        dispatcher.check_length(max(texts, key=len, default=""))
        guarantees = Guarantees(body.risk, body.coverage).over(dispatcher.settings.guarantees)
        examples = class_examples(model.ensemble.info, texts)
        answers, outcome = await dispatcher.answers(request, model, Questions(examples, guarantees))
        labels = [label.strip() for label in examples[0].labels]
        return JSONResponse(
            {
                **listed("classify", body.model),
                "data": [_data(number, answer, labels) for number, answer in enumerate(answers)],
                "usage": usage_of(outcome),
                "calibration": model.calibration,
                "confidence_kind": CONFIDENCE,
            }
        )

    return router


def listed(kind: str, model: str) -> dict[str, Any]:
    """The fields that vLLM's lists begin with."""
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
    }


def _data(number: int, answer: Answered, labels: list[str]) -> dict[str, Any]:
    return {
        "index": number,
        "label": labels[answer.best],
        "probs": answer.probs,
        "num_classes": len(labels),
        "labels": labels,
        **beside(answer, labels),
    }
