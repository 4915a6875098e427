"""A Ray cluster, and calls of a function that run on it: each in a process of its own, and again where that
process or its node is lost.

Ray does the scheduling, the restarts and the transport. The cluster is the one that RAY_ADDRESS names, or
that the program has connected to, or else this machine.
"""

from __future__ import annotations

import logging
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ..errors import ConfigError, MissingExtraError

ENGINES = ("ray",)
RETRIES = 20
"""Restarts of one call after its process was lost; an error that the function raises is final."""
LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"  # of Ray's own processes, and of its part in this one
LOST = 300.0
"""Seconds for which a restart waits for a worker that was given up, and may run on out of reach."""
POLL = 0.5  # seconds between two looks at what goes on
PATIENCE = 120.0  # seconds in which calls that are cancelled may save what they have


@dataclass(frozen=True)
class Share:
    """The part of a cluster that one worker gets.

    Attributes:
        cpus: of it, and threads of torch.
        gpus: of it; a fraction where workers share one, 0.0 where the cluster has none.
    """

    cpus: int
    gpus: float

    @property
    def device(self) -> str:
        """The device that a worker computes on."""
        return "cuda" if self.gpus else "cpu"


def check_engine(on: str | None, workers: int | None) -> None:
    """Refuse an engine that is unknown or not installed, and workers without one.

    Raises:
        ConfigError: as it says.
        MissingExtraError: Ray is not installed.
    """
    if on is None:
        if workers is not None:
            raise ConfigError(f"workers={workers} without an engine; give on='ray' as well")
        return
    if on not in ENGINES:
        raise ConfigError(f"on={on!r}; known: {', '.join(map(repr, ENGINES))}, or None for this process")
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise ConfigError(f"workers={workers!r}; it is a whole number of at least 1")
    if find_spec("ray") is None:
        raise MissingExtraError("on='ray' needs ray; install it by pip install 'lora-ensembles[ray]'")


@contextmanager
def cluster() -> Iterator[Any]:
    """Context in which Ray is connected; yields the module. A cluster that was started here ends with it.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: the cluster of RAY_ADDRESS cannot be reached, or asks for a token that is not there.
    """
    check_engine("ray", None)
    import ray

    if ray.is_initialized():
        yield ray
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    address = os.environ.get("RAY_ADDRESS")
    try:
        with _quiet():
            if address is None:
                ray.init("local", logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
            else:
                ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:  # of all kinds, plain `Exception` among them
        told = first_line(error)
        raise ConfigError(
            f"Ray did not start on this machine ({told}); try again when less else runs on it"
            if address is None
            else f"no Ray cluster at RAY_ADDRESS={address!r} ({told}); "
            "start one by `ray start --head`, or unset RAY_ADDRESS to use this machine; for one that asks "
            "for a token set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
        ) from error
    # Its messages of lost workers would go to standard output, where the rows of an answer may be.
    ray._private.worker._worker_logs_enabled = False
    try:
        for number, handler in before.items():  # Ray puts its own in place of the program's
            signal.signal(number, handler)
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _quiet() -> Iterator[None]:
    """Context in which Ray starts without a word, and then says nothing of its own on the terminal, unless
    RAY_BACKEND_LOG_LEVEL is set; its log files are in its own folder.
    """
    if os.environ.get(LOG_LEVEL):
        yield
        return
    os.environ[LOG_LEVEL] = "fatal"
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)  # its core is no Python, and writes there itself that it has read the level
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)
        del os.environ[LOG_LEVEL]


@dataclass(frozen=True)
class Workers:
    """So many workers of a connected cluster; `ray` is the module."""

    ray: Any
    count: int

    @property
    def share(self) -> Share:
        """The part of the cluster that each gets: a GPU, or a part of one, where there are any, and as many
        CPUs as are there for each.
        """
        total, nodes = self.ray.cluster_resources(), _alive(self.ray)
        gpus = total.get("GPU", 0.0)
        cpus = int(total.get("CPU", 1) // self.count)
        largest = int(max((node["Resources"].get("CPU", 1) for node in nodes), default=1))
        # Ray takes whole GPUs, or a fraction of one.
        each = 1.0 if gpus >= self.count else int(100 * gpus / self.count) / 100
        return Share(max(1, min(cpus, largest)), min(1.0, each) if gpus else 0.0)

    def alone(self) -> Workers:
        """One worker that has a whole node, where no other computes beside it."""
        return Workers(self.ray, 1)


@contextmanager
def workers_of(on: str | None, count: int | None) -> Iterator[Workers | None]:
    """Context of the workers of an engine, as many as `default_workers` without a count; None without one.

    Raises:
        ConfigError: as `check_engine` and `cluster`.
        MissingExtraError: Ray is not installed.
    """
    check_engine(on, count)
    if on is None:
        yield None
        return
    with cluster() as ray:
        yield Workers(ray, count or default_workers(ray))


def default_workers(ray: Any) -> int:
    """A worker for each GPU of the cluster, or for each node where there is none."""
    return int(ray.cluster_resources().get("GPU", 0)) or max(1, len(_alive(ray)))


def _alive(ray: Any) -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def map_calls(
    ray: Any,
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    *,
    share: Share,
    at_once: int | None = None,
    watch: Callable[[], None] = lambda: None,
    begun: Callable[[int], None] = lambda number: None,
    done: Callable[[int, Any], None] = lambda number, result: None,
) -> list[Any]:
    """The results of `function(*call)` for each of `calls`, in their order, each computed by a Ray task.

    A task whose process or node is lost starts again, up to `RETRIES` times; the function must go on from
    where it was. An error that it raises ends the others: they are asked to stop, as by an interrupt from the
    keyboard, and may save what they have. `watch` is called twice a second, `begun` as each call is given to
    the cluster, of which at most `at_once` are at a time, `done` as each result comes.

    Raises:
        Exception: the first error that a call raised, as itself.
        ConfigError: a process was lost more often than `RETRIES` times.
    """
    remote = ray.remote(_with_threads).options(
        num_cpus=share.cpus, num_gpus=share.gpus, max_retries=RETRIES, name=function.__name__
    )
    left, most = deque(enumerate(calls)), at_once or len(calls)
    numbers: dict[Any, int] = {}
    results: dict[int, Any] = {}
    waiting: list[Any] = []
    try:
        while waiting or left:
            while left and len(waiting) < most:
                number, call = left.popleft()
                begun(number)
                waiting.append(remote.remote(function, share.cpus, *call))
                numbers[waiting[-1]] = number
            ready, waiting = ray.wait(waiting, timeout=POLL)
            for reference in ready:
                results[numbers[reference]] = _result(ray, reference)
                done(numbers[reference], results[numbers[reference]])
            watch()
    except BaseException:
        _cancel(ray, waiting)
        raise
    return [results[number] for number in range(len(calls))]


def _with_threads(function: Callable[..., Any], threads: int, *call: Any) -> Any:
    """The result of a call, computed with so many threads: Ray's workers take one, or all of the machine."""
    import torch

    torch.set_num_threads(threads)
    return function(*call)


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise ConfigError(
            f"a worker was lost, and again after {RETRIES} restarts ({first_line(error)}); "
            "give it more memory, or take fewer workers"
        ) from error


def _cancel(ray: Any, waiting: Sequence[Any]) -> None:
    for reference in waiting:
        ray.cancel(reference)
    if waiting:
        ray.wait(list(waiting), num_returns=len(waiting), timeout=PATIENCE)


def first_line(error: BaseException) -> str:
    """The first line of an error."""
    return next(iter(str(error).splitlines()), type(error).__name__)
