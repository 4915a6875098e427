"""The bodies of requests. Fields of the original APIs that change nothing here are named and passed over; any
other unknown field is an error, since it may be one that was misspelt.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr

from ..asking import text_of

# Beyond, 1 - x is 1 or 0 to a float, or no number of held-out rows could be enough.
Share = Annotated[float, Field(ge=1e-4, le=1 - 1e-4)]
Content = StrictStr | list[dict[str, Any]]


class Body(BaseModel):
    """A body in which every field is known."""

    model_config = ConfigDict(extra="forbid")


class Asking(Body):
    """The fields of every request for answers; `risk` and `coverage` are ours."""

    model: StrictStr
    risk: Share | None = Field(None, description="abstain so that at most this share of the answers is wrong")
    coverage: Share | None = Field(None, description="give sets that hold the right option so often")


class PredicateQuestion(Body):
    """Whether a statement is true."""

    type: Literal["predicate"]
    instructions: Content
    name: StrictStr | None = None


class Choice(Body):
    """One of several options."""

    value: StrictStr | StrictBool
    description: StrictStr | None = None


class ChoiceQuestion(Body):
    """One of several options."""

    type: Literal["choice"]
    instructions: Content
    choices: list[Choice] = Field(min_length=2)
    name: StrictStr | None = None


class Level(Body):
    """A level of a score."""

    label: StrictStr
    description: StrictStr | None = None


class ScoreQuestion(Body):
    """A level of an ordered scale."""

    type: Literal["score"]
    instructions: Content
    levels: list[Level] = Field(min_length=2)
    name: StrictStr | None = None


Question = Annotated[PredicateQuestion | ChoiceQuestion | ScoreQuestion, Field(discriminator="type")]


def as_row(question: PredicateQuestion | ChoiceQuestion | ScoreQuestion, number: int) -> dict[str, Any]:
    """A question as a row of a file has it; `number` is its place in the request.

    Raises:
        DataError: its instructions are no text.
    """
    fields = question.model_dump(exclude_none=True)
    return {**fields, "instructions": text_of(question.instructions, f"questions[{number}].instructions")}


class DecisionRequest(Asking):
    """A request of OpenAI's Decisions API; `input` may also be a JSON object, and `id` names the case."""

    input: StrictStr | dict[str, Any] | list[dict[str, Any]]
    questions: list[Question] = Field(min_length=1)
    id: StrictStr | None = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    safety_identifier: Any = None


class SystemOneQuestion(Body):
    """A question of transformers' decision models."""

    type: Literal["noul", "choice", "score"]
    instructions: Any = None
    criteria: dict[str, Any] | list[Any] | None = None


class SystemOneRequest(Asking):
    """A request of `/v1/systemone`, as transformers and vLLM serve it."""

    state: StrictStr | dict[str, Any] | list[Any]
    questions: dict[str, SystemOneQuestion] = Field(min_length=1)
    id: StrictStr | None = None


class ClassifyRequest(Asking):
    """A request of vLLM's `/classify`, of one text or several."""

    input: StrictStr | Annotated[list[StrictStr], Field(min_length=1)]
    user: Any = None


class RewardRequest(Body):
    """The fields of every request for rewards; `k` is ours."""

    model: StrictStr
    k: float = Field(1.0, ge=0, le=1e6, description="of the lower bound, mean - k * std")
    user: Any = None


class ScoreRequest(RewardRequest):
    """A request of vLLM's `/score`: prompts and answers, under one of its three pairs of names."""

    queries: StrictStr | list[StrictStr] | None = None
    documents: StrictStr | list[StrictStr] | None = None
    text_1: StrictStr | list[StrictStr] | None = None
    text_2: StrictStr | list[StrictStr] | None = None
    data_1: StrictStr | list[StrictStr] | None = None
    data_2: StrictStr | list[StrictStr] | None = None


class Document(Body):
    """A document as an object."""

    text: StrictStr


class RerankRequest(RewardRequest):
    """A request of vLLM's `/rerank`: a prompt, and answers to it that are put in order."""

    query: StrictStr
    documents: list[StrictStr | Document] = Field(min_length=1)
    top_n: int = Field(0, ge=0, le=1_000_000, description="the most results; 0: all")
    rank_by: Literal["mean", "lower_bound"] = "mean"
