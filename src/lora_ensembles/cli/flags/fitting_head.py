"""Which kind of head a file asks for by its columns, where no flag says it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from ...data.cells import MISSING, find_value, short
from ...data.columns import LAYOUTS, text_columns
from ...data.formats import Row
from ...errors import ConfigError
from ..common import Arguments
from .data import given_columns

CLASSIFIER = "sequence-classification"
MOST_SHOWN = 6  # classes in a command that an error prints
# A class that most rows do not share with another is no class but an answer of its own.
ROWS_PER_CLASS = 2


def fitting_head(args: Arguments, train: str) -> str:
    """The kind of head for a file: a class of each text, where it has columns of both and no options; else
    the label's tokens.

    Raises:
        ConfigError: a column of questions of which nothing says what their answers are, or of classes that no
            two rows share; both ways to go on are shown as commands.
        DataError: the file cannot be read.
    """
    from ...data import is_open_ended
    from ...data.preferences import has_pair
    from ...data.sources import named_rows

    rows = list(named_rows(train, keep_bad=args.skip_bad_rows))
    first = next((row for row in rows if row.problem is None), None)
    mapping = given_columns(args) or {}
    if first is None or args.labels or is_open_ended(first.values) or _has_options(first, mapping):
        return "causal-lm"
    if has_pair(first.values):
        raise ConfigError(
            f"{train} holds pairs of chosen and rejected texts; train a reward model on them: "
            f"{_command(train, '--head reward')}"
        )
    text, answer = text_columns(first, mapping)
    if text is None:
        return "causal-lm"
    if answer is None:  # the classes are looked for once more, and missed by name
        return "causal-lm" if text == "question" else CLASSIFIER
    classes = {str(find_value(row.values, answer)).strip() for row in rows if row.problem is None}
    if text == "question" and not mapping:
        raise ConfigError(
            f"{train} has questions ({text!r}) and answers ({answer!r}) without options, "
            "which can be read in two ways. "
            f"A head for the classes of texts: {_command(train, f'--head {CLASSIFIER}')}. "
            f"{other_way(train, classes)}"
        )
    if len(classes) > max(ROWS_PER_CLASS, len(rows) / ROWS_PER_CLASS):
        raise ConfigError(
            f"{train}: column {answer!r} has {len(classes)} different values in {len(rows)} rows "
            f"({short(sorted(classes))}), too many to tell whether they are classes. If they are: "
            f"{_command(train, f'--head {CLASSIFIER}')}. If they are answers to be written, "
            "call the columns prompt and completion"
        )
    return CLASSIFIER


def _has_options(row: Row, mapping: dict[str, object]) -> bool:
    columns = {name.partition(".")[0] for layout in LAYOUTS for name in [str(layout.options)]}
    return "options" in mapping or any(find_value(row.values, name) is not MISSING for name in columns)


def other_way(train: str, classes: Iterable[str] | None) -> str:
    """The command by which the language model itself chooses among the classes."""
    names = sorted(classes or ("a", "b"))
    labels = ",".join(names) if len(names) <= MOST_SHOWN else ",".join(names[:2]) + ",..."
    return "Words that the language model chooses among: " + _command(
        train, f"--labels {shlex.quote(labels)}"
    )


def _command(train: str, flags: str) -> str:
    return f"lora-ensembles train {shlex.quote(train)} {flags}"
