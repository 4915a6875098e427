"""The tables of the studies, each made from records and nothing else.

A cell is the mean over seeds ± their sample standard deviation. Where a record holds them,
`trained_parameters` (of one member), `seconds` (its making) and `sizes` (`train`, `validation`, `options`) of
its result are shown as well.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import DataError
from ..claims.views import decay_arm
from .figures.values import (
    ENSEMBLE,
    MEMBER,
    Record,
    Records,
    Spread,
    by_task,
    last_row,
    options_of,
    spread,
    task_order,
    value,
)
from .page import Table

METRICS = {
    "accuracy": "accuracy ↑",
    "nll": "NLL (nats) ↓",
    "ece": "ECE ↓",
    "brier": "Brier ↓",
    "ood_auroc": "AUROC of OOD",
}
NAMED_KINDS = ("sweep", "randomness", "pool", "few_shot", "last_layer")
# Table 1 of arXiv:2310.00035: LoRA ensemble and last-layer ensemble of LLaMA-13B, M = 5, by metric.
PAPER_TABLE_1 = {
    "cqa": (0.83, 0.52, 0.58, 1.25, 0.06, 0.06),
    "obqa": (0.85, 0.48, 0.58, 1.27, 0.07, 0.12),
    "arce": (0.86, 0.72, 0.92, 0.79, 0.09, 0.06),
    "arcc": (0.69, 0.48, 1.46, 1.30, 0.19, 0.15),
    "mmlu-ss": (0.60, 0.46, 2.72, 1.47, 0.28, 0.19),
    "mmlu-stem": (0.41, 0.32, 4.04, 1.72, 0.40, 0.25),
}
# Table 2 of the same: training and validation questions, options.
PAPER_TABLE_2 = {
    "cqa": (8741, 1221, 5),
    "obqa": (4957, 500, 4),
    "arce": (2249, 2375, 4),
    "arcc": (1119, 1172, 4),
    "mmlu-ss": (397, 3077, 4),
    "mmlu-stem": (411, 3018, 4),
}
Setting = tuple[str, int]  # task and seed
Method = Mapping[Setting, Mapping[str, float]]  # a method's metrics in every setting


def table_1(records: Records) -> Table:
    """LoRA ensemble against last-layer ensemble, by task.

    Raises:
        DataError: there is no record of a sweep, or of a last layer.
    """
    by_method = methods(records)
    if "last-layer ensemble" not in by_method:
        raise DataError("there is no record of the kind 'last_layer'")
    pair = [by_method["ensemble"], by_method["last-layer ensemble"]]
    names = sorted({task for one in pair for task, _ in one}, key=task_order)
    header = [
        f"{METRICS[metric]}, {name}"
        for metric in ("accuracy", "nll", "ece")
        for name in ("LoRA ensemble", "last layer")
    ]
    rows = [
        (
            name,
            *(_cell(_over_seeds(one, name, metric)) for metric in ("accuracy", "nll", "ece") for one in pair),
        )
        for name in names
    ]
    return Table(("task", *header), tuple(rows))


def paper_table_1() -> Table:
    """Table 1 of arXiv:2310.00035.

    Example:
        >>> paper_table_1().rows[0]
        ('cqa', '0.83', '0.52', '0.58', '1.25', '0.06', '0.06')
    """
    header = [
        f"{metric}, {name}"
        for metric in ("accuracy ↑", "NLL ↓", "ECE ↓")
        for name in ("LoRA ensemble", "last layer")
    ]
    return Table(
        ("task", *header),
        tuple((name, *(f"{one:.2f}" for one in row)) for name, row in PAPER_TABLE_1.items()),
    )


def table_2(records: Records) -> Table:
    """The number of questions of each task here, beside the paper's."""
    rows = []
    for name, runs in by_task(records, "sweep").items():
        result, settings = runs[0]["result"], runs[0]["settings"]
        sizes, limit = result.get("sizes", {}), settings.get("limit", (None,) * 3)
        train = sizes.get("train", "all" if limit[0] is None else f"at most {limit[0]}")
        options = sizes.get("options")
        shown = (
            "-"
            if options is None
            else ", ".join(map(str, options))
            if isinstance(options, list)
            else str(options)
        )
        validation = sizes.get("validation", result["arms"]["none"]["wrong_confidence"]["ensemble"]["of"])
        paper = PAPER_TABLE_2.get(name.removeprefix("world-"))
        rows.append((name, str(train), str(validation), shown, *(map(str, paper) if paper else ("-",) * 3)))
    return Table(
        (
            "task",
            "training",
            "validation",
            "options",
            "training (paper)",
            "validation (paper)",
            "options (paper)",
        ),
        tuple(rows),
    )


