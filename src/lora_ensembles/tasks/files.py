"""Your own data: .jsonl, .csv, a text stream or a hub dataset."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TextIO, TypeVar

from ..errors import ConfigError, DataError
from .columns import ColumnMapping, check_labels, column_value, detect_columns, row_to_example
from .examples import Example, Task
from .sources import Row, named_rows, stream_rows

Kind = TypeVar("Kind")


def load_file(
    path: str | Path,
    *,
    columns: ColumnMapping | None = None,
    labels: Sequence[str] | None = None,
    labelled: bool = True,
) -> tuple[Example, ...]:
    """The examples of a .jsonl or .csv file, or of 'hub:owner/name:split' (or 'hub:owner/name:config:split').

    Args:
        path: the file, or the name of a hub dataset.
        columns: which column is what. None: found from the first row, among question/options/answer and the schemas of the paper's data.
        labels: label words for a classification, such as ["yes", "no"]; no options are listed in the prompt then.
        labelled: whether every row must have an answer. False: rows without one get the target None.

    Raises:
        DataError: anything in the file that cannot be used, with the file and the line.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "stars.csv"
        >>> _ = path.write_text("question,answer\\nIs the sun a star?,yes\\n")
        >>> load_file(path, labels=["yes", "no"])[0].prompt
        'Q: Is the sun a star?\\nA:'
    """
    return _examples(named_rows(path), name=str(path), columns=columns, labels=labels, labelled=labelled)


def read_examples(
    stream: TextIO,
    *,
    name: str = "<stdin>",
    format: Literal["jsonl", "csv"] = "jsonl",
    columns: ColumnMapping | None = None,
    labels: Sequence[str] | None = None,
    labelled: bool = True,
) -> tuple[Example, ...]:
    """The examples of an open text stream, such as `sys.stdin`; `name` stands for the file in errors and ids. Else as `load_file`.

    Raises:
        ConfigError: a format other than "jsonl" and "csv".
        DataError: anything in the stream that cannot be used, with the line.

    Example:
        >>> import io
        >>> line = '{"question": "The sun is a", "options": ["planet", "star"], "answer": "star"}'
        >>> read_examples(io.StringIO(line))[0].target
        1
    """
    return _examples(
        stream_rows(stream, name=name, format=format),
        name=name,
        columns=columns,
        labels=labels,
        labelled=labelled,
    )


def task_from_files(
    train: str | Path,
    validation: str | Path | None = None,
    *,
    columns: ColumnMapping | None = None,
    labels: Sequence[str] | None = None,
    validation_share: float = 0.2,
    seed: int = 0,
    name: str | None = None,
) -> Task:
    """A task from a file to train on and, where there is one, a file to judge by.

    Without a validation file, `validation_share` of the training file's rows (at least one) are drawn for it, a function of `seed` and the
    number of rows alone; both parts keep the file's order.

    Raises:
        ConfigError: a share that is not between 0 and 1.
        DataError: as `load_file`; or a single row, which cannot be split.
    """
    examples = load_file(train, columns=columns, labels=labels)
    name = name if name is not None else Path(train).stem
    if validation is not None:
        return Task(name, examples, load_file(validation, columns=columns, labels=labels))
    return Task(name, *split_rows(examples, share=validation_share, seed=seed, name=str(train)))


def found_classes(
    path: str | Path, *, columns: ColumnMapping | None = None
) -> tuple[ColumnMapping, tuple[str, ...]]:
    """How a file of texts and their classes is read, and the classes that occur in it: by number where all are numbers, else by name.

    The columns are as in `load_file` with label words: text and label, sentence and label, or question and answer. An answer means the
    class of that name, never an index.

    Raises:
        DataError: a file that cannot be read, or with fewer than two classes.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "reviews.csv"
        >>> _ = path.write_text("text,label\\nSplendid.,good\\nA bore.,bad\\n")
        >>> found_classes(path)[1]
        ('bad', 'good')
    """
    rows = list(named_rows(path))
    if not rows:
        raise DataError(f"{path}: no rows; at least one question is needed")
    mapping = columns or detect_columns(rows[0], labels=("", ""), labelled=True)
    classes = {str(column_value(row, mapping.answer)).strip() for row in rows} - {""}
    if len(classes) < 2:
        raise DataError(
            f"{path}: column {mapping.answer!r} has {len(classes)} different values; at least 2 classes are needed"
        )
    return dataclasses.replace(mapping, answer_form="text"), tuple(
        sorted(classes, key=lambda name: (_as_number(name), name))
    )


def _as_number(name: str) -> float:
    try:
        return float(name)
    except ValueError:
        return math.inf


def split_rows(
    rows: tuple[Kind, ...], *, share: float, seed: int, name: str
) -> tuple[tuple[Kind, ...], tuple[Kind, ...]]:
    """Rows to train on and rows to judge by, as `task_from_files` says; `name` stands in errors.

    Raises:
        ConfigError: a share that is not between 0 and 1.
        DataError: a single row.
    """
    if not 0 < share < 1:
        raise ConfigError(f"validation_share is {share}; a number between 0 and 1 is needed, such as 0.2")
    if len(rows) < 2:
        raise DataError(
            f"{name}: 1 row cannot be split into training and validation; add rows or pass a validation file"
        )
    count = min(max(1, round(share * len(rows))), len(rows) - 1)
    drawn = set(random.Random(seed).sample(range(len(rows)), count))
    return tuple(row for place, row in enumerate(rows) if place not in drawn), tuple(
        rows[place] for place in sorted(drawn)
    )


def _examples(
    rows: Iterator[Row],
    *,
    name: str,
    columns: ColumnMapping | None,
    labels: Sequence[str] | None,
    labelled: bool,
) -> tuple[Example, ...]:
    words = check_labels(labels) if labels is not None else None
    first = next(rows, None)
    if first is None:
        raise DataError(f"{name}: no rows; at least one question is needed")
    mapping = columns or detect_columns(first, labels=words, labelled=labelled)
    every: Iterable[Row] = (first, *rows)
    return tuple(row_to_example(row, mapping, labels=words, labelled=labelled) for row in every)
