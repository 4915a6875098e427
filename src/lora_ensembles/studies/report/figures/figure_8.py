"""Figure 8: which matrix is decayed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....errors import DataError
from .style import (
    DECAY,
    GREEN,
    NONE,
    PURPLE,
    arms_keys,
    finish,
    task_rows,
)
from .values import Records, by_task, named_decay

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Figure 8: decay of A, of B, of both"
NEEDS = ("sweep",)
CAPTION = (
    "Accuracy, NLL (nats) and ECE on the validation questions over the epochs, with decay of one strength "
    "on A alone, on B alone and on both, and without. Solid: single member (mean of the members' own "
    "metrics); dashed: ensemble. Lines: mean over the seeds; bands: from the lowest to the highest seed. "
    "Dotted, or named over a panel: guessing evenly (1/C, ln C), and the ECE that the plain "
    "ensemble would show at the end if it were calibrated."
)
PAPER = (
    "On cqa (strength 1e2) and the two mmlu subsets (1e3), decay of A alone leaves NLL high, decay of both "
    "costs much accuracy, and decay of B alone is good in both."
)
METRICS = ("accuracy", "nll", "ece")


def draw(records: Records) -> Figure:
    """A row a task, a column a metric.

    Raises:
        DataError: records that it needs are missing.
        MissingExtraError: matplotlib is not installed.
    """
    sweeps = {
        name: runs
        for name, runs in by_task(records, "sweep").items()
        if any("decay of A" in record["result"]["arms"] for record in runs)
    }
    if not sweeps:
        raise DataError("no record of a sweep holds decay of A")
    named = named_decay([record for runs in sweeps.values() for record in runs])
    arms = {
        "none": ("no regulariser", NONE),
        "decay of A": ("decay of A", GREEN),
        "decay of B": (named, DECAY),
        "decay of A and B": ("decay of A and B", PURPLE),
    }
    figure, _ = task_rows(sweeps, arms, METRICS, height=1.35, records=records)
    return finish(figure, records, arms_keys(arms), columns=2)
