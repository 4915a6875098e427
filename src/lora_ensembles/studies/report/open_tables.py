"""Tables about what the paper leaves open: methods and what they cost, initialisation, rank, strength,
correlation and gain.

A cell is the mean over the tasks, ± the sample standard deviation over seeds of that mean.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..claims.contrasts import NAMES, SIGNS
from .figures.association import association
from .figures.values import ENSEMBLE, MEMBER, Record, Records, by_task, spread, value
from .page import Table
from .tables import METRICS

Number = Callable[[Mapping[str, Any]], float | None]  # of a row: one method's, or one arm's


def methods(records: Records) -> Table:
    """Each method's metrics.

    Raises:
        DataError: there is no record of the kind.
    """
    every = _records(records, "methods")
    rows = [
        (name, *(_mean(every, _method(name), _field(metric)) for metric in METRICS))
        for name in every[0]["result"]["methods"]
    ]
    return Table(("method", *METRICS.values()), tuple(rows))


def costs(records: Records) -> Table:
    """Parameters that each method trained, and how long training and answering took, in seconds and in
    multiples of the single member's.

    Raises:
        DataError: there is no record of the kind.
    """
    every = _records(records, "methods")
    rows = []
    for name, first in every[0]["result"]["methods"].items():
        cells = [f"{first['trained_parameters']:,}"]
        for seconds, digits in (("training_seconds", 1), ("seconds_per_1000", 2)):
            cells.append(_mean(every, _method(name), _field(seconds), digits=digits))
            cells.append(_mean(every, _beside_single(name), _relative(seconds), digits=2))
        rows.append((name, *cells))
    header = (
        "method",
        "trained parameters",
        "training (s)",
        "over single",
        "1,000 questions (s)",
        "over single",
    )
    return Table(header, tuple(rows))


def initialisation(records: Records) -> Table:
    """Each start: the NLL of an untrained member, single member and ensemble at the end, and how alike the
    members are.
    """
    every = _records(records, "initialisation")
    untrained = [
        (
            "untrained NLL (nats)",
            lambda arm: None if "start" not in arm else value(arm["start"], "nll", MEMBER),
        )
    ]
    return _arms(every, "start", [*untrained, *_both(("accuracy", "nll", "ece")), *_alike()])


def rank(records: Records) -> Table:
    """Each rank: its parameters, single member and ensemble, and how alike the members are."""
    every = _records(records, "rank")
    table = _arms(every, "rank", [*_both(("accuracy", "nll", "ece")), *_alike()])
    counts = {name: f"{arm['parameters']:,}" for name, arm in every[0]["result"]["arms"].items()}
    rows = tuple((row[0], counts[row[0]], *row[1:]) for row in table.rows)
    return Table((table.header[0], "parameters a member", *table.header[1:]), rows)


def strength(records: Records) -> Table:
    """Each strength of each regulariser, and each epoch without one: single member and ensemble."""
    every = _records(records, "strength")
    table = _arms(every, "arm", [*_both(("accuracy", "nll", "ece")), *_alike()])
    stops = sorted({int(epoch) for record in every for epoch in record["result"]["arms"]["none"]["epochs"]})[
        :-1
    ]
    rows = [
        (
            f"none, stopped after epoch {stop}",
            *(_mean(every, _stopped(stop), number) for _, number in _both(("accuracy", "nll", "ece"))),
            "-",
            "-",
        )
        for stop in stops
    ]
    return Table(table.header, (*table.rows, *rows))


def correlation(records: Records) -> Table:
    """The association of the gain in each metric with the correlation of the members.

    Raises:
        DataError: there is no record of a sweep.
    """
    associations = {metric: association(records, metric) for metric in SIGNS}
    rows = [
        (
            f"gain in {NAMES[metric]}",
            f"{one.rho:+.3f}",
            "-" if one.interval is None else f"{one.interval[0]:+.3f} to {one.interval[1]:+.3f}",
            str(one.settings),
        )
        for metric, one in associations.items()
        if one is not None
    ]
    return Table(("correlation with", "Spearman's rho", "95 % interval", "tasks and seeds"), tuple(rows))


TABLES: dict[str, Callable[[Records], Table]] = {
    "methods": methods,
    "initialisation": initialisation,
    "rank": rank,
    "strength": strength,
}
"""The table of each kind of record about what the paper leaves open."""


def _records(records: Records, kind: str) -> list[Record]:
    return [record for runs in by_task(records, kind).values() for record in runs]


def _mean(
    every: Sequence[Record],
    row: Callable[[Record], Any],
    number: Callable[[Any], float | None],
    *,
    digits: int = 3,
) -> str:
    """The mean over tasks of a number of each record's row, for every seed, and the spread of these over
    seeds.
    """
    seeds: dict[int, list[float]] = {}
    for record in every:
        given = row(record)
        amount = None if given is None else number(given)
        if amount is not None:
            seeds.setdefault(int(record["settings"]["seed"]), []).append(amount)
    over = spread(statistics.fmean(amount) for amount in seeds.values())
    return "-" if over is None else over.shown(digits)


def _method(name: str) -> Callable[[Record], Any]:
    return lambda record: record["result"]["methods"].get(name)


def _field(name: str) -> Number:
    return lambda row: row[name]


def _beside_single(name: str) -> Callable[[Record], Any]:
    """A method's row and the single member's, of a record."""
    return lambda record: {
        "own": record["result"]["methods"][name],
        "single": record["result"]["methods"]["single member"],
    }


def _relative(seconds: str) -> Number:
    return lambda rows: float(rows["own"][seconds] / rows["single"][seconds])


def _arm(name: str) -> Callable[[Record], Any]:
    return lambda record: record["result"]["arms"].get(name)


def _arms(every: Sequence[Record], title: str, columns: Sequence[tuple[str, Number]]) -> Table:
    names = list(every[0]["result"]["arms"])
    rows = tuple((name, *(_mean(every, _arm(name), number) for _, number in columns)) for name in names)
    return Table((title, *(column for column, _ in columns)), rows)


def _last(metric: str, who: str) -> Number:
    """A metric of an arm after its last epoch."""
    return lambda arm: value(arm["epochs"][max(arm["epochs"], key=int)], metric, who)


def _both(metrics: Sequence[str]) -> list[tuple[str, Number]]:
    """Single member and ensemble of each metric."""
    words = {MEMBER: "single", ENSEMBLE: "ensemble"}
    return [
        (f"{METRICS[metric]}, {words[who]}", _last(metric, who))
        for metric in metrics
        for who in (MEMBER, ENSEMBLE)
    ]


def _alike() -> list[tuple[str, Number]]:
    """Disagreement and correlation of an arm's members."""
    return [
        ("disagreement", _last("disagreement", ENSEMBLE)),
        ("correlation", lambda arm: arm.get("correlation")),
    ]


def _stopped(epoch: int) -> Callable[[Record], Any]:
    def row(record: Record) -> Any:
        return {"epochs": {str(epoch): record["result"]["arms"]["none"]["epochs"][str(epoch)]}}

    return row
