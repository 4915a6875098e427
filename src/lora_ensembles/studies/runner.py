"""Makes the records of a grid: what is there already is read, what is not is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .grid import CHOICE, WHOLE_KINDS, Grid, cells, settings_of
from .kinds import KINDS
from .kinds.choice import choice, chosen
from .kinds.initialisation import initialisation
from .kinds.last_layer import last_layer
from .kinds.methods import methods
from .kinds.paper import few_shot, pool, randomness
from .kinds.rank import rank
from .kinds.strength import strength
from .kinds.sweep import sweep
from .predictions import Sheet
from .setting import load_bench
from .store import cell, record_file
from .under_way import UnderWay

MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "sweep": sweep,
    "randomness": randomness,
    "pool": pool,
    "few_shot": few_shot,
    "last_layer": last_layer,
    "methods": methods,
    "initialisation": initialisation,
    "rank": rank,
    "strength": strength,
    CHOICE: choice,
}
TIMED_KINDS = ("methods",)  # their runs are timed, so each is made in one go
UNFINISHED = "unfinished"


def run_grid(
    grid: Grid,
    out: Path,
    load_model: Callable[[], tuple[Any, Any]],
    *,
    kinds: Sequence[str] = KINDS,
    tasks: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    say: Callable[[str], None],
) -> dict[str, list[Mapping[str, Any]]]:
    """Every record of the grid, by kind; what is in `out` already is read, what is not is measured.

    With `tasks` or `seeds`, only the records of these are measured now. With `grid.choice`, the strength of
    decay is chosen first, from the first seed of every task of the grid.
    """
    records: dict[str, list[Mapping[str, Any]]] = {}
    if grid.choice:
        first = [(CHOICE, task, grid.seeds[0]) for task in grid.tasks]
        records[CHOICE] = _records(grid, out, load_model, first, say)
        grid = grid.decayed(chosen(grid.choice, records[CHOICE]))
    part = [
        one
        for one in cells(grid, kinds)
        if (tasks is None or one[1] in tasks) and (seeds is None or one[2] in seeds)
    ]
    made = _records(grid, out, load_model, part, say)
    return records | {
        kind: [one for (name, *_), one in zip(part, made, strict=True) if name == kind] for kind in kinds
    }


def _records(
    grid: Grid,
    out: Path,
    load_model: Callable[[], tuple[Any, Any]],
    wanted: Sequence[tuple[str, str, int]],
    say: Callable[[str], None],
) -> list[Mapping[str, Any]]:
    made: list[Mapping[str, Any]] = []
    for number, (kind, task, seed) in enumerate(wanted, start=1):
        sheet, settings = Sheet(), settings_of(grid, kind, task, seed)
        under_way = UnderWay(out / UNFINISHED / record_file(f"{kind}-{task}", settings))

        def measure(
            kind: str = kind,
            task: str = task,
            seed: int = seed,
            number: int = number,
            sheet: Sheet = sheet,
            under_way: UnderWay = under_way,
        ) -> dict[str, Any]:
            say(f"{number} of {len(wanted)}: {kind}, {task}, seed {seed}")
            bench = load_bench(
                task,
                grid,
                load_model,
                ood=kind in WHOLE_KINDS,
                under_way=None if kind in TIMED_KINDS else under_way,
            )
            with under_way.guarded():
                result = MEASURES[kind](grid.settings(kind, task), bench, sheet, seed=seed)
            return {**result, "seconds": round(under_way.seconds, 1)}

        made.append(cell(out, f"{kind}-{task}", settings, measure, sheet=sheet))
        under_way.remove()
    return made
