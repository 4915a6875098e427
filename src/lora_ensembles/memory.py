"""Work that is done in smaller parts when memory runs out, instead of stopping."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")
_log = logging.getLogger(__name__)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or the computer, has no memory left."""
    said = any(words in str(error) for words in ("allocate memory", "bad_alloc"))
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and said)


def with_fewer_rows(run: Callable[[int], Result], rows: int) -> Result:
    """What `run` returns when given at most `rows` rows to have in flight; half as many, and again, each time that memory runs out.

    Each halving is said once, as a warning of the logger "lora_ensembles.memory". A failure at a single row is the caller's to explain.

    Example:
        >>> def run(rows):
        ...     if rows > 10:
        ...         raise MemoryError
        ...     return rows
        >>> with_fewer_rows(run, 64)
        8
    """
    while True:
        try:
            return run(rows)
        except (MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error) or rows <= 1:
                raise
        # Out of the handler, whose error holds all frames and their tensors.
        _log.warning("memory ran out with %d rows in flight; going on with %d at a time, with the same result", rows, rows // 2)
        rows //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
