"""The training runs of a record that is being measured, on disk:
a study that is stopped goes on from them.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..disk.claimed import lock_waited_for
from ..errors import LoraEnsemblesError
from ..training.checkpoint import KEPT
from ..training.signals import Interrupted

_SECONDS = "seconds"


@dataclass
class UnderWay:
    """The folder of a record that is being measured, removed once it is.

    Example:
        >>> import tempfile
        >>> under_way = UnderWay(Path(tempfile.mkdtemp()) / "sweep-words")
        >>> (
        ...     under_way.run("none", 0) == under_way.run("none", 0),
        ...     under_way.run("none", 0) == under_way.run("KL", 0),
        ... )
        (True, False)
    """

    folder: Path
    _begin: float = field(default_factory=time.monotonic)

    def run(self, *settings: object) -> Path:
        """The folder of the run of these settings."""
        return self.folder / hashlib.sha256(repr(settings).encode()).hexdigest()[:12]

    @property
    def seconds(self) -> float:
        """Seconds of measuring so far, those before an interruption included; a process that was killed
        outright leaves none.
        """
        before = 0.0
        with suppress(OSError, ValueError):
            before = float((self.folder / _SECONDS).read_text())
        return before + time.monotonic() - self._begin

    @contextmanager
    def alone(self, *, patience: float) -> Iterator[None]:
        """Context in which no other process measures the record: one that does is waited for so many seconds.

        Raises:
            CheckpointError: it still does then, or the folder cannot be written.
        """
        lock = lock_waited_for(self.folder, patience=patience)
        try:
            yield
        finally:
            lock.release()
            for folder in (self.folder, self.folder.parent):
                with suppress(OSError):
                    folder.rmdir()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Context of the measuring: an interruption says how to go on, and is not forgotten in `seconds`."""
        try:
            yield
        except BaseException as error:
            if any(path.is_dir() for path in self.folder.glob("*")):
                (self.folder / _SECONDS).write_text(f"{self.seconds:.1f}\n")
                if isinstance(error, LoraEnsemblesError | Interrupted):
                    told = str(error).partition(KEPT)[0]
                    error.args = (f"{told}; the same command goes on from there", *error.args[1:])
            raise

    def remove(self) -> None:
        """Remove the runs, and the folder of all such where it is empty."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):
            self.folder.parent.rmdir()
