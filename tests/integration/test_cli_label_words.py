"""Label words of several tokens on the command line: a csv file of texts and labels, learnt and answered by
the embedded base.
"""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest

from breadth import LONG
from command_line import call

TICKETS = {
    "billing": "I was charged twice for {}|the invoice for {} is wrong|please refund my payment for {}",
    "bug": "the app crashes when I open {}|{} shows an error and stops|clicking on {} does nothing",
    "account": "I cannot log in to {}|how do I change my password for {}|please delete my profile from {}",
    "feature": (
        "please add a dark mode to {}|it would be nice to export {}|can you support a larger font in {}"
    ),
}
THINGS = "the report,the calendar,the shop,the map,the library,the garden plan,the price list".split(",")
WORDS = ",".join(TICKETS)


def tickets_file(folder: Path, *, rows: int = 200, labelled: bool = True) -> Path:
    """A file of texts, and of one of four words for each."""
    rng, path = random.Random(0), folder / f"tickets-{rows}.csv"
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", *(["label"] if labelled else [])])
        for number in range(rows):
            word = list(TICKETS)[number % len(TICKETS)]
            text = rng.choice(TICKETS[word].split("|")).format(rng.choice(THINGS))
            writer.writerow([text, *([word] if labelled else [])])
    return path


@LONG
def test_a_file_of_200_texts_and_label_words_is_learnt_and_answered_by_the_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    trained = call(
        capsys,
        *("train", "--train", tickets_file(tmp_path), "--labels", WORDS, "--out", run),
        *("--members", 2, "--epochs", 6, "--no-progress", "--json"),
    )
    assert trained.code == 0, trained.err
    assert trained.summary["ensemble"]["accuracy"] >= 0.7  # of 40 rows held out; chance is 0.25
    assert "validation rows are given the label" not in caplog.text + trained.err
    assert json.loads((run / "ensemble.json").read_text())["label_score"] == "mean"
    settings = json.loads((run / "training" / "config.json").read_text())
    assert (settings["loss"], settings["label_score"]) == ("labels", "mean")

    asked = tickets_file(tmp_path, rows=40, labelled=False)
    answers = tmp_path / "answers.csv"
    assert call(capsys, "predict", run, "--in", asked, "--out", answers).code == 0
    with open(answers, newline="", encoding="utf-8") as stream:
        given = [row["prediction"].strip() for row in csv.DictReader(stream)]
    right = [list(TICKETS)[number % len(TICKETS)] for number in range(40)]
    assert sum(one == other for one, other in zip(given, right, strict=True)) >= 28


def test_a_run_over_the_vocabulary_that_answers_one_word_to_all_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    trained = call(
        capsys,
        *("train", "--train", tickets_file(tmp_path), "--labels", WORDS, "--out", tmp_path / "run"),
        *("--members", 1, "--epochs", 1, "--loss", "vocabulary", "--label-score", "sum"),
        *("--no-progress", "--json"),
    )
    assert trained.code == 0, trained.err
    said = caplog.text + trained.err  # the logger's, on standard error where nobody else takes it
    assert "(tokens: 'billing' 3, 'bug' 2, 'account' 4, 'feature' 4)" in said
    assert "all 40 validation rows are given the label 'bug', though their answers are of 4 kinds" in said
