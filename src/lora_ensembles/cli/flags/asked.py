"""The rows that predict answers, part by part; none is kept. A file or dataset is read twice, first for what
cannot be used; a pipe is read once, as it comes.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ...data.formats import Row
from ...data.sources import HUB_PREFIX, WaitingLines, format_of, named_rows, waiting_rows
from ...data.whole_file import BadRow
from ...errors import DataError
from ...training.progress import Progress
from ..common import Arguments, read_standard_input
from ..screen.parts import ROWS
from ..screen.rows import kept_columns
from . import heads
from .data import merged_answer, merged_columns
from .memory import Memory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ...data import Example
    from ...data.prompts import Answer
    from ...data.whole_file import QuestionReader


@dataclass
class Part:
    """Some rows of the input in its order: those that can be answered, each with its number and what it asks,
    and those that cannot.

    What is asked is None for texts that a reward model scores as they are.
    """

    rows: list[Row] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    examples: list[Example | None] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows) + len(self.bad)


@dataclass(frozen=True)
class Asked:
    """The rows of a file, a dataset or a pipe.

    Attributes:
        name: of the source, in errors.
        keep: the columns to keep.
        texts: whether they are texts to score, not questions.
        parts: the rows from a number on, which a part begins with.
        total: the number of rows; None of a pipe.
        labels: every label of the questions, in the order in which they come, where that was asked for.
    """

    name: str
    keep: list[str]
    texts: bool
    parts: Callable[[int], Iterator[Part]]
    total: int | None = None
    labels: tuple[str, ...] = ()


class RowReader(Protocol):
    """A reader of one row at a time; None for a text to score as it is."""

    def learn(self, row: Row) -> Example | None:
        """The question of a row, in a first pass over the rows."""
        ...

    def read(self, row: Row) -> Example | None:
        """The question of a row that was learnt."""
        ...


def is_pipe(source: str) -> bool:
    """Whether a source can be read only once: standard input, or a named pipe."""
    if source == "-":
        return True
    try:
        return not source.startswith(HUB_PREFIX) and stat.S_ISFIFO(os.stat(source).st_mode)
    except (OSError, ValueError):  # whoever reads it says what is wrong
        return False


def asked_rows(args: Arguments, memory: Memory, *, labels: bool) -> Asked:
    """The rows of --in; of a file all are checked now, in a pass that keeps none; of a pipe the first ones.

    With `labels`, the labels of a file's questions are collected.

    Raises:
        DataError: no rows; a row that cannot be used, or with --skip-bad-rows none that can be.
        ConfigError: a column to keep that is not there.
    """
    return _as_they_come(args, memory) if is_pipe(args.source) else _checked(args, memory, labels=labels)


def _checked(args: Arguments, memory: Memory, *, labels: bool) -> Asked:
    skip, reader, keep = args.skip_bad_rows, None, []
    seen: dict[str, None] = {}
    total, good, error = 0, 0, None
    progress = Progress(total=None, unit="checked row", show=not args.no_progress)
    for row in named_rows(args.source, keep_bad=skip):
        total += 1
        progress.update()
        if reader is None and row.problem is None:
            reader, keep = _reader(args, memory, row), kept_columns(args.keep_columns, row)
        try:
            if reader is None:
                raise row.error(str(row.problem))
            example = reader.learn(row)
        except DataError as wrong:
            if not skip:
                raise
            error = error or wrong
            continue
        good += 1
        if labels and example is not None:
            seen |= dict.fromkeys(label.strip() for label in example.labels)
    progress.close()
    if error is not None and not good:
        raise error
    if reader is None:
        raise _no_rows(args.source, memory)

    source = args.source  # alone: another process that reads the parts has no use for the other flags

    def parts(first: int) -> Iterator[Part]:
        number = first  # of a file that grows, the rows that were checked
        rows = itertools.islice(named_rows(source, keep_bad=skip), total)
        for part in _parts(rows, reader.read, first=first, skip=skip):
            number += len(part)
            yield part
        if number < total:
            raise DataError(
                f"{source}: {number} rows, and {total} when they were checked; it was changed, so start anew"
            )

    return Asked(args.source, keep, isinstance(reader, _Texts), parts, total, tuple(seen))


def _as_they_come(args: Arguments, memory: Memory) -> Asked:
    if args.source == "-":
        name, format, stream = "<stdin>", args.in_format, read_standard_input()
    else:
        name, format = args.source, format_of(args.source)
        stream = open(args.source, encoding="utf-8", newline="")  # noqa: SIM115 - as long as the program runs
    lines = WaitingLines(stream, name=name)
    rows = waiting_rows(lines, name=name, format=format, keep_bad=args.skip_bad_rows)
    held: list[Row] = []  # columns are found from the first row that can be parsed
    for row in rows:
        held.append(row)
        if row.problem is None or len(held) == ROWS:
            break
    if not held:
        raise _no_rows(name, memory)
    if held[-1].problem is not None:
        raise held[0].error(str(held[0].problem))
    reader, keep = _reader(args, memory, held[-1]), kept_columns(args.keep_columns, held[-1])

    def read(row: Row) -> Example | None:
        reader.learn(row)
        return reader.read(row)

    def every() -> Iterator[Row]:
        yield from held
        held.clear()
        yield from rows

    def parts(first: int) -> Iterator[Part]:
        good, error = 0, None
        with nullcontext() if args.source == "-" else stream:
            for part in _parts(every(), read, first=first, skip=args.skip_bad_rows, waiting=lines.waiting):
                good, error = good + len(part.rows), error or (part.bad[0].error if part.bad else None)
                yield part
        if error is not None and not good:
            raise DataError(error)

    return Asked(name, keep, isinstance(reader, _Texts), parts)


def _parts(
    rows: Iterable[Row],
    read: Callable[[Row], Example | None],
    *,
    first: int,
    skip: bool,
    waiting: Callable[[], bool] = lambda: True,
) -> Iterator[Part]:
    """Parts of `ROWS` rows, cut short where no more rows are `waiting`; what was read before an error comes
    before it.
    """
    part = Part()
    try:
        for number, row in enumerate(rows):
            if number < first:
                continue
            try:
                example = read(row)
            except DataError as error:
                if not skip:
                    raise
                part.bad.append(BadRow(number, row, str(error)))
            else:
                part.rows.append(row)
                part.numbers.append(number)
                part.examples.append(example)
            if len(part) == ROWS or not waiting():
                yield part
                part = Part()
    except DataError:
        if len(part):
            yield part
        raise
    if len(part):
        yield part


def _no_rows(name: str, memory: Memory) -> DataError:
    kind = "text" if memory.kind == "reward" else "question"
    return DataError(f"{name}: no rows; at least one {kind} is needed")


def _reader(args: Arguments, memory: Memory, first: Row) -> RowReader:
    from ...data.preferences import has_pair
    from ...data.whole_file import QuestionReader

    if memory.kind != "reward":
        questions = QuestionReader(
            first,
            columns=merged_columns(args, memory.source),
            labels=args.labels or memory.labels,
            labelled=False,
        )
        return _Questions(questions, merged_answer(args, memory.source))
    return _pairs(args, memory) if has_pair(first.values) else _Texts()


def _pairs(args: Arguments, memory: Memory) -> _Pairs:
    from ...data.preferences import holds_chats
    from ...embedded import resolve_tokenizer

    heads.refuse_pairs_from(args.source)
    chats = holds_chats(args.source)
    return _Pairs(resolve_tokenizer(args.base or memory.base) if chats else None)


@dataclass(frozen=True)
class _Questions:
    """Questions with options, or texts and their label words."""

    questions: QuestionReader
    answer: Answer

    def learn(self, row: Row) -> Example:
        return self._rendered(self.questions.learn(row))

    def read(self, row: Row) -> Example:
        return self._rendered(self.questions.read(row))

    def _rendered(self, example: Example) -> Example:
        from ...data.prompts import rendered

        return rendered([example], self.answer)[0]


@dataclass(frozen=True)
class _Pairs:
    """Pairs of a chosen and a rejected text."""

    tokenizer: PreTrainedTokenizerBase | None

    def learn(self, row: Row) -> Example:
        return self.read(row)

    def read(self, row: Row) -> Example:
        from ...data.preferences import row_to_preference

        return row_to_preference(row, tokenizer=self.tokenizer)


class _Texts:
    """Texts that a reward model scores."""

    def learn(self, row: Row) -> None:
        self.read(row)

    def read(self, row: Row) -> None:
        heads.reward_text(row)
