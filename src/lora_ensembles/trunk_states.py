"""What the layers below the adapters make of each training row, kept over the epochs.

Shapes: N training rows, T tokens of the longest, M members, B rows of a member, H hidden size.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor

from .batches import Batch, TokenTable
from .decoder import Trunk
from .ensemble import LoraEnsemble
from .lora import fold_members

TRUNK_CACHE_BYTES = 2 * 2**30
"""Most memory for these states; where they take more, the trunk runs in each step."""


@dataclass(frozen=True)
class TrunkStates:
    """The hidden states (N, T, H) that enter the first adapted layer, in the base's dtype: the trunk is frozen, so they never change."""

    trunk: Trunk
    kept: Tensor

    @classmethod
    def of(cls, ensemble: LoraEnsemble, table: TokenTable, *, rows: int) -> TrunkStates | None:
        """Those of a table, read `rows` rows at a time; None where the lowest layer is adapted, or memory is not meant to hold them."""
        trunk = ensemble.trunk
        if trunk is None:
            return None
        by_length = table.lengths.argsort()
        kept: Tensor | None = None
        for indices in (by_length[:1], *by_length[1:].split(rows)):  # one row first: it tells how large a state is
            states = trunk.states(ensemble.base, table.gather(indices[None]).ids[0])
            if kept is None:
                if table.tokens.numel() * states.shape[-1] * states.element_size() > TRUNK_CACHE_BYTES:
                    return None
                kept = states.new_zeros(*table.tokens.shape, states.shape[-1])
            kept[indices.to(kept.device), : states.shape[1]] = states
        assert kept is not None
        return cls(trunk, kept)

    def in_place_of_trunk(self, batch: Batch) -> AbstractContextManager[None]:
        """While passes over a batch take the states of its rows."""
        rows = fold_members(batch.rows).to(self.kept.device, non_blocking=True)
        return self.trunk.skipped(self.kept[rows, : batch.ids.shape[-1]])
