"""The rows that predict writes: of what each row of the file was, with what it joins back by, and the rows
that could not be used.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from ...data.cells import MISSING, find_value, row_id
from ...data.formats import Row
from ...data.whole_file import BadRow
from ...errors import ConfigError, unknown_name

FORMATS = ("jsonl", "csv")
DIGITS = 6  # significant: float32 has seven, and the last one is noise
# Columns of the csv, by what they begin with, and the record's key they come from.
GROUPS = {"prob": "probs", "vote": "votes", "reward": "member_rewards"}
KEPT = "input_"  # before the name of a kept column that the output has too


def joined(record: Mapping[str, Any], number: int, row: Row, keep: Sequence[str]) -> dict[str, Any]:
    """A record with the number of its row in front, counted from 0, and the columns that are kept behind."""
    plain = {"row": number, **{name: _rounded(value) for name, value in record.items()}}
    for column in keep:
        value = find_value(row.values, column)
        plain[f"{KEPT}{column}" if column in plain else column] = None if value is MISSING else value
    return plain


def bad_record(bad: BadRow, keep: Sequence[str]) -> dict[str, Any]:
    """The record of a row that could not be used: what is wrong with it, in the column `error`."""
    return joined({"id": row_id(bad.row), "error": bad.error}, bad.number, bad.row, keep)


def kept_columns(asked: Sequence[str] | None, rows: Sequence[Row]) -> list[str]:
    """The columns to keep: those that were asked for, or all of the file for "all".

    Raises:
        ConfigError: the first row has no such column.
    """
    if not asked:
        return []
    first = next((row.values for row in rows if row.problem is None), {})
    if list(asked) == ["all"]:
        return list(first)
    for column in asked:
        if find_value(first, column) is MISSING:
            raise ConfigError(f"--keep-columns: {unknown_name('column', column, first)}")
    return list(asked)


def write_rows(
    records: Iterable[dict[str, Any]], stream: TextIO, *, format: str, members: Sequence[int]
) -> None:
    """Write records as jsonl or csv; `members` are the indices of those that voted."""
    if format == "csv":
        write_csv(list(records), stream, members=members)
    else:
        stream.writelines(f"{json.dumps(record)}\n" for record in records)


def write_csv(
    records: Sequence[dict[str, Any]], stream: TextIO, *, members: Sequence[int] | None = None
) -> None:
    """One row for each record and one column for each value: prob_LABEL for each label (empty where a row has
    no such option), and vote_0, vote_1, ... by the index of the member.

    Example:
        >>> import sys
        >>> record = {"id": "q1", "prediction": "a", "probs": {"a": 0.75, "b": 0.25}, "votes": ["a", "b"]}
        >>> write_csv([record], sys.stdout, members=[2, 0])
        id,prediction,prob_a,prob_b,vote_2,vote_0
        q1,a,0.75,0.25,a,b
    """
    rows = [dict(_flat(record, members)) for record in records]
    order = list(dict.fromkeys(key for record in sorted(records, key=len, reverse=True) for key in record))
    keys = {name: key for record in records for name, key in _columns(record, members)}
    columns = sorted(keys, key=lambda name: order.index(keys[name]))
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _columns(record: Mapping[str, Any], members: Sequence[int] | None) -> Iterator[tuple[str, str]]:
    """The names of a record's columns, each with the key it comes from."""
    prefixes = {key: prefix for prefix, key in GROUPS.items()}
    for key, value in record.items():
        if key == "probs":
            yield from ((f"prob_{label}", key) for label in value)
        elif key in prefixes:
            yield from ((f"{prefixes[key]}_{index}", key) for index in members or range(len(value)))
        else:
            yield key, key


def _flat(record: Mapping[str, Any], members: Sequence[int] | None) -> Iterator[tuple[str, Any]]:
    values = [
        value
        for key, held in record.items()
        for value in (held.values() if key == "probs" else held if key in GROUPS.values() else [_cell(held)])
    ]
    yield from zip((name for name, _ in _columns(record, members)), values, strict=True)


def _cell(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value
