"""Cells of rows: found under its name in any case of letters, and checked for what it should be."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from ..errors import unknown_name
from .formats import Row, half_character

MISSING = object()


def find_value(values: Mapping[str, object], column: str) -> object:
    """The value of a row in a column, or `MISSING`; a dot reaches into an object.

    A name that is there as it is written wins; else the one column that differs by case of letters alone is
    meant.

    Example:
        >>> find_value({"Text": "A bore.", "choices": {"label": ["A"]}}, "text")
        'A bore.'
        >>> find_value({"choices": {"label": ["A"]}}, "choices.label")
        ['A']
    """
    if column in values:
        return values[column]
    alike = [name for name in values if name.casefold() == column.casefold()]
    if len(alike) == 1:
        return values[alike[0]]
    head, _, rest = column.partition(".")
    inner = find_value(values, head) if rest else None
    return find_value(inner, rest) if isinstance(inner, Mapping) else MISSING


def column_value(row: Row, column: str) -> object:
    """The value of the row in a column.

    Raises:
        DataError: no such column; the nearest one is offered.
    """
    value = find_value(row.values, column)
    if value is MISSING:
        raise row.error(unknown_column(column, row.values))
    return value


def unknown_column(column: str, values: Iterable[str]) -> str:
    """The message for a column that is not there; says so where the header looks as if other signs part its
    columns.
    """
    names = list(values)
    parted = next((sign for sign in ";\t|" if any(sign in name for name in names)), None)
    hint = (
        f". {parted!r} stands in the names: in a .csv file with commas in its header, a comma parts columns"
        if parted
        else ""
    )
    return f"{unknown_name('column', column, names)}{hint}"


def text_cell(row: Row, column: str) -> str:
    """The text in a column, without white space around it.

    Raises:
        DataError: no such column, or no text in it.
    """
    value = column_value(row, column)
    if not isinstance(value, str) or not value.strip():
        raise row.error(f"column {column!r} holds {short(value)}; the text of a question is needed")
    return value.strip()


def list_cell(row: Row, column: str) -> list[object]:
    """The list in a column, which a cell of a .csv file holds as JSON.

    Raises:
        DataError: no such column, or no list in it.
    """
    value = json_cell(column_value(row, column))
    if isinstance(value, str) and value.lstrip().startswith("["):
        raise row.error(
            f'column {column!r} holds {short(value)}, which is no JSON list such as ["red", "blue"]'
        )
    if not isinstance(value, list | tuple):
        raise row.error(
            f"column {column!r} holds {short(value)}; a list is needed, or map several columns to the options"
        )
    return list(value)


def json_cell(value: object) -> object:
    """A value, as JSON where it is a text that holds an object or a list, as a cell of a .csv file does; a
    text that is no JSON that can be used stays a text.

    Example:
        >>> json_cell('{"bug": 0.7}'), json_cell("[sic]")
        ({'bug': 0.7}, '[sic]')
    """
    text = value.strip() if isinstance(value, str) else ""
    if text[:1] + text[-1:] not in ("{}", "[]"):
        return value
    try:
        content = json.loads(text)
        cut = "\\ud" in text.lower() and half_character(json.dumps(content, ensure_ascii=False))
    except (ValueError, RecursionError):
        return value
    return value if cut else content


def row_id(row: Row, column: str | None = None) -> str:
    """The id of a row: what its column `id` holds, or the column named; else file and line.

    Raises:
        DataError: the column named is not there.
    """
    value = find_value(row.values, "id") if column is None else column_value(row, column)
    return row.id if value is MISSING or value in (None, "") else str(value)


def short(value: object) -> str:
    """A value as an error shows it: at most 120 characters."""
    text = "nothing" if value is MISSING or value is None else repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
