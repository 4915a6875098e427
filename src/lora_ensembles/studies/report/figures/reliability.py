"""Reliability diagrams: accuracy against confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ....prediction.metrics import NUM_BINS
from ...claims.views import decay_arm
from .style import DECAY, LINES, NAMES, NONE, Key, finish, heading, task_panels
from .values import ENSEMBLE, MEMBER, Records, by_task, last_row, spread, value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "Reliability diagrams"
NEEDS = ("sweep",)
LEAST = 10  # answers: the share of right ones among fewer says little
CAPTION = (
    "Share of right answers against mean confidence on the validation questions after the last epoch, in "
    "the 15 equal-width bins of the ECE; on the grey diagonal a model is calibrated, below it "
    "overconfident. Points: the answers of all seeds together, larger where a bin holds more of them, and "
    "bins of fewer than 10 answers are left out. Thin lines: each seed alone. Solid: the first member; "
    "dashed: ensemble. Above each panel: ECE as the mean over the seeds, of the members (mean of their own) "
    "and of the ensemble, without and with decay of B."
)
PAPER = "The paper has no reliability diagrams; their summary, the ECE, is in its Table 1 and Figure 2."


def draw(records: Records) -> Figure:
    """A panel a task.

    Raises:
        DataError: records that it needs are missing.
        MissingExtraError: matplotlib is not installed.
    """
    sweeps = by_task(records, "sweep")
    figure, grid = task_panels(sweeps, columns=3, height=2.35 if len(sweeps) > 2 else 3.0)
    decay = decay_arm(next(iter(sweeps.values()))[0])
    for name, axes in grid.items():
        runs = sweeps[name]
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        said = []
        for arm, colour in (("none", NONE), (decay, DECAY)):
            rows = [record["result"]["arms"][arm] for record in runs if arm in record["result"]["arms"]]
            for who, line in LINES.items():
                _line(axes, [row["reliability"][who] for row in rows], colour=colour, line=line)
                errors = spread(value(row, "ece", who) for record in runs if (row := last_row(record, arm)))
                said.append("-" if errors is None else f"{errors.mean:.2f}")
        axes.set(xlim=(0, 1.02), ylim=(-0.02, 1.02))
        axes.set_box_aspect(1)
        axes.tick_params(labelbottom=True)
        heading(axes, name, below=f"ECE {said[0]} → {said[1]}, decay {said[2]} → {said[3]}")
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
    keys = [
        Key(f"{NAMES[who]}, {label}", colour, LINES[who], "o")
        for label, colour in (("no regulariser", NONE), ("decay of B", DECAY))
        for who in (MEMBER, ENSEMBLE)
    ]
    return finish(figure, records, keys, columns=2)


def pooled(bins: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float], list[float]]:
    """Mean confidence, accuracy and number of answers in each bin of at least `LEAST` answers, over several
    records of bins.

    Example:
        >>> one, two = ({"confidences": [0.9], "accuracies": [share], "counts": [10]} for share in (0.0, 1.0))
        >>> pooled([one, two])
        ([0.9], [0.5], [20.0])
    """
    sums: dict[int, list[float]] = {}
    for one in bins:
        for confidence, right, count in zip(
            one["confidences"], one["accuracies"], one["counts"], strict=True
        ):
            total = sums.setdefault(min(int(confidence * NUM_BINS), NUM_BINS), [0.0, 0.0, 0.0])
            for place, number in enumerate((confidence * count, right * count, count)):
                total[place] += number
    points = [
        (confidence / count, right / count, count)
        for _, (confidence, right, count) in sorted(sums.items())
        if count >= LEAST
    ]
    return [one[0] for one in points], [one[1] for one in points], [one[2] for one in points]


def _line(axes: Axes, bins: Sequence[Mapping[str, Any]], *, colour: str, line: str) -> None:
    if len(bins) > 1:
        for one in bins:
            axes.plot(*pooled([one])[:2], color=colour, linestyle=line, linewidth=0.5, alpha=0.35)
    confidences, rights, counts = pooled(bins)
    axes.plot(confidences, rights, color=colour, linestyle=line, linewidth=1.4)
    axes.scatter(
        confidences,
        rights,
        s=[4 + 60 * count / sum(counts) for count in counts],
        color=colour,
        alpha=0.6,
        linewidths=0,
    )
