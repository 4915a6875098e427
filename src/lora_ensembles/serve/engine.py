"""Engine: one worker thread that owns the models, with a bounded queue in front of it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

from ..errors import LoraEnsemblesError
from .jobs import Job, Outcome
from .rules import Rules
from .scoring import outcomes
from .settings import Batching, Limits

logger = logging.getLogger(__name__)

LONGEST_RETRY = 60  # seconds that a client is told to wait at most


class QueueFull(Exception):
    """A request that found no place in the queue; there may be one after `retry_after` seconds."""

    def __init__(self, retry_after: int):
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


class EngineStopped(Exception):
    """A request that came after the engine was told to stop."""


class Engine:
    """A worker thread that predicts what requests ask, those that wait for models of one ensemble together.

    The models of an ensemble are computed under its lock, which text that it writes takes too. A request
    whose future was cancelled while it waited is dropped before it is computed. The first of those that wait
    decides which ensemble is next; with it go all that wait for the same one, up to `batching.questions`.

    Args:
        batching: how many are predicted together, and how long a request waits for others.
        waiting: the most requests that wait.

    Example:
        >>> with Engine() as engine:
        ...     engine.num_waiting()
        0
    """

    def __init__(self, batching: Batching | None = None, *, waiting: int = Limits.waiting):
        self._batching, self._most = batching or Batching(), waiting
        self.rules = Rules()
        self._queue: deque[Job] = deque()
        self._running: Sequence[Job] = ()
        self._changed = threading.Condition()
        self._stopping = False
        self._rate = 0.0  # questions a second, a running mean
        self._thread = threading.Thread(target=self._work, name="lora-ensembles-engine", daemon=True)

    def __enter__(self) -> Engine:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take no more requests, finish those that wait, and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""
        return self._thread.is_alive() and not self._stopping

    def submit(self, job: Job) -> Future[Outcome]:
        """Put a request into the queue; its future gets the outcome.

        Raises:
            QueueFull: as many wait as may.
            EngineStopped: the engine was told to stop.
        """
        with self._changed:
            self.check_room()
            self._queue.append(job)
            self._changed.notify_all()
        return job.future

    def check_room(self) -> None:
        """Refuse a request now that would be refused when it is ready.

        Raises:
            QueueFull, EngineStopped: as `submit`.
        """
        with self._changed:
            if self._stopping or not self._thread.is_alive():
                raise EngineStopped("the server is shutting down")
            self._forget_cancelled()
            if len(self._queue) >= self._most:
                raise QueueFull(self._retry_after())

    def num_waiting(self, name: str | None = None) -> int:
        """The number of requests that wait, for one model or for any."""
        with self._changed:
            return sum(name in (None, job.model.name) for job in self._queue if not job.future.cancelled())

    def num_running(self, name: str | None = None) -> int:
        """The number of requests that are computed now."""
        return sum(name in (None, job.model.name) for job in self._running)

    def _work(self) -> None:
        while True:
            batch = self._next()
            if batch is None:
                return
            self._running = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if self._running:
                self._compute(self._running)
            self._running = ()

    def _compute(self, jobs: Sequence[Job]) -> None:
        begin = time.monotonic()
        with jobs[0].model.lock:
            made = outcomes(jobs, self.rules, max_rows=self._batching.max_rows)
        seconds = time.monotonic() - begin
        rate = sum(len(job.work) for job in jobs) / max(seconds, 1e-6)
        self._rate = rate if not self._rate else 0.8 * self._rate + 0.2 * rate
        for job, result in zip(jobs, made, strict=True):
            if isinstance(result, Exception):
                if not isinstance(result, LoraEnsemblesError):
                    logger.error("a request to %s failed", job.model.name, exc_info=result)
                job.future.set_exception(result)
            else:
                waited = begin - job.since
                job.future.set_result(Outcome(result.results, result.tokens, waited, seconds))

    def _next(self) -> list[Job] | None:
        """The jobs to compute next; None when the engine was told to stop and nothing waits."""
        with self._changed:
            while True:
                self._forget_cancelled()
                if not self._queue:
                    if self._stopping:
                        return None
                    self._changed.wait()
                    continue
                left = self._queue[0].since + self._batching.wait - time.monotonic()
                if left <= 0 or self._stopping or self._waiting_questions() >= self._batching.questions:
                    return self._taken()
                self._changed.wait(left)

    def _taken(self) -> list[Job]:
        ensemble, left = self._queue[0].model.ensemble, self._batching.questions
        batch: list[Job] = []
        rest: list[Job] = []
        for job in self._queue:
            if job.model.ensemble is ensemble and (not batch or len(job.work) <= left):
                batch.append(job)
                left -= len(job.work)
            else:
                rest.append(job)
        self._queue = deque(rest)
        return batch

    def _waiting_questions(self) -> int:
        ensemble = self._queue[0].model.ensemble
        return sum(len(job.work) for job in self._queue if job.model.ensemble is ensemble)

    def _forget_cancelled(self) -> None:
        if any(job.future.cancelled() for job in self._queue):
            self._queue = deque(job for job in self._queue if not job.future.cancelled())

    def _retry_after(self) -> int:
        questions = sum(len(job.work) for job in self._queue)
        seconds = questions / self._rate if self._rate else 1.0
        return min(LONGEST_RETRY, max(1, math.ceil(seconds)))
