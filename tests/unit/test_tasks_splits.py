"""What is held out and what is sampled: every class in its share, by seed, in the order of the file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from lora_ensembles.data import Example, task_from_files
from lora_ensembles.data.splits import classes_of, sample, stratified_draw


def reviews(counts: dict[str, int]) -> list[Example]:
    classes = tuple(counts)
    labels = tuple(f" {name}" for name in classes)
    names = [name for name, count in counts.items() for _ in range(count)]
    return [
        Example(str(n), f"Q: {n}\nA:", labels, classes.index(name), question=str(n), options=classes)
        for n, name in enumerate(names)
    ]


def counted(examples: tuple[Example, ...]) -> dict[str, int]:
    return dict(Counter(example.options[example.target or 0] for example in examples))


@pytest.mark.parametrize("seed", range(3))
def test_a_validation_part_has_every_class_in_its_share(tmp_path: Path, seed: int) -> None:
    lines = ["a"] * 50 + ["b"] * 30 + ["c"] * 20
    path = tmp_path / "f.csv"
    path.write_text("text,label\n" + "".join(f"text {n},{label}\n" for n, label in enumerate(lines)))

    task = task_from_files(path, labels=["a", "b", "c"], seed=seed)

    assert counted(task.validation) == {"a": 10, "b": 6, "c": 4}  # a fifth of each
    assert counted(task.train) == {"a": 40, "b": 24, "c": 16}
    numbers = [int(example.question.split()[1]) for example in task.validation]
    assert numbers == sorted(numbers)
    assert task == task_from_files(path, labels=["a", "b", "c"], seed=seed)
    assert task != task_from_files(path, labels=["a", "b", "c"], seed=seed + 1)


def test_a_class_of_one_row_stays_in_training(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text(
        "text,label\n" + "".join(f"text {n},{'rare' if n == 0 else 'common'}\n" for n in range(5))
    )
    for seed in range(5):
        task = task_from_files(path, labels=["rare", "common"], validation_share=0.6, seed=seed)
        assert counted(task.train)["rare"] == 1
        assert len(task.validation) == 3


def test_a_draw_is_as_large_as_asked_and_within_one_of_each_share() -> None:
    strata = ["a"] * 7 + ["b"] * 5 + ["c"]
    for count in range(1, 14):
        drawn = stratified_draw(strata, count, seed=count)
        assert len(drawn) == count
        for stratum, size in Counter(strata).items():
            assert abs(sum(strata[place] == stratum for place in drawn) - count * size / 13) <= 1


def test_a_draw_keeps_what_it_must_until_there_is_no_other_way() -> None:
    strata = ["a", "a", "b", "b"]
    assert Counter(strata[place] for place in stratified_draw(strata, 2, seed=0, keep=1)) == {"a": 1, "b": 1}
    assert len(stratified_draw(strata, 3, seed=0, keep=1)) == 3


def test_a_sample_of_sorted_rows_has_every_class() -> None:
    rows = reviews({"a": 60, "b": 30, "c": 10})

    drawn = sample(rows, 20, seed=0)

    assert counted(drawn) == {"a": 12, "b": 6, "c": 2}
    assert [int(row.id) for row in drawn] == sorted(int(row.id) for row in drawn)
    assert drawn == sample(rows, 20, seed=0) != sample(rows, 20, seed=1)
    assert sample(rows, None, seed=0) == sample(rows, 100, seed=0) == tuple(rows)


def test_questions_with_options_of_their_own_have_no_classes_and_are_drawn_alike() -> None:
    rows = [Example(str(n), "?", ("a", "b"), 0, options=(f"x{n}", "y")) for n in range(5)]

    assert classes_of(rows) is None
    assert classes_of([]) is None
    drawn = sample(rows, 2, seed=0)
    assert [int(row.id) for row in drawn] == sorted(int(row.id) for row in drawn)
    assert drawn == sample(rows, 2, seed=0) != tuple(rows[:2])
