"""From a request for text to its jobs, and from these to whole texts or a stream of tokens."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request

from ....data import Prompt, encode_prompts
from ....errors import DataError
from ....generation.decoding import end_ids
from ...catalogue import ServedModel
from ...completions.job import Completion, CompletionJob
from ...completions.params import CompletionToken, SamplingParams
from ..dispatch import Dispatcher
from ..failures import ApiError
from .bodies import TextRequest

DEFAULT_TOKENS = 16  # of a completion without max_tokens, as in OpenAI's API
Given = Prompt | list[int]  # a text, a chat, or token ids


@dataclass(frozen=True)
class Wanted:
    """A request for text: prompts as token ids, the number of texts of each, and their settings.

    Attributes:
        params: the seed is that of the first text.
        number: texts of each prompt.
    """

    model: ServedModel
    prompts: tuple[tuple[int, ...], ...]
    params: SamplingParams
    number: int

    @property
    def prompt_tokens(self) -> int:
        """The tokens of all prompts."""
        return sum(map(len, self.prompts))

    def jobs(self, listeners: Sequence[Any] | None = None) -> list[CompletionJob]:
        """The jobs, those of a prompt after one another; `listeners` hear of their tokens."""
        base, tokenizer = self.model.ensemble.base, self.model.ensemble.tokenizer
        ends = end_ids(getattr(base.generation_config, "eos_token_id", None), tokenizer.eos_token_id)
        params, made = self.params, []
        for number in range(len(self.prompts) * self.number):
            prompt, copy = divmod(number, self.number)
            seed = None if params.seed is None else params.seed + copy
            own = dataclasses.replace(params, seed=seed)
            on_token = listeners[number] if listeners else None
            made.append(CompletionJob(self.model, self.prompts[prompt], own, ends=ends, on_token=on_token))
        return made


def wanted(
    dispatcher: Dispatcher,
    request: Request,
    body: TextRequest,
    prompts: Sequence[Given],
    *,
    max_tokens: int | None,
    top: int,
) -> Wanted:
    """Read a request's prompts, and refuse what cannot be written.

    Raises:
        ApiError: an unknown model, one that writes no text, too many texts, or no room for the tokens.
    """
    number = body.n or 1
    model = dispatcher.model(request, body.model, task="completions", questions=len(prompts) * number)
    limits, longest = dispatcher.settings.limits, dispatcher.completions.of(model).longest
    if max_tokens is not None and max_tokens > limits.new_tokens:
        raise ApiError(
            400,
            f"max_tokens={max_tokens}; this server writes at most {limits.new_tokens}",
            param="max_tokens",
        )
    ids = [_encoded(dispatcher, model, prompt) for prompt in prompts]
    tokenizer: Any = model.ensemble.tokenizer
    dispatcher.log_prompts(request, lambda: [tokenizer.decode(own) for own in ids])
    room = limits.new_tokens if longest is None else longest - max(map(len, ids))
    if room < (max_tokens or 1):
        raise ApiError(
            400,
            f"a prompt of {max(map(len, ids))} tokens with {max_tokens or 1} new ones; "
            f"this model reads at most {longest}",
            code="context_length_exceeded",
        )
    temperature = 1.0 if body.temperature is None else body.temperature
    params = SamplingParams(
        max_tokens or min(limits.new_tokens, room),
        temperature,
        1.0 if body.top_p is None else body.top_p,
        body.seed,
        body.stops,
        top,
    )
    return Wanted(model, tuple(ids), params, number)


def _encoded(dispatcher: Dispatcher, model: ServedModel, prompt: Given) -> tuple[int, ...]:
    if isinstance(prompt, list):
        usable = model.ensemble.base.config.get_text_config().vocab_size
        if max(prompt) >= usable:
            raise DataError(f"a prompt holds token {max(prompt)}; the model has {usable}, counted from 0")
        return tuple(prompt)
    texts = [prompt] if isinstance(prompt, str) else [message.content for message in prompt]
    dispatcher.check_length(*texts)
    return tuple(encode_prompts([prompt], model.ensemble.tokenizer)[0])


async def whole(dispatcher: Dispatcher, request: Request, asked: Wanted) -> list[Completion]:
    """The finished texts of a request."""
    jobs, begin = asked.jobs(), time.perf_counter()
    waiting = [asyncio.wrap_future(job.future) for job in jobs]
    with dispatcher.counting_failures(asked.model.name):
        try:
            _submit(dispatcher, asked.model, jobs)
            made = await dispatcher.while_wanted(request, asyncio.gather(*waiting))
        finally:
            for job in jobs:
                job.future.cancel()
    dispatcher.metrics.wrote(asked.model.name, made, asked.prompt_tokens, time.perf_counter() - begin)
    return made


async def stream(
    dispatcher: Dispatcher, asked: Wanted
) -> AsyncGenerator[tuple[int, CompletionToken | Completion | None], None]:
    """Begin to write, and give the number of a text with each of its tokens, and at its end with the whole.

    The first step of the iterator gives nothing: when it has been made, the jobs were accepted.
    """
    loop, events = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Any]]()
    count, begin = len(asked.prompts) * asked.number, time.perf_counter()

    def put(number: int, event: Any) -> None:
        loop.call_soon_threadsafe(events.put_nowait, (number, event))

    jobs = asked.jobs([partial(put, number) for number in range(count)])
    for number, job in enumerate(jobs):
        job.future.add_done_callback(partial(put, number))
    made: list[Completion] = []
    seconds = dispatcher.settings.limits.seconds
    with dispatcher.counting_failures(asked.model.name):
        try:
            _submit(dispatcher, asked.model, jobs)
            yield -1, None
            while len(made) < count:
                try:
                    number, event = await asyncio.wait_for(events.get(), seconds)
                except TimeoutError:
                    raise ApiError(504, f"no token within {seconds:g} s", code="timeout") from None
                if isinstance(event, CompletionToken):
                    yield number, event
                else:
                    made.append(event.result())
                    yield number, made[-1]
        finally:
            for job in jobs:
                job.future.cancel()
    dispatcher.metrics.wrote(asked.model.name, made, asked.prompt_tokens, time.perf_counter() - begin)


def _submit(dispatcher: Dispatcher, model: ServedModel, jobs: Sequence[CompletionJob]) -> None:
    engine = dispatcher.completions.of(model)
    engine.check_room(len(jobs))
    for job in jobs:
        engine.submit(job)
