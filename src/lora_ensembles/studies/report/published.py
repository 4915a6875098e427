"""Tables of the comparison by a published protocol, in the shape of the published ones: a row for each
method, a column for each task and for each set that a task is also measured on.

Accuracy and ECE in percent, NLL in nats; a cell is the mean over seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..grid import BY_PROTOCOL, PUBLISHED
from .comparison import RAW, SCALED
from .figures.values import Records, by_task
from .page import Table

METRICS = {"accuracy": "accuracy, % ↑", "ece": "ECE, % ↓", "nll": "NLL ↓"}
SHORT = {
    "winogrande-s": "WG-S",
    "arcc-dev": "ARC-C",
    "arce-dev": "ARC-E",
    "winogrande-m": "WG-M",
    "obqa-dev": "OBQA",
    "boolq": "BoolQ",
    "mmlu-college-chemistry": "Chem",
    "mmlu-college-physics": "Phy",
}
Column = tuple[str, str | None]  # a task, and the set that it is measured on where this is another one
COLUMNS: tuple[Column, ...] = (
    *((task, None) for task in PUBLISHED.tasks),
    *((task, other) for task, sets in PUBLISHED.elsewhere for other in sets),
)
Rows = list[tuple[str, ...]]


def header(metric: str, columns: Sequence[Column] = COLUMNS) -> tuple[str, ...]:
    """The header of a table of a metric.

    Example:
        >>> header("nll")[-3:]
        ('OBQA to ARC-E', 'OBQA to Chem', 'OBQA to Phy')
    """
    names = [SHORT[task] if other is None else f"{SHORT[task]} to {SHORT[other]}" for task, other in columns]
    return (f"method, {METRICS[metric]}", *names)


def is_protocol(records: Records) -> bool:
    """Whether records are those of a comparison by a published protocol, and no others."""
    return set(records) == {BY_PROTOCOL}


def protocol_text(records: Records) -> str:
    """The table of each metric, one below another.

    Raises:
        DataError: there is no record by the protocol.
    """
    return "\n\n".join(str(protocol_table(records, metric)) for metric in METRICS)


def protocol_table(records: Records, metric: str) -> Table:
    """A metric of each method, as it answers and, in rows below, scaled by a temperature ("+ T"); only
    columns that were measured.

    Raises:
        DataError: there is no record by the protocol.
    """
    found = by_task(records, BY_PROTOCOL)
    columns = [(task, other) for task, other in COLUMNS if task in found]
    return Table(header(metric, columns), tuple(protocol_rows(records, metric, columns)))


def protocol_rows(records: Records, metric: str, columns: Sequence[Column] = COLUMNS) -> Rows:
    """The rows of `protocol_table`, "-" where something was not measured.

    Raises:
        DataError: there is no record by the protocol.
    """
    found = by_task(records, BY_PROTOCOL)
    results = {task: [record["result"]["methods"] for record in runs] for task, runs in found.items()}
    names = dict.fromkeys(name for runs in results.values() for methods in runs for name in methods)
    rows = []
    for state, ending in ((RAW, ""), (SCALED, " + T")):
        for name in names:
            cells = [_cell(results.get(task, []), name, other, (state, metric)) for task, other in columns]
            rows.append((name + ending, *cells))
    return rows


def shown(value: float, metric: str) -> str:
    """A number as the tables show it.

    Example:
        >>> shown(0.8108, "accuracy"), shown(1.2, "nll")
        ('81.08', '1.20')
    """
    return f"{value if metric == 'nll' else 100 * value:.2f}"


def _cell(runs: Sequence[Mapping[str, Any]], name: str, other: str | None, which: tuple[str, str]) -> str:
    state, metric = which
    parts = [methods[name] for methods in runs if name in methods]
    if other is not None:
        parts = [part["elsewhere"][other] for part in parts if other in part.get("elsewhere", {})]
    return shown(statistics.fmean(part[state][metric] for part in parts), metric) if parts else "-"
