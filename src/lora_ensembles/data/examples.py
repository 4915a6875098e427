"""The two records that everything else is about: one question, and a task of many."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import DataError

ROUNDING = 0.01  # of the sum of soft labels: they are published with two digits, or as counts of annotators


@dataclass(frozen=True)
class Example:
    """One question with a closed set of answers.

    Attributes:
        id: names the example in predictions and in errors.
        prompt: everything that the model reads before the label.
        labels: the C texts of which one follows the prompt: bare letters, or words such as " yes", with their
            leading space.
        target: index into `labels` of the right one; None where it is not known.
        question, options: what was asked and what each label stands for: for display with a causal language
            model; what is scored where members have heads of their own.
        pair: the second text of a classification of pairs, such as a hypothesis beside its premise; not read
            by causal models.
        target_probs: soft labels, a probability for each label, as annotators who disagree or a teacher give
            them; the loss is then the cross-entropy to them, and `target` the most probable label where none
            is given.
        group: examples of one group, such as questions about one state, are never parted into training and
            validation; None: in no group.
        type: of a typed decision, "predicate", "choice" or "score"; each may have a calibration of its own.

    Raises:
        DataError: fewer than two labels, an empty or repeated label, a target that is no index into them, or
            soft labels that are no probabilities of them.

    Example:
        >>> Example(id="1", prompt="Q: Is the sun a star?\\nA:", labels=(" yes", " no"), target=0).labels[0]
        ' yes'
    """

    id: str
    prompt: str
    labels: tuple[str, ...]
    target: int | None
    question: str = ""
    options: tuple[str, ...] = ()
    pair: str | None = None
    target_probs: tuple[float, ...] | None = None
    group: str | None = None
    type: str | None = None

    def __post_init__(self) -> None:
        where = f"example {self.id!r}"
        if len(self.labels) < 2:
            raise DataError(f"{where}: {len(self.labels)} labels; at least 2 are needed to choose from")
        check_distinct(self.labels, kind="label", where=where)
        if "" in self.labels:
            raise DataError(
                f"{where}: label {self.labels.index('')} is empty; a label needs at least one character"
            )
        if self.target_probs is not None:
            probs = checked_probs(self.target_probs, count=len(self.labels), where=where)
            object.__setattr__(self, "target_probs", probs)
            if self.target is None:
                object.__setattr__(self, "target", probs.index(max(probs)))
        if self.target is not None and not 0 <= self.target < len(self.labels):
            raise DataError(
                f"{where}: target {self.target} is no index into its {len(self.labels)} labels "
                f"(0 to {len(self.labels) - 1})"
            )


@dataclass(frozen=True)
class Task:
    """Examples to train on and examples to evaluate on.

    Example:
        >>> question = Example(id="1", prompt="Is the sun a star?", labels=(" yes", " no"), target=0)
        >>> Task("stars", train=(question,), validation=(question,)).options
        [2]
    """

    name: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]

    def __repr__(self) -> str:
        return f"Task({self.name!r}, {len(self.train)} to train on, {len(self.validation)} to evaluate on)"

    @property
    def options(self) -> list[int]:
        """The option counts that occur, in rising order."""
        return sorted({len(example.labels) for example in (*self.train, *self.validation)})


def checked_probs(values: Sequence[float], *, count: int, where: str) -> tuple[float, ...]:
    """Soft labels as probabilities that sum to 1; what rounding left of that (`ROUNDING`) is shared out.

    Raises:
        DataError: not `count` of them, one that is no number of 0 or more, or another sum.
    """
    try:
        probs = tuple(float(value) for value in values)
    except OverflowError:  # a whole number beyond any float
        raise DataError(f"{where}: a soft label is too large; give probabilities") from None
    if len(probs) != count:
        raise DataError(
            f"{where}: {len(probs)} soft labels for {count} labels; give one probability for each"
        )
    if not all(math.isfinite(value) and value >= 0 for value in probs):
        wrong = next(value for value in probs if not (math.isfinite(value) and value >= 0))
        raise DataError(f"{where}: soft label {wrong:g}; a probability is 0 or more")
    total = math.fsum(probs)
    if abs(total - 1) > ROUNDING:
        raise DataError(f"{where}: its soft labels sum to {total:g}, not 1; give probabilities")
    return tuple(value / total for value in probs)


def check_distinct(texts: Iterable[str], *, kind: str, where: str) -> None:
    """Refuse a text that comes twice.

    Raises:
        DataError: two texts are equal; both places are named.
    """
    first: dict[str, int] = {}
    for position, text in enumerate(texts):
        if text in first:
            raise DataError(
                f"{where}: {kind} {text!r} comes twice, at {first[text]} and {position}; "
                "each needs its own text"
            )
        first[text] = position
