"""A user's own file from the command line alone: texts and their classes without a flag, what is said of it,
and what joins back to it.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from breadth import LONG
from command_line import base_folder, call

TOPICS = {
    "billing": ["The invoice is wrong", "I was charged twice", "Please refund the payment",
                "The price on my bill changed"],
    "bug": ["The app crashes", "An error appears on the screen", "The page freezes when I scroll",
            "It broke after the update"],
    "account": ["I cannot log in", "My password was rejected", "Please delete my profile",
                "The user name is taken"],
    "feature": ["Please add a dark mode", "An export to PDF would help", "Could you support maps",
                "I wish for more colours"],
}  # fmt: skip
MANNERS = [
    'She said: "{}", twice.',
    "{},\nand it is urgent.",
    "{} \U0001f600",
    "{}; thanks, ありがとう",
    "Hello. {}.",
]
FEW: list[Any] = ["--members", 2, "--epochs", 2, "--no-progress", "--json"]


def tickets(path: Path, *, rows: int = 200) -> Path:
    """Texts with quotes, line breaks, emoji and Japanese, of four classes in equal parts."""
    rng = random.Random(0)
    lines = [
        (f"{rng.choice(MANNERS).format(rng.choice(TOPICS[label]))} #{rng.randrange(10_000)}", label)
        for _ in range(rows // len(TOPICS))
        for label in TOPICS
    ]
    rng.shuffle(lines)
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows(lines)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tickets.csv and an ensemble of two members on it."""
    from lora_ensembles.cli import main

    folder = tmp_path_factory.mktemp("own")
    words = [
        "train",
        tickets(folder / "tickets.csv", rows=40),
        "--base",
        base_folder(),
        "--out",
        folder / "run",
        *FEW,
    ]
    assert main([str(word) for word in words]) == 0
    return folder


