"""Progress of something that takes time: a bar on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import os
import sys
import time

LINES = 10  # off a terminal: a line for each tenth of the way,
SECONDS = 30.0  # or after so long without one
DELAY = 2.0  # seconds before a bar without an end appears


def on_terminal() -> bool:
    """Whether standard error is a terminal on which a line can be drawn again."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class Progress:
    """A count that grows to `total`, shown on standard error.

    Args:
        total: what the count grows to; None where nobody knows, and then nothing is shown of what is over
            soon.
        unit: what is counted.
        first: where it starts, of something that goes on after a break.
        show: whether to show anything.
    """

    def __init__(self, *, total: int | None, unit: str, first: int = 0, show: bool = True):
        self.total = total
        self._unit, self._done, self._show = unit, first, show
        self._notes: dict[str, str] = {}
        self._begin, self._first = time.monotonic(), first
        self._shown, self._shown_at = first, self._begin
        self._bar = None
        if show and on_terminal():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=first, unit=unit, delay=0.0 if total is not None else DELAY)

    def update(self, count: int = 1) -> None:
        """Count `count` more; at `total` the progress is closed."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._show and self._is_due():
            self._shown, self._shown_at = self._done, time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)
        if self.total is not None and self._done >= self.total:
            self.close()

    def note(self, notes: dict[str, str]) -> None:
        """Show these values from now on."""
        self._notes = notes
        if self._bar is not None:
            self._bar.set_postfix(notes)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def _is_due(self) -> bool:
        reached = self.total is not None and (
            self._done >= self.total or (self._done - self._shown) * LINES >= self.total
        )
        return reached or time.monotonic() - self._shown_at >= SECONDS

    def _line(self) -> str:
        took = time.monotonic() - self._begin
        if self.total is None:
            return f"{self._done} {self._unit}s, {_clock(took)} so far"
        left = took / max(1, self._done - self._first) * (self.total - self._done)
        notes = "".join(f", {name} {value}" for name, value in self._notes.items())
        return (
            f"{self._done} of {self.total} {self._unit}s{notes}, {_clock(took)} so far, {_clock(left)} left"
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
