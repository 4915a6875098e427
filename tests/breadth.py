"""The breadth of the suite: some known architectures in `make test`; each of them, and what takes long, in
`make test-all`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeVar

import pytest

One, Two = TypeVar("One"), TypeVar("Two")
EVERY = bool(os.environ.get("LORA_ENSEMBLES_EVERY"))
LONG = pytest.mark.skipif(not EVERY, reason="takes long: for `make test-all`")


def tried(names: Iterable[str], some: Iterable[str]) -> tuple[str, ...]:
    """All the names in `make test-all`, else some of them."""
    names, some = tuple(names), tuple(some)
    assert set(some) <= set(names)
    return names if EVERY else some


def crossed(first: Iterable[One], second: Iterable[Two], *, usual: Two) -> list[tuple[One, Two]]:
    """Every pair of one and another in `make test-all`, else the very first with each of the second ones, and
    the others with the usual one.
    """
    first, second = tuple(first), tuple(second)
    assert usual in second
    return [(one, two) for one in first for two in second if EVERY or one == first[0] or two == usual]
