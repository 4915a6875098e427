"""Makes the records of a grid: what is there already is read, what is not is measured, here or by the workers
of a cluster.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..distributed.cluster import Workers
from .grid import CHOICE, Grid, cells
from .kinds import KINDS
from .kinds.choice import chosen
from .measuring import RecordJob
from .over_workers import measure_over


def run_grid(
    grid: Grid,
    out: Path,
    load_model: Callable[[], tuple[Any, Any]],
    *,
    kinds: Sequence[str] = KINDS,
    tasks: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    say: Callable[[str], None],
    over: Workers | None = None,
) -> dict[str, list[Mapping[str, Any]]]:
    """Every record of the grid, by kind; what is in `out` already is read, what is not is measured.

    With `tasks` or `seeds`, only the records of these are measured now. With `grid.choice`, the strength of
    decay is chosen first, from the first seed of every task of the grid. `over` workers, each record is a
    task of its own, that calls `load_model` there; the records are the same files.
    """

    def made(wanted: Sequence[tuple[str, str, int]], grid: Grid) -> list[Mapping[str, Any]]:
        jobs = [RecordJob(kind, task, seed, grid, out, load_model) for kind, task, seed in wanted]
        return _records(jobs, over, say)

    records: dict[str, list[Mapping[str, Any]]] = {}
    if grid.choice:
        records[CHOICE] = made([(CHOICE, task, grid.seeds[0]) for task in grid.tasks], grid)
        grid = grid.decayed(chosen(grid.choice, records[CHOICE]))
    part = [
        one
        for one in cells(grid, kinds)
        if (tasks is None or one[1] in tasks) and (seeds is None or one[2] in seeds)
    ]
    found = made(part, grid)
    return records | {
        kind: [one for (name, *_), one in zip(part, found, strict=True) if name == kind] for kind in kinds
    }


def _records(
    jobs: Sequence[RecordJob], over: Workers | None, say: Callable[[str], None]
) -> list[Mapping[str, Any]]:
    if over is not None:
        measure_over(over, jobs, say=say)
    return [
        job.record(say=functools.partial(say, f"{number} of {len(jobs)}: {job}"))
        for number, job in enumerate(jobs, start=1)
    ]
