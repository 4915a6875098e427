"""Predict part by part: in little memory, as rows come,
and on from where a run was stopped, to the same bytes.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import lora_ensembles.cli.predict as verb
from breadth import LONG
from command_line import Outcome, base_folder, call
from lora_ensembles import LoraEnsemble, load_base
from lora_ensembles.cli.flags import asked
from lora_ensembles.cli.flags.memory import Memory
from lora_ensembles.cli.program import parse
from lora_ensembles.cli.screen import partial
from lora_ensembles.data import formats
from lora_ensembles.disk.claimed import locked
from tiny_ensembles import adapter, files_below

ROWS = 16  # of a part, here
COUNT = 100
OPTIONS = ["planet", "star", "moon"]
# Runs the command line in a process of its own, which kills itself while it writes its third part.
KILLED = f"""
import os, signal, sys; sys.path += {[*sys.path, str(Path(__file__).parent)]}
import test_cli_predict_stream as test
from lora_ensembles.cli import main
test.asked.ROWS = test.partial.ROWS = test.ROWS
test.partial._Partial.write = test.cut_third_part(signal.SIGKILL)
sys.exit(main(sys.argv[1:]))
"""


def cut_third_part(number: int) -> Any:
    """A way to write parts of which the third one is cut, by a signal that comes in the middle of it."""
    write, parts = partial._Partial.write, itertools.count(1)

    def cut(self: Any, text: str, *, rows: int) -> None:
        third = next(parts) == 3
        write(self, text[: len(text) * 2 // 3] if third else text, rows=0 if third else rows)
        if third:
            os.kill(os.getpid(), number)

    return cut


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "ROWS", ROWS)
    monkeypatch.setattr(partial, "ROWS", ROWS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "cqa"
    ensemble = LoraEnsemble(*load_base(base_folder()), num_members=2, adapter=adapter())
    ensemble.stack.b.normal_()
    ensemble.save_pretrained(path)
    return path


def question(number: int) -> dict[str, Any]:
    """Questions with two or three options, with and without an answer, and with a line break in a column."""
    options = OPTIONS[: 2 + number % 2]
    row = {"question": f"Is {number} a planet?", "options": options, "note": f'no. "{number}",\nsaid'}
    return row | ({"answer": "star"} if number % 3 else {})


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Rows of which some cannot be used, the first one among them."""
    made = [question(number) for number in range(COUNT)]
    for number in (0, 40, 41, COUNT - 1):
        made[number] = {"question": " ", "options": ["one"], "note": "bad"}
    return write(tmp_path / "rows.jsonl", made)


@contextmanager
def stopped_after(parts: int, *, number: int = signal.SIGTERM) -> Iterator[None]:
    """Context in which a signal comes to `predict` once it has written so many parts."""
    real, seen = verb.answered, itertools.count()

    def answered(*arguments: Any) -> Any:
        if next(seen) == parts:
            os.kill(os.getpid(), number)
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verb, "answered", answered)
        yield


