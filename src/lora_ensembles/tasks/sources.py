"""Rows out of .jsonl and .csv text and out of hub datasets, each with the place it came from, for errors that can be followed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ..errors import ConfigError, DataError, unknown_name

FORMATS = ("jsonl", "csv")
HUB_PREFIX = "hub:"


@dataclass(frozen=True)
class Row:
    """One row: the place it came from ("train.csv, line 3"), an id where its columns have none, and the columns."""

    place: str
    id: str
    values: Mapping[str, object]

    def error(self, message: str) -> DataError:
        """An error that begins with the place."""
        return DataError(f"{self.place}: {message}")


def stream_rows(stream: TextIO, *, name: str, format: str) -> Iterator[Row]:
    """The rows of an open text stream in one of `FORMATS`.

    Raises:
        ConfigError: another format.
        DataError: text that is not UTF-8, or a line that cannot be parsed.
    """
    if format not in FORMATS:
        raise ConfigError(unknown_name("format", format, FORMATS))
    try:
        text = stream.read()
    except UnicodeDecodeError as error:
        raise _not_utf8(name, error) from None
    return _parse(text, name=name, format=format)


def named_rows(name: str | Path) -> Iterator[Row]:
    """The rows of a .jsonl or .csv file, or of 'hub:owner/name:split'.

    Raises:
        DataError: as `file_rows` and `hub_rows`.
    """
    if not str(name).startswith(HUB_PREFIX):
        return file_rows(name)
    repo, config, split = split_hub_name(str(name))
    return hub_rows(repo, config=config, split=split)


def file_rows(path: str | Path) -> Iterator[Row]:
    """The rows of a .jsonl or .csv file, UTF-8 with or without a byte-order mark.

    Raises:
        DataError: a wrong suffix, a file that cannot be read or is not UTF-8, or a line that cannot be parsed.
    """
    format = Path(path).suffix.lower().removeprefix(".")
    if format not in FORMATS:
        raise DataError(
            f"{path}: cannot tell the format from the suffix {Path(path).suffix!r}; "
            f"save it as .jsonl (one JSON object a line) or .csv, or name a hub dataset as '{HUB_PREFIX}owner/name:split'"
        )
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise _not_utf8(str(path), error) from None
    return _parse(text, name=str(path), format=format)


def hub_rows(repo: str, *, config: str | None, split: str) -> Iterator[Row]:
    """The rows of one split of a dataset on the Hugging Face hub, or of a local folder laid out like one.

    Raises:
        DataError: the dataset, its config or its split cannot be loaded.
    """
    import datasets

    name = f"{repo} ({split})"
    try:
        rows = datasets.load_dataset(repo, config, split=split)
    except Exception as error:  # the hub client raises its own, requests', and built-in classes; all mean the same to a caller
        raise DataError(
            f"{HUB_PREFIX}{repo}: split {split!r}{f' of config {config!r}' if config else ''} cannot be loaded "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}); "
            "check the name and the network, or read the same rows from files (data=DIR for a task that has a name)"
        ) from error
    for number, values in enumerate(rows, start=1):
        yield Row(f"{name}, row {number}", f"{split}:{number}", values)


def split_hub_name(name: str) -> tuple[str, str | None, str]:
    """Repository, config and split of 'hub:owner/name:split' or 'hub:owner/name:config:split'.

    Raises:
        DataError: any other shape.

    Example:
        >>> split_hub_name("hub:allenai/openbookqa:main:train")
        ('allenai/openbookqa', 'main', 'train')
    """
    parts = name.removeprefix(HUB_PREFIX).split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise DataError(
            f"{name!r} is no hub dataset; write '{HUB_PREFIX}owner/name:split' or '{HUB_PREFIX}owner/name:config:split'"
        )
    return parts[0], parts[1] if len(parts) == 3 else None, parts[-1]


def _parse(text: str, *, name: str, format: str) -> Iterator[Row]:
    parser = _jsonl_rows if format == "jsonl" else _csv_rows
    return parser(text.removeprefix("\ufeff"), name)


def _jsonl_rows(text: str, name: str) -> Iterator[Row]:
    for number, line in enumerate(
        text.split("\n"), start=1
    ):  # not splitlines: JSON strings may hold U+2028 and its like
        if line.strip():
            yield Row(
                f"{name}, line {number}",
                f"{Path(name).name}:{number}",
                _json_object(line, f"{name}, line {number}"),
            )


def _json_object(line: str, place: str) -> Mapping[str, object]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{place}: not JSON ({error.msg} at column {error.colno}); each line needs one JSON object"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not usable JSON ({error}); each line needs one JSON object") from None
    if not isinstance(value, dict):
        raise DataError(
            f'{place}: a JSON {type(value).__name__}; each line needs one JSON object, as {{"question": ...}}'
        )
    return value


def _csv_rows(text: str, name: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1  # where the record begins: quoted cells may span lines
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{name}, line {number}: not csv ({error}); check the quotes of the cell that begins here"
            ) from None
        if not cells:
            continue
        if header is None:
            header = _csv_header(cells, f"{name}, line {number}")
            continue
        if len(cells) != len(header):
            raise DataError(
                f"{name}, line {number}: {len(cells)} cells where the header names {len(header)} columns; "
                "put cells that hold a comma, a quote or a line break in double quotes"
            )
        yield Row(
            f"{name}, line {number}", f"{Path(name).name}:{number}", dict(zip(header, cells, strict=True))
        )


def _csv_header(cells: list[str], place: str) -> list[str]:
    header = [cell.strip() for cell in cells]
    repeated = sorted({cell for cell in header if header.count(cell) > 1})
    if repeated:
        raise DataError(
            f"{place}: the header names column {repeated[0]!r} twice; each column needs its own name"
        )
    return header


def _not_utf8(name: str, error: UnicodeDecodeError) -> DataError:
    line = error.object[: error.start].count(b"\n") + 1
    byte = error.object[error.start]
    return DataError(
        f"{name}, line {line}: not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8, it may be in Latin-1 or UTF-16 now"
    )
