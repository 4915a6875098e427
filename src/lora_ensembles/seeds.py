"""A member's seeds: functions of the ensemble's seed and the member's index alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import ConfigError
from .lora import stream_key


@dataclass(frozen=True)
class MemberSeeds:
    """The two sources of randomness of a member: PEFT's initial weights, and the order of its training data."""

    init: int
    order: int


def member_seeds(seed: int, index: int, *, vary: Sequence[str] = ("init", "order")) -> MemberSeeds:
    """The seeds of member `index`, a function of (seed, index) alone, so an ensemble can grow by members later.

    A source that is not in `vary` has member 0's seed in every member (Fig. 7 of arXiv:2310.00035).

    Example:
        >>> member_seeds(0, 3).order == member_seeds(0, 3, vary=["order"]).order
        True
        >>> member_seeds(0, 3, vary=["order"]).init == member_seeds(0, 0).init
        True
    """
    unknown = set(vary) - {"init", "order"}
    if unknown:
        raise ConfigError(
            f"vary holds {sorted(unknown)}; what can vary between members is 'init' and 'order'"
        )
    return MemberSeeds(
        *(stream_key(seed, index if source in vary else 0, source) for source in ("init", "order"))
    )
