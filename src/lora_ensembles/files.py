"""Folders and files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from safetensors import SafetensorError

from .errors import CheckpointError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def written_aside(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its name once everything in it is written; on any error it is removed again.

    With `replace`, an existing `path` stays readable until the new one is complete.

    Raises:
        CheckpointError: `path` exists and `replace` is off, it cannot be written, or no space is left.
    """
    if path.exists() and not replace:
        raise CheckpointError(f"{path} exists already; choose another folder, or remove it first")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        os.chmod(aside, 0o755)
        yield aside
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            os.rename(path, old / path.name)
            os.rename(aside, path)
            shutil.rmtree(old)
        else:
            os.rename(aside, path)
    except (OSError, SafetensorError) as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def file_written_aside(path: Path, *, replace: bool = False) -> Iterator[TextIO]:
    """A UTF-8 text file that takes the name `path` once it is written; on any error it is removed again.

    Raises:
        CheckpointError: `path` exists and `replace` is off, it cannot be written, or no space is left.
    """
    if path.exists() and not replace:
        raise CheckpointError(f"{path} exists already; choose another file, or remove it first")
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "w", encoding="utf-8", newline="") as file:
            yield file
        os.replace(aside, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def added_to(folder: Path, *, last: str) -> Iterator[Path]:
    """A temporary folder whose entries move into `folder` once all are written, `last` as the last one: where it is, all are.

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


def recover(path: Path) -> None:
    """Clear away what runs that were killed inside `written_aside` left beside `path`.

    One killed between its two renames left the old folder complete but aside: that one gets its name back.
    """
    for left in sorted(path.parent.glob(f".{path.name}.*")):
        old = left / path.name
        if old.is_dir() and not path.exists():
            os.rename(old, path)
        shutil.rmtree(left, ignore_errors=True)


def cannot_write(path: Path, error: OSError | SafetensorError) -> CheckpointError:
    """The error of a write that failed: no space left, or another reason."""
    full = getattr(error, "errno", None) in NO_SPACE or any(
        f"os error {number}" in str(error) for number in NO_SPACE
    )
    if full:
        return CheckpointError(
            f"no space left to write {path} ({error}); what was there before is unchanged; free some space or choose another disk"
        )
    return CheckpointError(f"{path} cannot be written: {error}")
