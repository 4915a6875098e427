"""Sources of rows: files by their suffix, text streams, and datasets of the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from ..errors import ConfigError, DataError, unknown_name
from .decisions import decision_rows
from .formats import FORMATS, SUFFIXES, Row, decoded, not_utf8, parquet_rows, parsed

HUB_PREFIX = "hub:"


def stream_rows(stream: TextIO, *, name: str, format: str, keep_bad: bool = False) -> Iterator[Row]:
    """The rows of an open text stream in one of `FORMATS`; with `keep_bad`, as `named_rows`.

    Raises:
        ConfigError: another format.
        DataError: text that is not UTF-8, or a line that cannot be parsed.
    """
    if format not in FORMATS:
        raise ConfigError(unknown_name("format", format, FORMATS))
    try:
        text = stream.read()
    except UnicodeDecodeError as error:
        raise not_utf8(name, error) from None
    rows = decision_rows(parsed(text, name=name, format=format))
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
    """The rows of a .jsonl, .json, .csv, .tsv or .parquet file; text is UTF-8 with or without a byte-order
    mark.

    Raises:
        DataError: a wrong suffix, a file that cannot be read or is not UTF-8, or a line that cannot be
            parsed.
    """
    format = Path(path).suffix.lower().removeprefix(".")
    if format not in SUFFIXES:
        workbook = ", from an Excel workbook as CSV UTF-8" if format in ("xlsx", "xls", "ods") else ""
        raise DataError(
            f"{path}: cannot tell the format from the suffix {Path(path).suffix!r}; "
            "save it as .jsonl (one JSON object a line), .json (a list of objects), .csv, "
            f".tsv or .parquet{workbook}, or name a hub dataset as '{HUB_PREFIX}owner/name:split'"
        )
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    if format == "parquet":
        return parquet_rows(path)
    rows = parsed(decoded(content, name=str(path)), name=str(path), format=format)
    return rows if keep_bad else _good(rows)


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
