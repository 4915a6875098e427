"""Rows that are read as they are asked for: no more of a file than that, lines of a pipe as they come, and
the answers that reading the whole file gives.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from lora_ensembles.data import formats
from lora_ensembles.data.sources import WaitingLines, named_rows, waiting_rows
from lora_ensembles.data.whole_file import QuestionReader, read_whole
from lora_ensembles.errors import DataError

OPTIONS = ["1", "2", "3"]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture
def pipe() -> Iterator[tuple[TextIO, int]]:
    """The reading end of a pipe as a text stream, and the number of the writing end."""
    ends = os.pipe()
    with open(ends[0]) as stream:
        yield stream, ends[1]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("f.jsonl", b'\n{"a": 1}\n{"a": "\xff"}\n'),
        ("f.csv", b"\na\n1\n\xff\n"),
        ("f.tsv", b"a\tb\n\n1\t2\n\xff\t3\n"),
    ],
)
def test_a_row_is_there_before_a_later_line_is_read_and_that_line_is_named(
    tmp_path: Path, name: str, text: bytes
) -> None:
    rows = named_rows(write(tmp_path / name, text))

    assert str(next(rows).values["a"]) == "1"
    line = text[: text.index(b"\xff")].count(b"\n") + 1
    with pytest.raises(DataError, match=rf"{name}, line {line}: not UTF-8 \(byte 0xff\)"):
        next(rows)


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_csv_of_every_line_end_is_read_with_its_marks_and_breaks(
    tmp_path: Path, ending: str, mark: str
) -> None:
    lines = [f"{mark}a;b", "x\u2028y;1", f'"two{ending}lines";2', "last;3"]

    rows = list(named_rows(write(tmp_path / "f.csv", ending.join(lines))))

    assert [row.values for row in rows] == [
        {"a": "x\u2028y", "b": "1"},
        {"a": f"two{ending}lines", "b": "2"},
        {"a": "last", "b": "3"},
    ]
    assert [row.id for row in rows] == ["f.csv:2", "f.csv:3", "f.csv:5"]


def test_parquet_of_several_batches_has_each_row_once_and_numbered(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    count = 2 * formats.BATCH + 3
    table = pyarrow.Table.from_pylist([{"n": n, "list": [n]} for n in range(count)])
    pyarrow.parquet.write_table(table, tmp_path / "f.parquet", row_group_size=700)

    rows = list(named_rows(tmp_path / "f.parquet"))

    assert [row.values for row in rows] == [{"n": n, "list": [n]} for n in range(count)]
    assert [row.id for row in rows] == [f"f.parquet:{n + 1}" for n in range(count)]


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_lines_of_a_pipe_are_rows_as_soon_as_they_are_whole(pipe: tuple[TextIO, int], format: str) -> None:
    stream, end = pipe
    written = [json.dumps({"a": n}) for n in range(4)] if format == "jsonl" else ["a", "0", '"1"', "2", "3"]
    first, rest = written[: len(written) - 2], written[-2:]
    lines = WaitingLines(stream, name="<stdin>")
    rows = waiting_rows(lines, name="<stdin>", format=format)
    os.write(end, "".join(f"{line}\n" for line in first).encode() + rest[0].encode())

    before = [next(rows)]
    while lines.waiting():
        before.append(next(rows))
    os.write(end, b"\n" + rest[1].encode())  # no line feed behind the last line
    after = [next(rows)]
    assert not lines.waiting()
    os.close(end)
    assert lines.waiting()

    assert [int(str(row.values["a"])) for row in [*before, *after, *rows]] == [0, 1, 2, 3]
    assert (len(before), len(after)) == (2, 1)


def test_a_line_of_a_pipe_that_is_not_utf_8_is_named(pipe: tuple[TextIO, int]) -> None:
    stream, end = pipe
    os.write(end, b'{"a": 1}\n\n{"a": "\xe9"}\n')
    os.close(end)

    with pytest.raises(DataError, match=r"<stdin>, line 3: not UTF-8 \(byte 0xe9\)"):
        list(waiting_rows(WaitingLines(stream, name="<stdin>"), name="<stdin>", format="jsonl"))


def test_a_line_longer_than_a_pipe_holds_comes_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "long.jsonl", json.dumps({"a": "x" * 1_000_000}) + "\n")
    with open(path) as stream:
        (row,) = waiting_rows(WaitingLines(stream, name="s"), name="s", format="jsonl")
    assert row.values == {"a": "x" * 1_000_000}


def test_a_stream_without_a_file_number_never_lets_anyone_wait() -> None:
    lines = WaitingLines(io.StringIO('{"a": 1}\n'), name="s")
    assert lines.waiting()
    assert [row.values for row in waiting_rows(lines, name="s", format="json")] == [{"a": 1}]


@pytest.mark.parametrize(
    "answers",
    [
        ["1", "3", "2"],  # text or index: nothing says which
        ["1", "3", "3", "3"] * 10 + ["0"],
        ["a", "TBD", None, "c"],
        [None, None],
    ],
)
def test_questions_one_at_a_time_have_the_answers_of_the_whole_file(answers: list[Any]) -> None:
    rows = [
        formats.Row(f"line {n}", str(n), {"question": "Which?", "options": OPTIONS, "answer": answer})
        for n, answer in enumerate(answers)
    ]
    reader = QuestionReader(rows[0], labelled=False)
    for row in rows:
        reader.learn(row)

    assert tuple(map(reader.read, rows)) == read_whole(rows, name="f", labelled=False).examples
