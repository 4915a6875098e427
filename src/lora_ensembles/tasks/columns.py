"""From a row's columns to an `Example`: which column is what, and which option an answer means."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import ConfigError, DataError, unknown_name
from .examples import Example, check_distinct
from .prompts import LETTERS, render_label_prompt, render_prompt
from .sources import Row

AnswerForm = Literal["auto", "index", "letter", "text", "label"]
_MISSING = object()


@dataclass(frozen=True)
class ColumnMapping:
    """Which column of a file is what; a dot reaches into an object, as in "choices.text".

    Attributes:
        question: the column of the question's text.
        options: one column that holds a list, or several columns in order, of which the last may be empty. Not read with label words.
        answer: the column of the right answer.
        pair: the column of a second text, where texts are classified in pairs.
        id: the column that names a row. None: the column "id" where there is one, else file and line.
        option_labels: a column with a list of the options' names ("A", "B" or "1", "2"), where the answer is one of them.
        answer_form: how to read an answer: "index" (from 0), "letter", the option's "text", its "label", or "auto": whichever of them
            fits, and an error where two readings disagree.
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
LAYOUTS = (ColumnMapping(), COMMONSENSE_QA, OPENBOOKQA, MMLU)
WORD_LAYOUTS = (
    ColumnMapping(),
    ColumnMapping("text", answer="label"),
    ColumnMapping("sentence", answer="label"),
)


def detect_columns(row: Row, *, labels: Sequence[str] | None, labelled: bool) -> ColumnMapping:
    """The known layout that a file's first row has.

    Raises:
        DataError: no layout fits; the column that the nearest one lacks is named, with the nearest column that is there.
    """
    missing = {}
    for layout in LAYOUTS if labels is None else WORD_LAYOUTS:
        wanted = _wanted(layout, words=labels is not None, labelled=labelled)
        missing[layout] = [column for column in wanted if _find(row.values, column) is _MISSING]
        if not missing[layout]:
            return layout
    nearest = min(missing.values(), key=len)
    raise row.error(
        f"{unknown_name('column', nearest[0], row.values)}. Rename it, or say which column is what with a column mapping"
    )


def row_to_example(
    row: Row, columns: ColumnMapping, *, labels: Sequence[str] | None = None, labelled: bool = True
) -> Example:
    """The example that a row describes: lettered options, or label words where `labels` gives them.

    White space around questions, options and labels is dropped.

    Raises:
        DataError: a column that is missing or holds something else than it should, or an answer that is not exactly one of the options.
    """
    question = _text(row, columns.question)
    options = tuple(labels) if labels is not None else _options(row, columns)
    target = _target(row, columns, options, words=labels is not None, labelled=labelled)
    if labels is None:
        prompt, answers = render_prompt(question, options), tuple(LETTERS[: len(options)])
    else:
        prompt, answers = render_label_prompt(question), tuple(f" {label}" for label in options)
    pair = None if columns.pair is None else _text(row, columns.pair)
    return Example(
        id=_id(row, columns),
        prompt=prompt,
        labels=answers,
        target=target,
        question=question,
        options=options,
        pair=pair,
    )


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


def _wanted(columns: ColumnMapping, *, words: bool, labelled: bool) -> list[str]:
    options = (
        [] if words else [columns.options] if isinstance(columns.options, str) else list(columns.options[:2])
    )
    names = [] if words or columns.option_labels is None else [columns.option_labels]
    return [columns.question, *options, *names, *([columns.answer] if labelled else [])]


def _find(values: Mapping[str, object], column: str) -> object:
    if column in values:
        return values[column]
    head, _, rest = column.partition(".")
    inner = values.get(head)
    return _find(inner, rest) if rest and isinstance(inner, Mapping) else _MISSING


def column_value(row: Row, column: str) -> object:
    """What the row has in a column.

    Raises:
        DataError: no such column; the nearest one is offered.
    """
    value = _find(row.values, column)
    if value is _MISSING:
        raise row.error(unknown_name("column", column, row.values))
    return value


def _text(row: Row, column: str) -> str:
    value = column_value(row, column)
    if not isinstance(value, str) or not value.strip():
        raise row.error(f"column {column!r} holds {short(value)}; the text of a question is needed")
    return value.strip()


def _id(row: Row, columns: ColumnMapping) -> str:
    value = _find(row.values, "id") if columns.id is None else column_value(row, columns.id)
    return row.id if value is _MISSING or value in (None, "") else str(value)


