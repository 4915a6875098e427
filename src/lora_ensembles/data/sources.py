"""Sources of rows: files by their suffix, text streams, and datasets of the hub."""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from ..errors import ConfigError, DataError, unknown_name
from .decisions import decision_rows
from .formats import (
    FORMATS,
    SUFFIXES,
    Row,
    check_text,
    decoded_lines,
    not_utf8,
    parquet_rows,
    parsed,
    parsed_lines,
)

HUB_PREFIX = "hub:"


def stream_rows(stream: TextIO, *, name: str, format: str, keep_bad: bool = False) -> Iterator[Row]:
    """The rows of an open text stream in one of `FORMATS`; with `keep_bad`, as `named_rows`.

    Raises:
        ConfigError: another format.
        DataError: text that is not UTF-8, or a line that cannot be parsed.
    """
    _check_format(format)
    try:
        text = stream.read()
    except UnicodeDecodeError as error:
        raise not_utf8(name, error) from None
    rows = decision_rows(parsed(text, name=name, format=format))
    return rows if keep_bad else _good(rows)


def _check_format(format: str) -> None:
    if format not in FORMATS:
        raise ConfigError(unknown_name("format", format, FORMATS))


CHUNK = 2**16  # most bytes that are taken from a pipe at a time; a pipe of Linux holds as many


class WaitingLines:
    """The lines of an open text stream as they come, each with its line feed; `waiting` says whether the next
    one can be had at once.

    Args:
        stream: standard input, or any text stream; one with a file number that was not read yet.
        name: what errors call it.
    """

    def __init__(self, stream: TextIO, *, name: str):
        self._stream = stream  # whose end would close the number
        self._whole: deque[bytes] = deque()
        self._begun: list[bytes] = []  # pieces of a line whose end has not come
        self._ended = False
        try:
            self._number: int | None = stream.fileno()
        except OSError:  # a stream of Python's own, which never lets anyone wait
            self._number = None
        self._lines = iter(stream) if self._number is None else decoded_lines(self._raw(), name=name)

    def __iter__(self) -> Iterator[str]:
        return self._lines

    def waiting(self) -> bool:
        """Whether the next line, or the end, can be had without waiting for whoever writes.

        Where the system cannot say, as of a pipe on Windows, it cannot.
        """
        if self._number is None:
            return True
        try:
            while not self._whole and not self._ended and select.select([self._number], [], [], 0)[0]:
                self._take()
        except (OSError, ValueError):
            return False
        return bool(self._whole) or self._ended

    def _raw(self) -> Iterator[bytes]:
        while True:
            while not self._whole and not self._ended:
                self._take()
            if not self._whole:
                return
            yield self._whole.popleft()

    def _take(self) -> None:
        assert self._number is not None
        chunk = os.read(self._number, CHUNK)
        self._ended = not chunk
        *ends, begun = chunk.split(b"\n")
        if ends or self._ended:
            ends = [b"".join([*self._begun, *ends[:1]]), *ends[1:]]
            self._begun = []
            self._whole.extend(end + b"\n" for end in ends if not self._ended or end)
        if begun:
            self._begun.append(begun)


def waiting_rows(lines: WaitingLines, *, name: str, format: str, keep_bad: bool = False) -> Iterator[Row]:
    """The rows of lines that come one at a time; a row is made of no more lines than it has. With `keep_bad`,
    as `named_rows`.

    Raises:
        ConfigError: another format.
        DataError: text that is not UTF-8, or a line that cannot be parsed.
    """
    _check_format(format)
    rows = decision_rows(parsed_lines(lines, name=name, format=format))
    return rows if keep_bad else _good(rows)


def named_rows(name: str | Path, *, keep_bad: bool = False) -> Iterator[Row]:
    """The rows of a file, or of 'hub:owner/name:split'; with `keep_bad`, those that cannot be parsed too, as
    rows with a `problem`. A row that holds several questions about a state is one row for each.

    Raises:
        DataError: as `file_rows` and `hub_rows`.
    """
    if not str(name).startswith(HUB_PREFIX):
        rows = file_rows(name, keep_bad=keep_bad)
    else:
        repo, config, split = split_hub_name(str(name))
        rows = hub_rows(repo, config=config, split=split)
    rows = decision_rows(rows)
    return rows if keep_bad else _good(rows)


def file_rows(path: str | Path, *, keep_bad: bool = False) -> Iterator[Row]:
    """The rows of a .jsonl, .json, .csv, .tsv or .parquet file, read as they are asked for; text is UTF-8
    with or without a byte-order mark.

    Raises:
        DataError: a wrong suffix, a file that cannot be read or is not UTF-8, or a line that cannot be
            parsed.
    """
    format = format_of(path)
    if format == "parquet":
        return parquet_rows(path)
    rows = parsed_lines(_text_lines(path), name=str(path), format=format)
    return rows if keep_bad else _good(rows)


def format_of(path: str | Path) -> str:
    """The format that a file's suffix stands for.

    Raises:
        DataError: none.
    """
    format = Path(path).suffix.lower().removeprefix(".")
    if format not in SUFFIXES:
        workbook = ", from an Excel workbook as CSV UTF-8" if format in ("xlsx", "xls", "ods") else ""
        raise DataError(
            f"{path}: cannot tell the format from the suffix {Path(path).suffix!r}; "
            "save it as .jsonl (one JSON object a line), .json (a list of objects), .csv, "
            f".tsv or .parquet{workbook}, or name a hub dataset as '{HUB_PREFIX}owner/name:split'"
        )
    return format


def _text_lines(path: str | Path) -> Iterator[str]:
    try:
        with open(path, "rb") as file:
            check_text(file, name=str(path))
            yield from decoded_lines(file, name=str(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _good(rows: Iterator[Row]) -> Iterator[Row]:
    for row in rows:
        if row.problem is not None:
            raise row.error(row.problem)
        yield row


def hub_rows(repo: str, *, config: str | None, split: str) -> Iterator[Row]:
    """The rows of one split of a dataset on the Hugging Face hub, or of a local folder laid out like one.

    Raises:
        DataError: the dataset, its config or its split cannot be loaded.
    """
    import datasets

    name = f"{repo} ({split})"
    try:
        rows = datasets.load_dataset(repo, config, split=split)
    # The hub client raises its own, requests', and built-in classes; all mean the same to a caller.
    except Exception as error:
        raise DataError(
            f"{HUB_PREFIX}{repo}: split {split!r}{f' of config {config!r}' if config else ''} "
            f"cannot be loaded ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}); check the name "
            "and the network, or read the same rows from files (data=DIR for a task that has a name)"
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
            f"{name!r} is no hub dataset; write '{HUB_PREFIX}owner/name:split' "
            f"or '{HUB_PREFIX}owner/name:config:split'"
        )
    return parts[0], parts[1] if len(parts) == 3 else None, parts[-1]
