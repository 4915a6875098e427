"""The study of losses and scores of labels: its questions, and that its tables are what its records say."""

from __future__ import annotations

from pathlib import Path

import pytest

from label_loss import SETS, differences, predictions, questions, table, ticket_rows
from lora_ensembles.studies.store import read_record

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "results" / "label-loss"


def records() -> list[dict]:
    """In the order of the study: by set, then as the arms come."""
    found = [read_record(path) for path in FOLDER.glob("label-loss-*.json")]
    order = list(SETS)
    return sorted(
        found,
        key=lambda record: (
            order.index(record["settings"]["set"]),
            record["settings"]["seed"],
            record["settings"]["loss"] == "labels",
            record["settings"]["label_score"] == "mean",
        ),
    )


def test_the_tables_shown_are_those_of_the_records() -> None:
    tables = [table(records()), differences(records())]
    written = (FOLDER / "label-loss.md").read_text(encoding="utf-8")
    shown = (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")
    for text in tables:
        assert text in written
        assert text in shown


def test_every_record_holds_what_each_member_says_of_each_question() -> None:
    for record in records():
        members, held_out = record["settings"]["members"], record["settings"]["limit"][1]
        for prediction in predictions(record).values():
            assert (prediction.num_members, prediction.num_examples) == (members, held_out)


def test_tickets_have_equally_many_rows_of_each_word_and_a_share_of_random_ones() -> None:
    words = [word for _, word in ticket_rows(400, seed=0)]
    assert {words.count(word) for word in set(words)} == {100}
    true, noisy = (
        {text: word for text, word in ticket_rows(400, seed=0, noise=noise)} for noise in (0.0, 0.1)
    )
    assert set(true.values()) == set(noisy.values())


@pytest.mark.parametrize("name", ["tickets", "world-obqa", "world-cqa"])
def test_the_questions_of_a_set_are_as_many_as_it_says(name: str) -> None:
    task = questions(name, data=None)
    assert [len(task.train), len(task.validation)] == SETS[name]["limit"]
