"""Figures and tables of the studies: what is drawn is what the records hold."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import re
import statistics
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lora_ensembles.data.paper_tasks import OOD_PAIRS
from lora_ensembles.errors import DataError, MissingExtraError
from lora_ensembles.prediction.metrics import ece_floor
from lora_ensembles.prediction.plots.density import density_on_unit_interval
from lora_ensembles.prediction.plots.style import COLOURS, save_figure
from lora_ensembles.studies.claims.regularisers import paths
from lora_ensembles.studies.claims.views import View, decay_arm
from lora_ensembles.studies.grid import FULL, OPEN_KINDS, PAPER, SMOLLM2, Grid, settings_of
from lora_ensembles.studies.report import open_tables, tables
from lora_ensembles.studies.report.figures import (
    DRAWINGS,
    association,
    figure_1a,
    figure_2,
    figure_3,
    figure_4,
    figure_5,
    figure_6,
    figure_7,
    gain,
    initialisation,
    methods,
    rank,
    reliability,
    strength,
)
from lora_ensembles.studies.report.figures.style import heading, level_line, panels
from lora_ensembles.studies.report.figures.values import (
    Level,
    check_one_grid,
    level_of,
    named_decay,
    smaller_grid,
)
from study_records import SMALL, study_records

pytest.importorskip("matplotlib")
from matplotlib import colors
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

Records = dict[str, list[dict[str, Any]]]
Drawn = Callable[[Any], Any]


@pytest.fixture(scope="module")
def records() -> Records:
    return study_records()


@pytest.fixture(scope="module")
def drawn(records: Records) -> Drawn:
    """Each drawing's figure of the records, drawn once."""
    return functools.cache(lambda drawing: drawing.draw(records))


def values(
    records: Records, arm: str, metric: str, who: str, epoch: int, *, task: str = "world-cqa"
) -> list[float]:
    """A value for each seed, read from the records in the plainest way."""
    found = []
    for record in records["sweep"]:
        if record["settings"]["task"] == task:
            row = record["result"]["arms"][arm]["epochs"][str(epoch)]
            members = [one[metric] for one in row["members"]]
            found.append(row["ensemble"][metric] if who == "ensemble" else sum(members) / len(members))
    return found


def text_of(figure: Any) -> list[str]:
    return [one.get_text() for one in figure.findobj(Text) if one.get_text()]


