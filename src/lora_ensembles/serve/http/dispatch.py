"""Dispatcher: the way of a request from its route to the engine and back, the same for every route."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from fastapi import Request

from ..catalogue import Catalogue, ServedModel
from ..completions.engines import CompletionEngines
from ..engine import Engine, EngineStopped, QueueFull
from ..jobs import Answered, Job, Outcome, Questions, Scored, Texts
from ..settings import Settings
from .access_log import notes_of
from .failures import GONE, ApiError, as_api_error
from .metrics import Metrics
from .request_checks import disconnected

Result = TypeVar("Result")


@dataclass(frozen=True)
class Dispatcher:
    """The parts of a server that every route needs."""

    catalogue: Catalogue
    engine: Engine
    completions: CompletionEngines
    settings: Settings
    metrics: Metrics

    def model(self, request: Request, name: str, *, task: str, questions: int) -> ServedModel:
        """The model that a request names, for a route that needs one of this task.

        Raises:
            ApiError: no such model, one of another task, or more questions than one request may have.
        """
        notes_of(request.scope).update(model=name[:200], questions=questions)
        try:
            model = self.catalogue[name]
        except KeyError as error:
            raise ApiError(404, str(error.args[0]), param="model", code="model_not_found") from None
        most = self.settings.limits.questions
        if task not in model.tasks:
            raise ApiError(400, f"{name} answers {model.routes}", param="model", code="model_not_supported")
        if questions > most:
            raise ApiError(
                400, f"{questions} questions; a request has at most {most}", code="too_many_questions"
            )
        try:
            if task == "completions":
                self.completions.of(model).check_room(questions)
            else:
                self.engine.check_room()  # before anything is rendered
        except (QueueFull, EngineStopped) as error:
            raise self._failed(name, error) from error
        return model

    def check_length(self, *texts: str) -> None:
        """Refuse texts that are together longer than a prompt may be.

        Raises:
            ApiError: they are.
        """
        length, most = sum(map(len, texts)), self.settings.limits.prompt_chars
        if length > most:
            raise ApiError(
                400, f"a prompt of {length} characters; at most {most} are read", code="prompt_too_long"
            )

    def log_prompts(self, request: Request, prompts: Callable[[], Sequence[str]]) -> None:
        """Put what was asked into the log of requests, where the server was told to."""
        if self.settings.log_prompts:
            notes_of(request.scope)["prompts"] = list(prompts())

    def check_guarantees(self, catalogue: Catalogue) -> None:
        """Make the thresholds and sets of the server's own guarantees for some models.

        Raises:
            DataError: an ensemble's held-out examples are too few for them.
        """
        for model in catalogue:
            if model.member is None:
                self.engine.rules.check(model.ensemble, self.settings.guarantees)

    async def answers(
        self, request: Request, model: ServedModel, work: Questions
    ) -> tuple[list[Answered], Outcome]:
        """The answers to questions, and the outcome that they are of."""
        for example in work.examples:
            self.check_length(example.prompt, *example.options)
        prompts = [example.prompt for example in work.examples]
        outcome = await self._outcome(request, Job(model, work), prompts)
        return cast(list[Answered], outcome.results), outcome

    async def scores(
        self, request: Request, model: ServedModel, texts: Sequence[str]
    ) -> tuple[list[Scored], Outcome]:
        """The rewards of texts, and the outcome that they are of."""
        for text in texts:
            self.check_length(text)
        outcome = await self._outcome(request, Job(model, Texts(tuple(texts))), texts)
        return cast(list[Scored], outcome.results), outcome

    async def _outcome(self, request: Request, job: Job, prompts: Sequence[str]) -> Outcome:
        self.log_prompts(request, lambda: prompts)
        begin = time.perf_counter()
        with self.counting_failures(job.model.name):
            answer = asyncio.wrap_future(self.engine.submit(job))
            outcome = await self.while_wanted(request, answer)
        self.metrics.answered(job, outcome, time.perf_counter() - begin)
        return outcome

    @contextmanager
    def counting_failures(self, name: str) -> Iterator[None]:
        """Turn an error into an answer, and count it for a model."""
        try:
            yield
        except Exception as error:
            raise self._failed(name, error) from error

    def _failed(self, name: str, error: Exception) -> ApiError:
        """An error as an answer, counted."""
        failure = as_api_error(error)
        self.metrics.failed(name, failure.status)
        return failure

    async def while_wanted(self, request: Request, answer: asyncio.Future[Result]) -> Result:
        """An answer, as long as somebody waits for it and the time lasts; else it is cancelled.

        Raises:
            ApiError: the client has gone, or the time is over.
        """
        gone = asyncio.ensure_future(disconnected(request))
        either: set[asyncio.Future[Any]] = {answer, gone}
        try:
            done, _ = await asyncio.wait(
                either,
                timeout=self.settings.limits.seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            gone.cancel()
            if not answer.done():  # then the engine does not compute it, unless it has begun
                answer.cancel()
        if answer in done:
            return answer.result()
        if gone in done:
            raise ApiError(GONE, "the client has gone", code="client_closed_request")
        seconds = self.settings.limits.seconds
        raise ApiError(504, f"no answer within {seconds:g} s", code="timeout")
