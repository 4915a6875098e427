"""Some of the rows: a share held out, or a sample, with every class in it as often as in the whole."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from typing import TypeVar

from ..errors import ConfigError, DataError
from .examples import Example

Kind = TypeVar("Kind")

VALIDATION_SHARE = 0.2  # of a file's rows, where no second file is given


def classes_of(examples: Sequence[object]) -> tuple[str, ...] | None:
    """The classes that all examples choose among; None where they are questions with options of their own, or
    no questions.

    Example:
        >>> options, labels = ("good", "bad"), (" good", " bad")
        >>> review = Example(id="1", prompt="Q: A bore.\\nA:", labels=labels, target=1, options=options)
        >>> classes_of([review, review])
        ('good', 'bad')
    """
    options = {example.options if isinstance(example, Example) else () for example in examples}
    return next(iter(options)) or None if len(options) == 1 else None


def split_rows(
    rows: Sequence[Kind], *, share: float, seed: int, name: str, stratified: bool = True
) -> tuple[tuple[Kind, ...], tuple[Kind, ...]]:
    """Rows to train on and rows to evaluate on, as `task_from_files` says; `name` stands in errors.

    Raises:
        ConfigError: a share that is not between 0 and 1.
        DataError: a single row, or a single group of them.
    """
    if not 0 < share < 1:
        raise ConfigError(f"validation_share is {share}; a number between 0 and 1 is needed, such as 0.2")
    if len(rows) < 2:
        raise DataError(
            f"{name}: 1 row cannot be split into training and validation; add rows or pass a validation file"
        )
    count = min(max(1, round(share * len(rows))), len(rows) - 1)
    if any(_group(row) is not None for row in rows):
        drawn = _drawn_groups(rows, count, seed=seed, name=name)
    elif stratified and classes_of(rows) is not None:
        drawn = stratified_draw([_target(row) for row in rows], count, seed=seed, keep=1)
    else:
        drawn = set(random.Random(seed).sample(range(len(rows)), count))
    return tuple(row for place, row in enumerate(rows) if place not in drawn), tuple(
        rows[place] for place in sorted(drawn)
    )


def sample(rows: Sequence[Kind], count: int | None, *, seed: int) -> tuple[Kind, ...]:
    """At most `count` random rows, in their order; in a classification with the shares of its classes."""
    if count is None or count >= len(rows):
        return tuple(rows)
    if classes_of(rows) is None:
        drawn = set(random.Random(seed).sample(range(len(rows)), count))
    else:
        drawn = stratified_draw(list(map(_target, rows)), count, seed=seed)
    return tuple(rows[place] for place in sorted(drawn))


def stratified_draw(strata: Sequence[Hashable], count: int, *, seed: int, keep: int = 0) -> set[int]:
    """`count` places, each stratum with its share of them to within one, by the largest remainder; at least
    `keep` of it are left.

    Where that leaves fewer than `count`, a stratum is drawn from to its last place.

    Example:
        >>> drawn = stratified_draw(["a"] * 90 + ["b"] * 10, 20, seed=0)
        >>> sum(place < 90 for place in drawn), sum(place >= 90 for place in drawn)
        (18, 2)
    """
    places: dict[Hashable, list[int]] = {}
    for place, stratum in enumerate(strata):
        places.setdefault(stratum, []).append(place)
    wanted = {stratum: count * len(own) / len(strata) for stratum, own in places.items()}
    sizes = {stratum: min(int(wanted[stratum]), max(0, len(own) - keep)) for stratum, own in places.items()}
    order = sorted(places, key=lambda stratum: sizes[stratum] - wanted[stratum])
    for limit in (keep, 0):
        while sum(sizes.values()) < count:
            growing = [stratum for stratum in order if sizes[stratum] < len(places[stratum]) - limit]
            if not growing:
                break
            for stratum in growing[: count - sum(sizes.values())]:
                sizes[stratum] += 1
    rng = random.Random(seed)
    return {place for stratum, own in places.items() for place in rng.sample(own, sizes[stratum])}


def _drawn_groups(rows: Sequence[object], count: int, *, seed: int, name: str) -> set[int]:
    """Places of about `count` rows, of whole groups; a row without one is a group by itself."""
    places: dict[Hashable, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(_group(row) or place, []).append(place)
    if len(places) < 2:
        raise DataError(
            f"{name}: all its rows are about one case, which cannot be split into training and validation; "
            "add cases or pass a validation file"
        )
    groups = list(places.values())
    random.Random(seed).shuffle(groups)
    drawn: set[int] = set()
    for group in groups[:-1]:
        if not drawn or len(drawn) + len(group) <= count:
            drawn.update(group)
    return drawn


def _group(row: object) -> str | None:
    return row.group if isinstance(row, Example) else None


def _target(row: object) -> int | None:
    return row.target if isinstance(row, Example) else None
