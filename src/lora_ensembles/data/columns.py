"""From a row's columns to an `Example`: which column is what, and which option an answer means."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..errors import ConfigError, DataError, unknown_name
from .answers import AnswerForm, Asked, read_answers
from .cells import (
    MISSING,
    column_value,
    find_value,
    list_cell,
    row_id,
    short,
    text_cell,
    unknown_column,
)
from .examples import Example, check_distinct
from .formats import Row
from .prompts import LETTERS, render_label_prompt, render_prompt


@dataclass(frozen=True)
class ColumnMapping:
    """Which column of a file is what, in any case of letters; a dot reaches into an object, as in
    "choices.text".

    Attributes:
        question: the column of the question's text.
        options: one column that holds a list, or several columns in order, of which the last may be empty.
            Not read with label words.
        answer: the column of the right answer.
        pair: the column of a second text, where texts are classified in pairs.
        id: the column that names a row. None: the column "id" where there is one, else file and line.
        option_labels: a column with a list of the options' names ("A", "B" or "1", "2"), where the answer is
            one of them.
        answer_form: how to read the answers: "index" (from 0), "number" (from 1), "letter", the option's
            "text", its "label", or "auto": the one of them, "number" apart, that fits most rows, and an
            error where two fit it and disagree.
        repeated_options: "error", or "keep" for published data in which some options come twice.

    Raises:
        ConfigError: an answer form that does not exist, or "label" without `option_labels`.

    Example:
        >>> ColumnMapping(question="stem", options=("a", "b", "c"), answer="gold").answer_form
        'auto'
    """

    question: str = "question"
    options: str | Sequence[str] = "options"
    answer: str = "answer"
    id: str | None = None
    option_labels: str | None = None
    answer_form: AnswerForm = "auto"
    repeated_options: Literal["error", "keep"] = "error"
    pair: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.options, str):
            object.__setattr__(self, "options", tuple(self.options))  # a list has no hash
        if self.answer_form not in get_args(AnswerForm):
            raise ConfigError(unknown_name("answer_form", self.answer_form, get_args(AnswerForm)))
        if self.repeated_options not in ("error", "keep"):
            raise ConfigError(unknown_name("repeated_options", self.repeated_options, ("error", "keep")))
        if self.answer_form == "label" and self.option_labels is None:
            raise ConfigError(
                "answer_form 'label' needs option_labels, the column that names each row's options"
            )


COMMONSENSE_QA = ColumnMapping(
    "question", "choices.text", "answerKey", None, "choices.label", "label", "keep"
)
ARC = COMMONSENSE_QA
OPENBOOKQA = ColumnMapping(
    "question_stem", "choices.text", "answerKey", None, "choices.label", "label", "keep"
)
MMLU = ColumnMapping("question", "choices", "answer", answer_form="index", repeated_options="keep")
WINOGRANDE = ColumnMapping(
    "sentence", ("option1", "option2"), "answer", answer_form="number", repeated_options="keep"
)
LAYOUTS = (ColumnMapping(), COMMONSENSE_QA, OPENBOOKQA, MMLU)
# Where texts are classified: the column of the text and that of its class, the first of each that is there.
TEXT_COLUMNS = (
    "question", "text", "sentence", "review", "content", "comment", "message", "body", "tweet", "utterance",
    "document", "title",
)  # fmt: skip
CLASS_COLUMNS = ("answer", "label", "class", "category", "target", "intent", "sentiment", "topic")


def detect_columns(
    row: Row,
    *,
    labels: Sequence[str] | None,
    labelled: bool,
    given: ColumnMapping | Mapping[str, Any] | None = None,
) -> ColumnMapping:
    """The known layout that a file's first row has, with the fields that are `given` in place of the layout's
    own; or the given mapping.

    Raises:
        DataError: no layout fits; the column that the nearest one lacks is named, with the nearest column
            that is there.
    """
    if isinstance(given, ColumnMapping):
        return given
    given = given or {}
    if labels is not None:
        return _detect_texts(row, labelled=labelled, mapping=given)
    missing = {}
    for template in LAYOUTS:
        layout = dataclasses.replace(template, **given)
        wanted = _wanted(layout, labelled=labelled)
        missing[layout] = [column for column in wanted if find_value(row.values, column) is MISSING]
        if not missing[layout]:
            return layout
    nearest = min(missing.values(), key=len)
    raise row.error(
        f"{unknown_column(nearest[0], row.values)}. Rename it, or say which column is what "
        "with a column mapping"
    )


def text_columns(row: Row, given: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The columns of a text and of its class: those that are given, else the first of the usual ones that a
    row has, or None.
    """
    return (
        given.get("question") or _first_there(row, TEXT_COLUMNS),
        given.get("answer") or _first_there(row, CLASS_COLUMNS),
    )


def _first_there(row: Row, names: Sequence[str]) -> str | None:
    return next((name for name in names if find_value(row.values, name) is not MISSING), None)


def _detect_texts(row: Row, *, labelled: bool, mapping: Mapping[str, Any]) -> ColumnMapping:
    text, answer = text_columns(row, mapping)
    if text is not None and (answer is not None or not labelled):
        return ColumnMapping(**{**mapping, "question": text, "answer": answer or "answer"})
    missing, names = ("question", TEXT_COLUMNS) if text is None else ("answer", CLASS_COLUMNS)
    raise row.error(
        f"{unknown_column(missing, row.values)}. Rename it to one of {', '.join(names)}, "
        "or say which column is what with a column mapping"
    )


