"""Figure 3: accuracy, NLL and ECE over the epochs, without a regulariser and with decay of B."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .style import DECAY, NONE, arms_keys, finish, task_rows
from .values import Records, by_task, named_decay

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Figure 3: over the epochs, with and without decay of B"
NEEDS = ("sweep",)
CAPTION = (
    "Accuracy (share of right answers), negative log-likelihood (nats) and expected calibration error (15 "
    "bins) on the validation questions over the epochs, without a regulariser and with decay of B of one "
    "strength. Solid: single member (mean of the members' own metrics); dashed: ensemble. Lines: mean over "
    "the seeds; bands: from the lowest to the highest seed. Dotted, or named over a panel: "
    "guessing evenly (1/C, ln C), and the ECE that the plain ensemble would show at the end if it were "
    "calibrated."
)
PAPER = (
    "Over 20 epochs the ensemble of 5 is more accurate and better calibrated than its members, with and "
    "without decay. Without decay NLL becomes very large on several tasks, most of all on the two mmlu "
    "subsets, and ensembling alone does not prevent it; decay does, and both together give the lowest NLL. "
    "Decay usually costs some accuracy (λ = 1e3 on mmlu, 1e2 elsewhere)."
)
METRICS = ("accuracy", "nll", "ece")


def draw(records: Records) -> Figure:
    """A row a task, a column a metric.

    Raises:
        DataError: records that it needs are missing.
        MissingExtraError: matplotlib is not installed.
    """
    sweeps = by_task(records, "sweep")
    named = named_decay([record for runs in sweeps.values() for record in runs])
    arms = {"none": ("no regulariser", NONE), "decay of B": (named, DECAY)}
    figure, _ = task_rows(sweeps, arms, METRICS, height=1.35, records=records)
    return finish(figure, records, arms_keys(arms), columns=2)
