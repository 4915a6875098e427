"""Outputs of the layers below the adapters, kept for rows that are read again: in the epochs of a training,
or by several models that are asked the same.

Shapes: W rows that are read (prompts, or texts), T tokens of the longest, B rows of a pass, H hidden size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor

from .decoder import Trunk

TRUNK_CACHE_BYTES = 2 * 2**30
"""Most memory for these states; where they take more, the trunk runs in each step."""
ROWS_AT_ONCE = 64
"""Most rows that a trunk reads in a pass: they are sorted by length, so few of them pad each other little."""


@dataclass(frozen=True)
class TrunkStates:
    """The hidden states (W, T, H) that enter the first adapted layer, in the base's dtype: the trunk is
    frozen, so they never change.
    """

    trunk: Trunk
    kept: Tensor

    @classmethod
    def of(
        cls, trunk: Trunk | None, lengths: Tensor, *, rows: int, read: Callable[[Tensor], object]
    ) -> TrunkStates | None:
        """The states of rows of so many tokens (W,), at most `rows` at a time; `read` is a pass of the base
        over the rows of numbers (B,).

        None where there is no trunk, since the lowest layer is adapted, or where memory is not meant to hold
        its states.
        """
        if trunk is None:
            return None
        by_length, longest = lengths.argsort(), int(lengths.max())
        kept: Tensor | None = None
        parts = by_length[1:].split(min(rows, ROWS_AT_ONCE)) if len(by_length) > 1 else ()
        for numbers in (by_length[:1], *parts):  # one row first: it tells how large a state is
            states = trunk.states(lambda numbers=numbers: read(numbers))  # type: ignore[misc]
            if kept is None:
                if len(lengths) * longest * states[0, 0].numel() * states.element_size() > TRUNK_CACHE_BYTES:
                    return None
                kept = states.new_zeros(len(lengths), longest, *states.shape[2:])
            kept[numbers.to(kept.device), : states.shape[1]] = states
        assert kept is not None
        return cls(trunk, kept)

    def in_place_of_trunk(self, numbers: Tensor, length: int) -> AbstractContextManager[None]:
        """Context in which a pass over the rows of numbers (B,), cut to `length` tokens, takes
        their states.
        """
        return self.trunk.skipped(self.of_rows(numbers, length))

    def of_rows(self, numbers: Tensor, length: int) -> Tensor:
        """The states (B, `length`, H) of the rows of numbers (B,)."""
        return self.kept[numbers.to(self.kept.device, non_blocking=True), :length]


KeptStates = dict[str, TrunkStates | None]


def states_of_pass(
    trunk: Trunk, kept: KeptStates | None, inputs: Sequence[Tensor], run: Callable[[], object]
) -> Tensor:
    """The trunk's states (B, T, H) of the pass that `run` begins; `inputs` are all that it reads.

    They come from what is kept, where it has them, and are kept there while all of it takes less memory than
    `TRUNK_CACHE_BYTES`.
    """
    if kept is None:
        return trunk.states(run)
    digest = hashlib.sha256()
    for values in inputs:
        digest.update(f"{tuple(values.shape)}".encode() + values.cpu().numpy().tobytes())
    key = f"{len(trunk.layers)} layers, pass {digest.hexdigest()[:16]}"
    found = kept.get(key)
    if found is None:
        found = TrunkStates(trunk, trunk.states(run))
        held = sum(one.kept.nbytes for one in kept.values() if one is not None)
        if held + found.kept.nbytes <= TRUNK_CACHE_BYTES:
            kept[key] = found
    return found.kept
