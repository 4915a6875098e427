"""Rows out of .jsonl, .json, .csv, .tsv and .parquet files, each with its place, for errors that can be
followed.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from ..errors import DataError

FORMATS = ("jsonl", "json", "csv", "tsv")  # of text; a stream can be in these
SUFFIXES = (*FORMATS, "parquet")
BATCH = 1024  # rows of a parquet file in memory at a time
LONGEST_CELL = 2**31 - 1  # characters of a cell of csv: the most that the module takes on every system
DELIMITERS = ";\t|"  # beside the comma: of a .csv file whose header has one of them and no comma
# The first bytes of files that are no text, whatever their name says.
MAGIC = {
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a parquet file",
    b"\x1f\x8b": "a gzip archive",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file",
    b"%PDF": "a PDF file",
}
WAYS_OUT = {
    "a parquet file": "name it .parquet",
    "an xlsx file": "save it as CSV UTF-8 in the program that made it",
    "an old Excel or Word file": "save it as CSV UTF-8 in the program that made it",
}


@dataclass(frozen=True)
class Row:
    """One row: the place it came from ("train.csv, line 3"), an id where its columns have none, and the
    columns.

    `problem` says why it could not be parsed, and the columns are empty then; None for a row that could. Rows
    of one `group` are about the same thing; `type` is that of a typed decision.
    """

    place: str
    id: str
    values: Mapping[str, object]
    problem: str | None = None
    group: str | None = None
    type: str | None = None

    def error(self, message: str) -> DataError:
        """An error that begins with the place."""
        return DataError(f"{self.place}: {message}")


def decoded_lines(lines: Iterable[bytes], *, name: str) -> Iterator[str]:
    """The lines of a text, UTF-8 with or without a byte-order mark, one at a time.

    Raises:
        DataError: a line is not UTF-8; it is named.
    """
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise not_utf8(name, error, first=number) from None
        yield text.removeprefix("\ufeff") if number == 1 else text


def check_text(file: BufferedReader, *, name: str) -> None:
    """Refuse a file that is no text whatever its name says; it stays at its beginning.

    Raises:
        DataError: its first bytes are those of a known binary kind.
    """
    head = file.peek(max(map(len, MAGIC)))
    kind = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)
    if kind == "a zip archive" and _is_workbook(file):
        kind = "an xlsx file"
    if kind is not None:
        way_out = WAYS_OUT.get(kind, "unpack it and name the file inside")
        raise DataError(f"{name}: this is {kind}, no text, whatever its name says; {way_out}")


def _is_workbook(file: BufferedReader) -> bool:
    try:
        names = zipfile.ZipFile(file).namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return False
    return any(name.startswith("xl/") for name in names)


def not_utf8(name: str, error: UnicodeDecodeError, *, first: int = 1) -> DataError:
    """The error for text in another encoding, which names the line; `first` is the number of the text's
    first one.
    """
    line = error.object[: error.start].count(b"\n") + first
    byte = error.object[error.start]
    return DataError(
        f"{name}, line {line}: not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8, "
        "it may be in Latin-1 or UTF-16 now"
    )


def parsed(text: str, *, name: str, format: str) -> Iterator[Row]:
    """The rows of a text in one of `FORMATS`; one that cannot be parsed has a `problem`.

    Raises:
        DataError: the text as a whole cannot be parsed.
    """
    # Lines end at line feeds alone: JSON strings may hold U+2028 and its like.
    return parsed_lines(io.StringIO(text.removeprefix("\ufeff"), newline="\n"), name=name, format=format)


def parsed_lines(lines: Iterable[str], *, name: str, format: str) -> Iterator[Row]:
    """As `parsed`, of lines that come one at a time, each with its line feed; but for a list in one .json
    text, none is kept.

    Raises:
        DataError: the text as a whole cannot be parsed; rows may have come before.
    """
    lines = iter(lines)
    blank, first = _blank_and_first(lines)
    whole = itertools.chain(blank, first, lines)
    if format == "json" and first and first[0].lstrip().startswith("["):
        yield from _json_rows("".join(whole), name)
    elif format in ("jsonl", "json"):  # JSON lines are often named .json
        yield from _jsonl_rows(whole, name)
    else:
        delimiter = "\t" if format == "tsv" else delimiter_of("".join(first))
        yield from _csv_rows(whole, name, delimiter=delimiter)


def _blank_and_first(lines: Iterator[str]) -> tuple[list[str], list[str]]:
    """The blank lines at the beginning, and the first other line, if there is one."""
    blank: list[str] = []
    for line in lines:
        if line.strip():
            return blank, [line]
        blank.append(line)
    return blank, []


def delimiter_of(text: str) -> str:
    """The delimiter of a .csv text's columns: a comma where its header has one, else the first of
    `DELIMITERS` that it has.

    Example:
        >>> delimiter_of("text;label\\nA bore, in all.;bad\\n")
        ';'
    """
    header = next((line for line in text.split("\n") if line.strip()), "")
    if "," in header:
        return ","
    return next((sign for sign in DELIMITERS if sign in header), ",")


def parquet_rows(path: str | Path) -> Iterator[Row]:
    """The rows of a .parquet file; some of them are in memory at a time.

    Raises:
        DataError: it cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    numbers = itertools.count(1)
    try:
        with open(path, "rb"), pyarrow.parquet.ParquetFile(path) as file:  # open says best what is wrong
            for batch in file.iter_batches(BATCH):
                for values, number in zip(batch.to_pylist(), numbers, strict=False):
                    yield Row(f"{path}, row {number}", f"{os.path.basename(path)}:{number}", values)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DataError(f"{path}: cannot be read: {reason}") from None


