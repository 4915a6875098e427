"""The bodies of answers, for the OpenAPI document; the fields beside the original APIs' are in `Beside`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

from ..jobs import Answered, Outcome
from .bodies import ChoiceQuestion, PredicateQuestion, ScoreQuestion, SystemOneQuestion

CONFIDENCE = "top"  # the calibrated probability of the most probable option; see docs/decisions.md


class Uncertainty(BaseModel):
    """Uncertainty in nats, before calibration: total = aleatoric + epistemic."""

    total: float
    aleatoric: float
    epistemic: float


class Beside(BaseModel):
    """The fields of an answer that are ours."""

    uncertainty: Uncertainty
    members: list[list[float]]
    abstain: bool | None
    prediction_set: list[str | bool | int] | None


def beside(answer: Answered, values: list[Any]) -> dict[str, Any]:
    """The fields of `Beside`; `values` are what the options are called in the answer."""
    inside = answer.inside
    return {
        "uncertainty": answer.uncertainty,
        "members": answer.members,
        "abstain": answer.abstain,
        "prediction_set": None
        if inside is None
        else [value for value, held in zip(values, inside, strict=True) if held],
    }


class ValueProbability(BaseModel):
    """The probability of an option."""

    value: str | bool
    probability: float


class LevelProbability(BaseModel):
    """The probability of a level."""

    value: int
    label: str
    probability: float


class PredicateAnswer(Beside):
    """The answer to a predicate."""

    type: Literal["predicate"]
    name: str | None
    probability: float


class ChoiceAnswer(Beside):
    """The answer to a choice."""

    type: Literal["choice"]
    name: str | None
    choice: str | bool
    confidence: float
    probabilities: list[ValueProbability]


class ScoreAnswer(Beside):
    """The answer to a score."""

    type: Literal["score"]
    name: str | None
    score: float
    confidence: float
    probabilities: list[LevelProbability]


class InputDetails(BaseModel):
    """Details of the tokens that were read."""

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(BaseModel):
    """Details of the tokens that were written: none."""

    reasoning_tokens: int


class DecisionUsage(BaseModel):
    """Tokens of a request, as OpenAI counts them."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class DecisionReply(BaseModel):
    """The answers to the questions of a request, in their order."""

    model: str
    answers: list[PredicateAnswer | ChoiceAnswer | ScoreAnswer]
    usage: DecisionUsage
    calibration: str | None
    confidence_kind: Literal["top"]


class NoulAnswer(Beside):
    """The answer to a noul question."""

    type: Literal["noul"]
    noul: float


class NamedChoiceAnswer(Beside):
    """The answer to a choice of `/v1/systemone`."""

    type: Literal["choice"]
    choice: str
    confidence: float
    probabilities: dict[str, float]


class NamedScoreAnswer(Beside):
    """The answer to a score of `/v1/systemone`."""

    type: Literal["score"]
    score: float
    legend: dict[str, Any]
    confidence: float
    probabilities: dict[str, float]


class SystemOneUsage(BaseModel):
    """Tokens of a request of `/v1/systemone`."""

    input_tokens: int
    output_tokens: int


class SystemOneReply(BaseModel):
    """The answers to the questions of a request, by name."""

    model: str
    answers: dict[str, NoulAnswer | NamedChoiceAnswer | NamedScoreAnswer]
    usage: SystemOneUsage
    calibration: str | None
    confidence_kind: Literal["top"]


def decision_usage(tokens: int) -> dict[str, Any]:
    """The fields of `DecisionUsage` of prompts with so many tokens."""
    return {
        "input_tokens": tokens,
        "output_tokens": 0,
        "total_tokens": tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }


def whole_reply(
    model: str, answers: object, usage: Mapping[str, Any], *, calibration: str | None
) -> dict[str, Any]:
    """The fields of `DecisionReply` or `SystemOneReply`; `calibration` in words."""
    return {
        "model": model,
        "answers": answers,
        "usage": usage,
        "calibration": calibration,
        "confidence_kind": CONFIDENCE,
    }


def reply_to(
    question: PredicateQuestion | ChoiceQuestion | ScoreQuestion, answer: Answered
) -> dict[str, Any]:
    """The answer to a question of `/v1/decisions`."""
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


def named_reply_to(question: SystemOneQuestion, answer: Answered) -> dict[str, Any]:
    """The answer to a question of `/v1/systemone`."""
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


class Usage(BaseModel):
    """Tokens of a request, as vLLM counts them."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int


def usage_of(outcome: Outcome) -> dict[str, int]:
    """The fields of `Usage`."""
    return {"prompt_tokens": outcome.tokens, "total_tokens": outcome.tokens, "completion_tokens": 0}


class ClassData(Beside):
    """The class of one text."""

    index: int
    label: str
    probs: list[float]
    num_classes: int
    labels: list[str]


class ClassifyReply(BaseModel):
    """The classes of the texts of a request, in their order."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[ClassData]
    usage: Usage
    calibration: str | None
    confidence_kind: Literal["top"]


class Reward(BaseModel):
    """The fields of a reward that are ours."""

    std: float
    lower_bound: float
    members: list[float]


class ScoreData(Reward):
    """The reward of one text."""

    index: int
    object: Literal["score"]
    score: float


class ScoreReply(BaseModel):
    """The rewards of the texts of a request, in their order."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[ScoreData]
    usage: Usage


class RerankDocument(BaseModel):
    """A document that was ranked."""

    text: str


class RerankResult(Reward):
    """A document at its rank."""

    index: int
    document: RerankDocument
    relevance_score: float


class RerankReply(BaseModel):
    """The documents of a request, the best first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: Usage


class ModelCard(BaseModel):
    """A model; `parent` is the ensemble of a member."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: str | None
    routes: str
    num_members: int
    calibration: str | None


class ModelList(BaseModel):
    """The models of a server."""

    object: Literal["list"]
    data: list[ModelCard]


class Status(BaseModel):
    """The state of the server."""

    status: str