def begin(capsys: Any, *words: Any, parts: int = 3) -> Outcome:
    """A run that is stopped after so many parts."""
    with stopped_after(parts):
        return call(capsys, "predict", *words)


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_a_run_that_is_killed_in_the_middle_of_a_line_goes_on_to_the_same_bytes(
    capsys, monkeypatch, tmp_path, saved, rows, format
):
    out, whole = tmp_path / f"answers.{format}", tmp_path / f"whole.{format}"
    flags = ["--skip-bad-rows", "--keep-columns", "note", "--no-progress"]
    words = ["predict", saved, "--in", rows, *flags, "--out", out]
    plain = call(capsys, "predict", saved, "--in", rows, *flags, "--out", whole, "--json")

    if format == "jsonl":
        done = subprocess.run([sys.executable, "-c", KILLED, *map(str, words)], capture_output=True)
        assert done.returncode == -signal.SIGKILL
    else:  # within this process, which takes less time
        with monkeypatch.context() as patch:
            patch.setattr(partial._Partial, "write", cut_third_part(signal.SIGTERM))
            assert call(capsys, *words).code == 143
    left = (tmp_path / f"answers.{format}.partial").read_bytes()
    assert not out.exists()
    assert whole.read_bytes().startswith(left)
    assert not left.endswith(b"\n")

    refused = call(capsys, *words)
    assert refused.code == 2
    assert "holds the rows of a run that was stopped; go on with it by --resume, or start" in refused.err
    resumed = call(capsys, *words, "--resume", "--json")

    assert resumed.code == 0, resumed.err
    assert out.read_bytes() == whole.read_bytes()
    assert f"{2 * ROWS} rows of them before" in resumed.err
    assert resumed.summary | {"out": "", "seconds": 0} == plain.summary | {"out": "", "seconds": 0}
    assert (resumed.summary["questions"], resumed.summary["bad_rows"]) == (COUNT - 4, 4)
    assert files_below(tmp_path) == {"rows.jsonl", out.name, whole.name}
    with open(out, newline="") as stream:
        records = list(csv.DictReader(stream)) if format == "csv" else list(map(json.loads, stream))
    assert [int(record["row"]) for record in records] == list(range(COUNT))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_the_rows_and_says_how_to_go_on(capsys, tmp_path, saved, number):
    rows = write(tmp_path / "rows.jsonl", [question(n) for n in range(COUNT)])
    out, expected = tmp_path / "a.jsonl", call(capsys, "predict", saved, "--in", rows).out
    for parts in (2, 1, 20):  # stopped twice, and then let go on to the end
        with stopped_after(parts, number=number):
            done = call(capsys, "predict", saved, "--in", rows, "--out", out, "--resume")
        if parts < 20:
            word = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[number]
            kept = 2 * ROWS if parts == 2 else 3 * ROWS
            assert done.code == 128 + number
            assert done.err.splitlines()[-1] == (
                f"lora-ensembles: {word}. {kept} rows are kept in {out}.partial: go on by --resume, "
                "or start anew by --overwrite"
            )
            assert not out.exists()
    assert (done.code, out.read_text()) == (0, expected)


def test_a_run_that_is_stopped_before_its_first_rows_leaves_nothing(capsys, tmp_path, saved):
    rows = write(tmp_path / "rows.jsonl", [question(n) for n in range(3)])
    done = begin(capsys, saved, "--in", rows, "--out", tmp_path / "a.jsonl", parts=0)
    assert done.err == "lora-ensembles: terminated\n"
    assert files_below(tmp_path) == {"rows.jsonl"}


@pytest.fixture
def begun(capsys, tmp_path, saved) -> tuple[Path, Path]:
    """Rows, and an output of which a stopped run wrote a part."""
    rows = write(tmp_path / "rows.jsonl", [question(n) for n in range(COUNT)])
    out = tmp_path / "a.jsonl"
    assert begin(capsys, saved, "--in", rows, "--out", out, "--only", 1).code == 143
    return rows, out


def change_input(rows: Path, header: Path) -> None:
    rows.write_text(rows.read_text().replace("Is 99", "Is 98"))


def change_version(rows: Path, header: Path) -> None:
    content = json.loads(header.read_text())
    header.write_text(json.dumps(content | {"version": "0.0.1"}))


def cut_header(rows: Path, header: Path) -> None:
    header.write_text(header.read_text()[:-9])


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        (change_input, [], "was begun of another input than "),
        (None, ["--max-rows", 3], "was begun with --max-rows not given, which is 3 now, so it cannot go on"),
        (None, ["--keep-columns", "note"], 'with --keep-columns not given, which is ["note"] now'),
        (change_version, [], "was begun by lora-ensembles 0.0.1, and this is "),
        (cut_header, [], "cannot go on ("),
        (None, ["--overwrite"], "--resume goes on with a stopped run, --overwrite starts anew; give one"),
    ],
)
def test_a_run_goes_on_only_as_it_was_begun(capsys, monkeypatch, saved, begun, change, flags, message):
    rows, out = begun
    left = out.with_name("a.jsonl.partial")
    before = left.read_bytes()
    monkeypatch.setattr(verb, "load_ensemble", None)  # nothing is computed before
    if change is not None:
        change(rows, left.with_name("a.jsonl.partial.json"))

    done = call(capsys, "predict", saved, "--in", rows, "--out", out, "--only", 1, "--resume", *flags)

    assert done.code == 2
    assert message in done.err
    assert left.read_bytes() == before