def _json_rows(text: str, name: str) -> Iterator[Row]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{name}: not usable JSON ({error}); a .json file holds a list of objects, or one object a line"
        ) from None
    for number, value in enumerate(content, start=1):
        yield _object_row(
            value, place=f"{name}, row {number}", id=f"{os.path.basename(name)}:{number}", escapes=True
        )


def _jsonl_rows(lines: Iterable[str], name: str) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield jsonl_row(line.removesuffix("\n"), number, name=name)


def jsonl_row(line: str, number: int, *, name: str) -> Row:
    """The row that a line of JSON holds."""
    place, id = f"{name}, line {number}", f"{os.path.basename(name)}:{number}"
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        as_csv = ". If this is csv, say so by --in-format csv" if name.startswith("<") and number == 1 else ""
        problem = f"not JSON ({error.msg} at column {error.colno}); each line needs one JSON object{as_csv}"
        return Row(place, id, {}, problem)
    except (ValueError, RecursionError) as error:
        return Row(place, id, {}, f"not usable JSON ({error}); each line needs one JSON object")
    return _object_row(value, place=place, id=id, escapes="\\ud" in line.lower())


def _object_row(value: object, *, place: str, id: str, escapes: bool) -> Row:
    # Text that was UTF-8 has half a character only where JSON escapes it, so most lines need no look.
    if not isinstance(value, dict):
        problem = f'a JSON {type(value).__name__}; each line needs one JSON object, as {{"question": ...}}'
        return Row(place, id, {}, problem)
    for column, cell in value.items() if escapes else ():
        half = half_character(column) or half_character(json.dumps(cell, ensure_ascii=False))
        if half:
            shown = str(column).encode("ascii", "backslashreplace").decode()
            problem = (
                f"column '{shown}' holds {half}, half of a character of two (a surrogate pair that was cut); "
                "mend the text"
            )
            return Row(place, id, {}, problem)
    return Row(place, id, value)


def half_character(text: str) -> str | None:
    r"""The first lone surrogate of a text, as its escape; None for text that can be encoded.

    Example:
        >>> half_character("a " + chr(0xD83D))
        '\\ud83d'
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"\\u{ord(text[error.start]):04x}"
    return None


def _csv_rows(lines: Iterable[str], name: str, *, delimiter: str) -> Iterator[Row]:
    header: list[str] | None = None
    for number, cells in csv_records(lines, name=name, delimiter=delimiter):
        place, id = f"{name}, line {number}", f"{os.path.basename(name)}:{number}"
        if header is None:
            header = _csv_header(cells, place)
        elif len(cells) != len(header):
            problem = (
                f"{len(cells)} cells where the header names {len(header)} columns; "
                "put cells that hold a comma, a quote or a line break in double quotes"
            )
            yield Row(place, id, {}, problem)
        else:
            yield Row(place, id, dict(zip(header, cells, strict=True)))


# Two threads that set and put back a limit of the process would leave the wrong one.
_LIMIT_OF_CSV = threading.Lock()


def csv_records(lines: Iterable[str], *, name: str, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """The records that are not empty, each with the line on which it begins: quoted cells may span lines.

    Raises:
        DataError: a record that is not csv.
    """
    reader = csv.reader(_ended_anyhow(lines), delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + 1
        # The limit of 131,072 characters is one of the process, so it is put back after each record.
        with _LIMIT_OF_CSV:
            limit = csv.field_size_limit(LONGEST_CELL)
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise DataError(
                    f"{name}, line {number}: not csv ({error}); check the quotes of the cell that begins here"
                ) from None
            finally:
                csv.field_size_limit(limit)
        if cells is None:
            return
        if cells:
            yield number, cells


def _ended_anyhow(lines: Iterable[str]) -> Iterator[str]:
    """Lines parted at carriage returns as well, as some spreadsheets end them."""
    for line in lines:
        if "\r" in line.removesuffix("\r\n"):
            yield from io.StringIO(line, newline="")
        else:
            yield line


def _csv_header(cells: list[str], place: str) -> list[str]:
    header = [cell.strip() for cell in cells]
    repeated = sorted({cell for cell in header if header.count(cell) > 1})
    if repeated:
        raise DataError(
            f"{place}: the header names column {repeated[0]!r} twice; each column needs its own name"
        )
    return header