def _options(row: Row, columns: ColumnMapping) -> tuple[str, ...]:
    values = (
        _list(row, columns.options)
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


def _list(row: Row, column: str) -> list[object]:
    value = column_value(row, column)
    if isinstance(value, str) and value.lstrip().startswith("["):  # a csv cell
        try:
            value = json.loads(value)
        except ValueError:
            raise row.error(
                f'column {column!r} holds {short(value)}, which is no JSON list such as ["red", "blue"]'
            ) from None
    if not isinstance(value, list | tuple):
        raise row.error(
            f"column {column!r} holds {short(value)}; a list is needed, or map several columns to the options"
        )
    return list(value)


def _option_cells(row: Row, columns: Sequence[str]) -> list[object]:
    required, optional = columns[:2], columns[2:]
    cells = [column_value(row, column) for column in required] + [
        _find(row.values, column) for column in optional
    ]
    filled = [
        not (cell is _MISSING or cell is None or (isinstance(cell, str) and not cell.strip()))
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


def _target(
    row: Row, columns: ColumnMapping, options: tuple[str, ...], *, words: bool, labelled: bool
) -> int | None:
    value = column_value(row, columns.answer) if labelled else _find(row.values, columns.answer)
    absent = value is _MISSING or value is None or (isinstance(value, str) and not value.strip())
    if not labelled and (absent or value == -1):  # -1 is how hub datasets mark a row without an answer
        return None
    if absent:
        raise row.error(f"column {columns.answer!r} is empty; every row needs an answer here")
    return _resolve(row, columns, options, value=value, words=words)


def _resolve(
    row: Row, columns: ColumnMapping, options: tuple[str, ...], *, value: object, words: bool
) -> int:
    text = str(value).lower() if isinstance(value, bool) else str(value).strip()
    readings: dict[str, list[int]] = {
        "index": _as_index(text, len(options)),
        "text": _positions(text, options),
    }
    if not words:
        readings["letter"] = _as_letter(text, len(options))
    if not words and columns.option_labels is not None:
        readings["label"] = _positions(text, _option_labels(row, columns.option_labels, len(options)))
    if columns.answer_form != "auto":
        readings = {columns.answer_form: readings.get(columns.answer_form, [])}
    meant = sorted({position for positions in readings.values() for position in positions})
    if len(meant) == 1:
        return meant[0]
    if meant:
        ways = ", ".join(
            f"{form} -> {short(options[p])}" for form, positions in readings.items() for p in positions
        )
        raise row.error(
            f"answer {short(value)} can mean different options ({ways}); set answer_form in the column mapping"
        )
    raise row.error(_no_such_answer(value, options, list(readings)))


def _as_index(text: str, count: int) -> list[int]:
    if not re.fullmatch(r"[0-9]{1,9}(\.0+)?", text):
        return []
    index = int(text.partition(".")[0])
    return [index] if index < count else []


def _as_letter(text: str, count: int) -> list[int]:
    letter = text.strip("().").lower()
    return [LETTERS.index(letter)] if len(letter) == 1 and letter in LETTERS[:count] else []


def _positions(text: str, texts: Sequence[str]) -> list[int]:
    """Where the text stands; where it does not stand as it is, then in any case of letters."""
    exact = [position for position, other in enumerate(texts) if other == text]
    return exact or [position for position, other in enumerate(texts) if other.casefold() == text.casefold()]


def _option_labels(row: Row, column: str, count: int) -> list[str]:
    labels = [str(label).strip() for label in _list(row, column)]
    if len(labels) != count:
        raise row.error(
            f"column {column!r} names {len(labels)} options, and there are {count}; each option needs one name"
        )
    check_distinct(labels, kind="option label", where=row.place)
    return labels


def _no_such_answer(value: object, options: tuple[str, ...], forms: list[str]) -> str:
    count = len(options)
    needed = {
        "index": f"an index from 0 to {count - 1}",
        "letter": f"a letter from a to {LETTERS[min(count, len(LETTERS)) - 1]}",
        "text": "the text of one option",
        "label": "the label of one option",
    }
    wanted = " or ".join(needed[form] for form in forms)
    return f"answer {short(value)} is not among the options {short(list(options))}; needed is {wanted}"


def short(value: object) -> str:
    """A value as an error shows it: at most 120 characters."""
    text = "nothing" if value is _MISSING or value is None else repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
