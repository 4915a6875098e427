"""The two records that everything else is about: one question, and a task of many."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import DataError


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

    Raises:
        DataError: fewer than two labels, an empty or repeated label, or a target that is no index into them.

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

    def __post_init__(self) -> None:
        where = f"example {self.id!r}"
        if len(self.labels) < 2:
            raise DataError(f"{where}: {len(self.labels)} labels; at least 2 are needed to choose from")
        check_distinct(self.labels, kind="label", where=where)
        if "" in self.labels:
            raise DataError(
                f"{where}: label {self.labels.index('')} is empty; a label needs at least one character"
            )
        if self.target is not None and not 0 <= self.target < len(self.labels):
            raise DataError(
                f"{where}: target {self.target} is no index into its {len(self.labels)} labels "
                f"(0 to {len(self.labels) - 1})"
            )


@dataclass(frozen=True)
class Task:
    """Examples to train on and examples to judge by.

    Example:
        >>> question = Example(id="1", prompt="Is the sun a star?", labels=(" yes", " no"), target=0)
        >>> Task("stars", train=(question,), validation=(question,)).options
        [2]
    """

    name: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]

    def __repr__(self) -> str:
        return f"Task({self.name!r}, {len(self.train)} to train on, {len(self.validation)} to judge by)"

    @property
    def options(self) -> list[int]:
        """The option counts that occur, in rising order."""
        return sorted({len(example.labels) for example in (*self.train, *self.validation)})


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
