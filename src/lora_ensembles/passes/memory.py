"""The number of rows in flight: as many as the device computes best, and fewer when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from ..distributed.lockstep import ran_out_of_memory

Result = TypeVar("Result")
_log = logging.getLogger(__name__)

SCORING_ROWS = 64
"""Rows of a member in flight in scoring where the caller sets no limit: small beside any base on a GPU."""
CPU_TOKENS = 2048
"""Token vectors that a pass on a CPU holds: enough for its matrix products, few enough for its caches."""
PASS_TOKENS = 128
"""Token vectors that take a CPU about as long as what each pass costs beside them."""


def rows_in_flight(rows: int, *, tokens_a_row: float, device: torch.device) -> int:
    """The number of `rows` rows of so many tokens that a pass should hold where the caller sets no limit; at
    least 1.

    All of them on an accelerator, which more rows only fill; on a CPU no more than its caches hold the
    activations of.

    Example:
        >>> [rows_in_flight(640, tokens_a_row=64, device=torch.device(name)) for name in ("cpu", "cuda")]
        [32, 640]
    """
    return rows if device.type != "cpu" else max(1, min(rows, int(CPU_TOKENS / tokens_a_row)))


def scoring_rows(
    members: int, *, tokens_a_row: float, device: torch.device, max_rows: int | None = None
) -> int:
    """The number of rows (members * texts) in flight in scoring: `max_rows`, or what suits the device; at
    least 1.
    """
    return max_rows or rows_in_flight(SCORING_ROWS * members, tokens_a_row=tokens_a_row, device=device)


def with_fewer_rows(run: Callable[[int], Result], rows: int) -> Result:
    """The result of `run` when given at most `rows` rows to have in flight; half as many, and again, each
    time that memory runs out.

    Each halving is said once, as a warning of the logger "lora_ensembles.passes.memory". A failure at a
    single row is the caller's to explain.

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
        _log.warning(
            "memory ran out with %d rows in flight; going on with %d at a time, with the same result",
            rows,
            rows // 2,
        )
        rows //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
