"""Cuts of a sequence into slices, one for each worker."""

from __future__ import annotations


def slices(count: int, workers: int) -> list[range]:
    """Contiguous slices of `count` things for at most `workers` workers, all of one size but the last.

    The largest, which decides the time, is as small as with any other cut; and a pass over `count` things
    that holds at most as many as a slice is cut at the same places.

    Example:
        >>> slices(5, 2), slices(5, 4), slices(2, 8)
        ([range(0, 3), range(3, 5)], [range(0, 2), range(2, 4), range(4, 5)], [range(0, 1), range(1, 2)])
    """
    size = -(-count // workers)
    return [range(first, min(first + size, count)) for first in range(0, count, size)]
