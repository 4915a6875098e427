"""An output whose rows are written as they come: to a partial file that takes the output's name once it is
whole and that a stopped run goes on from, or straight to standard output.

answers.jsonl.partial       the rows so far
answers.jsonl.partial.json  what decides them: input, ensemble, flags
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TextIO

from ...data.formats import csv_records
from ...data.sources import HUB_PREFIX
from ...disk.atomic import bytes_written_aside, cannot_write, is_missing, status
from ...disk.claimed import locked
from ...disk.layout import is_own
from ...disk.schema import read_json
from ...errors import CheckpointError, ConfigError, DataError, LoraEnsemblesError
from ...storage.hub import ensemble_folder
from ...training.signals import Interrupted
from ..common import Arguments, flags_of
from .outputs import is_standard_output, open_output
from .parts import ROWS

# Flags that change no row, or whose value is compared in another way; rows that were written before a bad one
# are the same with --skip-bad-rows.
NOT_COMPARED = (
    "base", "ensemble", "format", "json", "no_progress", "on", "out", "overwrite", "parser", "resume",
    "skip_bad_rows", "source", "verb", "workers",
)  # fmt: skip
NEW = "start anew by --overwrite, or choose another --out"


@dataclass(frozen=True)
class Begun:
    """The rows that an output has already, how many of them are errors, its bytes,
    and the columns of a csv.
    """

    rows: int = 0
    bad: int = 0
    size: int = 0
    columns: Sequence[str] | None = None


class Output(Protocol):
    """An output that takes rows as text."""

    begun: Begun

    def write(self, text: str, *, rows: int) -> None:
        """Write the next text, now; `rows` are in it."""
        ...


@contextmanager
def rows_output(args: Arguments, *, format: str, total: int | None) -> Iterator[Output]:
    """The output that a call asks for; `total` rows are to be written, None where nobody knows.

    Raises:
        CheckpointError: as `check_partial`; a stopped run of another input, ensemble or other flags; or the
            output cannot be written.
    """
    if not is_resumable(args.out):
        with open_output(args.out, overwrite=args.overwrite) as stream:
            yield _Stream(stream)
        return
    check_partial(args)
    partial = _Partial(args, format=format, total=total)
    with partial.guarded(again=total is not None):
        yield partial
    partial.finish()


def is_resumable(out: str) -> bool:
    """Whether rows go to a file that takes its name at the end:
    not to standard output, a device or a pipe.
    """
    if is_standard_output(out):
        return False
    there = status(Path(out))
    return there is None or stat.S_ISREG(there.st_mode)


def check_partial(args: Arguments) -> None:
    """Refuse an output of which a stopped run has left a part, unless a flag says what to do with it.

    Raises:
        CheckpointError: it has, or another process is writing it.
        ConfigError: --resume where nothing can go on, or beside --overwrite.
    """
    if args.resume and args.overwrite:
        raise ConfigError("--resume goes on with a stopped run, --overwrite starts anew; give one")
    if not is_resumable(args.out):
        if args.resume:
            raise ConfigError("--resume goes on with a file; name the one that was begun by --out FILE")
        return
    _, partial, _ = _names(args.out)
    if is_missing(partial):
        if args.resume and status(Path(args.out)) is not None:
            raise CheckpointError(f"{args.out} exists already, and no run that was stopped; {NEW}")
        return
    with _locked_file(partial):
        if _holds_rows(partial) and not args.resume and not args.overwrite:
            raise CheckpointError(
                f"{partial} holds the rows of a run that was stopped; go on with it by --resume, or {NEW}"
            )


def _names(out: str) -> tuple[Path, Path, Path]:
    """Of an output: the file itself, that of the rows so far, and that of what decides them."""
    target = Path(os.path.realpath(out))  # a link stays, and what it points to is replaced
    partial = target.with_name(f"{target.name}.partial")
    return target, partial, partial.with_name(f"{partial.name}.json")


def _holds_rows(path: Path) -> bool:
    there = status(path)
    return there is not None and there.st_size > 0


@contextmanager
def _locked_file(path: Path, *, make: bool = False) -> Iterator[BinaryIO]:
    try:
        handle = os.open(path, os.O_RDWR | (os.O_CREAT if make else 0) | getattr(os, "O_BINARY", 0), 0o644)
    except OSError as error:
        raise cannot_write(path, error) from error
    file = os.fdopen(handle, "r+b")
    try:
        if not locked(handle):
            raise CheckpointError(
                f"another process is writing {path}; wait for it or stop it, or choose another --out"
            )
        yield file
    finally:
        with suppress(OSError):  # what could not be written fails again
            file.close()


class _Stream:
    """Standard output, a device or a pipe, which shows rows at once."""

    begun = Begun()

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str, *, rows: int) -> None:
        self._stream.write(text)
        self._stream.flush()


class _Partial:
    """The partial file of an output, from its first row or where a stopped run left it."""

    def __init__(self, args: Arguments, *, format: str, total: int | None):
        self._target, self._path, self._header = _names(args.out)
        self._out = Path(args.out)
        self._stack = contextlib.ExitStack()
        settings = _settings(args, format=format, total=total)
        resumed = args.resume and _holds_rows(self._path)
        if resumed:
            self._check(settings, args)
        else:  # first, so that no partial file is ever without it
            self._replaces = settings["replaces"] = args.overwrite
            bytes_written_aside(self._header, (json.dumps(settings, indent=2) + "\n").encode())
        self._file = self._stack.enter_context(_locked_file(self._path, make=True))
        self.begun = _begun(self._file, format=format, total=total or 0) if resumed else Begun()
        self._rows = self.begun.rows
        self._file.truncate(self.begun.size)
        self._file.seek(self.begun.size)

    def _check(self, settings: Mapping[str, Any], args: Arguments) -> None:
        """Refuse to go on with what was begun in another way."""
        try:
            before = read_json(self._header)
        except CheckpointError as error:
            raise CheckpointError(f"{self._path} cannot go on ({error}); {NEW}") from error
        before = before if isinstance(before, dict) else {}
        flags = {action.dest: name for name, action in flags_of(args.parser).items()}
        old, new = ({**part.get("flags", {})} for part in (before, settings))
        changes = [
            f"by lora-ensembles {before.get('version')}, and this is {settings['version']}"
            if before.get("version") != settings["version"]
            else "",
            "by another ensemble" if before.get("ensemble") != settings["ensemble"] else "",
            f"of another input than {args.source}" if before.get("input") != settings["input"] else "",
            *(
                f"with {flags.get(name, name)} {_shown(old.get(name))}, which is {_shown(new.get(name))} now"
                for name in sorted(old.keys() | new.keys())
                if old.get(name) != new.get(name)
            ),
        ]
        change = next(filter(None, changes), None)
        if change is not None:
            raise CheckpointError(f"{self._path} was begun {change}, so it cannot go on; {NEW}")
        self._replaces = bool(before.get("replaces"))
        if status(self._target) is not None and not self._replaces:
            raise CheckpointError(
                f"{args.out} exists already, and the run that was stopped was not told to replace it; "
                f"move it away, or {NEW}"
            )

    def write(self, text: str, *, rows: int) -> None:
        try:
            self._file.write(text.encode())
            self._file.flush()
        except OSError as error:
            raise cannot_write(self._out, error) from error
        self._rows += rows

    @contextmanager
    def guarded(self, *, again: bool) -> Iterator[None]:
        """Context in which rows come; an error says how they go on, and no rows leave no file. `again`: the
        input can be read again.
        """
        try:
            yield
        except BaseException as error:
            self._stack.close()
            if not self._rows:
                self._path.unlink(missing_ok=True)
                self._header.unlink(missing_ok=True)
            elif isinstance(error, LoraEnsemblesError | Interrupted):
                way = "go on by --resume, or start" if again else "a pipe cannot be read again, so start"
                error.args = (
                    f"{error}. {self._rows} rows are kept in {self._path}: {way} anew by --overwrite",
                    *error.args[1:],
                )
            raise

    def finish(self) -> None:
        """Give the rows the name of the output."""
        try:
            os.fsync(self._file.fileno())  # a name that outlives its rows would be half a file
            self._stack.close()
            there = status(self._target)
            if there is not None and not self._replaces:
                raise CheckpointError(
                    f"{self._out} was made by another program in the meantime; the rows are in {self._path}: "
                    "move the other away, and finish by --resume"
                )
            if there is not None:
                os.chmod(self._path, stat.S_IMODE(there.st_mode))
            os.replace(self._path, self._target)
            self._header.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self._out, error) from error


def _shown(value: object) -> str:
    return "not given" if value is None or value is False else "given" if value is True else json.dumps(value)


def _settings(args: Arguments, *, format: str, total: int | None) -> dict[str, Any]:
    """Everything that decides the rows of an output, of JSON's types."""
    folder = ensemble_folder(args.ensemble)
    own = [*folder.glob("*.json"), *folder.glob("*.safetensors"), *folder.glob("member_*/*")]
    names = sorted(path.relative_to(folder).as_posix() for path in own)
    flags = {name: value for name, value in vars(args).items() if name not in NOT_COMPARED}
    return {
        "version": version("lora-ensembles"),
        "ensemble": _digest(*(folder / name for name in names if is_own(name))),
        "input": _input(args.source, total),
        "flags": json.loads(json.dumps(flags | {"format": format}, default=str)),
    }


