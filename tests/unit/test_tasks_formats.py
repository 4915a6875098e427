"""Formats, delimiters, headers and characters of files, what is said of any other, and one reading of all
answers.
"""

from __future__ import annotations

import csv
import io
import json
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from lora_ensembles.data import (
    ColumnMapping,
    found_classes,
    load_completions,
    load_file,
    load_preferences,
    read_examples,
)
from lora_ensembles.data.sources import named_rows
from lora_ensembles.data.whole_file import read_whole
from lora_ensembles.errors import DataError

HALF = "\\ud83d"  # of a character of two, as JSON writes it
FOUR = ["north", "east", "south", "west"]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def questions(path: Path, *answers: object, options: list[Any] = FOUR) -> Path:
    rows = [{"question": f"Which way, {n}?", "options": options, "answer": a} for n, a in enumerate(answers)]
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def targets(path: Path, **settings: Any) -> list[int | None]:
    return [example.target for example in load_file(path, **settings)]


@pytest.mark.parametrize(
    ("name", "sign"), [("f.csv", ","), ("f.csv", ";"), ("f.csv", "\t"), ("f.csv", "|"), ("f.tsv", "\t")]
)
def test_columns_may_be_parted_by_any_usual_sign(tmp_path: Path, name: str, sign: str) -> None:
    path = write(
        tmp_path / name, f'text{sign}label\n"a joy{sign} really, so; it\tis"{sign}good\nA bore.{sign}bad\n'
    )

    first, second = load_file(path, labels=["bad", "good"])

    assert (first.question, first.target) == (f"a joy{sign} really, so; it\tis", 1)
    assert (second.question, second.target) == ("A bore.", 0)


def test_a_header_with_commas_and_another_sign_says_what_parts_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", "id;text;class, if any\n1;a,b\n")

    with pytest.raises(
        DataError, match=r"unknown column 'question'.*';' stands in the names.*a comma parts columns"
    ):
        load_file(path, labels=["bad", "good"])


@pytest.mark.parametrize(
    "text", ["Text,Label\nA joy.,good\nA bore.,bad\n", "TEXT,LABEL\nA joy.,good\nA bore.,bad\n"]
)
def test_headers_are_found_in_any_case_of_letters(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "f.csv", text)

    mapping, classes = found_classes(path)

    assert classes == ("bad", "good")
    assert targets(path, columns=mapping, labels=classes) == [1, 0]


