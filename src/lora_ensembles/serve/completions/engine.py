"""The common part of engines that write text: the open jobs, their number, and their end."""

from __future__ import annotations

import itertools
import math
import threading
import time
from abc import ABC, abstractmethod
from collections import deque

from ..catalogue import ServedModel
from ..engine import LONGEST_RETRY, EngineStopped, QueueFull
from .job import CompletionJob

COUNTED = 32  # texts that the time of waiting is reckoned from


class CompletionEngine(ABC):
    """Writes the texts of many jobs together, for one ensemble and its members.

    Args:
        model: of the ensemble; its members are others.
        most: jobs that may be open, written or waiting.

    Attributes:
        longest: the most tokens of a prompt with its text; None: no limit.
    """

    longest: int | None = None

    def __init__(self, model: ServedModel, *, most: int):
        self.model, self._most = model, most
        self._open: dict[str, CompletionJob] = {}
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._stopping = False
        self._ends: deque[float] = deque(maxlen=COUNTED)  # when the last texts ended

    @property
    @abstractmethod
    def batching(self) -> str:
        """The way in which texts are written together, in words."""

    @abstractmethod
    def start(self) -> None:
        """Take jobs from now on."""

    @abstractmethod
    def _finish(self) -> None:
        """Write what is open, and end."""

    @abstractmethod
    def _take(self, key: str, job: CompletionJob) -> None:
        """Begin with a job, or let it wait."""

    @abstractmethod
    def _drop(self, key: str) -> None:
        """Compute a job no further."""

    @abstractmethod
    def _alive(self) -> bool:
        """Whether the engine's thread runs."""

    def stop(self) -> None:
        """Take no more jobs, and finish those that are open."""
        self._stopping = True
        self._finish()

    @property
    def alive(self) -> bool:
        """Whether jobs are taken."""
        return not self._stopping and self._alive()

    def submit(self, job: CompletionJob) -> None:
        """Take a job; its future gets the text.

        Raises:
            QueueFull: as many are open as may.
            EngineStopped: the engine was told to stop, or has failed.
        """
        self.check_room()
        key = f"{next(self._numbers)}"
        with self._lock:
            self._open[key] = job
        job.future.add_done_callback(lambda _: self._closed(key))
        self._take(key, job)

    def check_room(self, jobs: int = 1) -> None:
        """Refuse now what would be refused when it is ready.

        Raises:
            QueueFull, EngineStopped: as `submit`.
        """
        if not self.alive:
            raise EngineStopped("the server is shutting down" if self._stopping else "the engine has failed")
        with self._lock:
            if len(self._open) + jobs > self._most:
                raise QueueFull(self._retry_after())

    def num_running(self, name: str | None = None) -> int:
        """The number of texts that have begun, for one model or for any."""
        return self._count(name, begun=True)

    def num_waiting(self, name: str | None = None) -> int:
        """The number of texts that wait for their first token."""
        return self._count(name, begun=False)

    def _count(self, name: str | None, *, begun: bool) -> int:
        with self._lock:
            jobs = list(self._open.values())
        return sum(name in (None, job.model.name) and bool(job.tokens) is begun for job in jobs)

    def _closed(self, key: str) -> None:
        """Forget a job that has ended; the engine is told where it was cancelled or stopped by a text."""
        with self._lock:
            self._open.pop(key, None)
            self._ends.append(time.monotonic())
        self._drop(key)

    def _retry_after(self) -> int:
        """Seconds in which half of the open texts should have ended, as fast as the last ones did."""
        if len(self._ends) < 2:
            return 1
        each = (time.monotonic() - self._ends[0]) / len(self._ends)
        return min(LONGEST_RETRY, max(1, math.ceil(each * len(self._open) / 2)))
