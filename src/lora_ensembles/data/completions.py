"""Prompts with an open answer: texts or chat messages, where they come from, and how they become tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

from ..errors import DataError, unknown_name
from .cells import MISSING, find_value, json_cell, row_id, short
from .formats import Row
from .sources import named_rows, stream_rows
from .splits import VALIDATION_SHARE, split_rows


@dataclass(frozen=True)
class Message:
    """A message of one side of a chat; `role` is "system", "user", "assistant", or another that the chat
    template knows.

    Example:
        >>> Message("user", "Where do otters live?").role
        'user'
    """

    role: str
    content: str


Prompt = str | tuple[Message, ...]


@dataclass(frozen=True)
class Completion:
    """A prompt and the text that should follow it.

    Attributes:
        id: names the example in results and in errors.
        prompt: what the model reads: a text, taken as it is, or the messages of a chat before the answer.
        completion: the answer: a text that follows the prompt as it is, with its leading space where it has
            one, or what the assistant says next. None where it is not known.

    Raises:
        DataError: an empty prompt or an empty completion.

    Example:
        >>> Completion("1", "Q: Where do otters live?\\nA:", " In rivers and lakes.").completion
        ' In rivers and lakes.'
    """

    id: str
    prompt: Prompt
    completion: str | None

    def __post_init__(self) -> None:
        if problem := problem_of(self.prompt, self.completion):
            raise DataError(f"example {self.id!r}: {problem}")


@dataclass(frozen=True)
class CompletionTask:
    """Completions to train on and completions to evaluate on.

    Example:
        >>> row = Completion("1", "Q: Where do otters live?\\nA:", " In rivers.")
        >>> len(CompletionTask("animals", train=(row,), validation=(row,)).train)
        1
    """

    name: str
    train: tuple[Completion, ...]
    validation: tuple[Completion, ...]

    def __repr__(self) -> str:
        return (
            f"CompletionTask({self.name!r}, {len(self.train)} to train on, {len(self.validation)} "
            "to evaluate on)"
        )


def is_open_ended(values: Mapping[str, object], *, labelled: bool = True) -> bool:
    """Whether a row's columns are those of an open answer: `messages`, or `prompt` with `completion`
    (`labelled=False`: `prompt` alone).

    Example:
        >>> question = {"question": "2 + 2?", "options": ["3", "4"]}
        >>> is_open_ended({"prompt": "2 + 2 =", "completion": " 4"}), is_open_ended(question)
        (True, False)
    """
    there = {name for name in ("messages", "prompt", "completion") if find_value(values, name) is not MISSING}
    return "messages" in there or ("prompt" in there and (not labelled or "completion" in there))


def holds_completions(path: str | Path) -> bool:
    """Whether the first row of a file or hub dataset has the columns of an open answer; False where there is
    no row.

    Raises:
        DataError: the file cannot be read.
    """
    first = next(named_rows(path), None)
    return first is not None and is_open_ended(first.values)


def load_completions(path: str | Path, *, labelled: bool = True) -> tuple[Completion, ...]:
    """The prompts and completions of a file, or of 'hub:owner/name:split' (or 'hub:owner/name:config:split').

    The columns are `prompt` and `completion`, two texts that are taken as they are; or `messages`, a list of
    {"role", "content"} whose last one, by the assistant, is the completion (a JSON list in a .csv cell). A
    column `id` names the rows.

    Args:
        path: the file, or the name of a hub dataset.
        labelled: whether every row must have a completion. False: rows without one get None.

    Returns:
        One `Completion` a row, in the file's order.

    Raises:
        DataError: anything in the file that cannot be used, with the file and the line.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "animals.jsonl"
        >>> row = '{"prompt": "Q: Where do otters live?\\\\nA:", "completion": " In rivers."}'
        >>> _ = path.write_text(row + "\\n")
        >>> load_completions(path)[0].completion
        ' In rivers.'
    """
    return rows_to_completions(named_rows(path), name=str(path), labelled=labelled)


def read_completions(
    stream: TextIO,
    *,
    name: str = "<stdin>",
    format: Literal["jsonl", "json", "csv", "tsv"] = "jsonl",
    labelled: bool = True,
) -> tuple[Completion, ...]:
    """The completions of an open text stream, such as `sys.stdin`; `name` stands for the file in errors and
    ids.

    Raises:
        ConfigError: another format.
        DataError: anything in the stream that cannot be used, with the line.

    Example:
        >>> import io
        >>> asked, said = '{"role": "user", "content": "Hello"}', '{"role": "assistant", "content": "Hi!"}'
        >>> line = f'{{"messages": [{asked}, {said}]}}'
        >>> read_completions(io.StringIO(line))[0].completion
        'Hi!'
    """
    return rows_to_completions(stream_rows(stream, name=name, format=format), name=name, labelled=labelled)


def completions_from_files(
    train: str | Path,
    validation: str | Path | None = None,
    *,
    validation_share: float = VALIDATION_SHARE,
    seed: int = 0,
    name: str | None = None,
) -> CompletionTask:
    """A task of open answers from a file to train on and, where there is one, a file to evaluate on; else a
    share as in `task_from_files`.

    Args:
        train: a file, or 'hub:owner/name:split'.
        validation: the same; None: a share of the training rows.
        validation_share: that share, between 0 and 1.
        seed: of the rows that are drawn for it.
        name: the task's; None: the file's.

    Returns:
        The two parts.

    Raises:
        ConfigError: a share that is not between 0 and 1.
        DataError: as `load_completions`; or a single row, which cannot be split.
    """
    rows = load_completions(train)
    name = name if name is not None else Path(train).stem
    if validation is not None:
        return CompletionTask(name, rows, load_completions(validation))
    return CompletionTask(name, *split_rows(rows, share=validation_share, seed=seed, name=str(train)))


def rows_to_completions(rows: Iterator[Row], *, name: str, labelled: bool) -> tuple[Completion, ...]:
    """The completions of rows; `name` stands in errors.

    Raises:
        DataError: no rows, or one that cannot be used.
    """
    first = next(rows, None)
    if first is None:
        raise DataError(f"{name}: no rows; at least one prompt is needed")
    if not is_open_ended(first.values, labelled=labelled):
        wanted = "prompt" if find_value(first.values, "prompt") is MISSING else "completion"
        raise first.error(
            f"{unknown_name('column', wanted, first.values)}. Needed are prompt and completion, or messages"
        )
    every: Iterable[Row] = (first, *rows)
    return tuple(_completion(row, labelled=labelled) for row in every)


def _completion(row: Row, *, labelled: bool) -> Completion:
    read = _from_texts if find_value(row.values, "messages") is MISSING else _from_messages
    prompt, completion = read(row, labelled=labelled)
    if problem := problem_of(prompt, completion):
        raise row.error(problem)
    return Completion(row_id(row), prompt, completion)


def _from_texts(row: Row, *, labelled: bool) -> tuple[Prompt, str | None]:
    prompt, completion = (find_value(row.values, column) for column in ("prompt", "completion"))
    if not isinstance(prompt, str):
        raise row.error(
            f"column 'prompt' holds {short(prompt)}; a text is needed, or a chat in the column 'messages'"
        )
    if completion in (MISSING, None, "") and not labelled:
        return prompt, None
    if not isinstance(completion, str):
        raise row.error(
            f"column 'completion' holds {short(completion)}; the text that should follow the prompt is needed"
        )
    return prompt, completion


def _from_messages(row: Row, *, labelled: bool) -> tuple[Prompt, str | None]:
    value = json_cell(find_value(row.values, "messages"))
    if isinstance(value, str):
        raise row.error(f"column 'messages' holds {short(value)}, which is no JSON list of messages")
    if not isinstance(value, list | tuple) or not value:
        raise row.error(
            f'column \'messages\' holds {short(value)}; a list of messages {{"role": ..., "content": ...}} '
            "is needed"
        )
    messages = tuple(_message(row, message, number) for number, message in enumerate(value, start=1))
    if messages[-1].role == "assistant":
        return messages[:-1], messages[-1].content
    if labelled:
        raise row.error(
            f"the last message is by {messages[-1].role!r}; it must be the assistant's, "
            "since that is the answer to learn"
        )
    return messages, None


def _message(row: Row, value: object, number: int) -> Message:
    role, content = (value.get("role"), value.get("content")) if isinstance(value, Mapping) else (None, None)
    if not isinstance(role, str) or not role or not isinstance(content, str):
        raise row.error(
            f'message {number} is {short(value)}; {{"role": ..., "content": ...}} is needed, both texts'
        )
    return Message(role, content)


def problem_of(prompt: Prompt, completion: str | None = None) -> str | None:
    if not (prompt.strip() if isinstance(prompt, str) else prompt):
        return "an empty prompt; the model needs something to answer to"
    if completion is not None and not completion.strip():
        return "an empty completion; the text that should follow the prompt is needed"
    return None
