"""Your own data: a file, a text stream or a hub dataset."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

from ..errors import DataError
from .answers import named_in
from .cells import column_value
from .columns import ColumnMapping, detect_columns
from .examples import Example, Task
from .formats import Row
from .prompts import Answer, rendered
from .sources import named_rows, stream_rows
from .splits import VALIDATION_SHARE, split_rows
from .whole_file import read_whole


def load_file(
    path: str | Path,
    *,
    columns: ColumnMapping | None = None,
    labels: Sequence[str] | None = None,
    labelled: bool = True,
    answer: Answer = "letter",
) -> tuple[Example, ...]:
    """The examples of a .jsonl, .json, .csv, .tsv or .parquet file, or of 'hub:owner/name:split' (or
    'hub:owner/name:config:split').

    All answers of a file are read in one way: as texts of options, letters or indices.

    Args:
        path: the file, or the name of a hub dataset.
        columns: which column is what. None: found from the first row, among question/options/answer and the
            schemas of the paper's data.
        labels: label words for a classification, such as ["yes", "no"]; no options are listed in the prompt
            then.
        labelled: whether every row must have an answer. False: rows without one, or with one that does not
            fit, get the target None.
        answer: how questions with options are answered: by the "letter" of an option, or by its "text".

    Returns:
        One `Example` a row, in the file's order.

    Raises:
        DataError: anything in the file that cannot be used, with the file and the line.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "stars.csv"
        >>> _ = path.write_text("question,answer\\nIs the sun a star?,yes\\n")
        >>> load_file(path, labels=["yes", "no"])[0].prompt
        'Q: Is the sun a star?\\nA:'
    """
    whole = read_whole(named_rows(path), name=str(path), columns=columns, labels=labels, labelled=labelled)
    return rendered(whole.examples, answer)


def read_examples(
    stream: TextIO,
    *,
    name: str = "<stdin>",
    format: Literal["jsonl", "json", "csv", "tsv"] = "jsonl",
    columns: ColumnMapping | None = None,
    labels: Sequence[str] | None = None,
    labelled: bool = True,
) -> tuple[Example, ...]:
    """The examples of an open text stream, such as `sys.stdin`; `name` stands for the file in errors and ids.
    Else as `load_file`.

    Raises:
        ConfigError: another format.
        DataError: anything in the stream that cannot be used, with the line.

    Example:
        >>> import io
        >>> line = '{"question": "The sun is a", "options": ["planet", "star"], "answer": "star"}'
        >>> read_examples(io.StringIO(line))[0].target
        1
    """
    return read_whole(
        stream_rows(stream, name=name, format=format),
        name=name,
        columns=columns,
        labels=labels,
        labelled=labelled,
    ).examples


def task_from_files(
    train: str | Path,
    validation: str | Path | None = None,
    *,
    columns: ColumnMapping | None = None,
    labels: Sequence[str] | None = None,
    validation_share: float = VALIDATION_SHARE,
    seed: int = 0,
    name: str | None = None,
    answer: Answer = "letter",
) -> Task:
    """A task from a file to train on and, where there is one, a file to evaluate on.

    Without a validation file, `validation_share` of the training file's rows (at least one) are drawn for it
    by `seed`: of a classification with every class in its share, else a function of the number of rows alone.
    Both parts keep the file's order.

    Args:
        train: a file, or 'hub:owner/name:split'.
        validation: the same; None: a share of the training rows.
        columns: as for `load_file`.
        labels: as for `load_file`.
        validation_share: that share, between 0 and 1.
        seed: of the rows that are drawn for it.
        name: the task's; None: the file's.
        answer: as for `load_file`.

    Returns:
        The two parts.

    Raises:
        ConfigError: a share that is not between 0 and 1.
        DataError: as `load_file`; or a single row, which cannot be split.
    """
    examples = load_file(train, columns=columns, labels=labels, answer=answer)
    name = name if name is not None else Path(train).stem
    if validation is not None:
        judged = load_file(validation, columns=columns, labels=labels, answer=answer)
        return Task(name, examples, judged)
    return Task(name, *split_rows(examples, share=validation_share, seed=seed, name=str(train)))


def found_classes(
    path: str | Path, *, columns: ColumnMapping | Mapping[str, Any] | None = None, skip_bad_rows: bool = False
) -> tuple[ColumnMapping, tuple[str, ...]]:
    """The columns by which a file of texts and their classes is read, and the classes that occur in it: by
    number where all are numbers, else by name.

    The columns are as in `load_file` with label words: text and label, sentence and label, or question and
    answer; or some of the fields of a mapping, with the others found. An answer means the class of that name,
    never an index. With `skip_bad_rows`, rows that cannot be used have no class.

    Raises:
        DataError: a file that cannot be read, or with fewer than two classes.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "reviews.csv"
        >>> _ = path.write_text("text,label\\nSplendid.,good\\nA bore.,bad\\n")
        >>> found_classes(path)[1]
        ('bad', 'good')
    """
    rows = [row for row in named_rows(path, keep_bad=skip_bad_rows) if row.problem is None]
    return classes_of_rows(rows, name=str(path), columns=columns)


def classes_of_rows(
    rows: Sequence[Row], *, name: str, columns: ColumnMapping | Mapping[str, Any] | None = None
) -> tuple[ColumnMapping, tuple[str, ...]]:
    """As `found_classes`, of rows that were read; `name` stands in errors.

    Raises:
        DataError: no rows, or fewer than two classes.
    """
    if not rows:
        raise DataError(f"{name}: no rows; at least one question is needed")
    mapping = detect_columns(rows[0], labels=("", ""), labelled=True, given=columns)
    answers = [column_value(row, mapping.answer) for row in rows if _usable(row, mapping)]
    classes = {name.strip() for answer in answers for name in named_in(answer)} - {""}
    if len(classes) < 2:
        raise DataError(
            f"{name}: column {mapping.answer!r} has {len(classes)} different values; "
            "at least 2 classes are needed"
        )
    return dataclasses.replace(mapping, answer_form="text"), tuple(
        sorted(classes, key=lambda word: (_as_number(word), word))
    )


def _usable(row: Row, columns: ColumnMapping) -> bool:
    """Whether a row has a class; what else is wrong with it is said when it is read."""
    return column_value(row, columns.answer) is not None


def _as_number(name: str) -> float:
    try:
        return float(name)
    except ValueError:
        return math.inf
