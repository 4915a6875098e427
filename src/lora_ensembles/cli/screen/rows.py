"""The rows that predict writes: of what each row of the file was, with what it joins back by, and the rows
that could not be used.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
        taken = column in plain or column == "error"  # which says of a row that it is a bad one
        plain[f"{KEPT}{column}" if taken else column] = None if value is MISSING else value
    return plain


def bad_record(bad: BadRow, keep: Sequence[str]) -> dict[str, Any]:
    """The record of a row that could not be used: what is wrong with it, in the column `error`."""
    return joined({"id": row_id(bad.row), "error": bad.error}, bad.number, bad.row, keep)


def kept_columns(asked: Sequence[str] | None, first: Row) -> list[str]:
    """The columns to keep: those that were asked for, or all of the first row for "all".

    Raises:
        ConfigError: the first row has no such column.
    """
    if not asked:
        return []
    if list(asked) == ["all"]:
        return list(first.values)
    for column in asked:
        if find_value(first.values, column) is MISSING:
            raise ConfigError(f"--keep-columns: {unknown_name('column', column, first.values)}")
    return list(asked)


class RowWriter:
    """The text of records, part by part: jsonl, or csv with its header before the first ones.

    A csv has one column for each value: prob_LABEL for each label (empty where a row has no such option), and
    vote_0, vote_1, ... by the index of the member. Its columns are those of the first rows, so rows are held
    back until one comes that has an answer.

    Args:
        format: "jsonl" or "csv".
        members: the indices of those that voted.
        labels: the labels of all rows, where they are known.
        errors: whether the csv has the column `error`.
        columns: those of a csv that was begun.

    Example:
        >>> record = {"id": "q1", "prediction": "a", "probs": {"a": 0.75, "b": 0.25}, "votes": ["a", "b"]}
        >>> print(RowWriter("csv", members=[2, 0]).text([record]), end="")
        id,prediction,prob_a,prob_b,vote_2,vote_0
        q1,a,0.75,0.25,a,b
    """

    def __init__(
        self,
        format: str,
        *,
        members: Sequence[int] | None = None,
        labels: Sequence[str] = (),
        errors: bool = False,
        columns: Sequence[str] | None = None,
    ):
        self._format, self._members, self._labels, self._errors = format, members, labels, errors
        self._csv_columns = columns
        self._held: list[dict[str, Any]] = []
        self.rows = 0  # that were given out as text

    def text(self, records: Sequence[dict[str, Any]], *, last: bool = False) -> str:
        """The next records as text, with those that were held back; `last`: no more will come.

        Raises:
            ConfigError: a row has a value that the csv has no column for.
        """
        records = [*self._held, *records]
        self._held = []
        if self._format == "jsonl":
            self.rows += len(records)
            return "".join(f"{json.dumps(record)}\n" for record in records)
        stream, begun = io.StringIO(newline=""), self._csv_columns is not None
        if not begun and not last and all("error" in record for record in records):
            self._held = records
            return ""
        columns = self._csv_columns = self._csv_columns or self._columns_of(records)
        writer, known = csv.DictWriter(stream, columns, lineterminator="\n"), set(columns)
        if not begun:
            writer.writeheader()
        for record in records:
            row = dict(_flat(record, self._members))
            unknown = [name for name in row if name not in known]
            if unknown:
                raise ConfigError(
                    f"row {record.get('row')} ({record.get('id')}) has a value for {unknown[0]}, a column "
                    "that the header of the csv, which was written before, does not have; write --format "
                    "jsonl, or read a file, which is read twice for the columns of all its rows"
                )
            writer.writerow(row)
        self.rows += len(records)
        return stream.getvalue()

    def _columns_of(self, records: Sequence[dict[str, Any]]) -> list[str]:
        order = list(
            dict.fromkeys(key for record in sorted(records, key=len, reverse=True) for key in record)
        )
        keys = {name: key for record in records for name, key in _columns(record, self._members)}
        if "probs" in order:
            keys |= {f"prob_{label}": "probs" for label in self._labels}
        if self._errors and "error" not in order:
            order, keys = [*order, "error"], {**keys, "error": "error"}
        return sorted(keys, key=lambda name: order.index(keys[name]))


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