def test_a_run_does_not_go_on_with_another_ensemble_or_other_members(capsys, tmp_path, saved, begun):
    rows, out = begun
    other = tmp_path / "other"
    LoraEnsemble(*load_base(base_folder()), num_members=2, adapter=adapter(), seed=7).save_pretrained(other)

    for words, message in (
        ([other, "--only", 1], "was begun by another ensemble"),
        ([saved], "was begun with --only [1], which is not given now"),
    ):
        done = call(capsys, "predict", *words, "--in", rows, "--out", out, "--resume")
        assert (done.code, message in done.err) == (2, True)


def test_overwrite_starts_anew_and_replaces_only_what_it_was_told_to(capsys, saved, begun):
    rows, out = begun
    words = ["predict", saved, "--in", rows, "--out", out]
    out.write_text("precious")  # made by someone while the run was stopped
    refused = call(capsys, *words, "--only", 1, "--resume")
    assert "the run that was stopped was not told to replace it" in refused.err

    stopped_again = begin(capsys, *words[1:], "--overwrite", parts=2)
    assert f"{2 * ROWS} rows are kept" in stopped_again.err
    assert out.read_text() == "precious"
    assert call(capsys, *words, "--resume").code == 0
    assert len(out.read_text().splitlines()) == COUNT
    again = call(capsys, *words, "--resume")
    assert "a.jsonl exists already, and no run that was stopped" in again.err


def test_an_output_that_another_process_writes_is_left_alone(capsys, saved, begun):
    rows, out = begun
    with open(f"{out}.partial", "r+b") as held:
        assert locked(held.fileno())
        for flag in ("--resume", "--overwrite"):
            done = call(capsys, "predict", saved, "--in", rows, "--out", out, flag)
            assert (done.code, "another process is writing" in done.err) == (2, True)


def test_rows_that_are_all_there_are_only_given_their_name(capsys, monkeypatch, tmp_path, saved):
    rows, out = write(tmp_path / "rows.jsonl", [question(n) for n in range(20)]), tmp_path / "a.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(partial._Partial, "finish", lambda self: os.kill(os.getpid(), signal.SIGTERM))
        assert call(capsys, "predict", saved, "--in", rows, "--out", out).code == 143
    monkeypatch.setattr(verb, "answered", None)

    done = call(capsys, "predict", saved, "--in", rows, "--out", out, "--resume", "--json")

    assert (done.code, done.summary["questions"]) == (0, 20)
    assert len(out.read_text().splitlines()) == 20


def test_a_row_that_is_cut_or_out_of_place_is_computed_again(capsys, saved, begun):
    rows, out = begun
    expected = call(capsys, "predict", saved, "--in", rows, "--only", 1).out
    left = out.with_name("a.jsonl.partial")
    lines = left.read_text().splitlines(keepends=True)
    left.write_text("".join([*lines[:20], "{}\n", *lines[21:]]))

    done = call(capsys, "predict", saved, "--in", rows, "--out", out, "--only", 1, "--resume")

    assert f"{ROWS} rows of them before" in done.err
    assert out.read_text() == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--in", "-", "--out", "a.jsonl"], "--resume: - cannot be read again; put the rows into a file"),
        (["--in", "rows.jsonl"], "--resume goes on with a file; name the one that was begun by --out FILE"),
    ],
)
def test_resume_is_refused_where_nothing_can_go_on(capsys, monkeypatch, saved, rows, words, message):
    monkeypatch.chdir(rows.parent)
    done = call(capsys, "predict", saved, *words, "--resume")
    assert (done.code, message in done.err) == (2, True)


