"""`lora-ensembles study` and `plan`: from nothing to claims on a tiny grid, continued after a break, and
mistakes.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from breadth import LONG
from command_line import base_folder, call
from lora_ensembles.studies import check, grid, measuring
from lora_ensembles.studies.comparison import measure, methods

TINY = dataclasses.replace(
    grid.QUICK,
    name="tiny",
    tasks=("world-mmlu-stem",),
    seeds=(0,),
    few_tasks=("world-mmlu-stem",),
    open_tasks=("world-mmlu-stem",),
).having(
    shared={"members": 2, "snapshots": (1, 2, 3, 4), "limit": (8, 16, 12)},
    paper={"pool": 3, "draws": 2},
    methods={"draws": 2},
    rank={"ranks": (1, 2)},
    strength={"wide_kl": (0.1,), "wide_decays": (0.1,)},
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "QUICK", TINY)


@LONG
def test_a_study_goes_from_nothing_to_claims_and_costs_nothing_the_second_time(capsys, tiny, tmp_path):
    out = tmp_path / "study"
    done = call(capsys, "study", "all", "--quick", "--out", out, "--json")
    assert done.code == 0
    claims = done.summary["claims"]
    assert [claim["id"] for claim in claims] == [f"C{number}" for number in range(1, 12)]
    assert {claim["verdict"] for claim in claims} <= {
        "supported",
        "contradicted",
        "inconclusive",
        "not applicable",
    }
    whole = dict.fromkeys(("sweep", "randomness", "pool", "few_shot", "last_layer"), 1)
    assert done.summary["records"] == whole | {"methods": 1, "initialisation": 1, "rank": 1, "strength": 1}
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*-*.json")}
    for kind, count in (("sweep", 1), ("strength", 1)):  # what `all` goes through, without a second report
        assert call(capsys, "study", kind, "--quick", "--out", out, "--json").summary["records"] == {
            kind: count
        }
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*-*.json")} == before
    judged = call(capsys, "study", "claims", "--from", out, "--json")
    assert judged.summary["claims"] == claims
    checked = check.check(out)
    assert (checked.records, checked.wrong, checked.without) == (9, (), ())
    assert checked.parts > 14


def test_a_killed_study_goes_on_where_it_stopped(capsys, tiny, tmp_path, monkeypatch):
    out, measured = tmp_path / "study", []
    sweep = measuring.MEASURES["randomness"]

    def die_on_the_second(*arguments: Any, **settings: Any) -> dict[str, Any]:
        measured.append(1)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return sweep(*arguments, **settings)

    monkeypatch.setitem(measuring.MEASURES, "randomness", die_on_the_second)
    words = ["study", "randomness", "--quick", "--seeds", "0,1", "--out", out]
    assert call(capsys, *words).code == 130
    assert len(list(out.glob("*-*.json"))) == 1
    assert call(capsys, *words).code == 0
    assert len(measured) == 3  # the one that was there was not measured again
    assert len(list(out.glob("*-*.json"))) == 2


def test_methods_are_compared_at_one_budget_and_only_once(capsys, tiny, tmp_path, monkeypatch):
    few = {name: methods.METHODS[name] for name in ("few-shot", "single member", "ensemble", "BLoB")}
    monkeypatch.setattr(measure, "METHODS", few)
    words = ["study", "methods", "--budget", "4", "--trials", "1", "--quick", "--out", tmp_path, "--json"]
    done = call(capsys, *words)
    assert done.code == 0
    assert done.summary["records"] == {"trials": 1, "comparison": 1}
    assert done.summary["budget"]["passes"] == 4
    assert [line.split("  ")[0] for line in done.out.splitlines()[1:5]] == list(few)
    monkeypatch.setattr(measure, "METHODS", {})  # nothing is trained again
    assert call(capsys, *words).code == 0
    checked = check.check(tmp_path)
    assert (checked.records, checked.wrong) == (2, ())
    page = tmp_path / "report.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    number = next(at for at, line in enumerate(lines) if line.startswith("| single member | 0."))
    other = lines[number].replace("0.", "1.", 1)
    page.write_text("\n".join([*lines[:number], other, *lines[number + 1 :]]), encoding="utf-8")
    said = f"report.md, line {number + 1}: {other!r}, where the records give {lines[number]!r}"
    assert check.check(tmp_path).wrong == (said,)
    assert not (tmp_path / measuring.UNFINISHED).exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["study", "swep", "--out", "x"], "did you mean 'sweep'"),
        (["study", "all"], "--out DIR is needed"),
        (["study", "claims"], "--from DIR is needed"),
        (["study", "claims", "--from", "gone"], "holds no records"),
        (["study", "all", "--out", "x", "--tasks", "world-cqaa"], "did you mean 'world-cqa'"),
        (["study", "all", "--out", "x", "--seeds", "a"], "whole numbers"),
        (["study", "all", "--out", "x", "--members", "1"], "at least 2"),
        (["study", "methods", "--trials", "2", "--out", "x"], "--trials without --budget"),
        (["study", "sweep", "--budget", "5", "--out", "x"], "use `study methods --budget P`"),
        (["study", "methods", "--budget", "5", "--on", "ray", "--out", "x"], "without --on"),
        (["study", "methods", "--budget", "0", "--out", "x"], "--budget"),
        (["study", "methods", "--budget", "4", "--out", "x"], "a budget of 4 passes for 5 members"),
        (["plan", "--base", "gone/model"], "cannot be read"),
        (["plan", "--base", "embedded", "--members", "0"], "--members"),
        (["plan", "--base", "embedded", "--memory", "-1"], "no number above 0"),
        (["plan", "--base", "embedded", "--target-modules", "nothing"], "PEFT cannot place"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_two(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    done = call(capsys, *words)
    assert done.code == 2
    assert message in done.err
    assert list(Path().iterdir()) == []


def test_plan_prints_memory_and_a_split_that_fits(capsys):
    whole = call(
        capsys,
        "plan",
        "--base",
        base_folder(),
        "--dtype",
        "float32",
        "--examples",
        100,
        "--epochs",
        2,
        "--json",
    ).summary
    assert whole["total"] == whole["base"] + whole["members"] + whole["activations"]
    assert whole["parts"] == 1
    assert whole["seconds_at_the_limit"] == pytest.approx(14 * whole["seconds_a_step_at_the_limit"])
    memory = (whole["base"] + whole["members"] + whole["activations"] / 2) / 0.9 / 1e9
    done = call(capsys, "plan", "--base", base_folder(), "--dtype", "float32", "--memory", memory, "--json")
    assert done.summary["fits"]
    assert done.summary["parts"] > 1
    assert f"--max-rows {done.summary['max_rows']}" in done.err
    assert json.dumps(done.summary)


def test_a_quick_grid_of_another_base_keeps_its_own_strength_of_decay() -> None:
    for start in (grid.PAPER, grid.ENCODER):
        small = grid.quick(start)
        assert set(small.paper.decays) <= set(start.paper.decays)
        assert small.shared.limit == grid.QUICK.shared.limit
        assert small.shared.snapshots == grid.QUICK.shared.snapshots
        assert set(small.strength.wide_decays) < set(start.strength.wide_decays)
        assert small.choice == start.choice


def test_members_with_heads_of_their_own_are_not_studied_on_the_embedded_decoder(capsys, tmp_path):
    done = call(capsys, "study", "all", "--head", "multiple-choice", "--out", tmp_path)
    assert done.code == 2
    assert "--base NAME is needed, an encoder" in done.err
