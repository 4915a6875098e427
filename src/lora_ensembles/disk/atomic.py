"""Folders and files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from safetensors import SafetensorError

from ..errors import CheckpointError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NAME_KEPT = 40  # characters of a name that temporary names beside it begin with


def status(path: Path) -> os.stat_result | None:
    """The status of `path`, links followed; None where nothing is.

    Raises:
        CheckpointError: nothing can ever be there: a name that is too long, a circle of links, a folder that
            may not be searched.
    """
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # ValueError: a zero byte, or half a character
        raise cannot_write(path, error) from error


def is_missing(path: Path) -> bool:
    """Whether nothing has this name; False where that cannot be found out, or where a link is that leads
    nowhere.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def check_readable(path: Path) -> None:
    """Make sure that a path is a file and can be read: some libraries call a file missing that they may not
    open.

    Raises:
        CheckpointError: it cannot, with the system's reason.
    """
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)  # a pipe would wait for a writer
        if regular:
            with open(path, "rb"):
                return
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    raise CheckpointError(f"{path} cannot be read: it is no file")


def check_writable(path: Path) -> None:
    """Make sure that a file or folder can be made at `path`, by making one beside it and removing it; no
    folder is made for it.

    What is there already stays as it is. A full disk is not always seen.

    Raises:
        CheckpointError: a read-only or protected place, a file where a folder is needed, or a name that is
            too long.
    """
    status(path)
    path = Path(os.path.realpath(path))
    place = path.parent
    while status(place) is None and place != place.parent:
        place = place.parent
    try:
        for name in path.relative_to(place).parts:
            with suppress(FileNotFoundError):
                os.lstat(place / name)  # says whether a name is too long for this disk
        handle, probe = tempfile.mkstemp(prefix=".probe.", dir=place)
        os.close(handle)
        os.unlink(probe)
    except OSError as error:
        raise cannot_write(path, error) from error


@contextmanager
def written_aside(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its name once everything in it is written; on any error it
    is removed again.

    With `replace`, an existing `path` stays readable until the new one is complete.

    Raises:
        CheckpointError: `path` exists and `replace` is off, it cannot be written, or no space is left.
    """
    if status(path) is not None and not replace:
        raise CheckpointError(f"{path} exists already; choose another folder, or remove it first")
    target = Path(os.path.realpath(path))  # a link stays, and what it points to is replaced
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        os.chmod(aside, 0o755)
        yield aside
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f"{_prefix(target)}old.", dir=target.parent))
            os.rename(target, old / target.name)
            os.rename(aside, target)
            shutil.rmtree(old)
        else:
            os.rename(aside, target)
    except (OSError, SafetensorError) as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def file_written_aside(path: Path, *, replace: bool = False) -> Iterator[TextIO]:
    """A UTF-8 text file that takes the name `path` once it is written; on any error it is removed again.

    A link stays, and what it points to is replaced; an old file's permissions stay. A device or a pipe is
    written as it is.

    Raises:
        CheckpointError: `path` exists and `replace` is off, is a folder, cannot be written, or no space is
            left.
    """
    there = status(path)
    if there is not None and stat.S_ISDIR(there.st_mode):
        raise CheckpointError(f"{path} is a folder; give the name of a file")
    if there is not None and not stat.S_ISREG(there.st_mode):
        with _written_in_place(path) as file:
            yield file
        return
    if there is not None and not replace:
        raise CheckpointError(f"{path} exists already; choose another file, or remove it first")
    target = Path(os.path.realpath(path))
    aside = target.with_name(f"{_prefix(target)}{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "x", encoding="utf-8", newline="") as file:
            yield file
        if there is not None:
            os.chmod(aside, stat.S_IMODE(there.st_mode))
        os.replace(aside, target)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):  # there may be none; a disk that cannot be written was named above
            aside.unlink()


def bytes_written_aside(path: Path, content: bytes) -> None:
    """Write a file that takes its name once it is whole, in the place of an old one.

    Raises:
        CheckpointError: it cannot be written, or no space is left.
    """
    aside = path.with_name(f"{_prefix(path)}{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content)
        os.replace(aside, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            aside.unlink()


@contextmanager
def _written_in_place(path: Path) -> Iterator[TextIO]:
    try:
        with open(path, "w", encoding="utf-8", newline="") as file:
            yield file
    except BrokenPipeError:  # the reader has gone, which is no failure of the disk
        raise
    except OSError as error:
        raise cannot_write(path, error) from error


@contextmanager
def added_to(folder: Path, *, last: str) -> Iterator[Path]:
    """A temporary folder whose entries move into `folder` once all are written, `last` as the last one: where
    it is, all are.

    Raises:
        CheckpointError: `folder` cannot be written, or no space is left.
    """
    aside = folder / ".unfinished"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        yield aside
        for path in sorted(aside.iterdir(), key=lambda path: path.name == last):
            target = folder / path.name
            if target.is_dir():  # left by a run that was killed right here
                shutil.rmtree(target)
            os.replace(path, target)
    except (OSError, SafetensorError) as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _prefix(path: Path) -> str:
    """The beginning of temporary names beside a path: short enough for a name of 255 bytes to have one."""
    return f".{path.name[:NAME_KEPT]}."


def recover(path: Path) -> None:
    """Clear away what runs that were killed inside `written_aside` left beside `path`.

    One killed between its two renames left the old folder complete but aside: that one gets its name back.
    """
    for left in sorted(path.parent.glob(f".{path.name}.*")):
        old = left / path.name
        if old.is_dir() and not path.exists():
            os.rename(old, path)
        shutil.rmtree(left, ignore_errors=True)


def cannot_write(path: Path, error: OSError | SafetensorError | ValueError) -> CheckpointError:
    """The error of a write that failed: no space left, or another reason."""
    full = getattr(error, "errno", None) in NO_SPACE or any(
        f"os error {number}" in str(error) for number in NO_SPACE
    )
    if full:
        return CheckpointError(
            f"no space left to write {path} ({error}); what was there before is unchanged; "
            "free some space or choose another disk"
        )
    reason = getattr(error, "strerror", None) or error
    return CheckpointError(f"{path} cannot be written: {reason}; choose another place")