def test_of_two_headers_that_differ_by_case_the_one_as_written_is_meant(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", "Text,text,label\nno,A joy.,good\n")
    assert load_file(path, labels=["bad", "good"])[0].question == "A joy."

    both = write(tmp_path / "g.csv", "Text,TEXT,label\nno,A joy.,good\n")
    with pytest.raises(DataError, match="unknown column 'question'"):
        load_file(both, labels=["bad", "good"])


def test_prompts_pairs_and_ids_are_found_in_any_case_of_letters(tmp_path: Path) -> None:
    (completion,) = load_completions(write(tmp_path / "c.csv", "ID,Prompt,Completion\n7,2 + 2 =, 4\n"))
    (pair,) = load_preferences(write(tmp_path / "p.csv", "Id,Prompt,Chosen,Rejected\n7,2 + 2 =, 4, 5\n"))

    assert (completion.id, completion.prompt, completion.completion) == ("7", "2 + 2 =", " 4")
    assert (pair.id, pair.options) == ("7", (" 4", " 5"))


def workbook() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:  # of a fixed date: the bytes are part of a test's name
        archive.writestr(zipfile.ZipInfo("xl/workbook.xml", (2020, 1, 1, 0, 0, 0)), "<workbook/>")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (workbook(), "this is an xlsx file, no text, whatever its name says; save it as CSV UTF-8"),
        (b"PK\x03\x04 and so on", "this is a zip archive, no text"),
        (b"PAR1\x00\x00", "this is a parquet file, no text.*name it .parquet"),
        (b"\x1f\x8b\x08\x00", "this is a gzip archive, no text"),
        (b"\xd0\xcf\x11\xe0\xa1", "this is an old Excel or Word file"),
        (b"%PDF-1.7", "this is a PDF file"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_binary_file_under_the_name_of_a_text_is_called_what_it_is(
    tmp_path: Path, content: bytes, message: str, suffix: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_file(write(tmp_path / f"f.{suffix}", content))


def test_a_workbook_and_an_unknown_suffix_say_what_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"\.jsonl.*\.json .*\.csv, \.tsv or \.parquet, from an Excel workbook as CSV UTF-8"
    ):
        load_file(tmp_path / "f.xlsx")


def test_a_cell_may_be_longer_than_the_limit_of_the_csv_module_which_stays(tmp_path: Path) -> None:
    limit, text = csv.field_size_limit(), "word " * 40_000
    path = write(tmp_path / "f.csv", f"text,label\n{text},good\nA bore.,bad\n")
    assert len(text) > limit

    long, _ = load_file(path, labels=["bad", "good"])

    assert long.question == text.strip()
    assert csv.field_size_limit() == limit
    with pytest.raises(DataError, match="not csv"):
        load_file(write(tmp_path / "g.csv", f'text,label\n"{text},good\n'), labels=["bad", "good"])
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("name", ["f.jsonl", "f.json"])
def test_half_a_character_is_named_with_file_line_and_column(tmp_path: Path, name: str) -> None:
    good, bad = (
        '{{"question": "{}", "options": ["a {}", "b"], "answer": 0}}'.format(*texts)
        for texts in (("ok", "x"), ("ok", HALF))
    )
    text = f"{good}\n{bad}\n" if name == "f.jsonl" else f"[{good}, {bad}]"

    with pytest.raises(
        DataError, match=rf"{name}, (line|row) 2: column 'options' holds \\ud83d, half of a character of two"
    ):
        load_file(write(tmp_path / name, text))
    whole = bad.replace(HALF, f"{HALF}\\ude00")
    assert load_file(write(tmp_path / "g.jsonl", whole))[0].options == ("a \U0001f600", "b")


@pytest.mark.parametrize("load", [load_completions, load_preferences])
def test_half_a_character_is_named_in_every_kind_of_file(tmp_path: Path, load: Any) -> None:
    row = f'{{"prompt": "a {HALF}", "completion": "b", "chosen": "c", "rejected": "d"}}'

    with pytest.raises(DataError, match=r"f\.jsonl, line 1: column 'prompt' holds \\ud83d"):
        load(write(tmp_path / "f.jsonl", row))


def test_json_is_a_list_of_objects_or_json_lines_under_another_name(tmp_path: Path) -> None:
    rows = [{"question": "Which way?", "options": FOUR, "answer": way} for way in FOUR]

    assert targets(write(tmp_path / "list.json", json.dumps(rows, indent=2))) == [0, 1, 2, 3]
    assert targets(write(tmp_path / "lines.json", "".join(json.dumps(row) + "\n" for row in rows))) == [
        0,
        1,
        2,
        3,
    ]
    with pytest.raises(DataError, match=r"row 2: a JSON int; each line needs one JSON object"):
        load_file(write(tmp_path / "bad.json", json.dumps([rows[0], 3])))
    with pytest.raises(DataError, match="not usable JSON"):
        load_file(write(tmp_path / "cut.json", json.dumps(rows)[:-3]))


def test_parquet_is_read_and_a_broken_one_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"question": "Which way?", "options": FOUR, "answer": way} for way in FOUR]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "f.parquet")

    assert targets(tmp_path / "f.parquet") == [0, 1, 2, 3]
    for path in (
        write(tmp_path / "cut.parquet", (tmp_path / "f.parquet").read_bytes()[:-9]),
        tmp_path / "gone.parquet",
    ):
        with pytest.raises(DataError, match=rf"{path.name}: cannot be read"):
            load_file(path)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["west", "north"], [3, 0]),
        (["d", "a", "B"], [3, 0, 1]),
        ([3, 0, "1"], [3, 0, 1]),
    ],
)
def test_all_answers_of_a_file_are_read_in_one_way(
    tmp_path: Path, answers: list[object], expected: list[int]
) -> None:
    assert targets(questions(tmp_path / "f.jsonl", *answers)) == expected


def test_answers_of_two_kinds_are_refused_with_both_places(tmp_path: Path) -> None:
    path = questions(tmp_path / "f.jsonl", "west", "north", "b")

    with pytest.raises(
        DataError,
        match=r"line 3: answer 'b' can be read as letters alone, and 'west' \(.*line 1\) as the option's "
        r"text; all answers",
    ):
        load_file(path)


def test_a_number_among_answers_by_text_is_no_index(tmp_path: Path) -> None:
    options = ["1.0", "2.0", "3.0"]
    path = questions(tmp_path / "f.jsonl", "1.0", "3.0", "3.0", "3.0", "2", options=options)

    with pytest.raises(DataError, match=r"line 5: answer '2' can be read as indices counted from 0 alone"):
        load_file(path)


