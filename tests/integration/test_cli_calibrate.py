"""Calibration and guarantees from the command line: held out in training or given as a file, kept with the
ensemble, said by every verb that applies them, and refused where nothing was held out.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from command_line import base_folder, call
from lora_ensembles.calibration.kinds import KEEP_CHOICES

FEW: list[Any] = ["--members", 2, "--epochs", 2, "--no-progress", "--json"]
WORDS = {"animal": "otter heron fox curlew lynx crane", "tool": "saw hammer chisel plane file drill"}


def rows(path: Path, *, start: int, count: int) -> Path:
    """Texts about animals and tools, each once in all files."""
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        for number in range(start, start + count):
            label = ("animal", "tool")[number % 2]
            writer.writerow([f"I saw the {WORDS[label].split()[number % 6]} number {number}", label])
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble, `held.csv` that it was calibrated on, and `new.csv`."""
    from lora_ensembles.cli import main

    path = tmp_path_factory.mktemp("calibrated")
    train = rows(path / "train.csv", start=0, count=40)
    rows(path / "held.csv", start=100, count=80)
    rows(path / "new.csv", start=300, count=20)
    words = ["train", train, "--base", base_folder(), "--out", path / "run", *FEW]
    assert main([str(word) for word in words]) == 0
    shutil.copytree(path / "run", path / "plain")
    assert main([str(word) for word in ("calibrate", path / "run", "--on", path / "held.csv", "--json")]) == 0
    return path


def test_a_calibration_is_kept_and_every_verb_says_it(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    saved = json.loads((folder / "run" / "ensemble.json").read_text())["calibration"]
    fitted_on = 80 if saved["kind"] in KEEP_CHOICES else 40
    assert saved["num_examples"] == fitted_on
    assert saved["source"].endswith("held.csv")
    assert saved["kind"] == min(saved["nll"], key=lambda kind: round(saved["nll"][kind], 6))
    measured = call(capsys, "evaluate", folder / "run", "--file", folder / "new.csv", "--json")
    assert measured.code == 0, measured.err
    assert f"from {fitted_on} held-out examples" in measured.summary["calibration"]
    assert f"calibration: {measured.summary['calibration']}" in measured.err
    plain = call(capsys, "evaluate", folder / "plain", "--file", folder / "new.csv", "--json")
    assert plain.summary["calibration"] is None
    assert plain.summary["single"] == measured.summary["single"]
    if saved["kind"] != "none":
        assert plain.summary["ensemble"]["nll"] != measured.summary["ensemble"]["nll"]


def test_predict_abstains_and_gives_sets_under_a_promise_that_it_states(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    asked = ["predict", folder / "run", "--in", folder / "new.csv", "--coverage", 0.8, "--risk", 0.7]
    done = call(capsys, *asked, "--delta", 0.2, "--out", tmp_path / "a.jsonl", "--json")
    assert done.code == 0, done.err
    records = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(records) == 20
    for record in records:
        assert isinstance(record["abstain"], bool)
        assert set(record["prediction_set"]) <= {"animal", "tool"}
    promised = done.summary["guarantees"]
    assert (promised["risk"]["risk"], promised["risk"]["delta"]) == (0.7, 0.2)
    assert promised["sets"]["coverage"] == 0.8
    assert "at most 0.7 of the answers wrong with probability 0.8: of 80 held-out examples" in done.err
    assert "sets of LAC that hold the right answer with probability 0.8" in done.err
    # By the probabilities before calibration, whose complement is the doubt.
    plain = call(capsys, "predict", folder / "plain", "--in", folder / "new.csv").out.splitlines()
    doubts = [1 - json.loads(line)["confidence"] for line in plain]
    threshold = promised["risk"]["threshold"]
    assert [record["abstain"] for record in records] == [
        threshold is not None and doubt >= threshold for doubt in doubts
    ]
    again = call(capsys, *asked[:4], "--risk", 0.7, "--score", "disagreement", "--format", "csv")
    assert again.code == 0, again.err
    assert again.out.splitlines()[0].endswith(",abstain")


def test_rows_that_served_to_calibrate_are_answered_and_not_scored(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    assert call(capsys, "predict", folder / "run", "--in", folder / "held.csv").code == 0
    scored = call(capsys, "evaluate", folder / "run", "--file", folder / "held.csv")
    assert scored.code == 2
    assert "was used to calibrate the ensemble" in scored.err
    trained = call(capsys, "calibrate", folder / "run", "--on", folder / "train.csv")
    assert trained.code == 2
    assert "was trained on" in trained.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["predict", "plain", "--in", "new.csv", "--risk", "0.1"],
            "--risk: .*plain was not calibrated.* --on FILE",
        ),
        (["predict", "run", "--in", "new.csv", "--coverage", "0.9", "--only", "0"], "leave --only out"),
        (["predict", "run", "--in", "new.csv", "--risk", "0.001"], "80 held-out examples cannot show"),
        (["predict", "run", "--in", "new.csv", "--coverage", "0.999"], "too few .* takes 999 at least"),
        (["predict", "run", "--in", "new.csv", "--risk", "1.5"], "'1.5' is not a number between 0 and 1"),
        (["calibrate", "run", "--on", "gone.csv"], "gone.csv"),
        (
            ["calibrate", "run", "--on", "held.csv", "--only", "0"],
            "--only: a calibration is that of all members",
        ),
        (["calibrate", "run", "--on", "held.csv", "--kind", "platt"], "invalid choice: 'platt'"),
        (["calibrate", "run"], "the following arguments are required: --on"),
    ],
)
def test_what_cannot_be_promised_is_one_line(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(folder)
    before = (folder / "run" / "ensemble.json").read_bytes()
    done = call(capsys, *words)
    assert done.code == 2
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(done.err.splitlines()[-1])
    assert (folder / "run" / "ensemble.json").read_bytes() == before


def test_training_holds_a_share_out_and_calibrates_on_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    train = rows(tmp_path / "train.csv", start=0, count=80)
    words = ["train", train, "--base", base_folder(), "--out", tmp_path / "run", *FEW]
    done = call(capsys, *words, "--calibrate", 0.4)
    assert done.code == 0, done.err
    assert "26 of 64 training rows are held out to calibrate on" in done.err
    saved = json.loads((tmp_path / "run" / "ensemble.json").read_text())
    fitted_on = 26 if saved["calibration"]["kind"] in KEEP_CHOICES else 13
    assert done.summary["calibration"].endswith(f"from {fitted_on} held-out examples")
    assert saved["calibration"]["source"] == "0.4 of the training rows"
    assert saved["task"]["metrics"]["num_examples"] == 16
    few = call(capsys, *words[: -len(FEW)], "--calibrate", 0.1, "--overwrite")
    assert few.code == 2
    assert "that is 6 of 64 training rows, too few to calibrate on; hold 10 or more out" in few.err
    open_ended = call(
        capsys,
        "train",
        "--task",
        "world-words",
        "--base",
        base_folder(),
        "--out",
        tmp_path / "b",
        "--calibrate",
        0.2,
    )
    assert open_ended.code == 2
    assert "--calibrate: for questions with options" in open_ended.err
    assert not (tmp_path / "b").exists()