def test_an_unusable_row_late_in_a_file_is_found_before_anything_is_computed(
    capsys, monkeypatch, tmp_path, saved
):
    rows = [*(question(n) for n in range(COUNT)), {"question": ""}]
    monkeypatch.setattr(verb, "load_ensemble", None)
    path = write(tmp_path / "rows.jsonl", rows)
    done = call(capsys, "predict", saved, "--in", path, "--out", tmp_path / "a.jsonl")
    assert f"rows.jsonl, line {COUNT + 1}: column 'question' holds ''" in done.err
    assert files_below(tmp_path) == {"rows.jsonl"}


def test_a_row_that_cannot_be_encoded_keeps_the_rows_before_it_and_skipping_it_goes_on(
    capsys, tmp_path, saved
):
    made = [question(n) for n in range(40)]
    made[30]["question"] = "word " * 3000
    rows, out = write(tmp_path / "rows.jsonl", made), tmp_path / "a.jsonl"
    refused = call(capsys, "predict", saved, "--in", rows, "--out", out)
    assert "and the window is" in refused.err
    assert f"{ROWS} rows are kept" in refused.err

    done = call(capsys, "predict", saved, "--in", rows, "--out", out, "--resume", "--skip-bad-rows")

    assert done.code == 0, done.err
    assert ["error" in json.loads(line) for line in out.read_text().splitlines()] == [
        n == 30 for n in range(40)
    ]


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_a_kept_column_called_error_is_not_taken_for_what_is_wrong_with_a_row(
    capsys, tmp_path, saved, format
):
    made = [{**question(n), "error": f"of {n}"} for n in range(20)]
    made[18]["question"] = ""
    rows, out = write(tmp_path / "rows.jsonl", made), tmp_path / f"a.{format}"
    words = ["--skip-bad-rows", "--keep-columns", "error", "--json"]
    done = call(capsys, "predict", saved, "--in", rows, "--out", out, *words)
    assert (done.code, done.summary["bad_rows"]) == (0, 1)
    with open(out, newline="") as stream:
        records = list(csv.DictReader(stream)) if format == "csv" else list(map(json.loads, stream))
    assert [record["input_error"] for record in records] == [f"of {n}" for n in range(20)]
    assert [bool(record.get("error")) for record in records] == [n == 18 for n in range(20)]


def test_of_a_file_that_grows_the_rows_that_were_checked_are_answered_and_one_that_shrinks_is_refused(
    capsys, monkeypatch, tmp_path, saved
):
    made = [question(n) for n in range(40)]
    rows, real = write(tmp_path / "rows.jsonl", made), verb.load_ensemble
    for count, code in ((50, 0), (30, 2)):
        write(rows, made)

        def changed(args: Any, count: int = count) -> Any:
            write(rows, [question(n) for n in range(count)])
            return real(args)

        monkeypatch.setattr(verb, "load_ensemble", changed)
        done = call(capsys, "predict", saved, "--in", rows)
        assert (done.code, len(done.out.splitlines())) == (code, min(count, 40))
    assert "30 rows, and 40 when they were checked; it was changed, so start anew" in done.err


def test_rows_of_a_dataset_of_the_hub_go_on_as_those_of_a_file(capsys, monkeypatch, tmp_path, saved):
    import datasets

    made = datasets.Dataset.from_list([{**question(n), "answer": "star"} for n in range(COUNT)])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: made)
    words = [saved, "--in", "hub:owner/name:train", "--out", tmp_path / "a.jsonl"]
    expected = call(capsys, "predict", *words[:3]).out
    assert begin(capsys, *words).code == 143
    assert call(capsys, "predict", *words, "--resume").code == 0
    assert (tmp_path / "a.jsonl").read_text() == expected


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_neither_pass_over_a_file_keeps_its_rows(monkeypatch, tmp_path, suffix):
    """Four megabytes of questions, of which a tenth may be in memory."""
    monkeypatch.setattr(formats, "BATCH", 64)
    count = 4000
    made = [{"question": f"{n} " + "x" * 1000, "a": "yes", "b": "no"} for n in range(count)]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "jsonl":
        write(path, made)
    elif suffix == "csv":
        with open(path, "w", newline="") as stream:
            writer = csv.DictWriter(stream, list(made[0]))
            writer.writeheader()
            writer.writerows(made)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(made), path)
    del made
    args = parse(["predict", "x", "--in", str(path), "--options-column", "a,b", "--no-progress"])
    next(asked.asked_rows(args, Memory(), labels=True).parts(0))  # what is imported then

    tracemalloc.start()
    rows = asked.asked_rows(args, Memory(), labels=True)
    read = sum(len(part) for part in rows.parts(0))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert (read, rows.total, rows.labels) == (count, count, ("a", "b"))
    assert most < 0.1 * count * 1000


