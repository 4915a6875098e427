"""Texts, pairs of texts and class labels as scikit-learn passes them, read as examples.

Shapes: N texts, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils import assert_all_finite, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from ...data import ColumnMapping, Example
from ...data.cells import short
from ...data.columns import check_labels, row_to_question
from ...data.formats import Row
from ...errors import ConfigError, DataError

WAYS_OUT = "pass a list of texts, or one or two columns of them"
COLUMNS = ("text", "pair")


@dataclass(frozen=True)
class Texts:
    """N texts or pairs of texts.

    Attributes:
        rows: the texts of each row, one or two.
        names: the columns of a DataFrame; None where there are none.
    """

    rows: tuple[tuple[str, ...], ...]
    names: tuple[str, ...] | None = None

    @property
    def width(self) -> int:
        """1 for texts, 2 for pairs of texts."""
        return len(self.rows[0])

    def examples(self, labels: Sequence[str], targets: Iterable[int | None] = ()) -> list[Example]:
        """The examples that ask for one of the label words, as rows of a file are read; with targets, if
        given.
        """
        columns = ColumnMapping("text", pair="pair" if self.width == 2 else None)
        asked = [
            row_to_question(
                Row(f"X[{place}]", str(place), dict(zip(COLUMNS, row, strict=False))), columns, labels=labels
            )
            for place, row in enumerate(self.rows)
        ]
        known = list(targets) or [None] * len(asked)
        return [
            dataclasses.replace(example, target=target) for example, target in zip(asked, known, strict=True)
        ]


def read_texts(source: Any) -> Texts:
    """Texts of a list, a tuple, an array, a Series or a DataFrame; two columns are pairs.

    Raises:
        DataError: no texts, something else than texts, or another number of columns.

    Example:
        >>> read_texts(["A bore.", "A joy."]).width, read_texts([["It rains.", "It is wet."]]).width
        (1, 2)
    """
    if hasattr(source, "toarray"):
        raise DataError(f"X is a sparse matrix, and sparse input is not supported; {WAYS_OUT}")
    names = None
    if hasattr(source, "to_numpy"):  # a DataFrame or a Series, whose own iteration may be over columns
        names = tuple(map(str, source.columns)) if hasattr(source, "columns") else None
        source = source.to_numpy()
    elif hasattr(source, "__array__"):
        source = np.asarray(source)
    if isinstance(source, str | bytes | Mapping) or not isinstance(source, Iterable):
        raise DataError(f"X is {short(source)}; {WAYS_OUT}")
    if isinstance(source, np.ndarray):
        if source.ndim not in (1, 2):
            raise DataError(f"X has {source.ndim} dimensions; {WAYS_OUT}")
        source = source.tolist()
    rows = tuple(tuple(row) if isinstance(row, list | tuple | np.ndarray) else (row,) for row in source)
    _check_rows(rows)
    return Texts(rows, names)


def _check_rows(rows: Sequence[tuple[Any, ...]]) -> None:
    if not rows:
        raise DataError(f"X holds 0 texts; {WAYS_OUT}")
    width = len(rows[0])
    for place, row in enumerate(rows):
        if len(row) != width or width not in (1, 2):
            other = f" and X[0] has {width}" if len(row) != width else ""
            raise DataError(f"X[{place}] has {len(row)} columns{other}; {WAYS_OUT}")
        for cell in row:
            if not isinstance(cell, str) or not cell.strip():
                raise DataError(f"X[{place}] holds {short(cell)}, which is no text; {WAYS_OUT}")


def read_labels(source: Any, count: int) -> tuple[np.ndarray, list[int]]:
    """The classes (C,), sorted, and the index of each text's.

    Raises:
        DataError: no label for each of `count` texts, labels that are no classes, or fewer than two classes.

    Example:
        >>> classes, targets = read_labels(["spam", "ham", "spam"], 3)
        >>> classes.tolist(), targets
        (['ham', 'spam'], [1, 0, 1])
    """
    if source is None:
        raise DataError(
            "LoraEnsembleClassifier requires y to be passed, but the target y is None; "
            "give a class for each text"
        )
    try:
        column = column_or_1d(source, warn=True)
        assert_all_finite(column, input_name="y")
        check_classification_targets(column)
        classes, targets = np.unique(column, return_inverse=True)
    except (TypeError, ValueError) as error:
        raise DataError(f"y holds no class labels: {error}; give one class for each text") from error
    if len(targets) != count:
        raise DataError(f"y has {len(targets)} labels for {count} texts in X; give one class for each text")
    if len(classes) < 2:
        raise DataError(f"y holds the one class {short(classes.tolist()[0])}; 2 or more classes are needed")
    return classes, targets.tolist()


def known_targets(source: Any, classes: np.ndarray, count: int) -> list[int]:
    """The index among known classes of the label of each of `count` texts.

    Raises:
        DataError: as `read_labels`, or a label that is none of the classes.
    """
    places = {value: place for place, value in enumerate(classes.tolist())}
    try:
        values = column_or_1d(source, warn=True).tolist()
    except ValueError as error:
        raise DataError(f"y holds no class labels: {error}; give one class for each text") from error
    if len(values) != count:
        raise DataError(f"y has {len(values)} labels for {count} texts in X; give one class for each text")
    unknown = [value for value in values if value not in places]
    if unknown:
        raise DataError(
            f"y holds {short(unknown[0])}, and the classifier was trained on the classes "
            f"{short(classes.tolist())}; give labels among these"
        )
    return [places[value] for value in values]


def label_words(classes: np.ndarray, names: Sequence[str] | None = None) -> tuple[str, ...]:
    """The words that stand for the classes in prompts and in the saved ensemble: `names`, or the classes as
    texts.

    Raises:
        ConfigError: `names` has not one text for each class.
        DataError: two classes with the same word, or one without a letter.

    Example:
        >>> label_words(np.array([False, True])), label_words(np.array([0, 1]), ["ham", "spam"])
        (('False', 'True'), ('ham', 'spam'))
    """
    if names is None:
        return check_labels([str(value) for value in classes.tolist()])
    if isinstance(names, str) or len(names) != len(classes) or not all(isinstance(n, str) for n in names):
        raise ConfigError(
            f"class_names={names!r} for the classes {short(classes.tolist())}; give one text for each, in "
            "this order, or None for the classes themselves"
        )
    return check_labels(names)
