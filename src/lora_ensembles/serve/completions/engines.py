"""The engine that writes the texts of each ensemble: continuous batching where it was tried and is right."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from ...errors import LoraEnsemblesError
from ...generation.text import score_texts
from ..catalogue import Catalogue, ServedModel
from . import continuous
from .continuous import ContinuousEngine, NotContinuous
from .engine import CompletionEngine
from .job import Completion, CompletionJob
from .params import SamplingParams
from .static import StaticEngine

logger = logging.getLogger(__name__)

TRIED = (5, 9)  # tokens of the prompts that are tried
TRIED_TOKENS = 3  # written to each
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # nats; of others:
COARSE_TOLERANCE = 0.1
PATIENCE = 120.0  # seconds for the trial


class CompletionEngines:
    """The engines of a server's ensembles that can write text.

    Args:
        catalogue: the models.
        most: texts of an ensemble that may be open, written or waiting.
        cached_tokens: the tokens that the cache of each ensemble holds; None: by the memory that is free.
    """

    def __init__(self, catalogue: Catalogue, *, most: int, cached_tokens: int | None = None):
        self._most, self._cached_tokens = most, cached_tokens
        self._engines = self._made(catalogue)

    def _made(self, catalogue: Catalogue) -> dict[int, CompletionEngine]:
        return {
            id(model.ensemble): make_engine(model, most=self._most, cached_tokens=self._cached_tokens)
            for model in catalogue
            if model.member is None and "completions" in model.tasks
        }

    def successors(self, catalogue: Catalogue) -> CompletionEngines:
        """Engines of other models, with the same settings."""
        return CompletionEngines(catalogue, most=self._most, cached_tokens=self._cached_tokens)

    def become(self, other: CompletionEngines) -> CompletionEngines:
        """Take another's engines, which were started, in place of these, which are given back."""
        before = copy.copy(self)
        self._engines = other._engines
        return before

    def start(self) -> None:
        """Take jobs from now on."""
        for engine in self:
            engine.start()

    def stop(self) -> None:
        """Take no more jobs, and finish those that are open."""
        for engine in self:
            engine.stop()

    def __iter__(self) -> Iterator[CompletionEngine]:
        return iter(self._engines.values())

    def of(self, model: ServedModel) -> CompletionEngine:
        """The engine of a model's ensemble."""
        return self._engines[id(model.ensemble)]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Take jobs; at the end finish those that are open."""
        self.start()
        try:
            yield
        finally:
            self.stop()

    @property
    def alive(self) -> bool:
        """Whether all take jobs."""
        return all(engine.alive for engine in self)

    def num_running(self, name: str) -> int:
        """The number of texts that have begun, for one model."""
        return sum(engine.num_running(name) for engine in self)

    def num_waiting(self, name: str) -> int:
        """The number of texts that wait for their first token, for one model."""
        return sum(engine.num_waiting(name) for engine in self)


def make_engine(model: ServedModel, *, most: int, cached_tokens: int | None = None) -> CompletionEngine:
    """An engine of continuous batching if the ensemble's base can be served so, which is tried; else of
    static batches, which says the reason.
    """
    try:
        check(model)
        return ContinuousEngine(model, most=most, cached_tokens=cached_tokens)
    except NotContinuous as error:
        logger.warning("%s: texts are written in static batches: %s", model.name, error)
        return StaticEngine(model, most=most, reason=str(error))


def check(model: ServedModel) -> None:
    """Write to two prompts by continuous batching, and hold each token against a pass over the finished text.

    Raises:
        NotContinuous: it fails, or its probabilities differ.
    """
    ensemble = model.ensemble
    usable = min(ensemble.base.config.get_text_config().vocab_size, len(ensemble.tokenizer))
    params = SamplingParams(TRIED_TOKENS, temperature=0.0)
    jobs = [
        CompletionJob(
            model, tuple((7 * place + size) % usable for place in range(size)), params, ends=frozenset()
        )
        for size in TRIED
    ]
    try:
        with _quiet():
            made = _written(model, jobs)
    except LoraEnsemblesError:
        raise
    except Exception as error:
        raise NotContinuous(f"it was tried and failed: {str(error) or type(error).__name__}") from error
    with model.lock:
        texts = [
            (job.prompt, [one.token for one in text.tokens]) for job, text in zip(jobs, made, strict=True)
        ]
        expected = score_texts(ensemble, texts)
    largest = max(
        (torch.tensor([one.members for one in text.tokens]).T - split.member_log_probs).abs().max().item()
        for text, split in zip(made, expected, strict=True)
    )
    if not largest <= TOLERANCE.get(ensemble.base.dtype, COARSE_TOLERANCE):
        raise NotContinuous(f"it was tried, and log-probabilities differ by {largest:.3g}")


def _written(model: ServedModel, jobs: Sequence[CompletionJob]) -> list[Completion]:
    engine = ContinuousEngine(model, most=len(jobs), cached_tokens=sum(TRIED) + 64)
    engine.start()
    try:
        for job in jobs:
            engine.submit(job)
        return [job.future.result(PATIENCE) for job in jobs]
    finally:
        engine.stop()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what engines log of a failure to themselves; the reason is said by who asks for the trial."""
    loggers = [logging.getLogger(name) for name in ("ContinuousBatchingLogger", continuous.__name__)]
    before = [one.disabled for one in loggers]
    for one in loggers:
        one.disabled = True
    try:
        yield
    finally:
        for one, disabled in zip(loggers, before, strict=True):
            one.disabled = disabled