@pytest.fixture
def pipe(saved) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-m", "lora_ensembles.cli", "predict", str(saved), "--in", "-", "--no-progress"]
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, text=True, **streams) as process:
        yield process
        process.kill()


@LONG
def test_rows_are_answered_as_they_come_from_a_pipe(pipe):
    assert pipe.stdin is not None
    assert pipe.stdout is not None
    for number in (0, 1):
        pipe.stdin.write(json.dumps(question(number)) + "\n")
        pipe.stdin.flush()
        assert json.loads(pipe.stdout.readline())["row"] == number  # before the next one is written
    pipe.stdin.write(json.dumps(question(2)) + '\n{"question": ""}\n')
    out, err = pipe.communicate(timeout=60)
    assert json.loads(out)["row"] == 2
    assert "<stdin>, line 4: column 'question' holds ''" in err
    assert pipe.returncode == 2


def stdin(monkeypatch: pytest.MonkeyPatch, rows: list[Any]) -> None:
    text = "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_a_pipe_is_answered_as_a_file_is(capsys, monkeypatch, tmp_path, saved, rows):
    words = ["--skip-bad-rows", "--keep-columns", "all"]
    expected = call(capsys, "predict", saved, "--in", rows, *words).out.replace(str(rows), "<stdin>")
    stdin(monkeypatch, [json.loads(line) for line in rows.read_text().splitlines()])
    done = call(capsys, "predict", saved, "--in", "-", *words)
    assert done.out == expected.replace("rows.jsonl", "<stdin>")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_read_once(capsys, tmp_path, saved):
    path = tmp_path / "rows.jsonl"
    os.mkfifo(path)
    text = "".join(f"{json.dumps(question(n))}\n" for n in range(40))
    writer = threading.Thread(target=path.write_text, args=(text,))
    writer.start()
    done = call(capsys, "predict", saved, "--in", path)
    writer.join()
    assert (done.code, len(done.out.splitlines())) == (0, 40)


def test_columns_of_a_csv_from_a_pipe_are_those_of_its_first_rows(capsys, monkeypatch, tmp_path, saved):
    out = tmp_path / "a.csv"
    two, three = question(0), question(1)
    stdin(monkeypatch, ["no json", three, *[two] * 40])
    done = call(capsys, "predict", saved, "--in", "-", "--out", out, "--skip-bad-rows")
    assert done.code == 0, done.err
    with open(out, newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [bool(row["error"]) for row in rows] == [True] + [False] * 41
    assert [row["prob_c"] != "" for row in rows[:3]] == [False, True, False]

    stdin(monkeypatch, [*[two] * 20, three])
    done = call(capsys, "predict", saved, "--in", "-", "--out", tmp_path / "b.csv")
    assert done.code == 2
    assert "row 20 (<stdin>:21) has a value for prob_c, a column that the header of the csv" in done.err
    assert (
        f"{ROWS} rows are kept in {tmp_path}/b.csv.partial: a pipe cannot be read again, so start" in done.err
    )


def test_a_pipe_without_a_row_that_can_be_used_is_an_error(capsys, monkeypatch, tmp_path, saved):
    stdin(monkeypatch, ["no json"] * (ROWS + 1))
    done = call(capsys, "predict", saved, "--in", "-", "--skip-bad-rows")
    assert (done.code, done.out) == (2, "")
    assert "<stdin>, line 1: not JSON" in done.err
    stdin(monkeypatch, [{"question": "", "options": OPTIONS}] * 3)
    done = call(capsys, "predict", saved, "--in", "-", "--skip-bad-rows")
    assert done.code == 2
    assert "<stdin>, line 1: column 'question' holds ''" in done.err
