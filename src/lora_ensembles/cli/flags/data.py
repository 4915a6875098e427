"""Sources of a verb's questions: a named task, or a user's own files with their columns and label words."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ...data.answers import AnswerForm
from ...data.columns import ColumnMapping
from ...data.formats import SUFFIXES
from ...data.prompts import Answer, rendered
from ...data.sources import HUB_PREFIX
from ...errors import ConfigError, DataError
from ..common import NOT_GIVEN, Arguments, say, text_words, whole_text, words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ...data import CompletionTask, Example, Task
    from ...data.whole_file import WholeFile

Tokenizer = Callable[[], "PreTrainedTokenizerBase"]  # asked for where chats must be rendered, and loaded then

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
class Loaded:
    """A task, and the files of questions that it was read from, where it was."""

    task: Task | CompletionTask
    files: tuple[WholeFile, ...] = ()


@dataclass(frozen=True)
class Source:
    """The source of an ensemble's questions, as `ensemble.json` remembers it."""

    task: str | None = None
    data: str | None = None
    train: str | None = None
    validation: str | None = None
    columns: dict[str, Any] | None = None
    labels: list[str] | None = None
    answer: Answer | None = None  # the "text" of an option in place of its letter
    seed: int = 0
    open_ended: bool = False  # prompts and completions, not questions with options
    preferences: bool = False  # chosen and rejected texts
    stratified: bool = False  # whether the validation part was drawn class by class
    skip_bad_rows: bool = False

    def load(self, *, tokenizer: Tokenizer | None = None) -> Loaded:
        """The task itself; the tokenizer is asked for where pairs hold chats."""
        from ...data import completions_from_files, load_task

        if self.task is not None:
            from ...embedded import load_embedded_completions

            return Loaded(
                load_embedded_completions()
                if self.open_ended
                else load_task(self.task, data=self.data, answer=self.rendering)
            )
        assert self.train is not None
        if self.preferences:
            return Loaded(self._load_preferences(tokenizer))
        if self.open_ended:
            return Loaded(completions_from_files(self.train, self.validation, seed=self.seed))
        return self._load_questions()

    def _load_preferences(self, tokenizer: Tokenizer | None) -> Task:
        from ...data.preferences import holds_chats, preferences_from_files

        assert self.train is not None
        chats = any(holds_chats(path) for path in (self.train, self.validation) if path is not None)
        made = tokenizer() if tokenizer is not None and chats else None
        return preferences_from_files(self.train, self.validation, tokenizer=made, seed=self.seed)

    def _load_questions(self) -> Loaded:
        from ...data import Task
        from ...data.splits import VALIDATION_SHARE, split_rows

        assert self.train is not None
        name = Path(self.train).stem
        whole = self._questions(self.train)
        if self.validation is not None:
            judged = self._questions(self.validation)
            return Loaded(Task(name, whole.examples, judged.examples), (whole, judged))
        parts = split_rows(
            whole.examples,
            share=VALIDATION_SHARE,
            seed=self.seed,
            name=self.train,
            stratified=self.stratified,
        )
        return Loaded(Task(name, *parts), (whole,))

    def _questions(self, path: str) -> WholeFile:
        return read_questions(
            path,
            columns=self.columns,
            labels=self.labels,
            skip_bad_rows=self.skip_bad_rows,
            answer=self.rendering,
        )

    @property
    def rendering(self) -> Answer:
        """The kind of answer to questions with options."""
        return self.answer or "letter"

    def to_dict(self) -> dict[str, Any]:
        """The fields that are not at their default, for `ensemble.json`."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value not in (None, 0)}


def read_questions(
    path: str,
    *,
    columns: dict[str, Any] | None,
    labels: Sequence[str] | None,
    labelled: bool = True,
    skip_bad_rows: bool = False,
    answer: Answer = "letter",
) -> WholeFile:
    """The questions of a file, with the columns that are named and those that are found."""
    from ...data.sources import named_rows
    from ...data.whole_file import read_whole

    whole = read_whole(
        named_rows(path, keep_bad=skip_bad_rows),
        name=str(path),
        columns=columns,
        labels=labels,
        labelled=labelled,
        skip_bad_rows=skip_bad_rows,
    )
    return dataclasses.replace(whole, examples=rendered(whole.examples, answer))


def add_column_flags(parser: argparse.ArgumentParser, *, auto: bool = False) -> None:
    """A flag for each field of `ColumnMapping`, --labels, and --answer, which takes "auto" in training."""
    group = parser.add_argument_group(
        "columns of your own file", "default: found from the first row; see docs/data.md"
    )
    for field in dataclasses.fields(ColumnMapping):
        choices = COLUMN_CHOICES.get(field.name)
        group.add_argument(
            _column_flag(field.name),
            default=NOT_GIVEN,
            type=whole_text,
            choices=choices,
            metavar=None if choices else "COLUMN",
            help=f"{COLUMN_HELP[field.name]} (default: {field.default})".replace(" (default: None)", ""),
        )
    group.add_argument(
        "--skip-bad-rows",
        action="store_true",
        help="leave rows out that cannot be used, and say how many, instead of refusing the file",
    )
    group.add_argument(
        "--labels",
        type=text_words,
        metavar="yes,no",
        help="label words of a classification, in place of options",
    )
    group.add_argument(
        "--answer",
        choices=(*get_args(Answer), *(["auto"] if auto else [])),
        help="how questions with options are answered: by the letter of an option, or by its text"
        + (", or auto, by what the base itself is right more often (default: letter)" if auto else "")
        + ("" if auto else " (default: as in training)"),
    )


def _column_flag(field: str) -> str:
    """The flag of a field of `ColumnMapping`: one that names a column says so.

    Example:
        >>> _column_flag("answer"), _column_flag("answer_form")
        ('--answer-column', '--answer-form')
    """
    name = field if field in COLUMN_CHOICES else f"{field}_column"
    return f"--{name.replace('_', '-')}"


def _column_fields() -> dict[str, str]:
    """The field of `ColumnMapping` behind each flag's name in the arguments."""
    return {_column_flag(name)[2:].replace("-", "_"): name for name in COLUMNS}


