"""Workers of this machine's cluster that are killed while they compute."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def workers_killed(
    there: Callable[[], Iterable[int]], times: int, *, within: float = 2.0, seed: int = 0
) -> Iterator[list[int]]:
    """While processes are killed, so many, each at a random moment within so many seconds of being there;
    yields their ids.
    """
    killed: list[int] = []
    ended = threading.Event()
    moments = random.Random(seed)

    def kill() -> None:
        while len(killed) < times and not ended.wait(0.02):
            found = sorted(set(there()) - set(killed))
            if found and not ended.wait(moments.uniform(0.0, within)):
                chosen = moments.choice(found)
                with suppress(ProcessLookupError):  # it ended
                    os.kill(chosen, signal.SIGKILL)
                    killed.append(chosen)

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