def methods(records: Records) -> dict[str, Method]:
    """Every method's metrics in every setting: few-shot, single member, ensembles, MC dropout, last layer,
    and whatever other kind of record holds an ensemble's metrics.

    Raises:
        DataError: there is no record of a sweep.
    """
    sweeps = [record for runs in by_task(records, "sweep").values() for record in runs]
    few = records.get("few_shot", ())
    by_method: dict[str, Method] = {
        "guessing evenly": {_setting(record): guess for record in sweeps if (guess := _evenly(record))},
        "zero-shot base": {
            _setting(record): _metrics(record["result"]["zero_shot"], MEMBER)
            for record in few
            if "zero_shot" in record["result"]
        },
        "few-shot base": {_setting(record): _metrics(record["result"], MEMBER) for record in few},
        "single member": _arm(sweeps, "none", MEMBER),
        "single member, scaled": _beside(sweeps, "scaled_members"),
        "single member, decay of B": _arm(sweeps, "decay of B", MEMBER),
        "snapshots of one member": _beside(sweeps, "snapshots"),
        "MC dropout": {
            _setting(record): _metrics({"members": passes}, MEMBER)
            for record in sweeps
            if (passes := record["result"]["arms"].get("MC dropout", {}).get("passes"))
        },
        "last-layer ensemble": {
            _setting(record): _metrics(record["result"], ENSEMBLE) for record in records.get("last_layer", ())
        },
    }
    for kind, others in records.items():
        if kind not in NAMED_KINDS:
            rows = {
                _setting(one): _metrics(one["result"], ENSEMBLE)
                for one in others
                if "ensemble" in one["result"]
            }
            by_method[kind.replace("_", " ")] = rows
    by_method["ensemble"] = _arm(sweeps, "none", ENSEMBLE)
    by_method["ensemble, scaled"] = _beside(sweeps, "scaled")
    by_method["ensemble, decay of B"] = _arm(sweeps, "decay of B", ENSEMBLE)
    return {name: method for name, method in by_method.items() if method}


def side_by_side(records: Records) -> Table:
    """Each method's metrics, the mean over the settings (task and seed) in which every method that has the
    metric has it; ± over seeds of the mean over tasks."""
    by_method = methods(records)
    columns = []
    for metric in METRICS:
        having = {
            name: settings
            for name, method in by_method.items()
            if (settings := {setting for setting, row in method.items() if metric in row})
        }
        shared = set.intersection(*having.values()) if having else set()
        columns.append(
            [
                _cell(_task_mean(method, metric, shared) if name in having else None)
                for name, method in by_method.items()
            ]
        )
    return Table(
        ("method", *METRICS.values()),
        tuple((name, *(column[row] for column in columns)) for row, name in enumerate(by_method)),
    )


def methods_by_task(records: Records, metric: str) -> Table:
    """One metric of each method, a column a task."""
    by_method = methods(records)
    names = sorted({task for method in by_method.values() for task, _ in method}, key=task_order)
    rows = [
        (name, *(_cell(_over_seeds(method, task, metric)) for task in names))
        for name, method in by_method.items()
    ]
    return Table((METRICS[metric], *names), tuple(rows))


def costs(records: Records) -> Table:
    """Parameters that each method trains and how often it asks the base, in multiples that hold for every
    base; numbers where records hold them.
    """
    sweep = next(iter(by_task(records, "sweep").values()))[0]
    members = int(sweep["settings"]["members"])
    adapter, head = _trained(records, "sweep"), _trained(records, "last_layer")
    few = records.get("few_shot", ())
    shots = int(few[0]["settings"]["shots"]) if few else 0
    rows = [("single member", _times(1, "adapter", adapter), "1 run", "1")]
    if few:
        rows.insert(0, ("few-shot base", "0", "none", f"1, of a prompt with {shots} demonstrations"))
    if "MC dropout" in sweep["result"]["arms"]:
        rows.append(("MC dropout", _times(1, "adapter", adapter), "1 run", f"{members}"))
    if records.get("last_layer"):
        rows.append(
            (
                "last-layer ensemble",
                _times(members, "set of label rows", head),
                "heads alone, on cached states",
                "1",
            )
        )
    for kind in records:
        if kind not in NAMED_KINDS and _trained(records, kind) is not None:
            rows.append(
                (kind.replace("_", " "), _times(members, "member", _trained(records, kind)), "-", "-")
            )
    rows.append(
        (
            "ensemble",
            _times(members, "adapter", adapter),
            f"1 stacked run of {members}",
            f"1, of {members} rows",
        )
    )
    return Table(("method", "trained parameters", "training", "forward passes a question"), tuple(rows))


