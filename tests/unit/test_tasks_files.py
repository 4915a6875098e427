"""Your own data: what is accepted, and that every mistake is named with its file and line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from lora_ensembles.data import (
    LETTERS,
    ColumnMapping,
    Example,
    load_file,
    read_examples,
    render_prompt,
    task_from_files,
)
from lora_ensembles.errors import ConfigError, DataError

ROW = {"question": "The sun is a", "options": ["planet", "star", "moon"], "answer": "star"}


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def csv_file(path: Path, *rows: list[str], encoding: str = "utf-8") -> Path:
    with open(path, "w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows(rows)
    return path


def targets(examples: tuple[Example, ...]) -> list[int | None]:
    return [example.target for example in examples]


def changed(**columns: object) -> dict[str, object]:
    return {**ROW, **columns}


def test_plain_jsonl_becomes_lettered_examples(tmp_path: Path) -> None:
    (example,) = load_file(jsonl(tmp_path / "sun.jsonl", ROW))

    assert example == Example(
        id="sun.jsonl:1",
        prompt=render_prompt("The sun is a", ["planet", "star", "moon"]),
        labels=("a", "b", "c"),
        target=1,
        question="The sun is a",
        options=("planet", "star", "moon"),
    )


@pytest.mark.parametrize("answer", ["star", "Star", "b", "B", "(b)", "b)", 1, "1", 1.0])
def test_answer_is_an_index_from_zero_a_letter_or_the_text(tmp_path: Path, answer: object) -> None:
    assert targets(load_file(jsonl(tmp_path / "f.jsonl", changed(answer=answer)))) == [1]


def test_label_text_and_letter_swapped_is_caught_not_guessed(tmp_path: Path) -> None:
    """Options that are letters themselves: answer "a" is the second option by its text and the first by its
    letter.
    """
    path = jsonl(tmp_path / "f.jsonl", changed(options=["b", "a"], answer="a"))

    with pytest.raises(
        DataError,
        match=r"line 1: answer 'a' can mean different options \(text -> 'a', letter -> 'b'\); "
        r"set answer_form",
    ):
        load_file(path)
    assert targets(load_file(path, columns=ColumnMapping(answer_form="text"))) == [1]
    assert targets(load_file(path, columns=ColumnMapping(answer_form="letter"))) == [0]


def test_number_that_is_an_index_and_another_option_is_caught(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "f.jsonl", changed(options=[0, 1], answer=1), changed(options=[1, 3, 2], answer=1)
    )

    with pytest.raises(DataError, match="line 2: answer 1 can mean different options"):
        load_file(path)
    assert targets(load_file(path, columns=ColumnMapping(answer_form="index"))) == [1, 1]


def test_option_counts_may_vary_from_2_to_26_within_a_file(tmp_path: Path) -> None:
    options = [[f"option {number}" for number in range(count)] for count in (2, 26, 5)]
    examples = load_file(
        jsonl(tmp_path / "f.jsonl", *(changed(options=some, answer=len(some) - 1) for some in options))
    )

    assert [example.labels for example in examples] == [
        tuple(LETTERS[:2]),
        tuple(LETTERS),
        tuple(LETTERS[:5]),
    ]
    assert targets(examples) == [1, 25, 4]


def test_columns_of_any_name_are_mapped(tmp_path: Path) -> None:
    row = {
        "key": 7,
        "stem": "The sun is a",
        "choices": {"names": ["x", "y"], "texts": ["planet", "star"]},
        "gold": "y",
    }
    columns = ColumnMapping(
        question="stem", options="choices.texts", answer="gold", id="key", option_labels="choices.names"
    )

    (example,) = load_file(jsonl(tmp_path / "f.jsonl", row), columns=columns)

    assert (example.id, example.question, example.options, example.target) == (
        "7",
        "The sun is a",
        ("planet", "star"),
        1,
    )


def test_csv_with_one_column_an_option_leaves_the_last_ones_out_where_empty(tmp_path: Path) -> None:
    path = csv_file(
        tmp_path / "f.csv",
        ["id", "question", "o1", "o2", "o3", "gold"],
        ["first", 'Which "star", if any?', "the sun", "a moon", "", "a"],
        ["second", "Two\nlines", "x", "y", "z", "c"],
    )

    examples = load_file(path, columns=ColumnMapping(options=("o1", "o2", "o3"), answer="gold"))

    assert [example.options for example in examples] == [("the sun", "a moon"), ("x", "y", "z")]
    assert [example.id for example in examples] == ["first", "second"]
    assert examples[0].question == 'Which "star", if any?'
    assert targets(examples) == [0, 2]


def test_csv_list_column_holds_a_json_list(tmp_path: Path) -> None:
    path = csv_file(
        tmp_path / "f.csv", ["question", "options", "answer"], ["The sun?", '["planet", "star"]', "star"]
    )

    assert load_file(path)[0].options == ("planet", "star")


def test_byte_order_mark_and_accents_are_read(tmp_path: Path) -> None:
    rows = (["question", "options", "answer"], ["Où est-ce ?", '["café", "thé"]', "thé"])

    (from_csv,) = load_file(csv_file(tmp_path / "f.csv", *rows, encoding="utf-8-sig"))
    (tmp_path / "f.jsonl").write_text(
        "\ufeff" + json.dumps(dict(zip(rows[0], [rows[1][0], ["café", "thé"], "thé"], strict=True)))
    )
    (from_jsonl,) = load_file(tmp_path / "f.jsonl")

    assert from_csv.prompt == from_jsonl.prompt == render_prompt("Où est-ce ?", ["café", "thé"])


def test_line_separator_inside_a_json_text_does_not_end_the_line(tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_text(
        json.dumps(changed(question="one\u2028two"), ensure_ascii=False) + "\r\n\n", encoding="utf-8"
    )

    assert load_file(tmp_path / "f.jsonl")[0].question == "one\u2028two"


@pytest.mark.parametrize("answer", ["no", "No", 1, False])
def test_label_words_stand_after_the_prompt_with_their_space(tmp_path: Path, answer: object) -> None:
    labels = ["true", "false"] if answer is False else ["yes", "no"]
    (example,) = load_file(
        jsonl(tmp_path / "f.jsonl", {"question": "Is the sun a planet?", "answer": answer}), labels=labels
    )

    assert example.prompt == "Q: Is the sun a planet?\nA:"
    assert example.labels == tuple(f" {label}" for label in labels)
    assert (example.options, example.target) == (tuple(labels), 1)


def test_text_and_label_columns_are_found_for_a_classification(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "f.csv", ["text", "label"], ["A joy.", "positive"], ["A bore.", "Negative"])

    assert targets(load_file(path, labels=["negative", "positive"])) == [1, 0]


def test_letters_do_not_answer_label_words(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"answer 'b' is not among the options \['yes', 'no'\]; "
        r"needed is an index from 0 to 1 or the text",
    ):
        load_file(jsonl(tmp_path / "f.jsonl", {"question": "?", "answer": "b"}), labels=["yes", "no"])


@pytest.mark.parametrize("answer", [None, "", -1])
def test_rows_without_an_answer_are_read_for_prediction_only(tmp_path: Path, answer: object) -> None:
    without = {key: value for key, value in ROW.items() if key != "answer"}
    path = jsonl(tmp_path / "f.jsonl", without, changed(answer=answer), ROW)

    assert targets(load_file(path, labelled=False)) == [None, None, 1]
    with pytest.raises(DataError, match="line 1: unknown column 'answer'"):
        load_file(path)


def test_standard_input_is_read_as_a_stream() -> None:
    examples = read_examples(io.StringIO(f"{json.dumps(ROW)}\n"), name="<stdin>")

    assert examples[0].id == "<stdin>:1"
    assert (
        read_examples(
            io.StringIO('question,options,answer\nThe sun?,"[""a star"", ""no star""]",a star\n'),
            format="csv",
        )[0].target
        == 0
    )
    with pytest.raises(DataError, match="<stdin>, line 2: not JSON"):
        read_examples(io.StringIO(f"{json.dumps(ROW)}\nno json\n"))
    with pytest.raises(ConfigError, match="unknown format 'cvs'; did you mean 'csv'"):
        read_examples(io.StringIO(""), format="cvs")  # type: ignore[arg-type]


def test_stream_that_is_not_utf8_is_refused_with_its_line() -> None:
    stream = io.TextIOWrapper(io.BytesIO(b'{"question": "a"}\n{"question": "\xe9t\xe9"}\n'), encoding="utf-8")

    with pytest.raises(DataError, match=r"<stdin>, line 2: not UTF-8 \(byte 0xe9\)"):
        read_examples(stream)


BAD_JSONL = {
    "bad JSON": (
        '{"question": }',
        r"not JSON \(Expecting value at column 14\); each line needs one JSON object",
    ),
    "no object": ("[1, 2]", "a JSON list; each line needs one JSON object"),
    "deep nesting": ("[" * 200_000, "not usable JSON"),
    "column missing": (
        {"qestion": "?", "options": ["a", "b"], "answer": "a"},
        "unknown column 'question'; did you mean 'qestion'",
    ),
    "question empty": (
        changed(question=" "),
        "column 'question' holds ' '; the text of a question is needed",
    ),
    "question a number": (changed(question=3), "column 'question' holds 3; the text"),
    "options no list": (
        changed(options="planet, star"),
        "column 'options' holds 'planet, star'; a list is needed",
    ),
    "options no JSON": (changed(options="['planet']"), "is no JSON list"),
    "option empty": (changed(options=["planet", " "]), "option 1 is ' '; a text or a number is needed"),
    "option null": (changed(options=["planet", None]), "option 1 is nothing"),
    "one option": (changed(options=["star"]), r"1 options \(\['star'\]\); a question needs 2 to 26"),
    "27 options": (changed(options=list(map(str, range(27)))), "27 options .*needs 2 to 26"),
    "same option twice": (
        changed(options=["star", "moon", "star "]),
        "option 'star' comes twice, at 0 and 2",
    ),
    "answer unknown": (
        changed(answer="sun"),
        r"answer 'sun' is not among the options \['planet', 'star', 'moon'\]; needed is an index from 0 to 2",
    ),
    "index too large": (changed(answer=3), "answer 3 is not among the options"),
    "index negative": (changed(answer=-1), "answer -1 is not among"),
    "letter too far": (changed(answer="d"), "answer 'd' is not among.*a letter from a to c"),
    "answer empty": (changed(answer=""), "column 'answer' is empty; every row needs an answer"),
    "answer a list": (changed(answer=["star"]), "is not among the options"),
}


@pytest.mark.parametrize(("line", "message"), BAD_JSONL.values(), ids=BAD_JSONL.keys())
def test_bad_line_is_named_with_its_number_and_what_is_needed(
    tmp_path: Path, line: object, message: str
) -> None:
    text = line if isinstance(line, str) else json.dumps(line)
    (tmp_path / "f.jsonl").write_text(f"{json.dumps(ROW)}\n\n{text}\n")

    with pytest.raises(DataError, match=rf"f\.jsonl, line 3: .*{message}"):
        load_file(tmp_path / "f.jsonl")


def test_first_line_without_a_known_layout_offers_the_nearest_column_and_a_mapping(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "f.jsonl", {"qestion": "?", "options": ["a", "b"], "answer": "a"})

    with pytest.raises(
        DataError,
        match=r"line 1: unknown column 'question'; did you mean 'qestion'\? Known: .*column mapping",
    ):
        load_file(path)


def test_option_labels_must_match_the_options(tmp_path: Path) -> None:
    row = {"question": "?", "choices": {"text": ["x", "y"], "label": ["A"]}, "answerKey": "A"}

    with pytest.raises(DataError, match=r"line 1: column 'choices\.label' names 1 options, and there are 2"):
        load_file(jsonl(tmp_path / "f.jsonl", row))
    row["choices"] = {"text": ["x", "y"], "label": ["A", "A"]}
    with pytest.raises(DataError, match="line 1: option label 'A' comes twice"):
        load_file(jsonl(tmp_path / "f.jsonl", row))


def test_published_data_may_repeat_an_option_but_not_answer_by_its_text(tmp_path: Path) -> None:
    row = {"question": "?", "choices": {"text": ["x", "x", "y"], "label": ["A", "B", "C"]}, "answerKey": "B"}

    assert targets(load_file(jsonl(tmp_path / "f.jsonl", row))) == [1]
    own = changed(options=["x", "x", "y"], answer="x")
    with pytest.raises(DataError, match="can mean different options"):
        load_file(jsonl(tmp_path / "f.jsonl", own), columns=ColumnMapping(repeated_options="keep"))


def test_csv_mistakes_are_named_with_their_line(tmp_path: Path) -> None:
    columns = ColumnMapping(options=("o1", "o2", "o3"))
    header = ["question", "o1", "o2", "o3", "answer"]

    def error(*rows: list[str]) -> str:
        with pytest.raises(DataError, match=r"f\.csv, line") as caught:
            load_file(csv_file(tmp_path / "f.csv", *rows), columns=columns)
        return str(caught.value)

    assert "line 3: 4 cells where the header names 5 columns" in error(
        header, ["?", "x", "y", "", "x"], ["?", "x", "y", "x"]
    )
    assert "line 4: 1 options" in error(header, ["two\nlines", "x", "y", "", "x"], ["?", "x", "", "", "x"])
    assert "line 2: option column 'o2' is empty, but a later one is not" in error(
        header, ["?", "x", "", "z", "x"]
    )
    assert "line 1: the header names column 'o1' twice" in error(["question", "o1", "o1", "answer"])
    assert "line 2: unknown column 'o2'; did you mean 'o1'" in error(
        ["question", "o1", "answer"], ["?", "x", "x"]
    )


def test_csv_quote_that_is_never_closed_is_named_where_it_begins(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text('question,options,answer\n"The sun,1,2\nmore\n')

    with pytest.raises(DataError, match=r"f\.csv, line 2: not csv .*check the quotes"):
        load_file(tmp_path / "f.csv")


def test_latin1_file_is_refused_with_its_line(tmp_path: Path) -> None:
    path = csv_file(
        tmp_path / "f.csv", ["question", "answer"], ["plain", "no"], ["café?", "yes"], encoding="latin-1"
    )

    with pytest.raises(DataError, match=r"f\.csv, line 3: not UTF-8 \(byte 0xe9\); save the file as UTF-8"):
        load_file(path, labels=["yes", "no"])


@pytest.mark.parametrize("name", ["f.txt", "f.xlsx", "f", "owner/name"])
def test_wrong_suffix_says_what_can_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        DataError, match=r"cannot tell the format from the suffix.*\.jsonl.*\.csv.*hub:owner/name:split"
    ):
        load_file(tmp_path / name)


def test_file_that_cannot_be_read_or_is_empty_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "header.csv").write_text("question,options,answer\n")

    with pytest.raises(DataError, match=r"gone\.jsonl: cannot be read: No such file"):
        load_file(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match=r"folder\.csv: cannot be read: Is a directory"):
        load_file(tmp_path / "folder.csv")
    for name in ("empty.jsonl", "header.csv"):
        with pytest.raises(DataError, match=f"{name}: no rows"):
            load_file(tmp_path / name)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["yes"], r"1 label words \('yes'\); at least 2"),
        (["yes", "no", " yes"], "label word 'yes' comes twice, at 0 and 2"),
        (["yes", ""], "label word 1 is empty"),
        ("yes,no", "labels is the one text 'yes,no'; pass a list"),
    ],
)
def test_label_words_that_cannot_be_told_apart_are_refused(
    tmp_path: Path, labels: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_file(jsonl(tmp_path / "f.jsonl", {"question": "?", "answer": "yes"}), labels=labels)


def test_columns_of_options_as_a_list_are_read_like_a_tuple(tmp_path: Path) -> None:
    path = csv_file(
        tmp_path / "f.csv", ["question", "o1", "o2", "answer"], ["The sun is a", "planet", "star", "star"]
    )
    (example,) = load_file(path, columns={"options": ["o1", "o2"]})
    assert example.options == ("planet", "star")
    assert hash(ColumnMapping(options=["o1", "o2"])) == hash(ColumnMapping(options=("o1", "o2")))
    with pytest.raises(DataError, match="o3"):
        load_file(path, columns={"options": ["o1", "o3"]})


def test_mapping_that_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown answer_form 'leter'; did you mean 'letter'"):
        ColumnMapping(answer_form="leter")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="answer_form 'label' needs option_labels"):
        ColumnMapping(answer_form="label")
    with pytest.raises(ConfigError, match="unknown repeated_options 'kep'; did you mean 'keep'"):
        ColumnMapping(repeated_options="kep")  # type: ignore[arg-type]


def test_task_of_two_files_keeps_them_apart(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", ROW, ROW)
    validation = jsonl(tmp_path / "validation.jsonl", changed(question="Else?"))

    task = task_from_files(train, validation)

    assert (task.name, len(task.train), [example.question for example in task.validation]) == (
        "train",
        2,
        ["Else?"],
    )


def test_task_of_one_file_splits_off_the_stated_share_by_seed(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", *(changed(id=str(number)) for number in range(20)))
    parts = [task_from_files(train, validation_share=0.3, seed=seed, name="own") for seed in (0, 0, 1)]
    ids = [
        [[int(example.id) for example in part] for part in (task.train, task.validation)] for task in parts
    ]

    assert [len(part) for part in ids[0]] == [14, 6]
    assert sorted(ids[0][0] + ids[0][1]) == list(range(20))
    assert all(part == sorted(part) for part in ids[0])
    assert ids[0] == ids[1] != ids[2]


def test_split_leaves_at_least_one_row_on_each_side(tmp_path: Path) -> None:
    pair = jsonl(tmp_path / "pair.jsonl", ROW, ROW)

    for share in (0.01, 0.99):
        task = task_from_files(pair, validation_share=share)
        assert (len(task.train), len(task.validation)) == (1, 1)
    with pytest.raises(DataError, match="1 row cannot be split"):
        task_from_files(jsonl(tmp_path / "one.jsonl", ROW))
    with pytest.raises(ConfigError, match="validation_share is 1; a number between 0 and 1"):
        task_from_files(pair, validation_share=1)
