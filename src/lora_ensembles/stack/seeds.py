"""A member's seeds: functions of the ensemble's seed and the member's index alone."""

from __future__ import annotations

import logging
import operator
from collections.abc import Sequence
from dataclasses import dataclass

from ..checks import names, whole_number
from ..errors import ConfigError
from .dropout import stream_key

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemberSeeds:
    """The two sources of randomness of a member: PEFT's initial weights, and the order of its
    training data.
    """

    init: int
    order: int


def member_seeds(seed: int, index: int, *, vary: Sequence[str] = ("init", "order")) -> MemberSeeds:
    """The seeds of member `index`, a function of (seed, index) alone, so an ensemble can grow by members
    later.

    A source that is not in `vary` has member 0's seed in every member (Fig. 7 of arXiv:2310.00035).

    Args:
        seed: the ensemble's.
        index: the member's, from 0.
        vary: what differs between members: "init", "order", or both.

    Returns:
        The seed of its initial weights and that of its data order.

    Raises:
        ConfigError: a seed that is no whole number, or `vary` holds something else than "init" and "order".

    Example:
        >>> member_seeds(0, 3).order == member_seeds(0, 3, vary=["order"]).order
        True
        >>> member_seeds(0, 3, vary=["order"]).init == member_seeds(0, 0).init
        True
    """
    seed = whole_seed(seed)
    unknown = set(names("vary", vary, example='["init", "order"]')) - {"init", "order"}
    if unknown:
        raise ConfigError(
            f"vary holds {sorted(unknown)}; what can vary between members is 'init' and 'order'"
        )
    return MemberSeeds(
        *(stream_key(seed, index if source in vary else 0, source) for source in ("init", "order"))
    )


def whole_seed(seed: object) -> int:
    """A seed as a plain int.

    Raises:
        ConfigError: it is no whole number.
    """
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise ConfigError(f"seed={seed!r}; it is a whole number, such as 0: members' seeds follow from it")
    return operator.index(seed)


def warn_of_copies(vary: Sequence[str], members: int) -> None:
    """Say that several members will be the same where nothing varies between them."""
    if not vary and members > 1:
        _log.warning(
            "vary is empty, so all %d members begin with the same weights and see the data in the same "
            "order: they are copies of each other, unless a setting of training differs between them",
            members,
        )


def whole_count(members: object) -> int:
    """A number of members as a plain int.

    Raises:
        ConfigError: it is no whole number of at least 1.
    """
    try:
        return whole_number("num_members", members)
    except ConfigError:
        raise ConfigError(
            f"num_members={members!r}; an ensemble has at least 1 member, 5 in the paper"
        ) from None


def check_indices(indices: Sequence[int], members: int) -> None:
    """Refuse indices of members that are not there, or that repeat.

    Raises:
        ConfigError: as it says.
    """
    wrong = [index for index in indices if index not in range(members)]
    if wrong or len(set(indices)) != len(indices):
        raise ConfigError(f"member indices {list(indices)}; pass different numbers from 0 to {members - 1}")
