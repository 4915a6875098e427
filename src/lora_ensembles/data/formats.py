"""Rows out of .jsonl, .json, .csv, .tsv and .parquet files, each with its place, for errors that can be
followed.
"""

from __future__ import annotations

import csv
import io
import json
import threading
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError

FORMATS = ("jsonl", "json", "csv", "tsv")  # of text; a stream can be in these
SUFFIXES = (*FORMATS, "parquet")
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

    `problem` says why it could not be parsed, and the columns are empty then; None for a row that could. Rows of
    one `group` are about the same thing; `type` is that of a typed decision.
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


def decoded(content: bytes, *, name: str) -> str:
    """The text of a file, UTF-8 with or without a byte-order mark.

    Raises:
        DataError: the bytes are of a known binary kind, or are not UTF-8; the line is named.
    """
    kind = _binary_kind(content)
    if kind is not None:
        way_out = WAYS_OUT.get(kind, "unpack it and name the file inside")
        raise DataError(f"{name}: this is {kind}, no text, whatever its name says; {way_out}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(name, error) from None


def not_utf8(name: str, error: UnicodeDecodeError) -> DataError:
    """The error for text in another encoding, which names the line."""
    line = error.object[: error.start].count(b"\n") + 1
    byte = error.object[error.start]
    return DataError(
        f"{name}, line {line}: not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8, "
        "it may be in Latin-1 or UTF-16 now"
    )


def _binary_kind(content: bytes) -> str | None:
    kind = next((kind for magic, kind in MAGIC.items() if content.startswith(magic)), None)
    if kind == "a zip archive":
        try:
            names = zipfile.ZipFile(io.BytesIO(content)).namelist()
        except (zipfile.BadZipFile, OSError, ValueError):
            return kind
        return "an xlsx file" if any(name.startswith("xl/") for name in names) else kind
    return kind


def parsed(text: str, *, name: str, format: str) -> Iterator[Row]:
    """The rows of a text in one of `FORMATS`; one that cannot be parsed has a `problem`.

    Raises:
        DataError: the text as a whole cannot be parsed.
    """
    text = text.removeprefix("\ufeff")
    if format == "json" and text.lstrip().startswith("["):
        return _json_rows(text, name)
    if format in ("jsonl", "json"):  # JSON lines are often named .json
        return _jsonl_rows(text, name)
    return _csv_rows(text, name, delimiter="\t" if format == "tsv" else delimiter_of(text))


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
    """The rows of a .parquet file.

    Raises:
        DataError: it cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        content = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DataError(f"{path}: cannot be read: {reason}") from None
    for number, values in enumerate(content, start=1):
        yield Row(f"{path}, row {number}", f"{Path(path).name}:{number}", values)


def _json_rows(text: str, name: str) -> Iterator[Row]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{name}: not usable JSON ({error}); a .json file holds a list of objects, or one object a line"
        ) from None
    for number, value in enumerate(content, start=1):
        yield _object_row(
            value, place=f"{name}, row {number}", id=f"{Path(name).name}:{number}", escapes=True
        )


def _jsonl_rows(text: str, name: str) -> Iterator[Row]:
    for number, line in enumerate(
        text.split("\n"), start=1
    ):  # not splitlines: JSON strings may hold U+2028 and its like
        if line.strip():
            yield jsonl_row(line, number, name=name)


def jsonl_row(line: str, number: int, *, name: str) -> Row:
    """The row that a line of JSON holds."""
    place, id = f"{name}, line {number}", f"{Path(name).name}:{number}"
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


def _csv_rows(text: str, name: str, *, delimiter: str) -> Iterator[Row]:
    header: list[str] | None = None
    for number, cells in _csv_records(text, name, delimiter):
        place, id = f"{name}, line {number}", f"{Path(name).name}:{number}"
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


_LIMIT_OF_CSV = (
    threading.Lock()
)  # two threads that set and put back a limit of the process would leave the wrong one


def _csv_records(text: str, name: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """The records that are not empty, each with the line on which it begins: quoted cells may span lines."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records: list[tuple[int, list[str]]] = []
    # The limit of 131,072 characters is one of the process, so it is put back; no cell is longer than the
    # text.
    with _LIMIT_OF_CSV:
        limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))
        try:
            while True:
                number = reader.line_num + 1
                cells = next(reader, None)
                if cells is None:
                    return records
                if cells:
                    records.append((number, cells))
        except csv.Error as error:
            raise DataError(
                f"{name}, line {number}: not csv ({error}); check the quotes of the cell that begins here"
            ) from None
        finally:
            csv.field_size_limit(limit)


def _csv_header(cells: list[str], place: str) -> list[str]:
    header = [cell.strip() for cell in cells]
    repeated = sorted({cell for cell in header if header.count(cell) > 1})
    if repeated:
        raise DataError(
            f"{place}: the header names column {repeated[0]!r} twice; each column needs its own name"
        )
    return header
