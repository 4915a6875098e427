"""The paper's six tasks and their out-of-distribution sets, with its splits, filters and subjects; embedded
tasks by the same door.

Differs: the paper's table gives commonsense_qa 8741 training questions. The data has 9741, and no filter
gives 8741: taken as a slip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import DataError, unknown_name
from .cells import column_value
from .columns import ARC, COMMONSENSE_QA, MMLU, OPENBOOKQA, ColumnMapping, row_to_example
from .examples import Example, Task
from .formats import Row
from .prompts import Answer, rendered
from .sources import file_rows, hub_rows

# fmt: off
SOCIAL_SCIENCES = frozenset(
    (
        "econometrics", "high_school_geography", "high_school_government_and_politics",
        "high_school_macroeconomics", "high_school_microeconomics", "high_school_psychology",
        "human_sexuality", "professional_psychology", "public_relations", "security_studies", "sociology",
        "us_foreign_policy",
    )
)
STEM = frozenset(
    (
        "abstract_algebra", "astronomy", "college_biology", "college_chemistry", "college_computer_science",
        "college_mathematics", "college_physics", "computer_security", "conceptual_physics",
        "electrical_engineering", "elementary_mathematics", "high_school_biology", "high_school_chemistry",
        "high_school_computer_science", "high_school_mathematics", "high_school_physics",
        "high_school_statistics", "machine_learning",
    )
)  # without anatomy: with it the sizes are 430 and 3153, and the paper's are 411 and 3018
# fmt: on
OOD_PAIRS: Mapping[str, str] = {
    "cqa": "mmlu",
    "mmlu-ss": "mmlu-not-ss",
    "mmlu-stem": "mmlu-not-stem",
    "world-cqa": "world-mmlu",
    "world-arce": "world-mmlu-ss",
    "world-arcc": "world-mmlu-ss",
    "world-mmlu-ss": "world-mmlu-stem",
    "world-mmlu-stem": "world-mmlu-ss",
}

Keep = Callable[[Row], bool]


@dataclass(frozen=True)
class _Dataset:
    """The place of rows: the hub's name and config, the folder of a local copy; and how to read one."""

    repo: str
    config: str | None
    folder: str
    columns: ColumnMapping


@dataclass(frozen=True)
class _Recipe:
    """Which rows make a task."""

    dataset: _Dataset
    train: tuple[str, ...]
    validation: tuple[str, ...]
    keep: Keep


def _all(_: Row) -> bool:
    return True


def _four_answers(row: Row) -> bool:
    """Drops three questions of ARC-Easy whose answer is E, as the paper's sizes show; questions of 3 and 5
    options stay.
    """
    return column_value(row, "answerKey") in ("A", "B", "C", "D", "1", "2", "3", "4")


def _about(subjects: frozenset[str]) -> Keep:
    return lambda row: str(column_value(row, "subject")) in subjects


def _not_about(subjects: frozenset[str]) -> Keep:
    return lambda row: str(column_value(row, "subject")) not in subjects


_CQA = _Dataset("tau/commonsense_qa", None, "commonsense_qa", COMMONSENSE_QA)
_OBQA = _Dataset("allenai/openbookqa", "main", "openbookqa", OPENBOOKQA)
_ARCE = _Dataset("allenai/ai2_arc", "ARC-Easy", "ai2_arc/ARC-Easy", ARC)
_ARCC = _Dataset("allenai/ai2_arc", "ARC-Challenge", "ai2_arc/ARC-Challenge", ARC)
_MMLU = _Dataset("cais/mmlu", "all", "mmlu", MMLU)
_RECIPES = {
    "cqa": _Recipe(_CQA, ("train",), ("validation",), _all),
    "obqa": _Recipe(_OBQA, ("train",), ("test",), _all),
    "arce": _Recipe(_ARCE, ("train",), ("test",), _four_answers),
    "arcc": _Recipe(_ARCC, ("train",), ("test",), _four_answers),
    "mmlu-ss": _Recipe(_MMLU, ("dev", "validation"), ("test",), _about(SOCIAL_SCIENCES)),
    "mmlu-stem": _Recipe(_MMLU, ("dev", "validation"), ("test",), _about(STEM)),
}
_OOD_RECIPES = {
    "mmlu": _Recipe(_MMLU, (), ("test",), _all),
    "mmlu-not-ss": _Recipe(_MMLU, (), ("test",), _not_about(SOCIAL_SCIENCES)),
    "mmlu-not-stem": _Recipe(_MMLU, (), ("test",), _not_about(STEM)),
}
PAPER_TASKS = tuple(_RECIPES)


