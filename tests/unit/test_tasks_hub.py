"""The paper's six tasks: sizes and questions of the real data where it is there, and the shape of errors
where it is not.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from lora_ensembles.data import (
    LETTERS,
    OOD_PAIRS,
    PAPER_TASKS,
    Task,
    load_file,
    load_ood,
    load_task,
    ood_names,
    task_names,
)
from lora_ensembles.errors import DataError

SIZES = {  # the appendix's table of arXiv:2310.00035, with 9741 for its slip 8741
    "cqa": (9741, 1221, [5]),
    "obqa": (4957, 500, [4]),
    "arce": (2249, 2375, [3, 4, 5]),
    "arcc": (1119, 1172, [3, 4, 5]),
    "mmlu-ss": (397, 3077, [4]),
    "mmlu-stem": (411, 3018, [4]),
}
FIRST_QUESTIONS = {  # the samples of Appendix C and their printed answers
    "cqa": ("The sanctions against the school were a punishing blow,", "a"),
    "obqa": ("The sun is responsible for", "d"),
    "arce": ("Which factor will most likely cause a person to develop a fever?", "b"),
    "arcc": ("George wants to warm his hands quickly by rubbing them.", "a"),
    "mmlu-ss": ("What should a public relations media practitioner do if she does not know", "c"),
    "mmlu-stem": ("Let V be the set of all real polynomials p(x).", "d"),
}


@functools.cache
def real_task(name: str, data: Path) -> Task:
    return load_task(name, data=data)


@pytest.mark.parametrize("name", PAPER_TASKS)
def test_task_has_the_sizes_of_the_paper(name: str, real_data: Path) -> None:
    task = real_task(name, real_data)

    assert (len(task.train), len(task.validation), task.options) == SIZES[name]


@pytest.mark.parametrize("name", PAPER_TASKS)
def test_question_printed_in_the_paper_has_the_answer_printed_there(name: str, real_data: Path) -> None:
    beginning, letter = FIRST_QUESTIONS[name]
    examples = [*real_task(name, real_data).train, *real_task(name, real_data).validation]
    example = next(example for example in examples if example.question.startswith(beginning))

    assert example.target is not None
    assert example.labels[example.target] == letter
    assert example.prompt.startswith(f"Q: {beginning}")
    assert example.prompt.endswith(f") {example.options[-1]}\nA: (")


def test_arc_questions_labelled_with_numbers_are_lettered_in_the_same_order(real_data: Path) -> None:
    with open(real_data / "ai2_arc/ARC-Challenge/train.jsonl", encoding="utf-8") as file:
        rows = {row["id"]: row for row in map(json.loads, file) if row["choices"]["label"][0] == "1"}
    examples = {example.id: example for example in real_task("arcc", real_data).train if example.id in rows}

    assert rows.keys() == examples.keys()
    assert rows
    for name, row in rows.items():
        assert examples[name].target == int(row["answerKey"]) - 1
        assert examples[name].labels == tuple(LETTERS[: len(row["choices"]["text"])])


def test_label_text_and_letter_are_not_swapped(real_data: Path) -> None:
    """The label is the letter; the option's text stands behind its own letter in the prompt."""
    for example in real_task("arce", real_data).validation:
        assert all(len(label) == 1 for label in example.labels)
        for label, option in zip(example.labels, example.options, strict=True):
            assert f"({label}) {option}\n" in example.prompt


def test_ids_name_each_example_once(real_data: Path) -> None:
    for name in PAPER_TASKS:
        ids = [
            example.id
            for example in (*real_task(name, real_data).train, *real_task(name, real_data).validation)
        ]
        assert len(set(ids)) == len(ids), name


def test_out_of_distribution_sets_are_the_other_categories(real_data: Path) -> None:
    every = {example.id for example in load_ood("mmlu", data=real_data)}

    assert len(every) == 14042  # the whole test split, 57 subjects
    for name in ("mmlu-ss", "mmlu-stem"):
        inside = {example.id for example in real_task(name, real_data).validation}
        outside = {example.id for example in load_ood(OOD_PAIRS[name], data=real_data)}
        assert inside.isdisjoint(outside)
        assert inside | outside == every


def test_task_given_as_out_of_distribution_set_is_its_validation_part(real_data: Path) -> None:
    assert load_ood("obqa", data=real_data) == real_task("obqa", real_data).validation


@pytest.mark.parametrize(
    "path", ["commonsense_qa/validation", "openbookqa/test", "ai2_arc/ARC-Easy/train", "mmlu/test"]
)
def test_hub_schemas_are_read_without_a_mapping(path: str, real_data: Path) -> None:
    with open(real_data / f"{path}.jsonl", encoding="utf-8") as file:
        count = sum(1 for _ in file)

    assert len(load_file(real_data / f"{path}.jsonl")) == count


