"""A small checker of JSON: what each value has to be, said as data, and where in the file one is something
else.

A check takes a value and the name of its place, and raises `Mismatch` where the value is not what it says.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, unknown_name
from .atomic import check_readable

Check = Callable[[Any, str], None]
LARGEST = 2**63 - 1  # of a whole number that torch and numpy can hold
SHOWN = 60  # characters of a wrong value in a message


class Mismatch(ValueError):
    """A value that is not what its place needs."""


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        CheckpointError: it cannot be read, or is no JSON.
    """
    check_readable(path)
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); it is corrupt or cut short") from error


def check(content: Any, schema: Check, *, file: Path, advice: str) -> None:
    """Hold a file's content to its schema.

    Raises:
        CheckpointError: a value that is not what its place needs, with the file, the place and the advice.
    """
    try:
        schema(content, "")
    except Mismatch as error:
        raise CheckpointError(f"{file}: {error}; {advice}") from error


def anything(value: Any, place: str) -> None:
    """Any value that JSON can hold."""


def text(value: Any, place: str) -> None:
    """A text of whole characters."""
    if not isinstance(value, str) or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise _mismatch(value, place, "a text")


def truth(value: Any, place: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise _mismatch(value, place, "true or false")


def whole(low: int = 0, high: int = LARGEST) -> Check:
    """A whole number within bounds."""

    def checked(value: Any, place: str) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise _mismatch(value, place, f"a whole number from {low} to {high}")

    return checked


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    """A finite number within bounds."""

    def checked(value: Any, place: str) -> None:
        usable = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
        if not usable or not low <= value <= high:
            bounds = "" if math.isinf(low) and math.isinf(high) else f" from {low:g} to {high:g}"
            raise _mismatch(value, place, f"a number{bounds}")

    return checked


def one_of(known: Collection[str]) -> Check:
    """One of a few texts."""

    def checked(value: Any, place: str) -> None:
        if not isinstance(value, str) or value not in known:
            raise _mismatch(value, place, f"one of {', '.join(map(repr, known))}")

    return checked


def exactly(needed: object) -> Check:
    """One value and no other."""

    def checked(value: Any, place: str) -> None:
        if type(value) is not type(needed) or value != needed:
            raise _mismatch(value, place, repr(needed))

    return checked


def pattern(value: Any, place: str) -> None:
    """A regular expression."""
    text(value, place)
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise Mismatch(f"{place} is {_short(value)}, which is no regular expression: {error}") from error


def nullable(inner: Check) -> Check:
    """A value, or null."""

    def checked(value: Any, place: str) -> None:
        if value is not None:
            inner(value, place)

    return checked


def either(*inner: Check) -> Check:
    """A value that one of the checks takes; the message is that of the last."""

    def checked(value: Any, place: str) -> None:
        for inner_check in inner[:-1]:
            try:
                return inner_check(value, place)
            except Mismatch:
                continue
        return inner[-1](value, place)

    return checked


def list_of(inner: Check, *, at_least: int = 0) -> Check:
    """A list of values of one kind."""

    def checked(value: Any, place: str) -> None:
        if not isinstance(value, list) or len(value) < at_least:
            raise _mismatch(value, place, f"a list of at least {at_least}" if at_least else "a list")
        for index, item in enumerate(value):
            inner(item, f"{place}[{index}]")

    return checked


def object_of(inner: Check, *, names: Check = text) -> Check:
    """An object whose values are of one kind, under names of one kind."""

    def checked(value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise _mismatch(value, place, "an object")
        for name, item in value.items():
            names(name, f"a name in {place}")
            inner(item, f"{place}.{name}" if place else name)

    return checked


def record(
    needed: Mapping[str, Check], optional: Mapping[str, Check] | None = None, *, others: bool = False
) -> Check:
    """An object with named fields; `others` says whether it may have fields that are not named here."""
    named = {**needed, **(optional or {})}

    def checked(value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise _mismatch(value, place, "an object")
        prefix = f"{place}." if place else ""
        missing = [name for name in needed if name not in value]
        if missing:
            raise Mismatch(f"{prefix}{missing[0]} is missing")
        unknown = [name for name in value if name not in named]
        if unknown and not others:
            raise Mismatch(unknown_name("field", f"{prefix}{unknown[0]}", [prefix + name for name in named]))
        for name, field_check in named.items():
            if name in value:
                field_check(value[name], prefix + name)

    return checked


def _mismatch(value: Any, place: str, needed: str) -> Mismatch:
    return Mismatch(f"{place or 'the file'} is {_short(value)}; it has to be {needed}")


def _short(value: Any) -> str:
    # ascii: half a character cannot be written to a terminal, and a whole number of many digits is no text at
    # all.
    try:
        shown = ascii(value)
    except ValueError:
        return "a number of thousands of digits"
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
