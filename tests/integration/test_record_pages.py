"""The pages on intervals and on label words say what their records say."""

from __future__ import annotations

import importlib
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from breadth import LONG
from lora_ensembles.studies.check import check
from lora_ensembles.studies.predictions import differences

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")


def script(name: str) -> Any:
    return importlib.import_module(name)


def test_the_page_of_intervals_is_made_from_its_record() -> None:
    coverage = script("interval_coverage")
    record, text = json.loads(coverage.RECORD.read_text()), coverage.PAGE.read_text(encoding="utf-8")
    assert coverage.page(text, record) == text
    simulated = [f"{row['interval']} | {row['population']} | {row['size']}" for row in record["rows"]]
    assert len(set(simulated)) == len(simulated)
    assert set(simulated) <= {case.key for case in coverage.cases()}


def test_intervals_hold_the_value_of_the_population_about_as_often_as_they_say() -> None:
    rows = json.loads(script("interval_coverage").RECORD.read_text())["rows"]
    assert statistics.fmean(row["covered"] for row in rows) == pytest.approx(0.95, abs=0.01)
    # Four standard errors of a share of 200 samples, and what docs/statistics.md says of small samples.
    assert min(row["covered"] for row in rows) >= 0.95 - 4 * (0.95 * 0.05 / 200) ** 0.5


def test_a_simulated_share_is_that_of_the_intervals_that_hold_the_value() -> None:
    coverage = script("interval_coverage")
    Interval = coverage.Interval
    ends = iter([(0.0, 1.0), (0.6, 1.0), (0.0, 0.4), (0.4, 0.6)])

    def draw(_generator: torch.Generator, _seed: int) -> Any:
        low, high = next(ends)
        return Interval(0.5, low, high, 0.95)

    row = coverage.simulate(coverage.Case("made up", "none", 1, lambda: 0.5, draw), 4)
    assert (row["covered"], row["too_high"], row["too_low"]) == (0.5, 0.25, 0.25)


def test_the_tables_of_label_words_are_those_of_the_records() -> None:
    label_loss = script("label_loss")
    folder = REPOSITORY / "results" / "label-loss"
    text = (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")
    records = label_loss.recorded(folder)
    assert len(records) >= 14
    assert label_loss.table(records) in text
    assert label_loss.differences(records) in text


def test_the_tables_of_decisions_are_those_of_the_records() -> None:
    pages = script("decisions_page")
    found = pages.recorded(pages.RESULTS)
    assert set(found) == {"words", "letters", "world"}
    for name, block in (("orders", pages.orders_table(found)), ("distilled", pages.distilled_table(found))):
        text = pages.PAGES[name].read_text(encoding="utf-8")
        assert pages.with_block(text, name, block) == text
    text = pages.PAGES["guarantee"].read_text(encoding="utf-8")
    for line in pages.risk_lines(
        pages.guarantee_rows(found, risks=pages.RISKS[-1:])
    ):  # the others take as long
        assert line in text


def test_promises_on_real_questions_are_broken_no_more_often_than_they_say() -> None:
    pages = script("decisions_page")
    text = pages.PAGES["guarantee"].read_text(encoding="utf-8")
    block = text.split("<!-- guarantee: measured -->")[1].split("| coverage |")[0]
    rows = [line.split("|") for line in block.splitlines() if line.startswith("| 0.")]
    assert len(rows) == 2 * len(pages.RISKS)
    assert all(float(row[4]) <= pages.DELTA for row in rows)


def test_the_records_of_decisions_are_what_their_predictions_give() -> None:
    pages = script("decisions_page")
    for found in pages.recorded(pages.RESULTS).values():
        assert differences(found.record["result"], found.sheet) == []


@LONG
@pytest.mark.parametrize("folder", ["embedded", "minilm", "smollm2", "methods/embedded", "methods/smollm2"])
def test_records_are_what_their_predictions_give_and_reports_what_records_give(folder: str) -> None:
    checked = check(REPOSITORY / "results" / folder)
    assert checked.wrong == ()
    assert checked.lines > 0


def test_the_page_of_methods_is_what_its_records_give() -> None:
    pages = script("methods_page")
    text = pages.PAGE.read_text(encoding="utf-8")
    assert pages.with_block(text, "published", pages.published_tables().strip()) == text
    for base in pages.COMMANDS:
        assert pages.with_block(text, f"methods {base}", pages.block(base, pages.RESULTS / base)) == text
    assert (pages.RESULTS / "embedded" / pages.FIGURE).is_file()
