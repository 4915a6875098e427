"""The breadth of the suite: some known architectures in `make test`, each of them in `make test-all`."""

from __future__ import annotations

import os
from collections.abc import Iterable

EVERY = bool(os.environ.get("LORA_ENSEMBLES_EVERY"))


def tried(names: Iterable[str], some: Iterable[str]) -> tuple[str, ...]:
    """All the names in `make test-all`, else some of them."""
    names, some = tuple(names), tuple(some)
    assert set(some) <= set(names)
    return names if EVERY else some
