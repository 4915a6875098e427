"""Workers of this machine's cluster that are killed while they compute."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def workers_killed(
    name: str, times: int, *, seed: int = 0, ready: Callable[[], bool] = lambda: True
) -> Iterator[list[int]]:
    """While processes of a name that this one's cluster started are killed, so many, at random moments once
    it is `ready`; yields their ids.
    """
    killed: list[int] = []
    ended = threading.Event()
    moments = random.Random(seed)

    def kill() -> None:
        while len(killed) < times and not ended.wait(moments.uniform(0.2, 2.0)):
            there = [number for number in processes_named(name) if number not in killed]
            if there and ready():
                with suppress(ProcessLookupError):  # it ended
                    os.kill(there[0], signal.SIGKILL)
                    killed.append(there[0])

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()


def processes_named(name: str) -> list[int]:
    """The ids of the processes whose title begins so, of those that this one started, and that these started
    in turn: other clusters of this machine are left alone.
    """
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                titles[int(entry.name)] = (entry / "cmdline").read_bytes()
                status = (entry / "stat").read_text()
            except OSError:  # it ended
                continue
            parents[int(entry.name)] = int(status.rpartition(")")[2].split()[1])

    def is_own(number: int) -> bool:
        while number in parents and number != os.getpid():
            number = parents[number]
        return number == os.getpid()

    return [number for number, title in titles.items() if title.startswith(name.encode()) and is_own(number)]