def test_a_slip_in_one_row_does_not_decide_between_two_readings(tmp_path: Path) -> None:
    """Options 1 to 4 and answers 1 to 3 read as texts and as indices; the 0 of one row of forty must not make
    them all indices.
    """
    answers = ["1", "2", "3"] * 13 + ["0"]

    with pytest.raises(DataError, match=r"line 1: answer '1' can mean different options"):
        load_file(questions(tmp_path / "f.jsonl", *answers, options=["1", "2", "3", "4"]))


def test_the_file_decides_where_a_row_alone_could_not(tmp_path: Path) -> None:
    """Letters as options: c answered by d reads two ways in one row, and the other rows show which."""
    path = questions(tmp_path / "f.jsonl", "d", "x", "c", options=["d", "c", "x", "y"])

    assert targets(path) == [0, 2, 1]


def test_indices_counted_from_one_are_noticed_named_and_read_when_said(tmp_path: Path) -> None:
    path = questions(tmp_path / "f.jsonl", 1, 4, 2, 3)

    with pytest.raises(
        DataError, match=r"line 2: answer 4 is not among the indices of 4 options.*answer_form to 'number'"
    ):
        load_file(path)
    assert targets(path, columns=ColumnMapping(answer_form="number")) == [0, 3, 1, 2]
    with pytest.raises(DataError, match="answer 4 is not among the options"):
        load_file(questions(tmp_path / "g.jsonl", 0, 4, 2))
    with pytest.raises(DataError, match="needed is a number from 1 to 4"):
        load_file(questions(tmp_path / "h.jsonl", 1, 5), columns=ColumnMapping(answer_form="number"))


def test_an_answer_that_does_not_fit_is_no_answer_where_none_is_needed(tmp_path: Path) -> None:
    path = questions(tmp_path / "f.jsonl", "west", "TBD", "b", "east")

    assert targets(path, labelled=False) == [3, None, None, 1]
    words = write(tmp_path / "f.csv", "text,label\nA joy.,good\nA bore.,TBD\n")
    assert targets(words, labels=["bad", "good"], labelled=False) == [1, None]


def test_csv_on_a_stream_of_json_names_the_flag() -> None:
    with pytest.raises(DataError, match=r"<stdin>, line 1: not JSON.*say so by --in-format csv"):
        read_examples(io.StringIO("question,options,answer\n"))


def test_bad_rows_are_put_aside_with_their_number_and_reason(tmp_path: Path) -> None:
    rows = [{"question": f"Which way, {n}?", "options": FOUR, "answer": "west"} for n in range(4)]
    rows[1]["question"], rows[3]["answer"] = " ", "up"
    path = write(tmp_path / "f.jsonl", "".join(json.dumps(row) + "\n" for row in rows) + "no json\n")

    whole = read_whole(named_rows(path, keep_bad=True), name="f", skip_bad_rows=True)

    assert (whole.numbers, [example.question for example in whole.examples]) == (
        (0, 2),
        ["Which way, 0?", "Which way, 2?"],
    )
    assert whole.columns.answer_form == "text"
    assert [bad.number for bad in whole.bad] == [1, 3, 4]
    for bad, reason in zip(
        whole.bad, ["holds ' '", "answer 'up' is not among", "line 5: not JSON"], strict=True
    ):
        assert reason in bad.error
    path.write_text("no json\n")
    with pytest.raises(DataError, match="line 1: not JSON"):
        read_whole(named_rows(path, keep_bad=True), name="f", skip_bad_rows=True)


def test_rows_of_another_length_are_bad_rows_and_an_open_quote_is_a_bad_file(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", "text,label\nA joy.,good\nA bore, in all.,bad\nSo so.,bad\n")

    whole = read_whole(named_rows(path, keep_bad=True), name="f", labels=["bad", "good"], skip_bad_rows=True)

    assert (whole.numbers, [bad.number for bad in whole.bad]) == ((0, 2), [1])
    with pytest.raises(DataError, match="line 3: not csv"):
        list(named_rows(write(tmp_path / "g.csv", 'text,label\nA joy.,good\n"A bore.,bad\n'), keep_bad=True))


def test_reading_in_threads_leaves_the_limit_of_the_csv_module(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    path = write(tmp_path / "f.csv", "text,label\n" + f"{'word ' * 30_000},good\n" * 5)
    failures: list[Exception] = []

    def read() -> None:
        try:
            load_file(path, labels=["bad", "good"])
        except Exception as error:  # noqa: BLE001 - a thread's error would be lost
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert csv.field_size_limit() == limit