def row_to_question(row: Row, columns: ColumnMapping, *, labels: Sequence[str] | None = None) -> Example:
    """The example that a row describes, without its answer: lettered options, or label words where `labels`
    gives them.

    White space around questions, options and labels is dropped.

    Raises:
        DataError: a row that could not be parsed, or a column that is missing or holds something else than it
            should.
    """
    if row.problem is not None:
        raise row.error(row.problem)
    question = text_cell(row, columns.question)
    options = tuple(labels) if labels is not None else _options(row, columns)
    if labels is None:
        prompt, answers = render_prompt(question, options), tuple(LETTERS[: len(options)])
    else:
        prompt, answers = render_label_prompt(question), tuple(f" {label}" for label in options)
    pair = None if columns.pair is None else text_cell(row, columns.pair)
    return Example(
        id=row_id(row, columns.id),
        prompt=prompt,
        labels=answers,
        target=None,
        question=question,
        options=options,
        pair=pair,
        group=row.group,
        type=row.type,
    )


def asked_of(
    row: Row, columns: ColumnMapping, options: tuple[str, ...], *, words: bool, labelled: bool = True
) -> Asked | None:
    """The answer of a row, to be read together with the other rows of its file; None where it may lack an
    answer and does.

    Raises:
        DataError: it lacks one and may not, or its option labels do not fit its options.
    """
    value = column_value(row, columns.answer) if labelled else find_value(row.values, columns.answer)
    absent = value is MISSING or value is None or (isinstance(value, str) and not value.strip())
    if not labelled and (absent or value == -1):  # -1 is how hub datasets mark a row without an answer
        return None
    if absent:
        raise row.error(f"column {columns.answer!r} is empty; every row needs an answer here")
    named = None if words or columns.option_labels is None else columns.option_labels
    option_labels = None if named is None else _option_labels(row, named, len(options))
    return Asked(row, value, options, option_labels, words)


def row_to_example(row: Row, columns: ColumnMapping) -> Example:
    """The example of a row that is read by itself, with lettered options and an answer.

    Raises:
        DataError: as `row_to_question`; or an answer that is not exactly one of the options.
    """
    question = row_to_question(row, columns)
    asked = asked_of(row, columns, question.options, words=False)
    assert asked is not None  # a row without an answer is refused
    (target,) = read_answers([asked], form=columns.answer_form).targets
    if isinstance(target, DataError):
        raise target
    return dataclasses.replace(question, target=target)


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Label words without the white space around them.

    Raises:
        DataError: a single string, fewer than two, an empty or a repeated one.
    """
    if isinstance(labels, str):
        raise DataError(
            f"labels is the one text {labels!r}; pass a list of label words, such as ['yes', 'no']"
        )
    words = tuple(label.strip() for label in labels)
    if len(words) < 2:
        raise DataError(f"{len(words)} label words ({', '.join(map(repr, words))}); at least 2 are needed")
    if "" in words:
        raise DataError(f"label word {words.index('')} is empty; a label needs at least one character")
    check_distinct(words, kind="label word", where="labels")
    return words


def _wanted(columns: ColumnMapping, *, labelled: bool) -> list[str]:
    options = [columns.options] if isinstance(columns.options, str) else list(columns.options[:2])
    names = [] if columns.option_labels is None else [columns.option_labels]
    return [columns.question, *options, *names, *([columns.answer] if labelled else [])]


def _options(row: Row, columns: ColumnMapping) -> tuple[str, ...]:
    values = (
        list_cell(row, columns.options)
        if isinstance(columns.options, str)
        else _option_cells(row, columns.options)
    )
    options = tuple(_option(row, value, position) for position, value in enumerate(values))
    if not 2 <= len(options) <= len(LETTERS):
        raise row.error(
            f"{len(options)} options ({short(list(options))}); a question needs 2 to {len(LETTERS)}"
        )
    if columns.repeated_options == "error":
        check_distinct(options, kind="option", where=row.place)
    return options


def _option_cells(row: Row, columns: Sequence[str]) -> list[object]:
    required, optional = columns[:2], columns[2:]
    cells = [column_value(row, column) for column in required] + [
        find_value(row.values, column) for column in optional
    ]
    filled = [
        not (cell is MISSING or cell is None or (isinstance(cell, str) and not cell.strip()))
        for cell in cells
    ]
    count = sum(filled)
    if not all(filled[:count]):
        gap = columns[filled.index(False)]
        raise row.error(
            f"option column {gap!r} is empty, but a later one is not; only the last options may be missing"
        )
    return cells[:count]


def _option(row: Row, value: object, position: int) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise row.error(f"option {position} is {short(value)}; a text or a number is needed")
    return str(value).strip()


def _option_labels(row: Row, column: str, count: int) -> tuple[str, ...]:
    labels = [str(label).strip() for label in list_cell(row, column)]
    if len(labels) != count:
        raise row.error(
            f"column {column!r} names {len(labels)} options, and there are {count}; "
            "each option needs one name"
        )
    check_distinct(labels, kind="option label", where=row.place)
    return tuple(labels)