def test_texts_and_labels_are_trained_measured_and_asked_without_a_flag(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tickets(tmp_path / "tickets.csv")
    monkeypatch.chdir(tmp_path)

    done = call(
        capsys, "train", "tickets.csv", "--members", 2, "--epochs", 6, "--json"
    )  # no flag about the data

    assert done.code == 0, done.err
    assert done.summary["ensemble"]["accuracy"] > 0.9
    assert done.summary["out"] == "runs/tickets"
    assert "tickets.csv: 200 rows, text in 'text', class in 'label'; 4 classes: " in done.err
    assert all(f"{name} 50" in done.err for name in TOPICS)
    assert "160 training and 40 validation" in done.err
    assert "--head sequence-classification" in done.err
    assert "note: 40 rows are few" in done.err
    again = call(capsys, "evaluate", "runs/tickets", "--json")
    assert again.summary["ensemble"] == done.summary["ensemble"]
    (tmp_path / "new.csv").write_text('text\n"The app crashes, and\nI was charged"\nI cannot log in\n')
    asked = call(capsys, "predict", "runs/tickets", "--in", "new.csv")
    rows = [json.loads(line) for line in asked.out.splitlines()]
    assert [row["row"] for row in rows] == [0, 1]
    assert rows[1]["prediction"] == rows[1]["answer"] == "account"


HEAVY = "torch", "transformers", "peft", "datasets", "torchmetrics"


@pytest.mark.parametrize("verb", ["train", "predict", "evaluate"])
def test_a_mistake_in_the_data_is_said_before_anything_heavy_is_loaded(
    trained: Path, tmp_path: Path, verb: str
) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("text,label\nThe app crashes,bug\n,bug\nI cannot log in,account\n")
    words = {
        "train": ["train", bad, "--out", tmp_path / "run"],
        "predict": ["predict", trained / "run", "--in", bad],
        "evaluate": ["evaluate", trained / "run", "--file", bad],
    }[verb]
    code = (
        "import sys; from lora_ensembles.cli import main; code = main(sys.argv[1:]); "
        f"print(code, [name for name in {HEAVY} if name in sys.modules])"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=True
    )

    assert done.stdout == "2 []\n"
    assert "bad.csv, line 3: column 'text' holds ''; the text of a question is needed" in done.stderr


def test_a_column_flag_is_merged_with_the_columns_of_the_training(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = [(n, text, label) for n, (label, texts) in enumerate(TOPICS.items()) for text in texts]
    with open(tmp_path / "own.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([("ticket_id", "body", "queue"), *rows])
    words = [
        "train",
        tmp_path / "own.csv",
        "--question-column",
        "body",
        "--answer-column",
        "queue",
        "--base",
        base_folder(),
        *FEW,
    ]
    done = call(capsys, *words, "--out", tmp_path / "run")
    assert done.code == 0, done.err

    asked = call(
        capsys, "predict", tmp_path / "run", "--in", tmp_path / "own.csv", "--id-column", "ticket_id"
    )
    measured = call(
        capsys,
        "evaluate",
        tmp_path / "run",
        "--file",
        tmp_path / "own.csv",
        "--id-column",
        "ticket_id",
        "--json",
    )

    assert asked.code == 0, asked.err
    assert [json.loads(line)["id"] for line in asked.out.splitlines()] == [str(n) for n, _, _ in rows]
    assert measured.code == 0, measured.err
    assert measured.summary["ensemble"]["num_examples"] == len(rows)


def test_a_label_that_does_not_fit_is_no_matter_to_predict(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "new.csv").write_text("Text,Label\nThe app crashes,TBD\nI cannot log in,account\n")

    asked = call(capsys, "predict", trained / "run", "--in", tmp_path / "new.csv")

    assert asked.code == 0, asked.err
    assert [json.loads(line)["target"] for line in asked.out.splitlines()] == [None, "account"]


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_answers_join_back_to_the_rows_bad_ones_included(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path, format: str
) -> None:
    new = tmp_path / "new.csv"
    new.write_text(
        'ref,text,id,row\nA1,"The app,\ncrashes",1,x\nA2,,2,y\n'
        "A3,I cannot log in,3,z\nA4,one,too,many,cells\n"
    )
    refused = call(capsys, "predict", trained / "run", "--in", new, "--out", tmp_path / f"a.{format}")
    assert (refused.code, (tmp_path / f"a.{format}").exists()) == (2, False)
    assert "line 4: column 'text' holds ''" in refused.err or "line 6: 5 cells" in refused.err

    words = ["--skip-bad-rows", "--keep-columns", "ref,row", "--only", "1,0", "--json"]
    done = call(capsys, "predict", trained / "run", "--in", new, "--out", tmp_path / f"a.{format}", *words)

    assert done.code == 0, done.err
    assert (done.summary["questions"], done.summary["bad_rows"]) == (2, 2)
    with open(tmp_path / f"a.{format}", newline="") as stream:
        rows = list(csv.DictReader(stream)) if format == "csv" else [json.loads(line) for line in stream]
    assert [int(row["row"]) for row in rows] == [0, 1, 2, 3]
    assert [row["id"] for row in rows] == ["1", "2", "3", "new.csv:6"]
    assert [row["ref"] for row in rows][:3] == ["A1", "A2", "A3"]
    assert [row["input_row"] for row in rows][:3] == ["x", "y", "z"]
    assert "line 4: column 'text' holds ''" in rows[1]["error"]
    assert "line 6: 5 cells where the header names 4 columns" in rows[3]["error"]
    assert [bool(row.get("error")) for row in rows] == [False, True, False, True]
    if format == "csv":
        names = [name for name in rows[0] if name.startswith(("vote", "prob"))]
        assert names == [*(f"prob_{name}" for name in sorted(TOPICS)), "vote_1", "vote_0"]
        assert rows[1]["prob_bug"] == ""
        assert len(rows[0]["confidence"].strip("0.")) <= 6  # significant digits


def test_a_column_to_keep_that_is_not_there_is_named(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "new.csv").write_text("text\nThe app crashes\n")

    done = call(capsys, "predict", trained / "run", "--in", tmp_path / "new.csv", "--keep-columns", "txt")

    assert done.code == 2
    assert "--keep-columns: unknown column 'txt'; did you mean 'text'?" in done.err


def test_a_row_that_does_not_fit_the_window_gets_an_error_and_the_others_their_answers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lines = [
        {"question": f"Is {n} even?", "options": ["yes", "no"], "answer": "no" if n % 2 else "yes"}
        for n in range(8)
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["train", path, "--base", base_folder(), *FEW, "--out", tmp_path / "run"]
    assert call(capsys, *words).code == 0
    long = {"question": "word " * 3000, "options": ["yes", "no"]}
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines[:2], long, *lines[2:4]]))

    refused = call(capsys, "predict", tmp_path / "run", "--in", path)
    done = call(capsys, "predict", tmp_path / "run", "--in", path, "--skip-bad-rows")

    assert refused.code == 2
    assert "and the window is" in refused.err
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert ["error" in row for row in rows] == [False, False, True, False, False]
    assert "and the window is" in rows[2]["error"]
    assert [row.get("answer") in ("yes", "no") for row in rows] == [True, True, False, True, True]


def test_training_leaves_bad_rows_out_when_told_and_evaluates_on_the_same_rows(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tickets(tmp_path / "tickets.csv", rows=40)
    with open(path, "a") as stream:
        stream.write(",bug\nno cell\nThe app crashes,\n")
    words = ["train", path, "--base", base_folder(), *FEW, "--out", tmp_path / "run"]
    assert call(capsys, *words).code == 2

    done = call(capsys, *words, "--skip-bad-rows")

    assert done.code == 0, done.err
    assert "3 bad rows left out (" in done.err
    assert "32 training and 8 validation" in done.err
    assert (
        call(capsys, "evaluate", tmp_path / "run", "--json").summary["ensemble"] == done.summary["ensemble"]
    )


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        (
            "text,label\n" + "a,Bug\nb,bug\nc,no\n" * 4,
            [],
            "'Bug' and 'bug' are two classes that differ by case",
        ),
        ("text,label,id\n" + "a,x,1\nb,y,1\n" * 4, [], "ids come more than once, such as '1'"),
        ("text,label\n" + "same,x\nsame,y\n" * 4, [], "all validation rows are training rows too"),
        (
            "text,label\n" + "".join(f"{n},{'xy'[n % 2]}\n" for n in range(8)),
            ["--validation", "f.csv"],
            "is the training file itself",
        ),
    ],
)
def test_what_looks_like_a_mistake_in_the_data_is_said(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    words: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.csv").write_text(text)

    done = call(capsys, "train", "f.csv", *words, "--base", base_folder(), *FEW, "--epochs", 1)

    assert done.code == 0, done.err
    assert f"{expected}" in done.err
    assert "note: " in done.err


def test_a_class_without_a_training_row_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "one,x\ntwo,y\n" * 4)
    (tmp_path / "b.csv").write_text("text,label\nthree,x\nfour,z\n")
    words = [
        "train",
        tmp_path / "a.csv",
        "--validation",
        tmp_path / "b.csv",
        "--labels",
        "x,y,z",
        "--base",
        base_folder(),
    ]

    done = call(capsys, *words, *FEW, "--out", tmp_path / "run")

    assert done.code == 0, done.err
    assert "note: no training row is of the class 'z'" in done.err


