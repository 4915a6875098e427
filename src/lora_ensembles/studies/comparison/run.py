"""Makes the records of the comparison of methods: first the trials of each task, then, with the settings that
they choose, one record for each task and seed; by a published protocol, the latter alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..grid import BY_PROTOCOL, COMPARISON, TRIALS, Grid
from ..measuring import RecordJob
from .budget import Budget
from .measure import ComparisonConfig, TrialsConfig

Records = dict[str, list[Mapping[str, Any]]]


def run_comparison(
    grid: Grid,
    budget: Budget,
    out: Path,
    load_model: Callable[[], tuple[Any, Any]],
    *,
    say: Callable[[str], None],
) -> Records:
    """Every record of the comparison on a grid's tasks and seeds, by kind; what is in `out` already is read,
    what is not is measured. Trials are of the first seed.
    """
    grid = dataclasses.replace(grid, trials=TrialsConfig(budget))
    records: Records = {TRIALS: [], COMPARISON: []}
    total = len(grid.tasks) * (1 + len(grid.seeds))

    def made(kind: str, task: str, seed: int, grid: Grid) -> Mapping[str, Any]:
        job = RecordJob(kind, task, seed, grid, out, load_model)
        number = sum(map(len, records.values())) + 1
        records[kind].append(job.record(say=functools.partial(say, f"{number} of {total}: {job}")))
        return records[kind][-1]

    for task in grid.tasks:
        tried = made(TRIALS, task, grid.seeds[0], grid)["result"]["methods"]
        chosen = {name: part["chosen"] for name, part in tried.items() if "chosen" in part}
        own = dataclasses.replace(grid, comparison=ComparisonConfig(budget, chosen))
        for seed in grid.seeds:
            made(COMPARISON, task, seed, own)
    return records


def run_protocol(
    grid: Grid, out: Path, load_model: Callable[[], tuple[Any, Any]], *, say: Callable[[str], None]
) -> Records:
    """Every record of a grid's tasks and seeds by its protocol, whole seeds first; what is in `out` already
    is read.
    """
    jobs = [
        RecordJob(BY_PROTOCOL, task, seed, grid, out, load_model)
        for seed in grid.seeds
        for task in grid.tasks
    ]
    return {
        BY_PROTOCOL: [
            job.record(say=functools.partial(say, f"{number} of {len(jobs)}: {job}"))
            for number, job in enumerate(jobs, start=1)
        ]
    }
