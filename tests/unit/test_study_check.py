"""Predictions beside records: what is computed from them, read back, and found where it differs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_ensembles.errors import CheckpointError, ConfigError
from lora_ensembles.prediction.prediction import Prediction
from lora_ensembles.studies import check
from lora_ensembles.studies.measures import measured
from lora_ensembles.studies.predictions import BY, Sheet, name_of, predictions_file, read_sheet
from lora_ensembles.studies.store import cell, record_file
from random_predictions import random_prediction


def made(sheet: Sheet) -> dict[str, Any]:
    """A result with every kind of part."""
    one, other = random_prediction(1), random_prediction(2)
    for name, pair in {"a": (one, other), "b": (one, None)}.items():
        sheet.keep(name, *pair)
    sheet.keep("c", random_prediction(3, examples=8), of="elsewhere")
    settings, folds = {"sizes": [1, 2], "subsets": 2, "seed": 3}, {"folds": 2, "seed": 3}
    return {
        "arms": {
            "x / 2": sheet.measured(("arms", "x / 2"), one, other)
            | sheet.compute(("arms", "x / 2"), "described", name_of(("arms", "x / 2"))),
            "y": [sheet.compute(("arms", "y", 0), "ensemble", "a")],
        },
        "rows": sheet.compute(("rows",), "members", "a"),
        "mean": sheet.compute(("mean",), "mean", "b", "b"),
        "pool": sheet.compute(("pool",), "by_size", "a", settings=settings),
        "snapshots": sheet.compute(("snapshots",), "snapshots", "a", "a"),
        "scaled": sheet.compute(("scaled",), "scaled", "a", settings=folds),
        "scaled_members": sheet.compute(("scaled_members",), "scaled_members", "b", settings=folds),
        "compared": sheet.compute(("compared",), "compared", "a"),
        "compared_scaled": sheet.compute(("compared_scaled",), "compared_scaled", "a", settings=folds),
        "compared_elsewhere": sheet.compute(("compared_elsewhere",), "compared_elsewhere", "c", "a"),
        "seconds": 1.5,
    } | sheet.compute((), "wrong_confidence", "b")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sheet = Sheet()
    cell(tmp_path, "sweep-words", {"seed": 0}, lambda: made(sheet), sheet=sheet)
    return tmp_path


def test_every_part_of_a_record_is_computed_again_from_its_predictions(folder: Path) -> None:
    checked = check.check(folder)
    assert (checked.records, checked.wrong, checked.without) == (1, (), ())
    (record,) = folder.glob("*.json")
    sheet = read_sheet(predictions_file(record))
    assert checked.parts == len(sheet.nodes) == 13
    assert {node.by for node in sheet.nodes} == set(BY)


def test_predictions_in_half_precision_are_those_that_were_made() -> None:
    prediction, sheet = random_prediction(5), Sheet()
    row = sheet.measured(("x",), prediction)
    exact = measured(prediction)["ensemble"]
    # Half precision has 11 bits: a log-probability is off by 5e-4 of itself at most.
    assert row["ensemble"]["nll"] == pytest.approx(exact["nll"], rel=1e-3)
    kept = sheet.kept["x"][0].prediction
    torch.testing.assert_close(kept.member_log_probs, prediction.member_log_probs, rtol=1e-3, atol=2e-3)


def test_an_absent_option_stays_absent_in_half_precision() -> None:
    log_probs = torch.tensor([[[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]]).log()
    sheet = Sheet()
    sheet.keep("x", Prediction(log_probs, torch.tensor([0, 2])))
    assert sheet.kept["x"][0].prediction.member_log_probs[0, 0, 2] == -torch.inf


def test_a_changed_number_is_named(folder: Path) -> None:
    (path,) = folder.glob("*.json")
    record = json.loads(path.read_text())
    record["result"]["arms"]["x / 2"]["ensemble"]["nll"] += 1e-4
    record["result"]["pool"]["2"][0]["accuracy"] = 0.0
    path.write_text(json.dumps(record))
    wrong = check.check(folder).wrong
    assert len(wrong) == 2
    assert f"{path.name}: arms/x / 2/ensemble/nll: " in wrong[0]
    assert f"{path.name}: pool/2/0/accuracy: 0.0 for " in wrong[1]


def test_a_flipped_bit_in_the_predictions_is_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = folder.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert check.main([str(folder)]) == 1
    assert "is not the file that sweep-words" in capsys.readouterr().out
    path.unlink()
    assert "is missing" in check.check(folder).wrong[0]


def test_records_without_predictions_are_named_and_an_empty_folder_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell(folder, "rank-words", {"seed": 0}, dict)
    assert check.main([str(folder)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"records without predictions, which are not checked: rank-words-\w+\.json\n", said)
    assert "1 records, 13 parts computed again, 0 differ" in said
    (tmp_path / "empty").mkdir()
    assert check.main([str(tmp_path / "empty")]) == 2
    assert "holds no records of a study" in capsys.readouterr().err


def test_predictions_of_other_questions_are_not_kept_together() -> None:
    sheet = Sheet()
    sheet.keep("a", random_prediction(1))
    with pytest.raises(ConfigError, match="predictions of other questions under 'b'"):
        sheet.keep("b", random_prediction(2).take(torch.arange(3)))


def test_a_file_that_holds_no_predictions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="holds no predictions of a record"):
        read_sheet(tmp_path / "x.safetensors")


def test_predictions_that_cannot_be_written_leave_no_record(tmp_path: Path) -> None:
    settings, sheet = {"seed": 0}, Sheet()
    path = tmp_path / f"{record_file('sweep-words', settings)}.json"
    predictions_file(path).mkdir()  # a folder has the name that the file needs
    with pytest.raises(CheckpointError, match="cannot be written"):
        cell(tmp_path, "sweep-words", settings, lambda: made(sheet), sheet=sheet)
    assert [entry.name for entry in tmp_path.iterdir()] == [predictions_file(path).name]
