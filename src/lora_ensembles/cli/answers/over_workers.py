"""The records of the rows made by the workers of a Ray cluster, of which each holds the ensemble."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from ...distributed.cluster import Workers
from ...distributed.streams import map_stream
from ...errors import DataError
from ..common import Arguments, load_ensemble
from ..flags.asked import Asked, Part
from ..flags.guarantees import Guarantees
from ..flags.workers import base_for_workers
from ..screen.quiet import hush
from .part import answered

Records = list[dict[str, Any]]
UNUSED = ("parser", "on", "workers")  # flags that a worker has no use for


def answered_over(workers: Workers, args: Arguments, asked: Asked, *, first: int) -> Iterator[Records]:
    """The records of each part from a row on, in the order of the rows and each once.

    Raises:
        LoraEnsemblesError: an error of a worker, after the records of all parts before.
    """
    own = Arguments(**{name: value for name, value in vars(args).items() if name not in UNUSED})
    share = workers.share
    own.device = share.device
    own.base = base_for_workers(args.base)
    own.ensemble = args.ensemble.absolute() if args.ensemble.exists() else args.ensemble  # one of the hub
    row = first
    parts = functools.partial(asked.parts, first)
    for records in map_stream(workers, parts, functools.partial(_loaded, own, asked.keep, share.cpus)):
        if [record["row"] for record in records] != list(range(row, row + len(records))):
            raise DataError(f"the rows from {row} on were not given once and in order; go on by --resume")
        row += len(records)
        yield records


def _loaded(args: Arguments, keep: list[str], threads: int) -> Callable[[Part], Records]:
    """The function of a worker, which computes with so many threads."""
    import torch

    hush()
    torch.set_num_threads(threads)
    ensemble = load_ensemble(args)
    guarantees = Guarantees.of(args, ensemble.calibrated)
    return lambda part: answered(args, ensemble, part, keep, guarantees)
