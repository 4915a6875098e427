"""Examples that are held out: parts that share no question, and a refusal of what was seen before."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence

from ..checks import check_share
from ..data import Example
from ..data.preferences import LABELS as PREFERENCE
from ..errors import DataError


def held_out_split(
    examples: Sequence[Example], *, share: float = 0.2, seed: int = 0, trained_on: Sequence[Example] = ()
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """A part to calibrate on, and the rest to score, both in the order given: no question is on both
    sides.

    The paper's data hold questions twice: some of obqa's, arce's and mmlu's validation questions are in their
    training part, some of mmlu's come twice in its validation part. What was trained on is left to the scored
    part, where it belongs; equal questions go to one side together. About `share` of all examples are held
    out, at least one.

    Raises:
        ConfigError: a share outside (0, 1).
        DataError: there are not two different questions that were not trained on.

    Example:
        >>> prompts = [f"Question {n // 2}:" for n in range(20)]  # each twice
        >>> examples = [Example(str(n), prompt, (" yes", " no"), 0) for n, prompt in enumerate(prompts)]
        >>> held_out, scored = held_out_split(examples, share=0.4)
        >>> len(held_out), len(scored), {one.prompt for one in held_out} & {one.prompt for one in scored}
        (8, 12, set())
    """
    check_share("share", share)
    trained = fingerprints(trained_on)
    groups = [
        group
        for group in _groups(examples)
        if not any(mark in trained for n in group for mark in _marks(examples[n]))
    ]
    if not groups or len(groups) == len(examples) == 1:
        raise DataError(
            f"{len(examples)} examples, of which {len(groups)} are different and were not trained on; "
            "at least one is needed to calibrate on, and another to score"
        )
    random.Random(seed).shuffle(groups)
    wanted = max(1, round(share * len(examples)))
    chosen: set[int] = set()
    for group in groups:
        if not chosen or len(chosen) + len(group) <= wanted:
            chosen.update(group)
    if len(chosen) == len(examples):
        raise DataError(f"the {len(examples)} examples are one question; another is needed to score")
    held_out = tuple(example for n, example in enumerate(examples) if n in chosen)
    return held_out, tuple(example for n, example in enumerate(examples) if n not in chosen)


def _groups(examples: Sequence[Example]) -> list[list[int]]:
    """The numbers of equal examples together, in order of their first; equal to an equal one is equal."""
    home = list(range(len(examples)))
    first: dict[str, int] = {}

    def root(n: int) -> int:
        while home[n] != n:
            n = home[n]
        return n

    for n, example in enumerate(examples):
        for mark in _marks(example):
            ends = sorted((root(n), root(first.setdefault(mark, n))))
            home[ends[1]] = ends[0]
    groups: dict[int, list[int]] = {}
    for n in range(len(examples)):
        groups.setdefault(root(n), []).append(n)
    return list(groups.values())


def fingerprints(examples: Iterable[Example]) -> dict[str, str]:
    """The keys by which each example is known again, and its id."""
    return {mark: example.id for example in examples for mark in _marks(example)}


def _marks(example: Example) -> list[str]:
    """Keys by which two examples are the same: their prompt; their question and its options in any order;
    their id and question; or their group.

    Not the id alone: files of different tasks all have a row "1". A second text belongs to the first, and
    both texts of a preference to its prompt.
    """
    more = (
        *(example.options if example.labels == PREFERENCE else ()),
        *(() if example.pair is None else (example.pair,)),
    )
    parts: list[tuple[str, ...]] = [
        ("prompt", example.prompt, *more),
        ("id", example.id, example.question, *more),
    ]
    if example.question and example.options:
        parts.append(("question", example.question, *sorted(example.options)))
    if example.group is not None:
        parts.append(("group", example.group))
    return [hashlib.sha256(repr(part).encode()).hexdigest()[:24] for part in parts]


def refuse_known(examples: Sequence[Example], seen: Mapping[str, str], why: str, advice: str) -> None:
    """Refuse examples of which any has a key in `seen`.

    Raises:
        DataError: one has; it says why, and how many.
    """
    refused = [(example.id, seen[mark]) for example in examples for mark in _marks(example) if mark in seen]
    if refused:
        count = len(dict.fromkeys(example for example, _ in refused))
        raise DataError(
            f"example {refused[0][0]!r} {why} (as {refused[0][1]!r}), and {count} of the {len(examples)} "
            f"given were; {advice}"
        )