def test_a_limit_takes_every_class_of_a_sorted_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "f.csv").write_text(
        "text,label\n" + "".join(f"text {n},{'xy'[n // 20]}\n" for n in range(40))
    )
    words = [
        "train",
        tmp_path / "f.csv",
        "--limit",
        8,
        "--base",
        base_folder(),
        *FEW,
        "--out",
        tmp_path / "run",
    ]

    done = call(capsys, *words)

    assert done.code == 0, done.err
    assert "8 training and 8 validation" in done.err
    assert "no training row is of the class" not in done.err


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        (
            "question,answer\nIs it on?,yes\nIs it off?,no\n",
            [],
            "lora-ensembles train f.csv --head sequence-classification. "
            "Words that the language model chooses among: lora-ensembles train f.csv --labels no,yes",
        ),
        ("text,label\n" + "".join(f"{n},{n}\n" for n in range(9)), [], "has 9 different values in 9 rows"),
        ("prompt,chosen,rejected\n1 + 1 =,2,3\n", [], "lora-ensembles train f.csv --head reward"),
        ("text,note\nIt works,fine\n", [], "Rename it to one of answer, label, class"),
        ("text;label, if any\nIt works;fine, yes\n", [], "';' stands in the names"),
        ("text,label\nIt works,fine\n", ["--train", "g.csv"],
         "FILE f.csv and --train g.csv; give the file once"),
        ("text,label\nIt works,fine\nNo,fine\n", [], "column 'label' has 1 different values"),
    ],
)  # fmt: skip
def test_a_file_that_can_be_read_in_two_ways_or_in_none_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.csv").write_text(text)

    done = call(capsys, "train", "f.csv", *words)

    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert not (tmp_path / "runs").exists()


