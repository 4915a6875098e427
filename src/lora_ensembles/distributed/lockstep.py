"""Passes that all ranks make together: memory that runs out on one of them ends the work of all."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType

import torch

from ..errors import TrainingError
from .ranks import Ranks


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or the computer, has no memory left."""
    said = any(words in str(error) for words in ("allocate memory", "bad_alloc"))
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and said
    )


class Lockstep:
    """Context of a part of a pass that all ranks make, within another context.

    Where memory runs out in it, it says so in an error that nobody answers by fewer rows in flight: the other
    ranks would wait for parts of the pass that never come.

    Raises:
        TrainingError: memory ran out.
    """

    def __init__(self, ranks: Ranks, inner: AbstractContextManager[None]):
        self._ranks, self._inner = ranks, inner

    def __enter__(self) -> None:
        self._inner.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._inner.__exit__(kind, error, traceback)
        if error is not None and ran_out_of_memory(error):
            raise TrainingError(
                f"no memory left on rank {self._ranks.rank} of {self._ranks.size}; the ranks of a base that "
                "lies over several GPUs make the same passes, so one of them cannot go on with fewer rows: "
                "set max_rows (--max-rows), lower it, or spread the base over more GPUs"
            ) from error
