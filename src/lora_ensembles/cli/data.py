"""Where a verb's questions come from: a named task, or a user's own files with their columns and label words."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ..errors import ConfigError, DataError
from ..tasks.columns import AnswerForm, ColumnMapping
from .common import NOT_GIVEN, Arguments, say, words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..tasks import CompletionTask, Example, Task

COLUMN_HELP = {
    "question": "column of the question",
    "options": "column with the list of options, or several columns: a,b,c",
    "answer": "column of the right answer",
    "pair": "column of a second text, for classifying pairs",
    "id": "column that names a row",
    "option_labels": "column with the options' names, where the answer is one of these",
    "answer_form": "how to read an answer",
    "repeated_options": "'keep' for data in which an option comes twice",
}
COLUMN_CHOICES = {"answer_form": get_args(AnswerForm), "repeated_options": ("error", "keep")}
COLUMNS = tuple(field.name for field in dataclasses.fields(ColumnMapping))


@dataclass(frozen=True)
class Source:
    """Where the questions of an ensemble come from, as `ensemble.json` remembers it."""

    task: str | None = None
    data: str | None = None
    train: str | None = None
    validation: str | None = None
    columns: dict[str, Any] | None = None
    labels: list[str] | None = None
    seed: int = 0
    open_ended: bool = False  # prompts and completions, not questions with options
    preferences: bool = False  # chosen and rejected texts

    def load(
        self, *, tokenizer: Callable[[], PreTrainedTokenizerBase] | None = None
    ) -> Task | CompletionTask:
        """The task itself; the tokenizer is asked for where pairs may hold chats."""
        from ..tasks import completions_from_files, load_task, preferences_from_files, task_from_files

        if self.task is not None:
            from ..embedded import load_embedded_completions

            return load_embedded_completions() if self.open_ended else load_task(self.task, data=self.data)
        assert self.train is not None
        if self.preferences:
            made = None if tokenizer is None else tokenizer()
            return preferences_from_files(self.train, self.validation, tokenizer=made, seed=self.seed)
        if self.open_ended:
            return completions_from_files(self.train, self.validation, seed=self.seed)
        mapping = ColumnMapping(**self.columns) if self.columns else None
        return task_from_files(
            self.train, self.validation, columns=mapping, labels=self.labels, seed=self.seed
        )

    def to_dict(self) -> dict[str, Any]:
        """What is not at its default, for `ensemble.json`."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value not in (None, 0)}


def add_column_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each field of `ColumnMapping`, and --labels."""
    group = parser.add_argument_group(
        "columns of your own file", "default: found from the first row; see docs/data.md"
    )
    for field in dataclasses.fields(ColumnMapping):
        choices = COLUMN_CHOICES.get(field.name)
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            default=NOT_GIVEN,
            choices=choices,
            metavar=None if choices else "COLUMN",
            help=f"{COLUMN_HELP[field.name]} (default: {field.default})".replace(" (default: None)", ""),
        )
    group.add_argument(
        "--labels", type=words, metavar="yes,no", help="label words of a classification, in place of options"
    )


def given_columns(args: Arguments) -> dict[str, Any] | None:
    """The fields of the column mapping that were given, or None."""
    given: dict[str, Any] = args.given(COLUMNS)
    if "," in str(given.get("options", "")):
        given["options"] = words(given["options"])
    return given or None


def remembered_source(info: dict[str, Any]) -> Source:
    """The source that an ensemble was trained from; an empty one where it does not say."""
    known = {field.name for field in dataclasses.fields(Source)}
    return Source(**{name: value for name, value in info.get("source", {}).items() if name in known})


def has_open_answers(args: Arguments, file: str | Path) -> bool:
    """Whether the first row of a file has an open answer: the columns prompt and completion, or messages.

    Raises:
        ConfigError: it has, and a flag was given that is about questions with options.
        DataError: the file cannot be read.
    """
    from ..tasks import holds_completions

    if not holds_completions(file):
        return False
    given = [*(given_columns(args) or {}), *(["labels"] if args.labels else [])]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(
            f"{flags}: for questions with options; {file} has open answers (columns prompt and completion, or messages). Leave it out, "
            "or rename these columns"
        )
    return True


def load_pair(
    name: str | None, source: Source, *, asked: str | None
) -> tuple[str, tuple[Example, ...]] | None:
    """The out-of-distribution set that was asked for, or the one that belongs to the task where its data is at hand.

    "none" asks for no set at all.

    Raises:
        DataError: the set that was asked for is unknown or cannot be read.
    """
    from ..tasks import OOD_PAIRS, load_ood

    if asked == "none":
        return None
    if asked is not None:
        return asked, load_ood(asked, data=source.data)
    paired = OOD_PAIRS.get(name or "")
    if paired is None or (
        source.data is None and not paired.startswith("world-")
    ):  # no download that nobody asked for
        return None
    try:
        return paired, load_ood(paired, data=source.data)
    except DataError as error:
        say(f"no out-of-distribution AUROC: {error}")
        return None


def source_from_flags(
    args: Arguments, *, train: Path | None, validation: Path | None, head: str = "causal-lm"
) -> Source:
    """The source that --task or --train describes, for members with this kind of head.

    Raises:
        ConfigError: both, or neither.
    """
    if (args.task is None) == (train is None):
        raise ConfigError(
            "give --task NAME for a task that has a name, or --train FILE for your own; one of the two"
        )
    if args.task is not None:
        extra = [
            f"--{name.replace('_', '-')}"
            for name, value in (("validation", validation), ("labels", args.labels))
            if value
        ]
        extra += [f"--{name.replace('_', '-')}" for name in given_columns(args) or {}]
        if extra:
            raise ConfigError(
                f"{', '.join(extra)}: for your own files (--train); --task {args.task} knows its data"
            )
        from ..embedded.tasks import EMBEDDED_OPEN_TASK

        return Source(
            task=args.task,
            data=None if args.data is None else str(args.data),
            open_ended=args.task == EMBEDDED_OPEN_TASK,
        )
    assert train is not None
    columns, labels = given_columns(args), args.labels
    if head == "sequence-classification" and labels is None:
        columns, labels = _found_classes(train, columns)
    return Source(
        open_ended=head == "causal-lm" and has_open_answers(args, train),
        preferences=head == "reward",
        train=str(train),
        validation=None if validation is None else str(validation),
        columns=columns,
        labels=labels,
        seed=args.seed,
    )


def _found_classes(train: str | Path, columns: dict[str, Any] | None) -> tuple[dict[str, Any], list[str]]:
    """The columns of a file of texts and their classes, and the classes themselves."""
    from ..tasks import found_classes

    named = {"question", "answer"} & set(columns or {})  # else both are found from the first row
    mapping, labels = found_classes(train, columns=ColumnMapping(**columns) if columns and named else None)
    mapping = dataclasses.replace(mapping, **(columns or {}))
    plain = dataclasses.asdict(ColumnMapping())
    return {name: value for name, value in dataclasses.asdict(mapping).items() if value != plain[name]}, list(
        labels
    )
