"""A folder that one process trains into: whether it may, and a lock that no other process passes while this
one lives.

The lock is the operating system's, on a file in the folder: it ends with the process, also when that is
killed.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

from ..errors import CheckpointError
from .atomic import cannot_write, status
from .layout import ENSEMBLE_FILE, LOCK_FILE, RUN_FOLDER, WORKERS_FOLDER, foreign_files

NAMED = 3  # foreign files in a message
LOOK = 1.0  # seconds between two looks at a lock


def check_free(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder to train into that another process has, or that holds what must not be touched; nothing
    is changed.

    Raises:
        CheckpointError: `out` is a file; a run is going on in it; it holds something, and neither `resume`
            nor `overwrite` is on; or with `overwrite`, something that no run or ensemble of ours has left.
    """
    if status(out) is None:
        return
    if not out.is_dir():
        raise CheckpointError(f"{out} is a file; choose a folder")
    try:
        entries = {entry.name for entry in out.iterdir()} - {LOCK_FILE}
    except OSError as error:
        raise CheckpointError(f"{out} cannot be read: {error.strerror}") from error
    if (out / LOCK_FILE).exists():
        FolderLock(out).release()
    if not entries or resume:
        return
    if not overwrite:
        raise CheckpointError(
            f"{out} exists already; choose another folder, go on with the run in it by resume=True, "
            "or replace it by overwrite=True"
        )
    foreign = foreign_files(out)
    if foreign or not entries & {ENSEMBLE_FILE, RUN_FOLDER, WORKERS_FOLDER}:
        named = ", ".join(foreign[:NAMED]) + (", ..." if len(foreign) > NAMED else "")
        raise CheckpointError(
            f"{out} holds {named or 'no run and no ensemble'}, so it is not overwritten; "
            "choose another folder, or move that away"
        )


def clear(out: Path) -> None:
    """Remove everything but the lock from a folder that `check_free` lets overwrite."""
    try:
        for entry in out.iterdir():
            if entry.name == LOCK_FILE:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    except OSError as error:
        raise cannot_write(out, error) from error


class Claim:
    """A folder that this process alone trains into, made where it is not there, until `release`.

    Args:
        out: the folder.
        resume: go on with what it holds.
        overwrite: remove what it holds.

    Raises:
        CheckpointError: as `check_free`; or the folder cannot be made.
    """

    def __init__(self, out: Path, *, resume: bool, overwrite: bool):
        check_free(out, resume=resume, overwrite=overwrite)
        self._out, self._made = out, status(out) is None
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(out, error) from error
        self._lock = FolderLock(out)
        try:
            if not resume and any(entry.name != LOCK_FILE for entry in out.iterdir()):
                if not overwrite:  # another process was here since it was found free
                    raise CheckpointError(f"{out} exists already; choose another folder")
                clear(out)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let other processes in; a folder that was made for this one and holds nothing goes."""
        self._lock.release()
        if self._made:
            with suppress(OSError):
                self._out.rmdir()


def lock_waited_for(folder: Path, *, patience: float) -> FolderLock:
    """The lock of a folder, which is made; another process that has it is waited for so many seconds: where
    only its node is out of reach, a process that was given up may still run for a while.

    Raises:
        CheckpointError: it still has it then, or the folder cannot be written.
    """
    end = time.monotonic() + patience
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return FolderLock(folder)
        except OSError as error:
            raise cannot_write(folder, error) from error
        except CheckpointError:
            if time.monotonic() > end:
                raise
            time.sleep(LOOK)


class FolderLock:
    """The lock of a folder, taken when it is made and given back by `release`, or when the process ends.

    Raises:
        CheckpointError: another process has it, or the folder cannot be written.
    """

    def __init__(self, folder: Path):
        self._path = folder / LOCK_FILE
        self._handle = -1
        while self._handle < 0:
            self._handle = self._take()

    def _take(self) -> int:
        """The open file with the lock; -1 where who had it removed the file in between."""
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise cannot_write(self._path, error) from error
        if not locked(handle):
            owner = os.read(handle, 100).decode("ascii", errors="replace").strip()
            os.close(handle)
            raise CheckpointError(
                f"a run is going on in {self._path.parent} ({owner or 'another process'}); "
                "wait for it or stop it, or choose another folder"
            )
        with suppress(OSError):
            if os.path.samestat(os.fstat(handle), os.stat(self._path)):
                os.truncate(handle, 0)
                os.write(handle, f"process {os.getpid()}\n".encode())
                return handle
        os.close(handle)
        return -1

    def release(self) -> None:
        """Give the lock back, and leave no file of it."""
        if self._handle >= 0:
            with suppress(OSError):
                self._path.unlink()
            os.close(self._handle)
            self._handle = -1


def locked(handle: int) -> bool:
    """Whether the lock on an open file was free, and is this process's now, until it closes the file."""
    try:
        import fcntl
    except ImportError:  # Windows
        return _locked_on_windows(handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a disk without locks, as some networks have: better a run than none
        return True
    return True


def _locked_on_windows(handle: int) -> bool:
    import msvcrt

    try:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError:
        return False
    return True