def written_on(figure: Any) -> list[Text]:
    """Every text of a figure but the numbers of ticks outside their axes, which matplotlib keeps and does not
    draw.
    """
    found = list(figure.texts)
    for axes in figure.axes:
        found += [axes.xaxis.label, axes.yaxis.label, axes.title, axes._left_title, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            found += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return found


@pytest.mark.parametrize("drawing", DRAWINGS, ids=lambda one: one.name)
def test_every_axis_is_named_nothing_is_cut_off_and_a_picture_is_written(
    drawn: Drawn, drawing: Any, tmp_path: Any
) -> None:
    figure = drawn(drawing)
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    lowest = min(axes.get_position().y0 for axes in panels)
    for axes in panels:
        assert axes.get_ylabel() or any(label.get_text() for label in panels[0].get_yticklabels())
        assert (
            axes.get_xlabel() or axes.get_position().y0 > lowest
        )  # a shared axis is named below the last row
    save_figure(figure, tmp_path / drawing.name)
    assert (tmp_path / f"{drawing.name}.png").read_bytes().startswith(b"\x89PNG")
    check_nothing_is_cut_off(figure)


def check_nothing_is_cut_off(figure: Any) -> None:
    """No text leaves the figure, and no legend covers data; the figure's parts are arranged."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # texts are where they were last drawn, and that was in another resolution
    renderer = canvas.get_renderer()
    whole = figure.bbox
    for legend in figure.legends:
        box = legend.get_window_extent(renderer)
        assert box.x0 >= whole.x0
        assert box.x1 <= whole.x1
        assert not any(box.overlaps(axes.get_window_extent(renderer)) for axes in figure.axes)
    for text in written_on(figure):
        if text.get_text() and text.get_visible():
            box = text.get_window_extent(renderer)
            assert min(box.x0, box.y0) >= -1, text.get_text()
            assert box.x1 <= whole.x1 + 1, text.get_text()
            assert box.y1 <= whole.y1 + 1, text.get_text()


@pytest.mark.parametrize("drawing", DRAWINGS, ids=lambda one: one.name)
def test_caption_says_how_seeds_spread_and_units_are_named(drawing: Any) -> None:
    assert "seed" in drawing.caption
    assert "paper" in drawing.paper.lower() or len(drawing.paper) > 60
    if "NLL" in drawing.caption:
        assert "nats" in drawing.caption


@pytest.mark.parametrize("drawing", DRAWINGS, ids=lambda one: one.name)
def test_lines_have_the_colour_blind_safe_colours(drawn: Drawn, drawing: Any) -> None:
    safe = {colors.to_hex(one) for one in COLOURS}
    for axes in drawn(drawing).axes:
        for line in axes.lines:
            red, green, blue, _ = colors.to_rgba(line.get_color())
            assert (
                colors.to_hex(line.get_color()) in safe or red == green == blue
            )  # greys are for lines of reference


@pytest.mark.parametrize("drawing", DRAWINGS, ids=lambda one: one.name)
def test_a_smaller_grid_is_said_on_the_figure_and_the_full_one_is_not(drawn: Drawn, drawing: Any) -> None:
    tasks = "" if drawing.name in OPEN_KINDS else "2 of 6 tasks, "
    assert any(text.startswith(f"Smaller grid: {tasks}2 of 3 seeds") for text in text_of(drawn(drawing)))


def test_the_full_grids_need_no_note() -> None:
    for grid in (FULL, SMOLLM2, PAPER):
        grid = grid.having(shared={"base": grid.shared.base or "some-llm"})
        every = [
            {"settings": settings_of(grid, "sweep", task, seed)} for task in grid.tasks for seed in grid.seeds
        ]
        assert smaller_grid({"sweep": every}) == ""
        trial = [{"settings": {"task": "arce", "seed": 0, "members": 3}}]
        assert smaller_grid({"sweep": every, "trial": trial}) == ""
    assert (
        smaller_grid({"sweep": every[:-1]}) == "17 of 18 sweeps"
    )  # a seed of one task is missing, and another has it
    assert smaller_grid({"sweep": every[:3]}) == "1 of 6 tasks"
    for kind in OPEN_KINDS:
        every = [
            {"settings": settings_of(FULL, kind, task, seed)}
            for task in FULL.open_tasks
            for seed in FULL.seeds
        ]
        assert smaller_grid({kind: every}) == ""
        assert smaller_grid({kind: every[:1]}) == "1 of 3 seeds"


@pytest.mark.parametrize("drawing", DRAWINGS, ids=lambda one: one.name)
def test_without_its_records_a_figure_is_refused(drawing: Any) -> None:
    with pytest.raises(DataError, match=f"no record of the kind '{drawing.needs[0]}'"):
        drawing.draw({})


def test_missing_matplotlib_names_the_install_command(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r'pip install "lora-ensembles\[plots\]"'):
        figure_3.draw(records)


def test_figure_3_draws_means_over_seeds_single_solid_and_ensemble_dashed_with_a_band(
    records: Records,
) -> None:
    axes = figure_3.draw(records).axes[1]  # world-cqa, NLL
    lines = {(line.get_color(), line.get_linestyle()): line for line in axes.lines}
    for arm, colour in (("none", COLOURS[1]), ("decay of B 0.025", COLOURS[0])):
        for who, style in (("member", "-"), ("ensemble", "--")):
            expected = [
                statistics.fmean(values(records, arm, "nll", who, epoch)) for epoch in SMALL.shared.snapshots
            ]
            assert lines[colour, style].get_ydata() == pytest.approx(expected)
            assert list(lines[colour, style].get_xdata()) == list(SMALL.shared.snapshots)
    band = axes.collections[0].get_paths()[0].vertices  # of the single member without a regulariser
    for epoch in SMALL.shared.snapshots:
        seeds = values(records, "none", "nll", "member", epoch)
        assert sorted(set(band[band[:, 0] == epoch][:, 1])) == pytest.approx(sorted(seeds))


def test_figure_2_leads_from_single_member_to_ensemble(records: Records) -> None:
    axes = figure_2.draw(records).axes[0]
    assert len(axes.texts) == 6  # 3 stops, one KL weight, one decay, none
    last = axes.texts[-1]
    for place, who in ((last.xyann, "member"), (last.xy, "ensemble")):
        expected = [
            statistics.fmean(values(records, "none", metric, who, 4)) for metric in ("accuracy", "ece")
        ]
        assert list(place) == pytest.approx(expected)


def test_the_legend_of_figure_2_names_what_is_drawn() -> None:
    def named(grid: Grid, *kinds: str) -> list[str]:
        figure = figure_2.draw({kind: rows for kind, rows in study_records(grid).items() if kind in kinds})
        return [text.get_text() for text in figure.legends[0].get_texts()]

    assert named(SMALL, "sweep", "few_shot") == [
        "none",
        "KL",
        "decay of B",
        "early stopping",
        "few-shot base",
        "zero-shot base",
    ]
    assert named(SMALL.having(paper={"kl": ()}), "sweep") == ["none", "decay of B", "early stopping"]


def test_figure_2_is_more_opaque_the_stronger_the_regulariser() -> None:
    grid = dataclasses.replace(
        SMALL.having(paper={"kl": (0.01, 0.05, 0.1)}), tasks=("world-cqa",), seeds=(0,)
    )
    found = list(figure_2.arrows(study_records(grid)["sweep"][0]))
    kl = [arrow for arrow in found if arrow.arm.startswith("KL ")]
    assert [arrow.arm for arrow in kl] == ["KL 0.01", "KL 0.05", "KL 0.1"]
    assert kl[0].alpha < kl[1].alpha < kl[2].alpha == 1.0
    stops = [arrow for arrow in found if arrow.arm == "none" and arrow.epoch < 4]
    assert [arrow.epoch for arrow in stops] == [3, 2, 1]  # fewer epochs, stronger
    assert stops[0].alpha < stops[1].alpha < stops[2].alpha


def test_figure_1a_is_the_density_of_all_seeds_counts(records: Records) -> None:
    axes = figure_1a.draw(records).axes[0]
    counts = torch.zeros(50, dtype=torch.int64)
    for record in records["few_shot"]:
        if record["settings"]["task"] == "world-cqa":
            counts += torch.tensor(record["result"]["wrong_confidence"]["members"]["counts"])
    line = next(line for line in axes.lines if line.get_linewidth() > 1)
    middles = torch.tensor(
        [(place + 0.5) / 50 for place, count in enumerate(counts.tolist()) for _ in range(count)]
    )
    grid = torch.tensor(line.get_xdata())
    assert line.get_ydata() == pytest.approx(
        density_on_unit_interval(middles, grid, least_bandwidth=0.02).tolist(), rel=1e-4
    )


def test_figure_4_takes_the_mean_over_the_models_that_were_asked(records: Records) -> None:
    found = [record for record in records["sweep"] if record["settings"]["task"] == "world-cqa"]
    plain, whole, single, dropout, ensemble = figure_4.compared(found, "ece")
    assert plain.values == pytest.approx(values(records, "none", "ece", "member", 4))
    assert whole.values == pytest.approx(values(records, "none", "ece", "ensemble", 4))
    passes = [[one["ece"] for one in record["result"]["arms"]["MC dropout"]["passes"]] for record in found]
    assert dropout.values == pytest.approx([statistics.fmean(one) for one in passes])
    assert single.values == pytest.approx(values(records, "dropout", "ece", "member", 4))
    assert ensemble.values == pytest.approx(values(records, "dropout", "ece", "ensemble", 4))


def test_figure_5_draws_the_other_distribution_and_names_both(records: Records) -> None:
    figure = figure_5.draw(records)
    assert {axes._left_title.get_text() for axes in figure.axes} - {""} == {
        "world-cqa → world-mmlu",
        "world-mmlu-stem → world-mmlu-ss",
    }
    sweeps = [
        record["result"]["arms"]["none"]["epochs"]
        for record in records["sweep"]
        if record["settings"]["task"] == "world-cqa"
    ]
    nll, auroc = figure.axes[1].lines[1], figure.axes[3].lines[1]  # the line of chance is the last
    assert nll.get_ydata() == pytest.approx(
        [
            statistics.fmean(epochs[str(epoch)]["ood"]["ensemble"]["nll"] for epochs in sweeps)
            for epoch in SMALL.shared.snapshots
        ]
    )
    assert auroc.get_ydata() == pytest.approx(
        [
            statistics.fmean(epochs[str(epoch)]["ensemble"]["ood_auroc"] for epochs in sweeps)
            for epoch in SMALL.shared.snapshots
        ]
    )


def test_figure_5_knows_what_guessing_evenly_gives_on_every_other_distribution() -> None:
    assert set(OOD_PAIRS.values()) == set(figure_5.OPTIONS)


def test_figure_5_without_another_distribution_says_so(records: Records) -> None:
    bare = copy.deepcopy({"sweep": records["sweep"]})
    for record in bare["sweep"]:
        for arm in record["result"]["arms"].values():
            for row in arm.get("epochs", {}).values():
                row.pop("ood", None)
    with pytest.raises(DataError, match="no task of these records has questions out of distribution"):
        figure_5.draw(bare)


def test_figure_6_averages_subsets_and_seeds(records: Records) -> None:
    curve = figure_6.by_size(records["pool"], "none", "ece")
    assert list(curve) == [1, 2, 3, 5]
    expected = [one["ece"] for record in records["pool"] for one in record["result"]["none"]["3"]]
    assert curve[3].mean == pytest.approx(statistics.fmean(expected))
    assert curve[3].std == pytest.approx(statistics.stdev(expected))


def test_figure_7_joins_single_member_and_ensemble_of_every_source(records: Records) -> None:
    figure = figure_7.draw(records)
    arrows = [[text for text in axes.texts if not text.get_text()] for axes in figure.axes]
    assert all(len(several) == 6 for several in arrows)  # an arrow a source, with and without decay


def test_pooled_reliability_gives_the_ece_of_all_answers_together() -> None:
    one = {"confidences": [0.9, 0.5], "accuracies": [0.8, 0.5], "counts": [10, 30]}
    other = {"confidences": [0.92, 0.99], "accuracies": [0.6, 1.0], "counts": [30, 9]}
    confidences, accuracies, counts = reliability.pooled([one, other])
    assert counts == [30, 40]  # the bin of 9 is too small to be drawn
    assert confidences == pytest.approx([0.5, (0.9 * 10 + 0.92 * 30) / 40])
    assert accuracies == pytest.approx([0.5, (0.8 * 10 + 0.6 * 30) / 40])


def test_the_gain_is_drawn_from_no_regulariser_to_the_strongest_of_each_family(records: Records) -> None:
    runs = [record for record in records["sweep"] if record["settings"]["task"] == "world-cqa"]
    assert paths(View({"sweep": runs})) == {
        "KL": [("none", 4), ("KL 0.05", 4)],
        "decay of B": [("none", 4), ("decay of B 0.025", 4)],
        "early stopping": [("none", 4), ("none", 3), ("none", 2), ("none", 1)],
    }
    axes = gain.draw({"sweep": runs}).axes[0]
    (line,) = [one for one in axes.lines if len(one.get_xdata()) == 4]  # early stopping
    single = statistics.fmean(values(records, "none", "nll", "member", 3))
    whole = statistics.fmean(values(records, "none", "nll", "ensemble", 3))
    assert line.get_xdata()[1] == pytest.approx(single)
    assert line.get_ydata()[1] == pytest.approx(single - whole)


def test_guessing_evenly_is_one_in_c_and_ln_c(records: Records) -> None:
    assert level_of(records, "world-cqa", "accuracy") == Level("chance", 0.25)
    assert level_of(records, "world-cqa", "nll") == Level("chance", pytest.approx(math.log(4)))
    bins = [
        record["result"]["arms"]["none"]["reliability"]["ensemble"]
        for record in records["sweep"]
        if record["settings"]["task"] == "world-cqa"
    ]
    floor = statistics.fmean(ece_floor(one["confidences"], list(map(int, one["counts"]))) for one in bins)
    assert level_of(records, "world-cqa", "ece") == Level("calibrated", pytest.approx(floor))
    assert level_of({"sweep": []}, "world-cqa", "nll") is None
    for counts, options in (([3, 4], 4), ([3, 4, 5], 4), ([5], 5)):
        runs = [{"settings": {"task": "a"}, "result": {"sizes": {"options": counts}}}]
        assert level_of({"sweep": runs}, "a", "accuracy") == Level("chance", 1 / options)
    figure, ((axes,),) = panels(1, 1, height=2)
    axes.set_ylim(0.5, 0.7)
    level_line(axes, Level("chance", 0.45))
    assert axes.lines[-1].get_ydata() == [0.45, 0.45]
    level_line(axes, Level("chance", 0.1))
    assert axes.texts[-1].get_text() == "chance 0.10 \N{DOWNWARDS ARROW}"
    level_line(axes, None)
    assert (len(axes.lines), len(axes.texts)) == (1, 1)
    heading(axes, "a task")
    figure.draw_without_rendering()
    (said,) = axes.texts
    assert said.get_window_extent().y0 >= axes.get_window_extent().y1
    assert said.get_window_extent().y1 <= axes._left_title.get_window_extent().y0
    _, ((axes,),) = panels(1, 1, height=2)
    axes.annotate("1", (0.5, 0.5))  # in the panel: the title stays close to it
    heading(axes, "a task")
    _, ((bare,),) = panels(1, 1, height=2)
    heading(bare, "a task")
    assert axes.titleOffsetTrans.get_matrix()[1, 2] == bare.titleOffsetTrans.get_matrix()[1, 2]


def test_guessing_evenly_is_a_row_beside_the_methods(records: Records) -> None:
    rows = {row[0]: row[1:] for row in tables.side_by_side(records).rows}
    assert rows["guessing evenly"] == ("0.250 ± 0.000", "1.386 ± 0.000", "-", "0.750 ± 0.000", "-")
    unsaid = copy.deepcopy(records)
    for record in unsaid["sweep"]:
        del record["result"]["sizes"]["options"]
    assert "guessing evenly" not in {row[0] for row in tables.side_by_side(unsaid).rows}


def test_figures_4_and_5_have_levels_to_hold_values_against(records: Records) -> None:
    accuracy = figure_4.draw(records).axes[0]
    thick = [line for line in accuracy.lines if line.get_linewidth() == 2.5]
    assert [list(line.get_xdata()) for line in thick] == [[0.25, 0.25]] * len(accuracy.get_yticks())
    panels_of = [
        axes for axes in figure_5.draw(records).axes if axes.get_ylabel().startswith(("accuracy", "NLL"))
    ]
    assert len(panels_of) == 4
    for axes in panels_of:
        lines = [line for line in axes.lines if line.get_linestyle() == ":"]
        named = [text for text in axes.texts if text.get_text().startswith("chance")]
        assert len(lines) + len(named) == 1


def test_a_taller_panel_has_the_same_ticks() -> None:
    ticks = []
    for height in (1.2, 1.6, 4.0):
        figure, ((axes,),) = panels(1, 1, height=height)
        axes.plot([1, 5], [0.437, 0.518])
        figure.draw_without_rendering()
        ticks.append(axes.get_yticks().tolist())
    assert ticks[0] == ticks[1] == ticks[2]


def test_the_strength_of_decay_is_named_and_every_one_where_tasks_differ() -> None:
    settings = [{"settings": {"decay": share}} for share in (0.05, 0.005, 0.05)]
    assert named_decay(settings) == "decay of B, 0.005 or 0.05 a step"


def test_gain_is_up_where_the_ensemble_is_better(records: Records) -> None:
    record = records["sweep"][0]
    row = record["result"]["arms"]["none"]["epochs"]["4"]
    member = statistics.fmean(one["nll"] for one in row["members"])
    ((x, y),) = association.gains(record, "none", "nll")
    assert x == record["result"]["arms"]["none"]["correlation"]
    assert y == pytest.approx(member - row["ensemble"]["nll"])


def test_the_one_strength_of_decay_is_the_grids() -> None:
    arms = {name: {} for name in ("none", "decay of B 0.005", "decay of B 0.025", "decay of B 0.05")}
    assert decay_arm({"settings": {"decay": 0.025}, "result": {"arms": arms}}) == "decay of B 0.025"
    assert decay_arm({"settings": {"decay": 0.1}, "result": {"arms": arms}}) == "decay of B 0.05"
    with pytest.raises(DataError, match="no arm with decay of B"):
        decay_arm({"settings": {}, "result": {"arms": {"none": {}}}})


def test_records_of_two_grids_are_refused(records: Records) -> None:
    mixed = copy.deepcopy(records)
    mixed["sweep"][0]["settings"]["members"] = 4
    with pytest.raises(
        DataError, match="different settings \\(members: 4 and 3\\); keep the records of one grid in a folder"
    ):
        check_one_grid(mixed)
    twice = {"sweep": [records["sweep"][0], records["sweep"][0]]}
    with pytest.raises(DataError, match="two records of the kind 'sweep', task 'world-cqa' and seed 0"):
        check_one_grid(twice)


def numbers(cell: str) -> list[float]:
    return [float(one) for one in re.findall(r"-?\d+\.\d+", cell)]


def test_table_1_holds_both_ensembles_by_task(records: Records) -> None:
    table = tables.table_1(records)
    assert [row[0] for row in table.rows] == ["world-cqa", "world-mmlu-stem"]
    ours = values(records, "none", "accuracy", "ensemble", 4)
    last = [
        record["result"]["ensemble"]["accuracy"]
        for record in records["last_layer"]
        if record["settings"]["task"] == "world-cqa"
    ]
    assert numbers(table.rows[0][1]) == pytest.approx(
        [statistics.fmean(ours), statistics.stdev(ours)], abs=6e-4
    )
    assert numbers(table.rows[0][2]) == pytest.approx(
        [statistics.fmean(last), statistics.stdev(last)], abs=6e-4
    )


def test_table_1_without_last_layer_is_refused() -> None:
    with pytest.raises(DataError, match="no record of the kind 'last_layer'"):
        tables.table_1(study_records(without=("last_layer",)))


def test_table_2_shows_sizes_where_records_hold_them(records: Records) -> None:
    bare = copy.deepcopy(records)
    for record in bare["sweep"]:
        del record["result"]["sizes"]
    assert tables.table_2(bare).rows[0] == ("world-cqa", "at most 40", "80", "-", "8741", "1221", "5")
    sized = copy.deepcopy(records)
    for record in sized["sweep"]:
        record["result"]["sizes"] = {"train": 40, "validation": 80, "options": [4, 5]}
    assert tables.table_2(sized).rows[0] == ("world-cqa", "40", "80", "4, 5", "8741", "1221", "5")


def test_side_by_side_compares_on_the_settings_that_all_methods_have(records: Records) -> None:
    fewer = copy.deepcopy(records)
    fewer["last_layer"] = [
        record for record in fewer["last_layer"] if record["settings"]["task"] == "world-cqa"
    ]
    rows = {row[0]: row for row in tables.side_by_side(fewer).rows}
    expected = statistics.fmean(values(records, "none", "nll", "ensemble", 4, task="world-cqa"))
    assert numbers(rows["ensemble"][2])[0] == pytest.approx(expected, abs=6e-4)
    both = {row[0]: row for row in tables.side_by_side(records).rows}
    expected = statistics.fmean(
        values(records, "none", "nll", "ensemble", 4)
        + values(records, "none", "nll", "ensemble", 4, task="world-mmlu-stem")
    )
    assert numbers(both["ensemble"][2])[0] == pytest.approx(expected, abs=6e-4)


def test_a_further_kind_of_ensemble_is_a_method(records: Records) -> None:
    more = {**records, "batch_ensemble": records["last_layer"]}
    assert "batch ensemble" in tables.methods(more)
    assert [row[0] for row in tables.methods_by_task(more, "ece").rows].count("batch ensemble") == 1


def test_costs_count_parameters_where_records_hold_them(records: Records) -> None:
    rows = {row[0]: row for row in tables.costs(records).rows}
    assert rows["ensemble"][1:] == ("3 adapters", "1 stacked run of 3", "1, of 3 rows")
    assert rows["MC dropout"][1:] == ("1 adapter", "1 run", "3")
    assert rows["last-layer ensemble"][1] == "3 sets of label rows"
    counted = copy.deepcopy(records)
    for record in counted["sweep"]:
        record["result"] |= {"trained_parameters": 1000, "seconds": 30.0}
    assert {row[0]: row[1] for row in tables.costs(counted).rows}["ensemble"] == "3 adapters = 3,000"
    assert tables.seconds(records) is None
    assert tables.seconds(counted).rows == (("sweep", "4", "30 ± 0", "2.0"),)


def test_diversity_has_a_row_for_each_arm_of_members(records: Records) -> None:
    rows = {row[0]: row for row in tables.diversity(records).rows}
    assert "MC dropout" not in rows
    expected = statistics.fmean(
        record["result"]["arms"]["dropout"]["correlation"] for record in records["sweep"]
    )
    assert numbers(rows["dropout"][2])[0] == pytest.approx(expected, abs=6e-4)


# What the paper leaves open


def of_task(records: Records, kind: str) -> list[dict[str, Any]]:
    return [record for record in records[kind] if record["settings"]["task"] == "world-cqa"]


def test_rank_correlation_is_that_of_scipys_definition_ties_included() -> None:
    # No outside ties: 1 - 6 sum d^2 / (n (n^2 - 1)); with ties: Pearson's correlation of the mean ranks.
    points = [(0.1, 5.0), (0.2, 1.0), (0.3, 4.0), (0.4, 2.0), (0.5, 3.0)]
    differences = [1 - 5, 2 - 1, 3 - 4, 4 - 2, 5 - 3]
    assert association.rank_correlation(points) == pytest.approx(
        1 - 6 * sum(d * d for d in differences) / (5 * 24)
    )
    tied = [(1.0, 1.0), (1.0, 2.0), (2.0, 3.0)]
    left, right = torch.tensor([1.5, 1.5, 3.0]), torch.tensor([1.0, 2.0, 3.0])
    assert association.rank_correlation(tied) == pytest.approx(
        torch.corrcoef(torch.stack([left, right]))[0, 1].item(), abs=1e-5
    )  # torchmetrics adds 1e-6 below
    assert association.rank_correlation([(1.0, 2.0), (1.0, 3.0), (1.0, 4.0)]) is None
    assert association.rank_correlation(points[:2]) is None


def test_the_association_is_the_mean_over_tasks_with_an_interval_around_it(records: Records) -> None:
    found = association.association(records, "nll")
    assert found is not None
    rhos: dict[str, list[float]] = {}
    for record in records["sweep"]:
        rho = association.rank_correlation(association.gains(record, "", "nll"))
        assert rho is not None
        rhos.setdefault(record["settings"]["task"], []).append(rho)
    assert found.rho == pytest.approx(statistics.fmean(map(statistics.fmean, rhos.values())), abs=1e-6)
    assert found.interval is None  # of two tasks
    assert str(found) == f"{found.rho:+.2f}"
    assert found.settings == 4
    row = open_tables.correlation(records).rows[1]
    assert row[0] == "gain in NLL"
    assert float(row[1]) == pytest.approx(found.rho, abs=6e-4)
    assert row[2] == "-"


def test_members_that_are_alike_and_gain_less_have_an_association_below_zero() -> None:
    records = study_records()
    for record in records["sweep"]:
        for place, arm in enumerate(record["result"]["arms"].values()):
            if "epochs" in arm:
                arm["correlation"] = 0.5 + 0.01 * place
                arm["epochs"]["4"]["ensemble"]["ece"] = (
                    statistics.fmean(one["ece"] for one in arm["epochs"]["4"]["members"]) - 0.1 + 0.01 * place
                )
    found = association.association(records, "ece")
    assert found is not None
    assert found.rho == pytest.approx(-1.0)

    more = [
        record | {"settings": record["settings"] | {"task": task}}
        for task in ("a third", "a fourth")
        for record in records["sweep"][:2]
    ]
    found = association.association({"sweep": [*records["sweep"], *more]}, "ece")
    assert found is not None
    assert found.interval == pytest.approx((-1.0, -1.0))
    assert str(found) == "-1.00 (-1.00 to -1.00)"


def test_methods_are_drawn_at_their_means_and_in_multiples_of_the_single_members_time(
    records: Records,
) -> None:
    found = of_task(records, "methods")
    expected = [record["result"]["methods"]["ensemble"]["ece"] for record in found]
    across = methods.over_seeds(found, "ensemble", "ece")
    assert across is not None
    assert across.values == pytest.approx(expected)
    times = methods.over_seeds(found, "ensemble", "time")
    assert times is not None
    assert times.values == pytest.approx([2.5, 2.5])  # 5 seconds over 2
    axes = methods.draw(records).axes[1]
    drawn = {
        tuple(round(float(one), 6) for one in (line.get_xdata()[0], line.get_ydata()[0]))
        for line in axes.lines
        if line.get_marker() == "s"
    }
    row = [record["result"]["methods"]["BatchEnsemble"] for record in found]
    assert drawn == {
        tuple(round(statistics.fmean(one[metric] for one in row), 6) for metric in ("accuracy", "ece"))
    }


def test_rank_and_strength_are_drawn_against_their_numbers(records: Records) -> None:
    found = of_task(records, "rank")
    curve = rank.by_rank(found, "nll", "ensemble")
    assert list(curve) == [1, 8, 64]
    assert curve[8].values == pytest.approx(
        [record["result"]["arms"]["rank 8"]["epochs"]["4"]["ensemble"]["nll"] for record in found]
    )
    assert rank.by_rank(found, "correlation", "ensemble")[64].values == pytest.approx(
        [record["result"]["arms"]["rank 64"]["correlation"] for record in found]
    )
    wide = of_task(records, "strength")
    assert list(strength.by_strength(wide, "KL ", "ece", "member")) == [0.01, 0.1]
    assert list(strength.by_strength(wide, "decay of B ", "ece", "member")) == [0.01, 0.1]
    stops = strength.by_strength(wide, "", "ece", "ensemble")
    assert list(stops) == [1, 2, 3, 4]
    assert stops[2].values == pytest.approx(
        [record["result"]["arms"]["none"]["epochs"]["2"]["ensemble"]["ece"] for record in wide]
    )


def test_initialisation_reads_each_start_in_both_orders(records: Records) -> None:
    found = of_task(records, "initialisation")
    for suffix in ("", ", same order"):
        values = initialisation.over_seeds(found, f"Gaussian{suffix}", "accuracy", "ensemble")
        assert values is not None
        rows = [record["result"]["arms"][f"Gaussian{suffix}"]["epochs"]["4"] for record in found]
        assert values.values == pytest.approx([row["ensemble"]["accuracy"] for row in rows])


def test_open_tables_hold_means_over_tasks_and_their_spread_over_seeds(records: Records) -> None:
    found = of_task(records, "methods")
    rows = {row[0]: row for row in open_tables.methods(records).rows}
    values = [record["result"]["methods"]["ensemble, scaled"]["nll"] for record in found]
    assert numbers(rows["ensemble, scaled"][2]) == pytest.approx(
        [statistics.fmean(values), statistics.stdev(values)], abs=6e-4
    )
    cost = {row[0]: row for row in open_tables.costs(records).rows}
    assert cost["ensemble"] == (
        "ensemble",
        "3,000",
        "15.0 ± 0.0",
        "1.50 ± 0.00",
        "5.00 ± 0.00",
        "2.50 ± 0.00",
    )
    starts = {row[0]: row for row in open_tables.initialisation(records).rows}
    untrained = [
        statistics.fmean(one["nll"] for one in record["result"]["arms"]["Kaiming"]["start"]["members"])
        for record in of_task(records, "initialisation")
    ]
    assert numbers(starts["Kaiming"][1])[0] == pytest.approx(statistics.fmean(untrained), abs=6e-4)
    assert starts["Kaiming, same order"][1] == "-"
    ranks = {row[0]: row for row in open_tables.rank(records).rows}
    assert ranks["rank 8"][1] == "448"
    strengths = [row[0] for row in open_tables.strength(records).rows]
    assert strengths[:5] == ["none", "KL 0.01", "KL 0.1", "decay of B 0.01", "decay of B 0.1"]
    assert strengths[5:] == [f"none, stopped after epoch {stop}" for stop in (1, 2, 3)]


def test_more_members_are_drawn_for_every_size_with_five_subsets(records: Records) -> None:
    for record in records["pool"]:
        assert {size: len(found) for size, found in record["result"]["none"].items()} == {
            "1": 5,
            "2": 5,
            "3": 5,
            "5": 1,
        }
    line = figure_6.draw(records).axes[0].lines[1]  # after the level of the single member
    assert list(line.get_xdata()) == [1, 2, 3, 5]
    assert FULL.paper.pool == 20
    assert FULL.paper.subsets == 5
