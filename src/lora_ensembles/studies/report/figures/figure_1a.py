"""Figure 1a: how sure the base, one member and the ensemble are of their wrong answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ....prediction.plots.density import density_on_unit_interval
from ...claims.views import decay_arm
from .style import DECAY, FEW_SHOT, NONE, Key, finish, heading, panels
from .values import Record, Records, by_task, named_decay

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "Figure 1a: confidence of wrong answers"
NEEDS = ("sweep", "few_shot")
CAPTION = (
    "Density of the confidence (probability of the chosen option) of wrong answers to validation questions, "
    "after the last epoch. Answers of all seeds were counted in 50 equal bins; the thick line is a Gaussian "
    "kernel density of the bins' middles, reflected at 0 and 1, with Silverman's bandwidth and at least a "
    "bin's width. Thin lines: each seed alone. Few-shot counts every draw, the single member every member. "
    "Above each panel: the share of wrong answers among all, in the legend's order."
)
PAPER = (
    "On cqa with LLaMA-13B, the few-shot base is calibrated but often wrong; the single fine-tuned member "
    "is more accurate and overconfident in its wrong answers; the ensemble with strong decay (dashed) "
    "improves accuracy and ECE."
)


def draw(records: Records) -> Figure:
    """A panel a task.

    Raises:
        DataError: records that it needs are missing.
        MissingExtraError: matplotlib is not installed.
    """
    sweeps, few_shots = by_task(records, "sweep"), by_task(records, "few_shot")
    names = [name for name in sweeps if name in few_shots] or list(sweeps)
    rows = (len(names) + 1) // 2
    figure, grid = panels(rows, 2, height=1.75)
    every = [axes for row in grid for axes in row]
    for axes, name in zip(every, names, strict=False):
        _panel(axes, name, sweeps[name], few_shots.get(name, []))
    for axes in every[len(names) :]:
        axes.remove()
    for axes in every[max(0, len(names) - 2) : len(names)]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("confidence of a wrong answer")
    keys = [
        Key("few-shot base", FEW_SHOT),
        Key("single member", NONE),
        Key("ensemble", NONE, "--"),
        Key(f"ensemble, {named_decay(records['sweep'])}", DECAY, "--"),
    ]
    return finish(figure, records, keys)


def _panel(axes: Axes, name: str, sweeps: list[Record], few_shots: list[Record]) -> None:
    arm = decay_arm(sweeps[0])
    lines = (
        (FEW_SHOT, "-", [record["result"]["wrong_confidence"]["members"] for record in few_shots]),
        (NONE, "-", [_wrong(record, "none", "members") for record in sweeps]),
        (NONE, "--", [_wrong(record, "none", "ensemble") for record in sweeps]),
        (
            DECAY,
            "--",
            [_wrong(record, arm, "ensemble") for record in sweeps if arm in record["result"]["arms"]],
        ),
    )
    grid = torch.linspace(0, 1, 401, dtype=torch.float64)
    shares = []
    for colour, line, histograms in lines:
        counts = [torch.tensor(one["counts"]) for one in histograms]
        for one in counts:
            if one.sum():
                axes.plot(
                    grid.tolist(),
                    _density(one, grid),
                    color=colour,
                    linestyle=line,
                    linewidth=0.5,
                    alpha=0.45,
                )
        whole = torch.stack(counts).sum(dim=0) if counts else torch.zeros(1)
        if whole.sum():
            axes.plot(grid.tolist(), _density(whole, grid), color=colour, linestyle=line, linewidth=1.8)
            shares.append(f"{int(whole.sum()) / sum(one['of'] for one in histograms):.0%}")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("density")
    heading(axes, name, below=f"wrong: {', '.join(shares)}" if shares else "")


def _density(counts: torch.Tensor, grid: torch.Tensor) -> list[float]:
    middles = (torch.arange(len(counts), dtype=torch.float64) + 0.5) / len(counts)
    density: list[float] = density_on_unit_interval(
        middles.repeat_interleave(counts), grid, least_bandwidth=1 / len(counts)
    ).tolist()
    return density


def _wrong(record: Record, arm: str, who: str) -> Any:
    return record["result"]["arms"][arm]["wrong_confidence"][who]