def test_options_label_words_and_open_answers_keep_the_heads_they_had(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tickets(tmp_path / "tickets.csv", rows=16)
    words = ["train", tmp_path / "tickets.csv", "--labels", ",".join(TOPICS), "--base", base_folder(), *FEW]

    done = call(capsys, *words, "--out", tmp_path / "run")

    assert done.code == 0, done.err
    assert "class in 'label'" in done.err
    assert "head" not in json.loads((tmp_path / "run" / "ensemble.json").read_text())


def test_a_base_without_a_classifier_names_the_other_way(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(base_folder(), tmp_path / "base"))
    (folder / "config.json").write_text(
        json.dumps({"model_type": "codegen"})
    )  # transformers has no classifier of it
    path = tickets(tmp_path / "tickets.csv", rows=8)

    done = call(capsys, "train", path, "--base", folder, *FEW, "--out", tmp_path / "run")

    assert done.code == 2
    assert f"lora-ensembles train {path} --labels account,billing,bug,feature" in done.err


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "RUN", "--prompt", "a \udcff"],
        ["train", "f.csv", "--labels", "a,b\udcff"],
        ["predict", "RUN", "--in", "f.csv", "--question-column", "\udcff"],
    ],
)
def test_a_flag_that_is_not_utf8_is_named(
    capsys: pytest.CaptureFixture[str], trained: Path, words: list[str]
) -> None:
    done = call(capsys, *(trained / "run" if word == "RUN" else word for word in words))

    assert done.code == 2
    assert "is not UTF-8; write it in UTF-8, or put it in a file" in done.err
    assert next(word for word in words if word.startswith("--") and word not in ("--in",)) in done.err


@pytest.mark.parametrize("verb", ["train", "predict"])
def test_half_a_character_in_a_file_is_named_with_its_line(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path, verb: str
) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('{"text": "a", "label": "x"}\n{"text": "a \\ud83d", "label": "y"}\n')
    words = (
        ["train", path, "--out", tmp_path / "run"]
        if verb == "train"
        else ["predict", trained / "run", "--in", path]
    )

    done = call(capsys, *words)

    assert done.code == 2
    assert "f.jsonl, line 2: column 'text' holds \\ud83d" in done.err


@LONG
def test_a_table_on_a_terminal_of_few_signs_keeps_its_columns(trained: Path) -> None:
    words = [sys.executable, "-m", "lora_ensembles.cli", "evaluate", str(trained / "run")]

    done = subprocess.run(
        words, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    )

    lines = done.stdout.decode("ascii").splitlines()
    assert "+/-" in lines[1]
    assert "\\x" not in done.stdout.decode("ascii")
    assert len({len(line) for line in lines}) == 1
    assert b"kernels" not in done.stderr
    assert b"Loading weights" not in done.stderr


def test_answers_by_text_are_remembered_by_evaluate_and_predict(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    own = tmp_path / "own.jsonl"
    rows = [
        {"question": f"Who barks, {n}?", "options": ["the dog", "the cat"], "answer": "the dog"}
        for n in range(8)
    ]
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = ["train", own, "--answer", "text", "--validation", own, "--base", base_folder(), *FEW]
    done = call(capsys, *start, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    source = json.loads((tmp_path / "run" / "ensemble.json").read_text())["task"]["source"]
    assert source["answer"] == "text"
    measured = call(capsys, "evaluate", tmp_path / "run", "--json")
    assert measured.code == 0, measured.err
    assert call(capsys, "predict", tmp_path / "run", "--in", own, "--out", tmp_path / "a.jsonl").code == 0
    answer = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])
    assert set(answer["probs"]) == {"the dog", "the cat"}
    by_letter = call(capsys, "evaluate", tmp_path / "run", "--answer", "letter", "--json")
    assert by_letter.summary["ensemble"]["nll"] != pytest.approx(
        measured.summary["ensemble"]["nll"], abs=1e-3
    )
