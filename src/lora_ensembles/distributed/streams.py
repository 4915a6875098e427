"""A stream of things that a pool of workers maps, each worker with something heavy that it loads once.

Ray Data does the scheduling, the restarts and the transport, and holds the stream back where its end is not
taken: neither the driver nor the cluster's object store ever holds all of it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, LoraEnsemblesError
from .cluster import RETRIES, Workers

TOLD = (LoraEnsemblesError, OSError, UnicodeError)
"""Errors of the user's, which come out in their place of the stream; others are bugs and keep their trace."""


def map_stream(
    workers: Workers, things: Callable[[], Iterator[Any]], load: Callable[[], Callable[[Any], Any]]
) -> Iterator[Any]:
    """The results of a function for each of `things`, in their order, each once.

    Every worker calls `load` before its first thing, for the function. A worker that is lost is started again
    and its things are computed again; `things` is called on this node, in a process of its own, and again
    where that is lost, so it must give the same things.

    Raises:
        Exception: one of `TOLD` that `things`, `load` or the function raised, in place of the result.
        ConfigError: the workers were lost more often than `RETRIES` times with the same thing.
    """
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.target_max_block_size = 1  # a thing is a block, and a task
    context.enable_progress_bars = context.print_on_execution_start = False
    context.enable_fallback_to_arrow_object_ext_type = True
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    attempts = ray.remote(Attempts).options(num_cpus=0, label_selector=here, max_restarts=-1).remote(RETRIES)
    share = workers.share
    with ray.data.DataContext.current(context):
        source = ray.data.read_datasource(
            _source(things), override_num_blocks=1, num_cpus=0, label_selector=here
        )
        results = source.map_batches(
            StreamWorker,
            fn_constructor_args=(load, attempts),
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=workers.count),
            num_cpus=share.cpus,
            num_gpus=share.gpus,
        )
        for row in results.iter_rows():
            result = row["held"].thing
            if isinstance(result, TOLD):
                raise result
            yield result


class Attempts:
    """Counts how often each thing was begun, in a process of its own: Ray Data itself would begin one that
    ends its worker again and again.
    """

    def __init__(self, retries: int):
        self._retries = retries
        self._begun: Counter[int] = Counter()

    def begin(self, number: int) -> str | None:
        """The error of a thing that was begun too often, and None of another."""
        self._begun[number] += 1
        if self._begun[number] <= self._retries + 1:
            return None
        return (
            f"a worker was lost, and again after {self._retries} restarts with the same part of the rows; "
            "give it more memory, or take fewer workers"
        )


class StreamWorker:
    """A worker's process.

    Args:
        load: gives the function.
        attempts: the actor that counts them.
    """

    def __init__(self, load: Callable[[], Callable[[Any], Any]], attempts: Any):
        self._load, self._attempts = load, attempts
        self._function: Callable[[Any], Any] | None = None

    def __call__(self, batch: dict[str, Any]) -> Any:
        """The results of a batch of things."""
        return _block([Held(held.number, self._result(held)) for held in batch["held"]])

    def _result(self, held: Held) -> Any:
        import ray

        if isinstance(held.thing, TOLD):
            return held.thing
        try:
            wrong = ray.get(self._attempts.begin.remote(held.number))
            if wrong is not None:
                raise ConfigError(wrong)
            self._function = self._function or self._load()
            return self._function(held.thing)
        except TOLD as error:
            return error


@dataclass(frozen=True)
class Held:
    """Anything, which neither Arrow nor numpy looks into, and its number in the stream."""

    number: int
    thing: Any


def _block(held: list[Held]) -> Any:
    import pyarrow
    from ray.data.extensions import ArrowPythonObjectArray

    return pyarrow.table({"held": ArrowPythonObjectArray.from_objects(held)})


def _source(things: Callable[[], Iterator[Any]]) -> Any:
    """A source of Ray Data of which one task reads all things, one after the other."""
    from ray.data import Datasource
    from ray.data.block import BlockMetadata
    from ray.data.datasource import ReadTask

    folder = os.getcwd()

    def read() -> Iterator[Any]:
        with contextlib.chdir(folder):  # of the paths that the driver was given
            number = 0
            try:
                for number, thing in enumerate(things()):
                    yield _block([Held(number, thing)])
            except TOLD as error:
                yield _block([Held(number + 1, error)])

    class Source(Datasource):
        """The source."""

        def estimate_inmemory_data_size(self) -> int | None:
            """Its size in bytes, which nobody knows."""
            return None

        def get_read_tasks(
            self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
        ) -> list[Any]:
            """The one task."""
            metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(read, metadata)]

    return Source()
