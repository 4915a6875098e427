"""The comparison of methods at equal budgets: what a method may spend, how its settings are chosen, and what
a record holds.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from lora_ensembles.data import Task
from lora_ensembles.errors import ConfigError, DataError, TrainingError
from lora_ensembles.studies.comparison import measure as measuring
from lora_ensembles.studies.comparison.budget import Budget, Settings, between, epochs_at, places
from lora_ensembles.studies.comparison.measure import ComparisonConfig, TrialsConfig, comparison, trials
from lora_ensembles.studies.comparison.methods import METHODS, Place
from lora_ensembles.studies.grid import FULL, settings_of
from lora_ensembles.studies.predictions import Sheet, differences
from lora_ensembles.studies.report.claim_tables import signed
from lora_ensembles.studies.report.comparison import (
    _draw_points,
    chosen_table,
    comparison_table,
    costs_table,
    differences_table,
    draw,
    front,
)
from lora_ensembles.studies.report.figures.style import panels
from lora_ensembles.studies.setting import Bench
from lora_ensembles.studies.shared import Asking, Shared
from lora_ensembles.studies.under_way import UnderWay
from tiny_ensembles import llama, questions, tokenizer

BUDGET = Budget(passes=4, rows=2, trials=2)
SHARED = Shared(members=2, learning_rate=1e-2, batch_size=4, snapshots=(1, 2), limit=(None,) * 3)


def bench(**changes: Any) -> Bench:
    task = Task("animals", tuple(questions(20)), tuple(questions(16, start=20)))
    made = Bench(task, tuple(questions(8, start=40)), (llama(window=512), tokenizer()), SHARED)
    return dataclasses.replace(made, **changes)


FEW = ("few-shot", "single member", "ensemble", "BLoB")  # of which every trial is made here


@pytest.fixture(scope="module")
def tried() -> tuple[dict[str, Any], Sheet]:
    sheet = Sheet()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "METHODS", {name: METHODS[name] for name in FEW})
        return trials(TrialsConfig(BUDGET), bench(), sheet, seed=3), sheet


@pytest.fixture(scope="module")
def compared() -> tuple[dict[str, Any], Sheet]:
    """Every method, with the settings of the first trial."""
    at = places(1)[0]
    chosen = {name: method.settings(at, 1e-2, BUDGET).to_dict() for name, method in METHODS.items()}
    sheet = Sheet()
    return comparison(ComparisonConfig(BUDGET, chosen), bench(), sheet, seed=3), sheet


def records(tried: dict[str, Any], compared: dict[str, Any], *, tasks: int = 2) -> dict[str, list[Any]]:
    """The same results as if several tasks had given them."""
    made: dict[str, list[Any]] = {}
    for kind, result in (("trials", tried), ("comparison", compared)):
        made[kind] = [
            {"settings": {"kind": kind, "task": f"task {number}", "seed": 0}, "result": result}
            for number in range(tasks)
        ]
    return made


# The budget


@pytest.mark.parametrize("budget", [BUDGET, Budget(), Budget(passes=5, rows=5)])
@pytest.mark.parametrize("name", METHODS)
def test_no_trial_spends_more_passes_than_the_budget(name: str, budget: Budget) -> None:
    method = METHODS[name]
    for at in places(64):
        settings = method.settings(at, 1e-3, budget)
        members = budget.rows if method.several else 1
        assert members * settings.epochs <= budget.passes
        assert method.range[0] <= settings.own <= method.range[1]


def test_a_budget_without_a_pass_for_each_member_is_refused() -> None:
    with pytest.raises(ConfigError, match="a budget of 4 passes for 5 members"):
        Budget(passes=4, rows=5)


def test_trials_are_the_same_for_every_method_and_cover_their_ranges() -> None:
    assert places(4) == places(8)[:4]
    for axis in zip(*places(16), strict=True):
        assert sorted(int(4 * place) for place in axis) == sorted([0, 1, 2, 3] * 4)
    assert between(1e-3, 1e-1, 0.5) == 0.01
    assert [epochs_at(place, 1) for place in (0.0, 0.99)] == [1, 1]


# Trials


def test_each_method_chooses_the_trial_of_the_lowest_nll(tried: tuple[dict[str, Any], Sheet]) -> None:
    result, sheet = tried
    assert list(result["methods"]) == list(FEW)
    assert differences(json.loads(json.dumps(result)), sheet) == []
    for name, part in result["methods"].items():
        assert len(part["trials"]) == BUDGET.trials
        best = min(part["trials"], key=lambda row: row["metrics"]["nll"])
        assert part["chosen"] == {field: best[field] for field in ("learning_rate", "epochs", "own")}
        assert (part["training_flops"] > 0) == (name != "few-shot")


def test_trials_are_measured_on_training_questions_that_are_held_out(
    tried: tuple[dict[str, Any], Sheet],
) -> None:
    result, sheet = tried
    own, _ = sheet.kept["methods/ensemble/trials/0/metrics"]
    assert set(own.ids) <= {example.id for example in bench().task.train}
    assert len(own.ids) == result["sizes"]["held_out"] == 4


def test_a_trial_that_fails_is_kept_with_its_reason_and_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    method, calls = METHODS["single member"], []

    def fit(place: Place, settings: Settings, examples: Any) -> Any:
        calls.append(settings)
        fitted = method.fit(place, settings, examples)
        if len(calls) == 1:
            raise TrainingError("the loss is not finite")
        return fitted

    only = {"single member": dataclasses.replace(method, fit=fit)}
    monkeypatch.setattr(measuring, "METHODS", only)
    place = bench()
    result = trials(TrialsConfig(BUDGET), place, Sheet(), seed=3)
    first, second = result["methods"]["single member"]["trials"]
    assert first["failed"] == "the loss is not finite"
    assert result["methods"]["single member"]["chosen"]["own"] == second["own"]
    assert not any("lora" in name for name, _ in place.model[0].named_modules())


def test_a_method_whose_trials_all_failed_is_not_compared_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fit(*_: object) -> Any:
        calls.append(1)
        raise TrainingError("the loss is not finite")

    broken = dataclasses.replace(METHODS["ensemble"], fit=fit)
    monkeypatch.setattr(measuring, "METHODS", {"ensemble": broken, "few-shot": METHODS["few-shot"]})
    under_way = UnderWay(tmp_path / "unfinished" / "record")
    for _ in range(2):  # the second time as after a stop
        sheet = Sheet()
        result = trials(TrialsConfig(BUDGET), bench(under_way=under_way), sheet, seed=3)
        assert "chosen" not in result["methods"]["ensemble"]
        assert len(calls) == BUDGET.trials
        assert differences(json.loads(json.dumps(result)), sheet) == []


def test_a_set_with_labels_that_a_method_never_saw_leaves_its_metrics_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = METHODS["last-layer Laplace"]
    five = dataclasses.replace(questions(1, start=40)[0], options=(*"abcd", "forest"), labels=(*"abcd", "Q"))
    settings = method.settings(places(1)[0], 1e-2, BUDGET).to_dict()
    config = ComparisonConfig(BUDGET, {"last-layer Laplace": settings})
    result = comparison(config, bench(ood=(five,)), Sheet(), seed=3)
    assert result["methods"]["last-layer Laplace"]["raw"]["ood_auroc"] is None


def test_methods_that_cannot_be_used_say_why() -> None:
    words = bench(asking=Asking(answer="text"))
    assert "several tokens" in METHODS["last-layer Laplace"].missing(words)
    assert METHODS["last-layer Laplace"].missing(bench()) == ""


# The comparison


def test_a_record_holds_what_each_method_gives_and_costs(compared: tuple[dict[str, Any], Sheet]) -> None:
    result, sheet = compared
    assert list(result["methods"]) == list(METHODS)
    assert differences(json.loads(json.dumps(result)), sheet) == []
    assert result["sizes"] == {"train": 20, "validation": 16, "ood": 8}
    for name, part in result["methods"].items():
        own, ood = sheet.kept[f"methods/{name}"]
        assert own.log_probs.shape[1:] == (16, 4)
        assert ood is not None
        assert set(part["raw"]) | {"temperature"} == set(part["scaled"])
        assert part["training_passes"] <= BUDGET.passes
        assert part["rows"] in (1, BUDGET.rows)
        assert len(own.log_probs) == (1 if name in ("single member", "soup") else BUDGET.rows)


def test_a_member_alone_is_the_first_member_of_an_ensemble_of_the_same_settings() -> None:
    settings = Settings(1e-2, 2, 0.01)
    place = Place(bench(), BUDGET, 3)
    kept = []
    for name in ("single member", "ensemble"):
        with place.fitted(METHODS[name], settings, place.bench.task.train) as fitted:
            kept.append(fitted.predictor.member_log_probs(place.bench.task.validation)[0])
    assert (kept[0] - kept[1]).abs().max() < 1e-4


def test_a_comparison_that_is_stopped_goes_on_with_the_next_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget, chosen = BUDGET, Settings(1e-2, 2, 0.01).to_dict()
    config = ComparisonConfig(budget, {"single member": chosen, "ensemble": chosen})
    fits: list[str] = []

    def counted(name: str, *, fails: bool = False) -> Any:
        def fit(*arguments: Any) -> Any:
            fits.append(name)
            if fails:
                raise KeyboardInterrupt
            return METHODS[name].fit(*arguments)

        return dataclasses.replace(METHODS[name], fit=fit)

    under_way = UnderWay(tmp_path / "unfinished" / "record")
    monkeypatch.setattr(
        measuring,
        "METHODS",
        {"single member": counted("single member"), "ensemble": counted("ensemble", fails=True)},
    )
    with pytest.raises(KeyboardInterrupt):
        comparison(config, bench(under_way=under_way), Sheet(), seed=3)
    monkeypatch.setattr(measuring, "METHODS", {name: counted(name) for name in ("single member", "ensemble")})
    sheet = Sheet()
    result = comparison(config, bench(under_way=under_way), sheet, seed=3)
    assert fits == ["single member", "ensemble", "ensemble"]
    assert differences(json.loads(json.dumps(result)), sheet) == []
    assert list(sheet.kept) == ["methods/single member", "methods/ensemble"]


def test_records_are_keyed_by_the_budget_and_by_the_settings_that_were_chosen() -> None:
    chosen = {"ensemble": Settings(1e-3, 2, 0.1).to_dict()}
    grid = dataclasses.replace(FULL, comparison=ComparisonConfig(BUDGET, chosen))
    settings = settings_of(grid, "comparison", "world-cqa", 1)
    assert settings["chosen"] == chosen
    assert settings["budget"] == dataclasses.asdict(BUDGET)
    assert settings["ood"] == dict(FULL.ood)["world-cqa"]


# Tables and the figure


def test_tables_have_a_row_for_each_method(
    tried: tuple[dict[str, Any], Sheet], compared: tuple[dict[str, Any], Sheet]
) -> None:
    made = records(tried[0], compared[0], tasks=4)
    for state in ("raw", "scaled"):
        table = comparison_table(made, state=state)
        assert [row[0] for row in table.rows] == list(METHODS)
        at = [row[0] for row in table.rows].index("ensemble")
        assert table.rows[at][2] == f"{compared[0]['methods']['ensemble'][state]['nll']:.3f}"
    rows = {row[0]: row[1:] for row in differences_table(made).rows}
    both = [compared[0]["methods"][name]["raw"]["nll"] for name in ("soup", "single member")]
    expected = signed(both[0] - both[1])
    assert rows["soup"][0] == f"{expected} ({expected} to {expected})"  # four equal tasks
    assert rows["single member"][0] == "-"
    costs = {row[0]: row[1:] for row in costs_table(made).rows}
    assert costs["single member"][2:4] == ("1.00", "1.00")
    assert costs["ensemble"][4] == "2"
    assert [row[0] for row in chosen_table(made).rows] == list(FEW)
    with pytest.raises(DataError, match="no record of the kind 'comparison'"):
        comparison_table({})


def test_the_front_holds_what_nothing_beats() -> None:
    points = {"a": (1.0, 0.9), "b": (1.0, 0.8), "c": (3.0, 0.85), "d": (4.0, 0.7)}
    assert front(points) == ["b", "d"]


def test_numbers_of_points_stay_in_their_panel_and_apart() -> None:
    Text = pytest.importorskip("matplotlib.text").Text  # its extent is without the line to the point
    figure, ((axes,),) = panels(1, 1, height=3.6)
    axes.set_xscale("log")
    axes.margins(x=0.12)
    points = {f"m{number}": (2.0 + 0.01 * number, 1.0 + 0.001 * number) for number in range(12)}
    _draw_points(axes, {**points, "alone": (1.0, 1.2), "far": (14.0, 4.0)})
    figure.draw_without_rendering()
    inside, boxes = axes.get_window_extent(), [Text.get_window_extent(one) for one in axes.texts]
    assert all(inside.y0 <= box.y0 and box.y1 <= inside.y1 + 3 for box in boxes)
    assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 for box in boxes)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes[:12], 2))
    assert axes.texts[-1].get_text() == "14  4.00 ↑"
    triangles = [line for line in axes.lines if line.get_marker() == "^"]
    assert [float(line.get_ydata()[0]) for line in triangles] == [1.5]


def test_the_figure_has_every_method_in_both_panels(
    tried: tuple[dict[str, Any], Sheet], compared: tuple[dict[str, Any], Sheet]
) -> None:
    pytest.importorskip("matplotlib")
    figure = draw(records(tried[0], compared[0]))
    for axes in figure.axes:
        assert len(axes.texts) == len(METHODS)
        assert axes.get_ylabel() == "NLL (nats) ↓"