def task_names() -> tuple[str, ...]:
    """The names that `load_task` knows: the paper's six, then the embedded ones."""
    from .world.tasks import EMBEDDED_TASKS

    return (*PAPER_TASKS, *EMBEDDED_TASKS)


def ood_names() -> tuple[str, ...]:
    """The names that `load_ood` knows: every task, and the sets that are only for
    out-of-distribution tests.
    """
    return tuple(dict.fromkeys((*task_names(), *_OOD_RECIPES, "world-mmlu")))


def task_repository(name: str) -> str:
    """The hub's name of the dataset behind one of the paper's tasks.

    Raises:
        DataError: not one of the paper's tasks.

    Example:
        >>> task_repository("obqa")
        'allenai/openbookqa'
    """
    if name not in _RECIPES:
        raise DataError(unknown_name("task", name, PAPER_TASKS))
    return _RECIPES[name].dataset.repo


def load_task(name: str, *, data: str | Path | None = None, answer: Answer = "letter") -> Task:
    """One of the paper's six tasks, or an embedded one.

    Args:
        name: cqa, obqa, arce, arcc, mmlu-ss or mmlu-stem; or an embedded task, such as world-cqa, which needs
            neither network nor files.
        data: a folder with the datasets as .jsonl files in the hub's schemas (commonsense_qa/train.jsonl,
            ai2_arc/ARC-Easy/test.jsonl, mmlu/dev.jsonl, ...). None: the hub.
        answer: how questions are answered: by the "letter" of an option, or by its "text".

    Returns:
        Its training and its validation part.

    Raises:
        DataError: an unknown name, with the nearest known one; or data that cannot be read.
        ConfigError: an unknown kind of answer.
    """
    if name in _RECIPES:
        recipe = _RECIPES[name]
        parts = (_read(recipe, splits, data) for splits in (recipe.train, recipe.validation))
        return Task(name, *(rendered(part, answer) for part in parts))
    from .world.tasks import EMBEDDED_OPEN_TASK, EMBEDDED_TASKS, load_embedded_task

    if name == EMBEDDED_OPEN_TASK:
        raise DataError(f"task {name!r} has open answers; load it by load_embedded_completions()")
    if name not in EMBEDDED_TASKS:
        raise DataError(unknown_name("task", name, task_names()))
    task = load_embedded_task(name)
    return Task(name, rendered(task.train, answer), rendered(task.validation, answer))


def load_ood(name: str, *, data: str | Path | None = None, answer: Answer = "letter") -> tuple[Example, ...]:
    """The examples of an out-of-distribution set: the name that `OOD_PAIRS` gives for a task, or any task,
    whose validation part it is.

    "mmlu" is the test split of all 57 subjects; "mmlu-not-ss" and "mmlu-not-stem" are that of the other
    categories.

    Args:
        name: "mmlu", "mmlu-not-ss", "mmlu-not-stem", or a task.
        data: as for `load_task`.
        answer: as for `load_task`.

    Returns:
        The examples, in the data's order.

    Raises:
        DataError: an unknown name, with the nearest known one; or data that cannot be read.
        ConfigError: an unknown kind of answer.
    """
    recipe = {**_RECIPES, **_OOD_RECIPES}.get(name)
    if recipe is not None:
        return rendered(_read(recipe, recipe.validation, data), answer)
    from .world.tasks import EMBEDDED_OOD, load_embedded_ood, load_embedded_task

    if name not in ood_names():
        raise DataError(unknown_name("out-of-distribution set", name, ood_names()))
    examples = load_embedded_ood() if name == EMBEDDED_OOD else load_embedded_task(name).validation
    return rendered(examples, answer)


def _read(recipe: _Recipe, splits: tuple[str, ...], data: str | Path | None) -> tuple[Example, ...]:
    dataset = recipe.dataset
    rows = (row for split in splits for row in _split_rows(dataset, split, data))
    examples = tuple(row_to_example(row, dataset.columns) for row in rows if recipe.keep(row))
    if not examples:
        raise DataError(
            f"{data or dataset.repo}: no questions of {dataset.folder} left in {' + '.join(splits)}; "
            "is the copy whole?"
        )
    return examples


def _split_rows(dataset: _Dataset, split: str, data: str | Path | None) -> Iterator[Row]:
    if data is None:
        rows = hub_rows(dataset.repo, config=dataset.config, split=split)
    else:
        rows = file_rows(Path(data) / dataset.folder / f"{split}.jsonl")
    for number, row in enumerate(rows, start=1):
        yield replace(row, id=f"{dataset.folder}/{split}:{number}")  # the same from either source