def seconds(records: Records) -> Table | None:
    """Seconds that the records of each kind took, where they say so."""
    rows = []
    for kind, runs in records.items():
        times = spread(record["result"].get("seconds") for record in runs)
        if times:
            rows.append(
                (
                    kind,
                    str(len(times.values)),
                    f"{times.mean:.0f} ± {times.std:.0f}",
                    f"{sum(times.values) / 60:.1f}",
                )
            )
    return Table(("kind", "records", "seconds a record", "minutes in all"), tuple(rows)) if rows else None


def diversity(records: Records) -> Table:
    """The correlation of each arm's members, and what its ensemble gains, the mean over tasks; ± over seeds
    of that mean.
    """
    sweeps = [record for runs in by_task(records, "sweep").values() for record in runs]
    rows = []
    for arm in sweeps[0]["result"]["arms"]:
        effects: dict[Setting, dict[str, float]] = {}
        for record in sweeps:
            row, own = last_row(record, arm), record["result"]["arms"].get(arm, {})
            if row is None or own.get("correlation") is None:
                continue
            matrix = own["agreement"]
            pairs = [matrix[one][other] for one in range(len(matrix)) for other in range(one)]
            gains = {
                name: (value(row, name, ENSEMBLE) or 0.0) - (value(row, name, MEMBER) or 0.0)
                for name in ("accuracy", "nll", "ece")
            }
            effects[_setting(record)] = {
                "agreement": statistics.fmean(pairs),
                "correlation": own["correlation"],
                **gains,
            }
        if effects:
            names = ("agreement", "correlation", "accuracy", "nll", "ece")
            rows.append((arm, *(_cell(_task_mean(effects, name, set(effects))) for name in names)))
    header = (
        "arm",
        "agreement",
        "correlation",
        "change in accuracy",
        "change in NLL (nats)",
        "change in ECE",
    )
    return Table(header, tuple(rows))


def _setting(record: Record) -> Setting:
    return str(record["settings"]["task"]), int(record["settings"]["seed"])


def _metrics(row: Mapping[str, Any], who: str) -> dict[str, float]:
    return {metric: number for metric in METRICS if (number := value(row, metric, who)) is not None}


def _evenly(record: Record) -> dict[str, float]:
    """The metrics of equal probabilities, 1 / C, ln C and 1 - 1 / C; empty where the record does not say how
    many options there are.
    """
    options = options_of({"sweep": [record]}, _setting(record)[0])
    return (
        {}
        if options is None
        else {"accuracy": 1 / options, "nll": math.log(options), "brier": 1 - 1 / options}
    )


def _beside(sweeps: Sequence[Record], name: str) -> Method:
    """A method that a sweep holds beside its arms."""
    return {
        _setting(record): _metrics({"ensemble": record["result"][name]}, ENSEMBLE)
        for record in sweeps
        if name in record["result"]
    }


def _arm(sweeps: Sequence[Record], arm: str, who: str) -> Method:
    """An arm at the end; decay of B without a strength is that of the record's grid on the task."""
    return {
        _setting(record): _metrics(row, who)
        for record in sweeps
        if (row := last_row(record, decay_arm(record) if arm == "decay of B" else arm)) is not None
    }


def _over_seeds(method: Method, task: str, metric: str) -> Spread | None:
    return spread(row.get(metric) for (name, _), row in sorted(method.items()) if name == task)


def _task_mean(method: Method, metric: str, shared: set[Setting]) -> Spread | None:
    """For every seed the mean over its tasks, so that the spread is that of whole repetitions."""
    seeds = sorted({seed for _, seed in shared})
    return spread(
        statistics.fmean(method[setting][metric] for setting in shared if setting[1] == seed)
        for seed in seeds
    )


def _cell(summary: Spread | None) -> str:
    return "-" if summary is None else str(summary)


def _trained(records: Records, kind: str) -> int | None:
    return next(
        (
            int(one["result"]["trained_parameters"])
            for one in records.get(kind, ())
            if "trained_parameters" in one["result"]
        ),
        None,
    )


def _times(count: int, what: str, parameters: int | None) -> str:
    plural = what if count == 1 else what.replace("set", "sets") if what.startswith("set") else f"{what}s"
    return f"{count} {plural}" + ("" if parameters is None else f" = {count * parameters:,}")