def write_openbookqa(folder: Path) -> None:
    """A dataset of the hub's layout and schema, small."""
    (folder / "openbookqa").mkdir(parents=True)
    for split, count in (("train", 3), ("test", 2)):
        rows = [
            {
                "id": f"{split}-{number}",
                "question_stem": "The sun is a",
                "choices": {"text": ["star", "planet", "moon"], "label": ["A", "B", "C"]},
                "answerKey": "ABC"[number],
            }
            for number in range(count)
        ]
        (folder / "openbookqa" / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "openbookqa" / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n"
        "  - split: train\n    path: train.jsonl\n  - split: test\n    path: test.jsonl\n---\n"
    )


def test_task_from_a_folder_of_copies(tmp_path: Path) -> None:
    write_openbookqa(tmp_path)

    task = load_task("obqa", data=tmp_path)

    assert [example.id for example in task.train] == ["train-0", "train-1", "train-2"]
    assert [example.target for example in task.validation] == [0, 1]


def test_hub_dataset_gives_the_examples_of_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local folder of the hub's layout goes through the same call of `datasets` as a dataset on the hub."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_openbookqa(tmp_path)

    from_hub = load_file(f"hub:{tmp_path / 'openbookqa'}:main:train")

    assert from_hub == load_file(tmp_path / "openbookqa" / "train.jsonl")


def test_hub_split_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_openbookqa(tmp_path)

    with pytest.raises(DataError, match="split 'dev' of config 'main' cannot be loaded"):
        load_file(f"hub:{tmp_path / 'openbookqa'}:main:dev")


@pytest.mark.parametrize("name", ["hub:allenai/openbookqa", "hub:", "hub:a:b:c:d", "hub:a::train"])
def test_hub_name_of_another_shape_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="is no hub dataset; write 'hub:owner/name:split'"):
        load_file(name)


def test_hub_that_cannot_be_reached_offers_the_files() -> None:
    with pytest.raises(
        DataError, match=r"hub:allenai/openbookqa: split 'train' of config 'main' cannot be loaded .*data=DIR"
    ):
        load_task("obqa")


def test_missing_file_of_a_task_is_named(tmp_path: Path) -> None:
    write_openbookqa(tmp_path)
    (tmp_path / "openbookqa" / "test.jsonl").unlink()

    with pytest.raises(DataError, match=r"openbookqa.test\.jsonl: cannot be read: No such file"):
        load_task("obqa", data=tmp_path)


def test_copy_without_the_subjects_of_a_task_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mmlu").mkdir()
    for split in ("dev", "validation", "test"):
        row = {"question": "?", "subject": "anatomy", "choices": ["0", "1", "2", "3"], "answer": 1}
        (tmp_path / "mmlu" / f"{split}.jsonl").write_text(json.dumps(row))

    with pytest.raises(DataError, match=r"no questions of mmlu left in dev \+ validation"):
        load_task("mmlu-stem", data=tmp_path)


def test_row_without_the_column_that_the_filter_reads_is_named(tmp_path: Path) -> None:
    (tmp_path / "mmlu").mkdir()
    (tmp_path / "mmlu" / "dev.jsonl").write_text('{"question": "?", "choices": ["0", "1"], "answer": 1}\n')

    with pytest.raises(DataError, match=r"dev\.jsonl, line 1: unknown column 'subject'"):
        load_task("mmlu-ss", data=tmp_path)


def test_unknown_task_offers_the_nearest_name(real_data: Path) -> None:
    with pytest.raises(DataError, match="unknown task 'obqaa'; did you mean 'obqa'"):
        load_task("obqaa")
    with pytest.raises(
        DataError, match="unknown out-of-distribution set 'mmlu-no-ss'; did you mean 'mmlu-not-ss'"
    ):
        load_ood("mmlu-no-ss")


def test_embedded_tasks_come_through_the_same_door() -> None:
    task = load_task("world-cqa")

    assert task.name == "world-cqa"
    assert task.options == [5]
    assert load_ood("world-cqa") == task.validation
    assert {example.id for example in load_ood(OOD_PAIRS["world-cqa"])}.isdisjoint(
        example.id for example in task.validation
    )


def test_every_out_of_distribution_pair_names_a_task_and_a_set() -> None:
    assert set(OOD_PAIRS) <= set(task_names())
    assert set(OOD_PAIRS.values()) <= set(ood_names())