def given_columns(args: Arguments) -> dict[str, Any] | None:
    """The fields of the column mapping that were given, or None."""
    fields = _column_fields()
    columns: dict[str, Any] = {fields[name]: value for name, value in args.given(tuple(fields)).items()}
    if "," in str(columns.get("options", "")):
        columns["options"] = words(columns["options"])
    return columns or None


def merged_columns(args: Arguments, remembered: Source) -> dict[str, Any] | None:
    """The columns that were given, and for the others those of the training."""
    return {**(remembered.columns or {}), **(given_columns(args) or {})} or None


def merged_answer(args: Arguments, remembered: Source) -> Answer:
    """The kind of answer that was asked for, else that of the training."""
    return args.answer or remembered.rendering


def has_open_answers(args: Arguments, file: str | Path) -> bool:
    """Whether the first row of a file has an open answer: the columns prompt and completion, or messages.

    Raises:
        ConfigError: it has, and a flag was given that is about questions with options.
        DataError: the file cannot be read.
    """
    from ...data import holds_completions

    if not holds_completions(file):
        return False
    refused = [*map(_column_flag, given_columns(args) or {}), *(["--labels"] if args.labels else [])]
    if refused:
        flags = ", ".join(refused)
        raise ConfigError(
            f"{flags}: for questions with options; {file} has open answers (columns prompt and completion, "
            "or messages). Leave it out, or rename these columns"
        )
    return True


def load_pair(
    name: str | None, source: Source, *, asked: str | None
) -> tuple[str, tuple[Example, ...]] | None:
    """The out-of-distribution set that was asked for, a file or one that has a name, or the one that belongs
    to the task where its data is at hand.

    "none" asks for no set at all; rows of a file need no answers, and are read as those of the source.

    Raises:
        DataError: the set that was asked for is unknown or cannot be read.
    """
    from ...data import OOD_PAIRS, load_ood

    if asked == "none":
        return None
    if asked is not None and _is_file(asked):
        whole = read_questions(
            asked, columns=source.columns, labels=source.labels, labelled=False, answer=source.rendering
        )
        return Path(asked.rpartition(":")[2]).stem, whole.examples
    if asked is not None:
        return asked, load_ood(asked, data=source.data, answer=source.rendering)
    paired = OOD_PAIRS.get(name or "")
    if paired is None or (
        source.data is None and not paired.startswith("world-")
    ):  # no download that nobody asked for
        return None
    try:
        return paired, load_ood(paired, data=source.data, answer=source.rendering)
    except DataError as error:
        say(f"no out-of-distribution AUROC: {error}")
        return None


def _is_file(name: str) -> bool:
    return name.startswith(HUB_PREFIX) or Path(name).suffix.lower().removeprefix(".") in SUFFIXES


def source_from_flags(
    args: Arguments, *, train: str | None, validation: str | None, head: str = "causal-lm"
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
        extra += map(_column_flag, given_columns(args) or {})
        if extra:
            raise ConfigError(
                f"{', '.join(extra)}: for your own files (--train); --task {args.task} knows its data"
            )
        from ...data.world.tasks import EMBEDDED_OPEN_TASK

        return Source(
            task=args.task,
            data=None if args.data is None else str(args.data),
            answer=args.answer,
            open_ended=args.task == EMBEDDED_OPEN_TASK,
        )
    assert train is not None
    columns, labels = given_columns(args), args.labels
    if head == "sequence-classification" and labels is None:
        columns, labels = _found_classes(train, columns, skip_bad_rows=args.skip_bad_rows)
    return Source(
        open_ended=head == "causal-lm" and has_open_answers(args, train),
        preferences=head == "reward",
        train=str(train),
        validation=None if validation is None else str(validation),
        columns=columns,
        labels=labels,
        answer=args.answer,
        seed=args.seed,
        stratified=labels is not None and validation is None,
        skip_bad_rows=args.skip_bad_rows,
    )


def _found_classes(
    train: str | Path, columns: dict[str, Any] | None, *, skip_bad_rows: bool
) -> tuple[dict[str, Any], list[str]]:
    """The columns of a file of texts and their classes, and the classes themselves."""
    from ...data import found_classes

    mapping, labels = found_classes(train, columns=columns, skip_bad_rows=skip_bad_rows)
    plain = dataclasses.asdict(ColumnMapping())
    return {name: value for name, value in dataclasses.asdict(mapping).items() if value != plain[name]}, list(
        labels
    )
