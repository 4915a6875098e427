"""Questions of a file: its rows as examples, their answers read in one way, and the rows that cannot be used
beside them; all together, or one at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..errors import DataError
from .answers import Asked, FittingForms, read_answers
from .columns import (
    ColumnMapping,
    asked_of,
    check_labels,
    detect_columns,
    row_to_question,
)
from .examples import Example
from .formats import Row


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: its number, counted from 0, the row, and what is wrong with it."""

    number: int
    row: Row
    error: str


@dataclass(frozen=True)
class WholeFile:
    """The contents of a file as they were read.

    Attributes:
        name: the file.
        columns: which column is what; `answer_form` is the form in which all answers were read, or "auto"
            where there were none.
        examples: the rows that can be used, in the order of the file.
        rows, numbers: the row behind each example, and its number, counted from 0.
        bad: the rows that cannot be used.
    """

    name: str
    columns: ColumnMapping
    examples: tuple[Example, ...]
    rows: tuple[Row, ...]
    numbers: tuple[int, ...]
    bad: tuple[BadRow, ...] = ()

    @property
    def header(self) -> list[str]:
        """The columns of the first row that could be parsed."""
        return list(self.rows[0].values) if self.rows else []


class QuestionReader:
    """A reader of questions one row at a time, which keeps none of them; else as `read_whole`.

    `learn` is for a first pass over the rows: it counts in which forms the answers can be read. `read` gives
    the answers that they are by what was learnt so far.

    Args:
        first: the first row that could be parsed, from which columns are found.
        columns, labels, labelled: as for `read_whole`.

    Raises:
        DataError: columns that cannot be found, or label words that cannot be.
    """

    def __init__(
        self,
        first: Row,
        *,
        columns: ColumnMapping | Mapping[str, Any] | None = None,
        labels: Sequence[str] | None = None,
        labelled: bool = True,
    ):
        self._labelled = labelled
        self._words = check_labels(labels) if labels is not None else None
        self.columns = detect_columns(first, labels=self._words, labelled=labelled, given=columns)
        self._forms = FittingForms(self.columns.answer_form)

    def question(self, row: Row) -> tuple[Example, Asked | None]:
        """The example of a row without its answer, and what it answers; None where it may lack that and does.

        Raises:
            DataError: a row that cannot be used.
        """
        example = row_to_question(row, self.columns, labels=self._words)
        words = self._words is not None
        try:
            asked = asked_of(row, self.columns, example.options, words=words, labelled=self._labelled)
        except DataError:
            if self._labelled:
                raise
            asked = None
        return example, asked

    def learn(self, row: Row) -> Example:
        """The example of a row without its answer, which counts for the form of all answers.

        Raises:
            DataError: a row that cannot be used.
        """
        example, asked = self.question(row)
        if asked is not None and not asked.soft:
            self._forms.add(asked)
        return example

    def read(self, row: Row) -> Example:
        """The example of a row that was learnt; its target is None where the answer does not fit.

        Raises:
            DataError: a row that cannot be used.
        """
        example, asked = self.question(row)
        if asked is not None and asked.soft:
            with suppress(DataError):
                return dataclasses.replace(example, target_probs=asked.probs())
            return example
        target = None if asked is None else self._forms.target(asked)
        return example if target is None else dataclasses.replace(example, target=target)


def read_whole(
    rows: Iterable[Row],
    *,
    name: str,
    columns: ColumnMapping | Mapping[str, Any] | None = None,
    labels: Sequence[str] | None = None,
    labelled: bool = True,
    skip_bad_rows: bool = False,
) -> WholeFile:
    """The questions of a file.

    Args:
        rows: its rows; with `skip_bad_rows`, those that could not be parsed too.
        name: what errors call it.
        columns: which column is what: a mapping, or some of its fields, and the others are found from the
            first row that was parsed.
        labels: label words of a classification.
        labelled: whether every row must have an answer. False: a row without one, or with one that is not
            among the options, has the target None.
        skip_bad_rows: put rows that cannot be used aside instead of refusing the file.

    Raises:
        DataError: no rows, or none that can be used; a row that cannot be used, unless these are skipped.
    """
    every = list(rows)
    first = next((row for row in every if row.problem is None), None)
    if first is None:
        if every and every[0].problem is not None:
            raise every[0].error(every[0].problem)
        raise DataError(f"{name}: no rows; at least one question is needed")
    reader = QuestionReader(first, columns=columns, labels=labels, labelled=labelled)
    mapping = reader.columns
    read, asked, wrong = _questions(every, reader, skip=skip_bad_rows)
    for number in [number for number, answer in asked.items() if answer.soft]:
        try:
            read[number] = dataclasses.replace(read[number], target_probs=asked.pop(number).probs())
        except DataError as error:
            if labelled and not skip_bad_rows:
                raise
            if labelled:
                wrong[number] = error
    answers = read_answers(list(asked.values()), form=mapping.answer_form)
    for number, target in zip(asked, answers.targets, strict=True):
        if not isinstance(target, DataError):
            read[number] = dataclasses.replace(read[number], target=target)
        elif labelled and not skip_bad_rows:
            raise target
        elif labelled:
            wrong[number] = target
    good = [number for number in read if number not in wrong]
    if not good:
        raise next(iter(wrong.values()))
    used = dataclasses.replace(mapping, answer_form=answers.form) if answers.form else mapping
    bad = tuple(BadRow(number, every[number], str(wrong[number])) for number in sorted(wrong))
    return WholeFile(
        name, used, tuple(read[n] for n in good), tuple(every[n] for n in good), tuple(good), bad
    )


def _questions(
    rows: Sequence[Row], reader: QuestionReader, *, skip: bool
) -> tuple[dict[int, Example], dict[int, Asked], dict[int, DataError]]:
    """By number of row: the questions, what they answer, and what is wrong with those that cannot be used."""
    read, asked, wrong = {}, {}, {}
    for number, row in enumerate(rows):
        try:
            question, answer = reader.question(row)
        except DataError as error:
            if not skip:
                raise
            wrong[number] = error
            continue
        read[number] = question
        if answer is not None:
            asked[number] = answer
    return read, asked, wrong
