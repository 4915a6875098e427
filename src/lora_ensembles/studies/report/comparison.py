"""Tables and the figure of the comparison of methods at equal budgets.

A cell is the mean over tasks and seeds. A difference is the mean over tasks of what lies between two methods
in the same task, with its 95 % t interval over tasks, where there are four or more.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..claims.judge import interval_of_tasks
from ..grid import COMPARISON, TRIALS
from .claim_tables import signed
from .figures.style import BLACK, BLUE, VERMILION, heading, panels
from .figures.values import Record, Records, by_task
from .page import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RAW, SCALED = "raw", "scaled"
GAP = 0.03  # between labels of points, as a share of the height
NEAR = 1.3  # a ratio of costs up to which labels would meet
MOST = 1.5  # times the lowest NLL: points above stand at the upper edge, with their NLL
FIRST = "single member"  # what differences and costs are held against
METRICS = {
    "accuracy": "accuracy ↑",
    "nll": "NLL ↓",
    "ece_debiased": "ECE, debiased ↓",
    "brier": "Brier ↓",
    "ood_auroc": "OOD AUROC ↑",
    "selective_risk": "risk at 80 % ↓",
}
Number = Callable[[Mapping[str, Any]], float | None]  # of a method's part of a record


def comparison_table(records: Records, *, state: str = RAW) -> Table:
    """The metrics of each method, as it answers or `scaled` by a temperature.

    Raises:
        DataError: there is no record of a comparison.
    """
    tasks = by_task(records, COMPARISON)
    rows = []
    for name in method_names(records):
        cells = [_cell(_mean(tasks, name, _metric(state, metric))) for metric in METRICS]
        rows.append((name, *cells))
    return Table(("method", *METRICS.values()), tuple(rows))


def differences_table(records: Records) -> Table:
    """The NLL of each method minus that of a single member, and minus that of the ensemble, scaled and not.

    Raises:
        DataError: there is no record of a comparison.
    """
    tasks = by_task(records, COMPARISON)
    columns = [(state, other) for state in (RAW, SCALED) for other in (FIRST, "ensemble")]
    rows = []
    for name in method_names(records):
        cells = [_difference(tasks, name, other, state) for state, other in columns]
        rows.append((name, *cells))
    titles = [f"NLL minus the {other}'s{', scaled' if state == SCALED else ''}" for state, other in columns]
    return Table(("method", *titles), tuple(rows))


def costs_table(records: Records) -> Table:
    """The costs of each method, in training and for a question; multiples are of a single member's in the
    same record.

    Raises:
        DataError: there is no record of a comparison.
    """
    tasks, flops = by_task(records, COMPARISON), _flops(records)
    rows = []
    for name in method_names(records):
        part = next(iter(tasks.values()))[0]["result"]["methods"][name]
        cells = [
            f"{part['trained_parameters']:,}",
            _cell(_mean(tasks, name, lambda own: own["training_passes"]), digits=1),
            _cell(flops.get(name), digits=2),
            _cell(relative(tasks, name, "training_seconds"), digits=2),
            str(part["rows"]),
            _cell(relative(tasks, name, "seconds_per_1000"), digits=2),
        ]
        rows.append((name, *cells))
    header = (
        "method",
        "trained parameters",
        "passes over the data",
        "training FLOPs",
        "training time",
        "rows per question",
        "time per question",
    )
    return Table(header, tuple(rows))


def chosen_table(records: Records) -> Table:
    """The settings that each method chose in its trials: the step size, the epochs and its own setting, from
    the lowest to the highest over the tasks.

    Raises:
        DataError: there are no records of trials.
    """
    tasks = by_task(records, TRIALS)
    rows = []
    for name in _names(tasks):
        parts = [
            record["result"]["methods"][name]
            for runs in tasks.values()
            for record in runs
            if name in record["result"]["methods"]
        ]
        chosen = [part["chosen"] for part in parts if "chosen" in part]
        if not chosen:
            continue
        if parts[0]["own"] == "shots":  # nothing is trained
            cells = ["-", "-", _range([round(one["own"]) for one in chosen])]
        else:
            cells = [_range([one[field] for one in chosen]) for field in ("learning_rate", "epochs", "own")]
        rows.append((name, parts[0]["own"], *cells))
    return Table(("method", "own setting", "step size", "epochs", "its value"), tuple(rows))


def method_names(records: Records) -> list[str]:
    """The methods of a comparison, in its order."""
    return _names(by_task(records, COMPARISON))


def relative(tasks: Mapping[str, Sequence[Record]], name: str, cost: str) -> float | None:
    """A cost of a method in multiples of a single member's in the same record, the mean over records."""
    ratios = [
        record["result"]["methods"][name][cost] / record["result"]["methods"][FIRST][cost]
        for runs in tasks.values()
        for record in runs
        if name in record["result"]["methods"]
    ]
    return statistics.fmean(ratios) if ratios else None


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names of the points (cost, loss) that no other is better than in one and no worse than in the
    other, by cost.

    Example:
        >>> front({"a": (1.0, 0.9), "b": (2.0, 0.95), "c": (5.0, 0.8)})
        ['a', 'c']
    """
    best, kept = float("inf"), []
    for name, (_, loss) in sorted(points.items(), key=lambda item: item[1]):
        if loss < best:
            best = loss
            kept.append(name)
    return kept


def apart(values: Mapping[str, float], gap: float, *, low: float, high: float) -> dict[str, float]:
    """The values, moved as little as possible (least squares) so that no two are nearer than `gap`, and all
    lie between `low` and `high`: isotonic regression within bounds of what lies over i gaps, i a value's
    rank.

    Example:
        >>> apart({"a": 1.0, "b": 1.0, "c": 5.0}, 1.0, low=0.0, high=4.0)
        {'a': 0.5, 'b': 1.5, 'c': 4.0}
    """
    names = sorted(values, key=lambda name: values[name])
    blocks: list[tuple[float, int]] = []  # the mean of as many neighbours
    for rank, name in enumerate(names):
        mean, count = values[name] - rank * gap, 1
        while blocks and blocks[-1][0] > mean:
            before, more = blocks.pop()
            mean, count = (mean * count + before * more) / (count + more), count + more
        blocks.append((mean, count))
    highest = high - gap * (len(names) - 1)
    means = [max(low, min(mean, highest)) for mean, count in blocks for _ in range(count)]
    return {name: mean + rank * gap for rank, (name, mean) in enumerate(zip(names, means, strict=True))}


def draw(records: Records) -> Figure:
    """NLL against the time to answer.

    Raises:
        DataError: there is no record of a comparison.
        MissingExtraError: matplotlib is not installed.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    tasks = by_task(records, COMPARISON)
    names = method_names(records)
    figure, grid = panels(1, 2, height=3.6, sharex=True)
    for axes, state, title in zip(
        grid[0], (RAW, SCALED), ("as it answers", "with a temperature"), strict=True
    ):
        points = {}
        for name in names:
            cost, loss = relative(tasks, name, "seconds_per_1000"), _mean(tasks, name, _metric(state, "nll"))
            assert cost is not None
            assert loss is not None
            points[name] = cost, loss
        axes.set_xscale("log")
        axes.margins(x=0.12)
        _draw_points(axes, points)
        axes.xaxis.set_major_locator(FixedLocator([0.5, 1, 2, 5, 10, 20]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("relative time to answer ↓")
        axes.set_ylabel("NLL (nats) ↓")
        heading(axes, title)
    key = [f"{number} {name}" for number, name in enumerate(names, start=1)]
    lines = ["   ".join(key[first : first + 6]) for first in range(0, len(key), 6)]
    figure.supxlabel("\n".join(lines), fontsize=6.5, color="0.2")
    return figure


def _draw_points(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """The points (cost, loss), each with its number beside it, and the line of the front."""
    best = front(points)
    axes.plot(*zip(*(points[name] for name in best), strict=True), color=BLUE, linewidth=1.0, zorder=1)
    most = MOST * min(loss for _, loss in points.values())
    drawn = {name: (cost, min(loss, most)) for name, (cost, loss) in points.items()}
    for name, at in drawn.items():
        colour, marker = VERMILION if name in best else BLACK, "^" if points[name][1] > most else "o"
        axes.plot(*at, marker, color=colour, markersize=3.5, zorder=2)
    edge = max(cost for cost, _ in points.values()) / NEAR
    # The line of the front leaves its points to the right, and a label at the edge would leave the panel.
    left = {*best[:-1], *(name for name, (cost, _) in points.items() if cost > edge)}
    places = _label_heights(drawn, left, axes.get_ylim())
    for number, (name, (cost, loss)) in enumerate(points.items(), start=1):
        axes.annotate(
            f"{number}  {loss:.2f} ↑" if loss > most else str(number),
            drawn[name],
            xytext=(cost * (0.9 if name in left else 1.2), places[name]),
            ha="right" if name in left else "left",
            va="center",
            fontsize=6.5,
            color=VERMILION if name in best else BLACK,
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "0.55", "shrinkA": 1, "shrinkB": 2},
        )


def _label_heights(
    points: Mapping[str, tuple[float, float]], left: Collection[str], limits: tuple[float, float]
) -> dict[str, float]:
    """The heights of the labels of points: those on one side of points of about the same cost stand apart."""
    low, high = limits
    gap = GAP * (high - low)
    columns: list[list[str]] = []
    for name in sorted(points, key=lambda name: (name in left, points[name][0])):
        last = columns[-1][-1] if columns else None
        if last is None or (last in left) != (name in left) or points[name][0] > NEAR * points[last][0]:
            columns.append([])
        columns[-1].append(name)
    heights: dict[str, float] = {}
    for column in columns:
        heights |= apart({name: points[name][1] for name in column}, gap, low=low + gap, high=high)
    return heights


def _names(tasks: Mapping[str, Sequence[Record]]) -> list[str]:
    every = [name for runs in tasks.values() for record in runs for name in record["result"]["methods"]]
    return list(dict.fromkeys(every))


def _metric(state: str, metric: str) -> Number:
    return lambda own: own[state][metric]


def _task_means(tasks: Mapping[str, Sequence[Record]], name: str, number: Number) -> dict[str, float]:
    """A number of a method by task, the mean over seeds; without the tasks that lack it."""
    means = {}
    for task, runs in tasks.items():
        own = [record["result"]["methods"].get(name) for record in runs]
        values = [number(part) for part in own if part is not None]
        present = [value for value in values if value is not None]
        if present:
            means[task] = statistics.fmean(present)
    return means


def _mean(tasks: Mapping[str, Sequence[Record]], name: str, number: Number) -> float | None:
    means = _task_means(tasks, name, number)
    return statistics.fmean(means.values()) if means else None


def _difference(tasks: Mapping[str, Sequence[Record]], name: str, other: str, state: str) -> str:
    own, others = (_task_means(tasks, one, _metric(state, "nll")) for one in (name, other))
    both = [own[task] - others[task] for task in own if task in others]
    if name == other or not both:
        return "-"
    interval = interval_of_tasks(both)
    shown = signed(statistics.fmean(both))
    return shown if interval is None else f"{shown} ({' to '.join(map(signed, interval))})"


def _flops(records: Records) -> dict[str, float]:
    """FLOPs of a whole training in multiples of a single member's, the mean over tasks."""
    multiples: dict[str, list[float]] = {}
    for runs in by_task(records, TRIALS).values():
        parts = runs[0]["result"]["methods"]
        for name, part in parts.items():
            if "chosen" not in part:
                continue
            multiples.setdefault(name, []).append(part["training_flops"] / parts[FIRST]["training_flops"])
    return {name: statistics.fmean(values) for name, values in multiples.items()}


def _range(values: Sequence[float]) -> str:
    low, high = (f"{end:g}" for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _cell(number: float | None, *, digits: int = 3) -> str:
    return "-" if number is None else f"{number:.{digits}f}"
