"""Each regulariser from far too weak to far too strong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ....prediction.plots.style import COLOURS
from .style import LINES, METRICS, NAMES, Key, band, finish, panels
from .values import (
    Record,
    Records,
    Spread,
    by_task,
    last_row,
    over_epochs,
    spread,
    strength,
    value,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Regularisers from weak to strong"
NEEDS = ("strength",)
CAPTION = (
    "Accuracy, NLL (nats) and ECE on the validation questions against the strength of each regulariser: "
    "weight of the KL divergence from the base, and share of B that decay takes away in a step, both after "
    "the last epoch on a logarithmic axis; and the epoch at which training without a regulariser stops. "
    "Solid: single member (mean of the members' own metrics); dashed: ensemble. Lines: mean over the seeds; "
    "bands: from the lowest to the highest seed. Thin lines: without a regulariser after the last "
    "epoch."
)
PAPER = (
    "The paper has three strengths of each in its Figure 2: KL 0.01 to 0.1, decay of B by 0.005 to 0.05 a "
    "step, and stops after 1 to 3 epochs."
)
SHOWN = ("accuracy", "nll", "ece")
FAMILIES = {"KL ": "KL weight", "decay of B ": "share of B a step", "": "epochs until the stop"}


def draw(records: Records) -> Figure:
    """A row a metric, a column a regulariser, a colour a task.

    Raises:
        DataError: records that it needs are missing.
        MissingExtraError: matplotlib is not installed.
    """
    tasks = by_task(records, "strength")
    arms = [arm for record in records["strength"] for arm in record["result"]["arms"]]
    # Where the base has no distribution over the answers, there is no KL divergence from it.
    families = {
        prefix: name for prefix, name in FAMILIES.items() if any(arm.startswith(prefix) for arm in arms)
    }
    figure, grid = panels(len(SHOWN), len(families), height=1.6, sharex=False)
    for axes, metric in zip(grid, SHOWN, strict=True):
        for one, (prefix, name) in zip(axes, families.items(), strict=True):
            for colour, runs in zip(COLOURS, tasks.values(), strict=False):
                for who, line in LINES.items():
                    band(one, by_strength(runs, prefix, metric, who), colour=colour, line=line)
                    plain = spread(
                        value(row, metric, who) for record in runs if (row := last_row(record, "none"))
                    )
                    if prefix and plain:
                        one.axhline(plain.mean, color=colour, linestyle=line, linewidth=0.6, alpha=0.7)
            if prefix:
                one.set_xscale("log")
            one.set_xlabel(name if metric == SHOWN[-1] else "")
            one.set_ylabel(METRICS[metric] if one is axes[0] else "", labelpad=2)
            one.sharey(axes[0])
    keys = [
        Key(f"{NAMES[who]}, {name}", colour, line, "o")
        for colour, name in zip(COLOURS, tasks, strict=False)
        for who, line in LINES.items()
    ]
    keys.append(Key("thin: no regulariser, last epoch", "0.4"))
    return finish(figure, {"strength": records["strength"]}, keys, columns=3)


def by_strength(runs: Sequence[Record], prefix: str, metric: str, who: str) -> dict[float, Spread]:
    """A metric by the strength of the arms whose name begins so, over the seeds; without a name, by epoch
    without a regulariser.
    """
    if not prefix:
        return {float(epoch): values for epoch, values in over_epochs(runs, "none", metric, who).items()}
    arms = {
        name: strength(name)
        for record in runs
        for name in record["result"]["arms"]
        if name.startswith(prefix)
    }
    curve = {}
    for name, size in sorted(arms.items(), key=lambda pair: pair[1]):
        values = spread(value(row, metric, who) for record in runs if (row := last_row(record, name)))
        if values:
            curve[size] = values
    return curve
