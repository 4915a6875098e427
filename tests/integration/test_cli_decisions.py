"""Decisions from the command line: rows worth labelling next, the order of options, and typed decisions."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest

from command_line import base_folder, call
from lora_ensembles import FewShot, accuracy, load_base, load_file, predict
from lora_ensembles.data.prompts import rendered
from lora_ensembles.data.splits import VALIDATION_SHARE, split_rows

OPTIONS = ["planet", "star", "moon"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained ensemble of three members on lettered questions."""
    from lora_ensembles.cli import main

    folder = tmp_path_factory.mktemp("decisions")
    out = folder / "run"
    train = written(folder / "train.jsonl", questions(24))
    words = ["train", "--train", str(train), "--base", base_folder(), "--members", "3", "--epochs", "2"]
    assert main([*words, "--learning-rate", "0.02", "--out", str(out), "--no-progress"]) == 0
    return out


def questions(count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"q{n}", "question": f"Body {n} is a", "options": OPTIONS, "answer": OPTIONS[n % 3]}
        for n in range(count)
    ]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("by", ["mutual_information", "total_entropy", "confidence"])
def test_the_rows_worth_labelling_next_are_those_of_the_highest_score(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], by: str
) -> None:
    pool = written(tmp_path / "pool.jsonl", questions(300))  # more than one part
    every, top = tmp_path / "every.jsonl", tmp_path / "top.jsonl"
    assert call(capsys, "predict", run_folder, "--in", pool, "--out", every).code == 0
    made = call(capsys, "predict", run_folder, "--in", pool, "--out", top, "--top", "7", "--by", by)
    assert made.code == 0, made.err
    sign = 1 if by == "confidence" else -1
    expected = sorted(lines(every), key=lambda row: (sign * row[by], row["row"]))[:7]
    assert lines(top) == expected
    assert f"written: the 7 rows of the {'lowest' if by == 'confidence' else 'highest'} {by}" in made.err


def test_top_cannot_go_on_and_needs_rows(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = written(tmp_path / "pool.jsonl", questions(5))
    given = ("predict", run_folder, "--in", pool, "--out", tmp_path / "out.csv")
    assert "with --top nothing is written" in call(capsys, *given, "--top", "3", "--resume").err
    assert call(capsys, *given, "--top", "0").code == 2
    assert call(capsys, *given, "--top", "3").code == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert len(rows) == 3


def test_predict_averages_over_orders_and_says_how_often_the_answer_changes(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, plain, averaged = (tmp_path / name for name in ("in.jsonl", "plain.jsonl", "averaged.jsonl"))
    written(source, questions(10))
    assert call(capsys, "predict", run_folder, "--in", source, "--out", plain).code == 0
    made = call(capsys, "predict", run_folder, "--in", source, "--out", averaged, "--order-passes", "6")
    assert made.code == 0, made.err
    assert "order_flips" not in lines(plain)[0]
    rows = lines(averaged)
    assert all(0 <= row["order_flips"] <= 1 for row in rows)
    assert any(row["probs"] != before["probs"] for row, before in zip(rows, lines(plain), strict=True))


def test_a_calibration_over_orders_is_used_by_predict(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    held_out = written(
        tmp_path / "held.jsonl",
        [row | {"id": f"h{n}", "question": f"Thing {n} is a"} for n, row in enumerate(questions(30))],
    )
    made = call(capsys, "calibrate", folder, "--on", held_out, "--order-passes", "2", "--kind", "temperature")
    assert made.code == 0, made.err
    source, out = written(tmp_path / "in.jsonl", questions(4)), tmp_path / "out.jsonl"
    assert call(capsys, "predict", folder, "--in", source, "--out", out).code == 0
    assert "order_flips" in lines(out)[0]
    other = call(
        capsys, "predict", folder, "--in", source, "--out", tmp_path / "x.jsonl", "--order-passes", "3"
    )
    assert other.code == 2
    assert "calibrated with 2" in other.err


def test_cases_and_soft_answers_are_predicted_row_by_row(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [
        {"id": name, "type": "choice", "instructions": f"{name}?", "choices": OPTIONS} for name in ("a", "b")
    ]
    cases = [{"id": f"c{n}", "state": f"Body {n}.", "questions": asked} for n in range(3)]
    cases[1]["labels"] = {"a": {"star": 0.75, "moon": 0.25}, "b": "moon"}
    source = written(tmp_path / "cases.jsonl", cases)
    out = tmp_path / "out.jsonl"
    given = ("predict", run_folder, "--in", source, "--out", out, "--keep-columns", "case,question_id,type")
    assert call(capsys, *given).code == 0
    rows = lines(out)
    assert [row["id"] for row in rows] == ["c0:a", "c0:b", "c1:a", "c1:b", "c2:a", "c2:b"]
    assert [row["target"] for row in rows] == [None, None, "b", "c", None, None]
    assert (rows[3]["case"], rows[3]["question_id"], rows[3]["type"]) == ("c1", "b", "choice")


def test_the_out_of_distribution_set_may_be_a_file_without_answers(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = written(
        tmp_path / "strange.jsonl",
        [{"question": f"Colour {n} of the sea", "options": ["blue", "green", "red"]} for n in range(12)],
    )
    judged = written(tmp_path / "judged.jsonl", questions(12))
    for more in ((), ("--file", judged)):
        made = call(capsys, "evaluate", run_folder, *more, "--ood", strange, "--json")
        assert made.code == 0, made.err
        assert made.summary["ood"] == "strange"
        assert 0 <= made.summary["ensemble"]["ood_auroc"] <= 1
    lost = call(capsys, "evaluate", run_folder, "--ood", tmp_path / "lost.jsonl")
    assert lost.code == 2
    assert "cannot be read" in lost.err


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_answer_auto_takes_what_the_base_itself_is_right_by(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    rng = random.Random(seed)  # the base is untrained, so either kind of answer may win
    rows = [row | {"answer": rng.choice(OPTIONS)} for row in questions(40)]
    train, out = written(tmp_path / "train.jsonl", rows), tmp_path / "run"
    given = ("--base", base_folder(), "--members", "2", "--epochs", "1", "--answer", "auto", "--out", out)
    made = call(capsys, "train", "--train", train, *given, "--json")
    assert made.code == 0, made.err
    base, tokenizer = load_base(base_folder())
    asked, _ = split_rows(load_file(train), share=VALIDATION_SHARE, seed=0, name="train", stratified=False)
    right = {
        answer: accuracy(predict(FewShot(base, tokenizer, (), shots=0), rendered(asked, answer)))
        for answer in ("letter", "text")
    }
    chosen = "text" if right["text"] > right["letter"] else "letter"
    assert f"members answer by {chosen}" in made.err
    remembered = json.loads((out / "ensemble.json").read_text())["task"]["source"]
    assert remembered["answer"] == chosen
    evaluated = call(capsys, "evaluate", out, "--json").summary  # the rows are rendered as they were
    assert evaluated["ensemble"]["nll"] == pytest.approx(made.summary["ensemble"]["nll"], abs=1e-5)


def test_answer_auto_needs_options_to_choose_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": f"It is {word} {n}.", "label": word} for n in range(6) for word in ("late", "early")]
    train = written(tmp_path / "train.jsonl", rows)
    given = ("--labels", "late,early", "--base", base_folder(), "--answer", "auto", "--out", tmp_path / "run")
    made = call(capsys, "train", "--train", train, *given)
    assert made.code == 2
    assert "no question has lettered options" in made.err
