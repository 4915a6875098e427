"""Tasks of the protocol that papers on Bayesian LoRA share, from small files in the hub's schemas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_ensembles.data import (
    OOD_PAIRS,
    PAPER_TASKS,
    PUBLISHED_TASKS,
    load_ood,
    load_task,
    ood_names,
    task_names,
    task_repository,
)
from lora_ensembles.errors import DataError
from published_data import BOOLQ, WINOGRANDE, write_published, write_rows


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_published(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", PUBLISHED_TASKS)
def test_every_task_is_read_from_its_folder(name: str, data: Path) -> None:
    task = load_task(name, data=data)
    assert task.name == name
    assert (len(task.train), len(task.validation)) == (8, 6)
    assert all(example.target is not None for example in (*task.train, *task.validation))


def test_a_sentence_of_winogrande_has_two_lettered_options(data: Path) -> None:
    example = load_task("winogrande-s", data=data).train[1]
    row = WINOGRANDE[1]
    assert example.prompt == (
        f"Q: {row['sentence']}\nAnswer Choices:\n(a) {row['option1']}\n(b) {row['option2']}\nA: ("
    )
    assert example.labels == ("a", "b")
    assert example.target == int(row["answer"]) - 1  # the hub counts options from 1, as text


def test_a_question_of_boolq_is_a_passage_that_is_answered_by_a_word(data: Path) -> None:
    first, second = load_task("boolq", data=data).train[:2]
    assert first.prompt == f"Q: {BOOLQ[0]['passage']}\n{BOOLQ[0]['question']}?\nA:"
    assert first.labels == (" yes", " no")
    assert [first.labels[first.target or 0], second.labels[second.target or 0]] == [" yes", " no"]
    assert first.id == "boolq/train:1"


def test_an_answer_of_boolq_that_is_no_truth_value_is_refused(data: Path) -> None:
    write_rows(data / "boolq" / "train.jsonl", [{**BOOLQ[0], "answer": "yes"}])
    with pytest.raises(
        DataError, match=r"train\.jsonl, line 1: column 'answer' holds 'yes'; true or false is needed"
    ):
        load_task("boolq", data=data)


def test_tasks_for_comparison_keep_the_questions_that_the_papers_own_drop(data: Path) -> None:
    row: dict[str, Any] = {
        "id": "five",
        "question": "?",
        "choices": {"text": list("vwxyz"), "label": list("ABCDE")},
        "answerKey": "E",
    }
    write_rows(data / "ai2_arc" / "ARC-Easy" / "validation.jsonl", [row])
    assert [example.id for example in load_task("arce-dev", data=data).validation] == ["five"]


@pytest.mark.parametrize(
    ("name", "subjects"),
    [
        ("mmlu-chemistry", {"college_chemistry", "high_school_chemistry"}),
        ("mmlu-physics", {"college_physics", "high_school_physics"}),
        ("mmlu-college-chemistry", {"college_chemistry"}),
        ("mmlu-college-physics", {"college_physics"}),
    ],
)
def test_a_subject_of_mmlu_is_a_set_of_its_own(name: str, subjects: set[str], data: Path) -> None:
    found = {example.question.split(" ")[0] for example in load_ood(name, data=data)}
    assert found == subjects


def test_the_papers_tasks_and_pairs_are_what_they_were() -> None:
    assert PAPER_TASKS == ("cqa", "obqa", "arce", "arcc", "mmlu-ss", "mmlu-stem")
    assert not set(PUBLISHED_TASKS) & set(OOD_PAIRS)
    assert task_names()[:12] == (*PAPER_TASKS, *PUBLISHED_TASKS)
    assert {"boolq", "mmlu-chemistry", "mmlu-physics"} <= set(ood_names())


def test_every_task_names_its_place_on_the_hub() -> None:
    assert task_repository("winogrande-m") == "allenai/winogrande"
    assert task_repository("boolq") == "google/boolq"
    with pytest.raises(DataError, match="unknown task 'boolqq'; did you mean 'boolq'"):
        task_repository("boolqq")


SIZES = {"obqa-dev": (4957, 500), "arce-dev": (2251, 570), "arcc-dev": (1119, 299)}


@pytest.mark.parametrize("name", SIZES)
def test_task_has_the_published_sizes(name: str, real_data: Path) -> None:
    task = load_task(name, data=real_data)
    assert (len(task.train), len(task.validation)) == SIZES[name]


def test_college_subjects_have_the_published_sizes(real_data: Path) -> None:
    names = ("mmlu-college-chemistry", "mmlu-college-physics", "mmlu-chemistry", "mmlu-physics")
    assert [len(load_ood(name, data=real_data)) for name in names] == [100, 102, 303, 253]
