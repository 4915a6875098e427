"""TensorBoard's event files, written at once and in order: what cannot be written fails here, and not in a
thread of TensorBoard's own.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path


class Board:
    """An event file in a folder, to which scalars are added; needs the package tensorboard.

    Raises:
        OSError: the file cannot be made, or written.
    """

    def __init__(self, folder: Path):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(folder / name, "ab", buffering=0)  # noqa: SIM115 - as long as the run
        self._writer = RecordWriter(self._file)
        self._add(self._event(file_version="brain.Event:2"))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """A point of the curve with this name."""
        scalar = self._summary.Value(tag=name, simple_value=value)
        self._add(self._event(step=step, summary=self._summary(value=[scalar])))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _add(self, event: object) -> None:
        event.wall_time = time.time()  # type: ignore[attr-defined]
        self._writer.write(event.SerializeToString())  # type: ignore[attr-defined]
