"""Figure 5: out of distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....errors import DataError
from .style import DECAY, NONE, arms_keys, finish, heading, level_line, task_rows
from .values import Records, by_task, epochs_of, guessing, named_decay

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Figure 5: out of distribution"
NEEDS = ("sweep",)
CAPTION = (
    "Accuracy, NLL (nats) and ECE on questions of another distribution (named above each row as trained on "
    "→ asked about) over the epochs, and AUROC of telling them from the validation questions by the largest "
    "probability (0.5, the grey line, is chance). Dotted grey: guessing evenly. Solid: single "
    "member (mean of the members' own metrics); dashed: ensemble. Lines: mean over the seeds; bands: from "
    "the lowest to the highest seed."
)
PAPER = (
    "From cqa to mmlu, ensembling does not undo the forgetting, and improves NLL and ECE out of "
    "distribution, with and without a regulariser. AUROC is around or below 0.5 in the second and third "
    "row, read here as the two mmlu subsets, where accuracy out of distribution rises with fine-tuning."
)
METRICS = ("accuracy", "nll", "ece", "ood_auroc")
# Of the questions that are only asked about.
OPTIONS = {
    "mmlu": 4,
    "mmlu-not-ss": 4,
    "mmlu-not-stem": 4,
    "world-mmlu": 5,
    "world-mmlu-ss": 4,
    "world-mmlu-stem": 4,
}


def draw(records: Records) -> Figure:
    """A row a pair of training and other distribution, a column a metric.

    Raises:
        DataError: records that it needs are missing, or no task of theirs has another distribution.
        MissingExtraError: matplotlib is not installed.
    """
    sweeps = {
        name: runs
        for name, runs in by_task(records, "sweep").items()
        if any("ood" in row for record in runs for row in epochs_of(record, "none").values())
    }
    if not sweeps:
        raise DataError("no task of these records has questions out of distribution; world-cqa has")
    named = named_decay([record for runs in sweeps.values() for record in runs])
    arms = {"none": ("no regulariser", NONE), "decay of B": (named, DECAY)}
    figure, grid = task_rows(sweeps, arms, METRICS, height=1.45, where="ood")
    for axes, (name, runs) in zip(grid, sweeps.items(), strict=True):
        axes[-1].axhline(0.5, color="0.5", linewidth=1, zorder=0)
        other = runs[0]["settings"].get("ood", "another")
        for one, metric in zip(axes, METRICS, strict=True):
            level_line(one, guessing(OPTIONS.get(other), metric))
        heading(axes[0], f"{name} → {other}")
    return finish(figure, records, arms_keys(arms), columns=2)
