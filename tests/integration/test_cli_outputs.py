"""Where predict, generate and train may write: never over what they read, never late, and devices and links
stay what they are.
"""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lora_ensembles.cli.predict as verb
from breadth import LONG
from command_line import base_folder, call
from lora_ensembles import LoraEnsemble, load_base
from tiny_ensembles import adapter, files_below

QUESTIONS = [
    {"id": "sun", "question": "The sun is a", "options": ["planet", "star", "moon"], "answer": "star"},
    {"id": "new", "question": "Does it shine?", "options": ["yes", "no"]},
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "cqa"
    LoraEnsemble(*load_base(base_folder()), num_members=2, adapter=adapter()).save_pretrained(path)
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(question)}\n" for question in QUESTIONS))
    return path


@pytest.fixture
def nothing_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads the base fails: the refusal has to come before."""

    def too_late(_: Any) -> None:
        raise AssertionError("the base was loaded first")

    monkeypatch.setattr(verb, "load_ensemble", too_late)


@pytest.mark.usefixtures("nothing_computed")
@pytest.mark.parametrize(
    "spelling", ["rows.jsonl", "./rows.jsonl", "link.jsonl", "hard.jsonl", "dir/../rows.jsonl"]
)
@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_output_that_is_the_input_is_refused_in_every_spelling(
    capsys, monkeypatch, saved, rows, spelling, flags
):
    monkeypatch.chdir(rows.parent)
    Path("link.jsonl").symlink_to("rows.jsonl")
    os.link("rows.jsonl", "hard.jsonl")
    Path("dir").mkdir()
    before = rows.read_bytes()

    done = call(capsys, "predict", saved, "--in", "rows.jsonl", "--out", spelling, *flags)

    assert done.code == 2
    assert (
        f"--out {Path(spelling)} is the file that is read (rows.jsonl); give the output another" in done.err
    )
    assert rows.read_bytes() == before


def test_output_that_is_the_redirected_input_is_refused(saved, rows):
    words = [sys.executable, "-m", "lora_ensembles.cli", "predict", str(saved), "--in", "-"]
    before = rows.read_bytes()
    with open(rows, "rb") as stdin:
        done = subprocess.run(
            [*words, "--out", str(rows), "--overwrite"], stdin=stdin, capture_output=True, text=True
        )
    assert (done.returncode, rows.read_bytes()) == (2, before)
    assert "is the file that is read (-)" in done.stderr


@pytest.mark.usefixtures("nothing_computed")
@pytest.mark.parametrize("name", ["ensemble.json", "member_000/adapter_config.json", "README.md"])
def test_output_that_is_a_part_of_the_ensemble_is_refused(capsys, saved, rows, name):
    before = (saved / name).read_bytes()
    done = call(
        capsys, "predict", saved, "--in", rows, "--out", saved / name, "--format", "jsonl", "--overwrite"
    )
    assert done.code == 2
    assert "is a part of the ensemble" in done.err
    assert (saved / name).read_bytes() == before


@pytest.mark.usefixtures("nothing_computed")
@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("x.xlsx", "no format has the suffix '.xlsx'; name it .jsonl or .csv"),
        ("n" * 300 + ".jsonl", "cannot be written: File name too long; choose another place"),
        ("rows.jsonl/a.jsonl", "cannot be written: Not a directory"),
        ("", "is a folder; give the name of a file"),
        ("/proc/a.jsonl", "/proc/a.jsonl cannot be written: "),
        ("old.csv", "exists already; choose another name, or replace it by --overwrite"),
    ],
)
def test_output_that_cannot_be_is_refused_before_anything_is_computed(
    capsys, monkeypatch, saved, rows, out, message
):
    monkeypatch.chdir(rows.parent)
    Path("old.csv").write_text("precious")
    before = files_below(rows.parent)
    done = call(capsys, "predict", saved, "--in", "rows.jsonl", "--out", out)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert files_below(rows.parent) == before
    assert Path("old.csv").read_text() == "precious"


@pytest.mark.usefixtures("nothing_computed")
def test_json_behind_csv_on_standard_output_is_refused(capsys, saved, rows):
    done = call(capsys, "predict", saved, "--in", rows, "--format", "csv", "--json")
    assert done.code == 2
    assert "--json would end the csv on standard output by a line that is none; give --out FILE" in done.err


def test_given_format_lets_any_suffix_pass_and_links_stay(capsys, tmp_path, saved, rows):
    (tmp_path / "link.txt").symlink_to("real.txt")
    done = call(
        capsys, "predict", saved, "--in", rows, "--out", tmp_path / "link.txt", "--format", "csv", "--json"
    )
    assert (done.code, done.summary["format"]) == (0, "csv")
    assert (tmp_path / "link.txt").is_symlink()
    assert [row["id"] for row in csv.DictReader(io.StringIO((tmp_path / "real.txt").read_text()))] == [
        "sun",
        "new",
    ]


@LONG
@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="needs /dev/stdout")
def test_the_device_of_standard_output_is_standard_output_and_cuts_no_file_off(tmp_path, saved, rows):
    words = f'"{sys.executable}" -m lora_ensembles.cli predict "{saved}" --in "{rows}" --out /dev/stdout'
    (tmp_path / "log").write_text("kept\n")
    subprocess.run(["sh", "-c", f'{words} >> "{tmp_path}/log"'], capture_output=True, check=True)
    kept, *lines = (tmp_path / "log").read_text().splitlines()
    assert kept == "kept"
    assert [json.loads(line)["id"] for line in lines] == ["sun", "new"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_answers_to_a_full_device_are_one_line_and_exit_code_2(capsys, saved, rows, flags):
    done = call(capsys, "predict", saved, "--in", rows, "--out", "/dev/full", *flags)
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1].startswith("lora-ensembles: error: no space left to write /dev/full")


@LONG
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_answers_to_a_full_standard_output_are_one_line_and_exit_code_2(saved, rows):
    words = f'"{sys.executable}" -m lora_ensembles.cli predict "{saved}" --in "{rows}" >/dev/full'
    done = subprocess.run(["sh", "-c", words], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "standard output cannot be written: No space left on device" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("words", [["train", "--task", "world-cqa"], ["demo"], ["study", "sweep"]])
def test_folder_that_cannot_be_made_is_refused_before_the_base_is_loaded(capsys, tmp_path, words):
    (tmp_path / "file").write_text("")
    done = call(capsys, *words, "--base", base_folder(), "--out", tmp_path / "file" / "out")
    assert done.code == 2
    assert "cannot be written: Not a directory; choose another place" in done.err
    assert files_below(tmp_path) == {"file"}


def test_report_that_cannot_be_written_is_refused(capsys, tmp_path):
    records = Path(__file__).resolve().parents[2] / "results" / "embedded"
    (tmp_path / "file").write_text("")
    done = call(capsys, "report", records, "--out", tmp_path / "file")
    assert done.code == 2
    assert "cannot be written: Not a directory" in done.err
