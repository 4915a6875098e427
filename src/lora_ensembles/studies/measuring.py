"""The measuring of one record: from nothing, or on from where a process that was stopped or lost left it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .comparison.measure import comparison, trials
from .grid import BY_PROTOCOL, CHOICE, COMPARISON, TRIALS, WHOLE_KINDS, Grid, settings_of
from .kinds.choice import choice
from .kinds.initialisation import initialisation
from .kinds.last_layer import last_layer
from .kinds.methods import methods
from .kinds.paper import few_shot, pool, randomness
from .kinds.rank import rank
from .kinds.strength import strength
from .kinds.sweep import sweep
from .predictions import Sheet
from .setting import load_bench
from .store import cell, read_record, record_file
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
    TRIALS: trials,
    COMPARISON: comparison,
    BY_PROTOCOL: comparison,
}
TIMED_KINDS = ("methods", COMPARISON, BY_PROTOCOL)  # they hold seconds
WHOLE_RUNS = ("methods",)  # made in one go
UNFINISHED = "unfinished"


@dataclass(frozen=True)
class RecordJob:
    """A record to measure.

    Attributes:
        grid: whose settings the record has.
        out: the folder of the records.
        load_model: loads a base of its own and its tokenizer.
    """

    kind: str
    task: str
    seed: int
    grid: Grid
    out: Path
    load_model: Callable[[], tuple[Any, Any]]

    def __str__(self) -> str:
        return f"{self.kind}, {self.task}, seed {self.seed}"

    @property
    def timed(self) -> bool:
        """Whether the record holds seconds."""
        return self.kind in TIMED_KINDS

    @property
    def _settings(self) -> dict[str, Any]:
        return settings_of(self.grid, self.kind, self.task, self.seed)

    @property
    def _file(self) -> str:
        return record_file(f"{self.kind}-{self.task}", self._settings)

    @property
    def path(self) -> Path:
        """The record's file."""
        return self.out / f"{self._file}.json"

    def read(self) -> dict[str, Any]:
        """The record that was measured.

        Raises:
            CheckpointError: there is none.
        """
        return read_record(self.path, settings=self._settings)

    def record(self, *, say: Callable[[], None], patience: float = 0.0) -> Mapping[str, Any]:
        """The record: read where there is one, else measured, after `say`. Another process that measures it
        is waited for `patience` seconds.

        Raises:
            CheckpointError: it still does then.
        """
        under_way = UnderWay(self.out / UNFINISHED / self._file)
        if self.path.exists():
            under_way.remove()
            return self.read()
        with under_way.alone(patience=patience):
            sheet = Sheet()

            def measure() -> dict[str, Any]:
                say()
                bench = load_bench(
                    self.task,
                    self.grid,
                    self.load_model,
                    ood=self.kind in (*WHOLE_KINDS, COMPARISON, BY_PROTOCOL),
                    under_way=None if self.kind in WHOLE_RUNS else under_way,
                )
                settings = self.grid.settings(self.kind, self.task)
                with under_way.guarded():
                    result = MEASURES[self.kind](settings, bench, sheet, seed=self.seed)
                return {**result, "seconds": round(under_way.seconds, 1)}

            made = cell(self.out, f"{self.kind}-{self.task}", self._settings, measure, sheet=sheet)
            under_way.remove()
        return made
