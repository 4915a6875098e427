"""The standard streams in whatever state a program is given them: closed, full, or with a reader who has
gone.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from typing import TextIO

from ...disk.atomic import NO_SPACE
from ...errors import ConfigError


def open_streams() -> None:
    """Make the streams fit to be used: nothing that is opened later may take the number of a closed one.

    Raises:
        ConfigError: standard output is closed.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long as the program runs
    if sys.stdout is None:
        raise ConfigError("standard output is closed; send it to a file, or to /dev/null")
    if isinstance(sys.stdout, io.TextIOWrapper):  # what a terminal cannot show is written as its escape
        sys.stdout.reconfigure(errors="backslashreplace")


def report_failure(message: str, *, label: str, as_json: bool) -> None:
    """One line on standard error and, for programs, a JSON object with the key "error" on standard output."""
    text = " ".join(message.split())
    try:
        print(f"lora-ensembles: {label}{text}", file=sys.stderr, flush=True)
    except OSError:
        send_nowhere(sys.stderr)
    if sys.stdout is None:
        return
    try:
        if as_json:
            print(json.dumps({"error": text}))
        sys.stdout.flush()
    except OSError:
        send_nowhere(sys.stdout)


def system_error(error: OSError) -> str:
    """The message of a system call that failed: of which file, or that it is standard output which cannot be
    written.
    """
    try:
        sys.stdout.flush()
    except OSError as failed:
        send_nowhere(sys.stdout)
        return f"standard output cannot be written: {failed.strerror or failed}"
    if error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    # An unbuffered stream has failed already, and does not fail again.
    return f"standard output cannot be written: {error.strerror}" if error.errno in NO_SPACE else str(error)


def send_nowhere(stream: TextIO) -> None:
    """Let the rest of a stream go nowhere: what is buffered would fail again when Python exits."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a number has nothing to send
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
