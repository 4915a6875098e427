"""Signals that end a program, as exceptions, or held back until what is under way is finished.

A handler that the caller has set stays; so does a signal that is ignored, as SIGHUP is under nohup.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDINGS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # Windows has no SIGHUP
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Interrupted(KeyboardInterrupt):
    """The program was told to end by a signal; `number` says by which.

    As with every `KeyboardInterrupt`, no `except Exception` catches it, and what is half-written is cleared
    away on its way up.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


def exit_code(error: KeyboardInterrupt) -> int:
    """The exit code that a shell gives a program which a signal ended: 128 and the signal's number.

    Example:
        >>> exit_code(KeyboardInterrupt()), exit_code(Interrupted("terminated", 15))
        (130, 143)
    """
    return 128 + int(getattr(error, "number", signal.SIGINT))


def word(number: int) -> str:
    """The word for what a signal did: "interrupted", "terminated" or "hung up"."""
    return WORDS.get(signal.Signals(number), "hung up")


def raise_interrupted(number: int, frame: FrameType | None) -> None:
    """The handler of `ending_raised`."""
    raise Interrupted(word(number), number)


@contextmanager
def ending_raised() -> Iterator[None]:
    """Context in which a signal that would end the process at once raises `Interrupted` instead, so that
    nothing half-written stays.
    """
    with _handled_by(raise_interrupted):
        yield


class HeldSignal:
    """The signal that came while signals were held; None as long as none did."""

    def __init__(self) -> None:
        self.number: int | None = None

    def take(self, number: int, frame: FrameType | None) -> None:
        """The handler: remembers the first signal; whoever sends a second does not want to wait."""
        if self.number is not None:
            raise Interrupted(word(number), number)
        self.number = number


@contextmanager
def signals_held() -> Iterator[HeldSignal]:
    """Context in which a signal that would end the program is kept for the caller, who ends at the next good
    moment; a second one ends at once.

    Outside the main thread, where Python takes no handlers, nothing is held.
    """
    held = HeldSignal()
    with _handled_by(held.take):
        yield held


@contextmanager
def _handled_by(handler: Any) -> Iterator[None]:
    before: dict[int, Any] = {}
    usual = (signal.SIG_DFL, signal.default_int_handler, raise_interrupted)
    try:
        if threading.current_thread() is threading.main_thread():
            for number in ENDINGS:
                if signal.getsignal(number) in usual:
                    before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
