"""The first lines of a verb, before it works: how a file was read, how many rows of each class, and what
looks like a mistake in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...data.answers import SAID
from ...data.examples import Example
from ...data.splits import classes_of
from ..common import say

if TYPE_CHECKING:
    from ...data import Completion, CompletionTask, Task
    from ...data.whole_file import WholeFile

FEW_ROWS = 100  # the 95 % interval of an accuracy of 0.8 over 100 rows is 0.16 wide
MOST_SHOWN = 12  # classes with their counts
ENOUGH_INDICES = 10  # so many answers, none of them 0, look counted from 1


def say_read(files: Sequence[WholeFile], *, classes: Sequence[str] | None) -> None:
    """Lines that say how each file was read, and what looks like a mistake in it."""
    for file in files:
        say(_reading(file, classes))
        for remark in _remarks(file, classes):
            say(f"note: {remark}")


def say_parts(task: Task | CompletionTask) -> None:
    """Remarks on what looks like a mistake in the way rows lie in training and validation."""
    for remark in _part_remarks(task):
        say(f"note: {remark}")


def few_rows(count: int) -> None:
    """A remark where so few rows were measured that the numbers say little."""
    if count < FEW_ROWS:
        say(
            f"note: {count} rows are few: differences between these numbers may be chance; "
            "--intervals of evaluate shows how far"
        )


def _reading(file: WholeFile, classes: Sequence[str] | None) -> str:
    columns = file.columns
    options = columns.options if isinstance(columns.options, str) else ", ".join(columns.options)
    layout = (
        f"text in {columns.question!r}"
        if classes
        else f"question in {columns.question!r}, options in {options!r}"
    )
    if columns.pair:
        layout += f", second text in {columns.pair!r}"
    read = SAID.get(columns.answer_form)
    answers = "no answers" if read is None else f"answers in {columns.answer!r}, read as {read}"
    if classes and columns.answer_form == "text":
        answers = f"class in {columns.answer!r}"
    skipped = f"; {len(file.bad)} bad rows left out ({file.bad[0].error})" if file.bad else ""
    counts = _counts(file.examples)
    return f"{file.name}: {len(file.examples)} rows, {layout}, {answers}{counts}{skipped}"


def _counts(examples: Sequence[Example]) -> str:
    classes = classes_of(examples)
    counts = Counter(example.target for example in examples if example.target is not None)
    if classes is None or not counts:
        return ""
    shown = ", ".join(f"{classes[place]} {count}" for place, count in counts.most_common(MOST_SHOWN))
    return f"; {len(classes)} classes: {shown}{', ...' if len(counts) > MOST_SHOWN else ''}"


def _remarks(file: WholeFile, classes: Sequence[str] | None) -> Iterable[str]:
    ids = _twice(example.id for example in file.examples)
    if ids:
        yield f"{len(ids)} ids come more than once, such as {ids[0]!r}; answers are joined by the column row"
    folded: dict[str, str] = {}
    for name in classes or ():
        other = folded.setdefault(name.casefold(), name)
        if other != name:
            yield f"{other!r} and {name!r} are two classes that differ by case of letters alone"
    if file.columns.answer_form == "index" and len(file.examples) >= ENOUGH_INDICES:
        targets = [example.target for example in file.examples]
        if None not in targets and 0 not in targets:
            yield "no answer is the index 0; if answers count from 1, say so by --answer-form number"


def _part_remarks(task: Task | CompletionTask) -> Iterable[str]:
    there = {_content(example) for example in task.train}
    both = [example.id for example in task.validation if _content(example) in there]
    if len(both) == len(task.validation) > 0:
        yield (
            "all validation rows are training rows too, so the measures say how well these were learnt, "
            "not how good new answers are"
        )
    elif both:
        count = f"{len(both)} of {len(task.validation)}"
        yield (
            f"{count} validation rows are in training too, such as {both[0]!r}; "
            "the measures look better for it"
        )
    classes = classes_of((*task.train, *task.validation))
    if classes is None:
        return
    learnt = {example.target for example in task.train if isinstance(example, Example)}
    missing = [name for place, name in enumerate(classes) if place not in learnt]
    if missing:
        yield (
            f"no training row is of the class {', '.join(map(repr, missing[:MOST_SHOWN]))}, "
            "so none will be answered with it"
        )


def same_file(train: str, validation: str) -> bool:
    """Whether two names are those of one file."""
    try:
        return Path(train).samefile(validation)
    except OSError:
        return train == validation


def _content(example: Example | Completion) -> Any:
    return (example.prompt, example.pair, example.options) if isinstance(example, Example) else example.prompt


def _twice(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]
