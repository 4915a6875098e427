"""Values out of records, as figures and tables need them: by task in the paper's order, with a value for each
seed.

A record is what `store.cell` returns. A single member's value is the mean of the members' own metrics, never
the metric of their mean.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ....data import PAPER_TASKS
from ....errors import DataError
from ....prediction.metrics import ece_floor
from ...grid import ENCODER, FULL, OPEN_KINDS, PAPER, SMOLLM2, WHOLE_KINDS, Grid
from ...kinds import KINDS

Record = Mapping[str, Any]
Records = Mapping[str, Sequence[Record]]
MEMBER, ENSEMBLE = "member", "ensemble"


@dataclass(frozen=True)
class Spread:
    """A value for each seed (or subset and seed).

    Example:
        >>> Spread((0.1, 0.2, 0.6)).mean, Spread((0.1, 0.2, 0.6)).low
        (0.3, 0.1)
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    @property
    def std(self) -> float:
        """The sample standard deviation; 0 for one value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    def __str__(self) -> str:
        return self.shown(3)

    def shown(self, digits: int) -> str:
        """The mean and, of several values, their standard deviation.

        Example:
            >>> Spread((0.1, 0.2, 0.6)).shown(2), Spread((0.1,)).shown(2)
            ('0.30 ± 0.26', '0.10')
        """
        return f"{self.mean:.{digits}f}" + (f" ± {self.std:.{digits}f}" if len(self.values) > 1 else "")


def task_order(name: str) -> tuple[int, str]:
    """A sorting key: the paper's order, an embedded task at the place of the one it mirrors, others behind by
    name.

    Example:
        >>> sorted(["world-mmlu-ss", "world-arcc", "world-cqa"], key=task_order)
        ['world-cqa', 'world-arcc', 'world-mmlu-ss']
    """
    plain = name.removeprefix("world-")
    return (PAPER_TASKS.index(plain) if plain in PAPER_TASKS else len(PAPER_TASKS)), name


def by_task(records: Records, kind: str) -> dict[str, list[Record]]:
    """The records of a kind by task, each task's by seed.

    Raises:
        DataError: there are none.
    """
    tasks: dict[str, list[Record]] = {}
    for record in records.get(kind, ()):
        tasks.setdefault(str(record["settings"]["task"]), []).append(record)
    if not tasks:
        raise DataError(f"there is no record of the kind {kind!r}")
    return {
        name: sorted(tasks[name], key=lambda record: int(record["settings"]["seed"]))
        for name in sorted(tasks, key=task_order)
    }


def value(row: Mapping[str, Any], metric: str, who: str) -> float | None:
    """A metric of the ensemble, or the mean over its members; None where it was not measured."""
    values = [row["ensemble"][metric]] if who == ENSEMBLE else [one[metric] for one in row["members"]]
    return None if any(one is None for one in values) else statistics.fmean(values)


def spread(values: Iterable[float | None]) -> Spread | None:
    """The values that are there, or None if none is."""
    present = tuple(one for one in values if one is not None)
    return Spread(present) if present else None


def epochs_of(record: Record, arm: str) -> dict[int, Mapping[str, Any]]:
    """Measures of an arm by epoch; empty if the record has no such arm."""
    return {
        int(epoch): row
        for epoch, row in sorted(_arm(record, arm).get("epochs", {}).items(), key=lambda item: int(item[0]))
    }


def last_row(record: Record, arm: str) -> Mapping[str, Any] | None:
    """Measures of an arm at the end; None if the record has no such arm."""
    epochs = epochs_of(record, arm)
    return epochs[max(epochs)] if epochs else None


def over_epochs(
    runs: Sequence[Record], arm: str, metric: str, who: str, *, where: str | None = None
) -> dict[int, Spread]:
    """A metric of an arm by epoch, over the seeds; `where="ood"`: on the other distribution."""
    epochs = sorted({epoch for record in runs for epoch in epochs_of(record, arm)})
    curve = {}
    for epoch in epochs:
        rows = [epochs_of(record, arm).get(epoch) for record in runs]
        rows = [row.get(where) if row and where else row for row in rows]
        at = spread(value(row, metric, who) for row in rows if row)
        if at:
            curve[epoch] = at
    return curve


def named_decay(records: Sequence[Record]) -> str:
    """Decay of B with the share that a step takes away, for a legend; several where tasks differ.

    Example:
        >>> named_decay([{"settings": {"decay": 0.16}}])
        'decay of B, 0.16 a step'
    """
    shares = sorted({record["settings"]["decay"] for record in records if "decay" in record["settings"]})
    return f"decay of B, {' or '.join(f'{share:g}' for share in shares)} a step" if shares else "decay of B"


@dataclass(frozen=True)
class Level:
    """A level to hold a metric against."""

    name: str
    at: float


def level_of(records: Records, task: str, metric: str) -> Level | None:
    """Guessing evenly, in accuracy and NLL; in ECE what the plain ensemble would show at the end if it were
    calibrated. None for other metrics, and where no record says how many options there are.
    """
    return _floor(records, task) if metric == "ece" else guessing(options_of(records, task), metric)


def guessing(options: int | None, metric: str) -> Level | None:
    """Guessing evenly among C options: 1 / C in accuracy and ln C in NLL; None for other metrics."""
    if options is None or metric not in ("accuracy", "nll"):
        return None
    return Level("chance", 1 / options if metric == "accuracy" else math.log(options))


def options_of(records: Records, task: str) -> int | None:
    """The middle one of the numbers of options that questions of a task have, the larger of two; None where
    no record says how many.
    """
    sizes = [
        record["result"]["sizes"]
        for record in records.get("sweep", ())
        if str(record["settings"]["task"]) == task and "options" in record["result"].get("sizes", {})
    ]
    if not sizes:
        return None
    counts = sizes[0]["options"]
    return statistics.median_high(counts) if isinstance(counts, list) else int(counts)


def _floor(records: Records, task: str) -> Level | None:
    bins = [
        record["result"]["arms"]["none"].get("reliability", {}).get(ENSEMBLE)
        for record in records.get("sweep", ())
        if str(record["settings"]["task"]) == task
    ]
    floors = [ece_floor(one["confidences"], [int(n) for n in one["counts"]]) for one in bins if one]
    return Level("calibrated", statistics.fmean(floors)) if floors else None


def strength(arm: str) -> float:
    """The number at the end of an arm's name.

    Example:
        >>> strength("decay of B 0.025")
        0.025
    """
    return float(arm.rsplit(" ", 1)[1])


def seeds_of(records: Records) -> list[int]:
    """Every seed that a record has."""
    return sorted(
        {
            int(record["settings"]["seed"])
            for runs in records.values()
            for record in runs
            if "seed" in record["settings"]
        }
    )


def smaller_grid(records: Records) -> str:
    """In what the records' grid is smaller than the full one, as words; empty if in nothing. On another base
    than the embedded one and SmolLM2, the full grid is the paper's. Records of kinds alone that have few
    tasks, or open ones, are held against those.

    Example:
        >>> settings = {"task": "world-cqa", "seed": 0, "base": "embedded", "members": 3, "snapshots": [1, 2]}
        >>> smaller_grid({"sweep": [{"settings": settings}]})
        '1 of 6 tasks, 1 of 3 seeds, 3 of 5 members, 2 of 10 epochs'
    """
    records = {kind: runs for kind, runs in records.items() if kind in KINDS}  # a trial is of no grid
    settings = [one["settings"] for runs in records.values() for one in runs if "task" in one["settings"]]
    own = FULL.shared.base
    bases = {one.get("base", own) for one in settings}
    full = FULL if bases <= {own} else SMOLLM2 if bases == {SMOLLM2.shared.base} else PAPER
    full = ENCODER if any("head" in one for one in settings) else full
    whole = any(records.get(kind) for kind in WHOLE_KINDS)
    left_open = all(kind in OPEN_KINDS for kind in records if records[kind])
    tasks = full.tasks if whole else full.open_tasks if left_open else full.few_tasks

    def least(name: str, number: Callable[[Any], int]) -> int | None:
        return min((number(one[name]) for one in settings if one.get(name)), default=None)

    pairs: list[tuple[int | None, int, str]] = [
        (len({one["task"] for one in settings}), len(tasks), "tasks"),
        (len(seeds_of(records)), len(full.seeds), "seeds"),
        (least("members", int), full.shared.members, "members"),
        (least("snapshots", lambda value: int(value[-1])), full.shared.snapshots[-1], "epochs"),
        (least("pool", int), full.paper.pool, "members in the pool"),
        (least("draws", int), full.paper.draws, "few-shot draws"),
        (least("kl", len), len(full.paper.kl), "KL weights"),
        (least("decays", len), 1 if full.choice else len(full.paper.decays), "strengths of decay"),
    ]
    if not whole:
        pairs += [
            (least("ranks", len), len(full.rank.ranks), "ranks"),
            (least("wide_kl", len), len(full.strength.wide_kl), "KL weights"),
            (least("wide_decays", len), len(full.strength.wide_decays), "strengths of decay"),
        ]
    if all(held == wanted for held, wanted, _ in pairs[:2]) and records.get(
        "sweep"
    ):  # every task and seed, and not all of them together
        pairs.append((len(records["sweep"]), len(tasks) * len(full.seeds), "sweeps"))
    said = [f"{held} of {whole} {words}" for held, whole, words in pairs if held is not None and held < whole]
    return ", ".join(said + _limits([one["limit"] for one in settings if "limit" in one], full))


def _limits(limits: Sequence[Sequence[int | None]], full: Grid) -> list[str]:
    said = []
    for place, words in enumerate(("training", "validation", "OOD")):
        whole, given = (
            full.shared.limit[place],
            [number for one in limits if (number := one[place]) is not None],
        )
        if given and (whole is None or min(given) < whole):
            said.append(f"{min(given)} {words}")
    return (
        [f"at most {' and '.join(filter(None, (', '.join(said[:-1]), said[-1])))} questions"] if said else []
    )


def check_one_grid(records: Records) -> None:
    """Refuse records that must not be averaged: of one kind and task, made with different settings, or twice
    of one seed.

    Raises:
        DataError: there are such records.
    """
    for kind, runs in records.items():
        first: dict[str, Mapping[str, Any]] = {}
        seen = set()
        for record in runs:
            settings = record["settings"]
            task, others = (
                str(settings.get("task")),
                {name: one for name, one in settings.items() if name != "seed"},
            )
            for name, one in first.setdefault(task, others).items():
                if others.get(name) != one:
                    raise DataError(
                        f"the records of the kind {kind!r} and the task {task!r} have different settings "
                        f"({name}: {one} and {others.get(name)}); keep the records of one grid in a folder"
                    )
            if (task, settings.get("seed")) in seen:
                raise DataError(
                    f"two records of the kind {kind!r}, task {task!r} and seed {settings.get('seed')}; keep "
                    "one of them"
                )
            seen.add((task, settings.get("seed")))


def _arm(record: Record, arm: str) -> Mapping[str, Any]:
    row: Mapping[str, Any] = record["result"]["arms"].get(arm, {})
    return row
