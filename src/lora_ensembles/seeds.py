"""A member's seeds: functions of the ensemble's seed and the member's index alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .dropout import stream_key
from .errors import ConfigError


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


def check_count(members: int) -> None:
    """Refuse a number of members that is none.

    Raises:
        ConfigError: as it says.
    """
    if not isinstance(members, int) or isinstance(members, bool) or members < 1:
        raise ConfigError(f"members={members!r}; an ensemble has at least 1 member, 5 in the paper")


def check_indices(indices: Sequence[int], members: int) -> None:
    """Refuse indices of members that are not there, or that repeat.

    Raises:
        ConfigError: as it says.
    """
    wrong = [index for index in indices if index not in range(members)]
    if wrong or len(set(indices)) != len(indices):
        raise ConfigError(f"member indices {list(indices)}; pass different numbers from 0 to {members - 1}")
