"""Destinations of a verb's output: checked before anything slow happens, and never over what it was made
from.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ...disk.atomic import check_writable, file_written_aside, status
from ...disk.layout import is_own
from ...errors import CheckpointError, ConfigError
from ..common import Arguments

STANDARD = "-"


def check_output(
    args: Arguments, *, formats: Sequence[str], format: str | None = None, resume: bool = False
) -> str:
    """Refuse an --out that could not be written, or that is a part of what is read; returns the format, by
    its suffix. One that exists may be there where a run goes on (`resume`) that was told to replace it.

    Raises:
        ConfigError: a suffix that stands for no format, or the file that is read.
        CheckpointError: it exists and --overwrite was not given, or it cannot be written.
    """
    if is_standard_output(args.out):
        return format or formats[0]
    path = Path(args.out)
    there = status(path)
    if there is not None and stat.S_ISDIR(there.st_mode):
        raise CheckpointError(f"{path} is a folder; give the name of a file")
    _refuse_inputs(path, there, source=args.source, ensemble=args.ensemble)
    if there is not None and not stat.S_ISREG(there.st_mode):  # a device or a pipe, whose name says nothing
        return format or formats[0]
    suffix = path.suffix.lower().removeprefix(".")
    if format is None and suffix and suffix not in formats:
        suffixes = " or ".join(f".{name}" for name in formats)
        raise ConfigError(f"--out {path}: no format has the suffix {path.suffix!r}; name it {suffixes}")
    if there is not None and not args.overwrite and not resume:
        raise CheckpointError(f"{path} exists already; choose another name, or replace it by --overwrite")
    check_writable(path)
    return format or suffix or formats[0]


def _refuse_inputs(path: Path, there: os.stat_result | None, *, source: str | None, ensemble: Path) -> None:
    if there is None or not stat.S_ISREG(there.st_mode):
        return
    read = None
    with contextlib.suppress(OSError, ValueError):
        read = os.fstat(0) if source == STANDARD else None if source is None else os.stat(source)
    if read is not None and os.path.samestat(there, read):
        raise ConfigError(f"--out {path} is the file that is read ({source}); give the output another name")
    inside = os.path.relpath(os.path.realpath(path), os.path.realpath(ensemble))
    if is_own(Path(inside).as_posix()):
        raise ConfigError(f"--out {path} is a part of the ensemble {ensemble}; give the output another name")


@contextmanager
def open_output(name: str, *, overwrite: bool) -> Iterator[TextIO]:
    """A file to write, whole or not at all, or standard output for "-" and its other names."""
    if is_standard_output(name):
        yield sys.stdout
        return
    with file_written_aside(Path(name), replace=overwrite) as file:
        yield file


def is_standard_output(name: str) -> bool:
    """Whether an output is standard output: "-", or a device or file that it is connected to."""
    if name == STANDARD:
        return True
    with contextlib.suppress(OSError, ValueError):  # nothing there yet, or no standard output with a number
        return os.path.samestat(os.stat(name), os.fstat(sys.stdout.fileno()))
    return False