def _input(source: str, total: int | None) -> dict[str, Any]:
    if total is None or source.startswith(HUB_PREFIX):
        return {"name": source, "rows": total}
    return {"name": Path(source).name, "rows": total, "sha256": _digest(Path(source))}


def _digest(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _begun(file: BinaryIO, *, format: str, total: int) -> Begun:
    """The whole parts that a file begins with: rows are predicted part by part, so a run that goes on at one
    computes what it would have computed.
    """
    begun, bad = Begun(), 0
    columns: list[str] = []
    ends = _ends_of_csv(file, columns) if format == "csv" else _ends_of_jsonl(file)
    for number, (end, row, error) in enumerate(ends):
        if row != number:
            break
        bad += error
        if (number + 1) % ROWS == 0 or number + 1 == total:
            begun = Begun(number + 1, bad, end, columns or None)
    return begun


def _ends_of_jsonl(file: BinaryIO) -> Iterator[tuple[int, object, bool]]:
    """The end of each whole row in bytes, its number, and whether it is an error."""
    end = 0
    for line in file:
        end += len(line)
        try:
            record = json.loads(line)
            found = record["row"], "error" in record
        except (ValueError, TypeError, KeyError, RecursionError):
            return
        if not line.endswith(b"\n"):
            return
        yield end, *found


def _ends_of_csv(file: BinaryIO, columns: list[str]) -> Iterator[tuple[int, object, bool]]:
    """As `_ends_of_jsonl`; `columns` takes those of the header."""
    end = 0

    def whole_lines() -> Iterator[str]:
        nonlocal end
        for line in file:
            if not line.endswith(b"\n"):
                return
            end += len(line)
            yield line.decode("utf-8")

    with suppress(DataError, UnicodeDecodeError, ValueError):  # a row that was cut, and all behind it
        for _, cells in csv_records(whole_lines(), name=file.name):
            if not columns:
                columns += cells
                continue
            row = dict(zip(columns, cells, strict=True))
            yield end, int(row["row"]), bool(row.get("error"))
