"""Pairs of a chosen and a rejected answer to a prompt, which reward models are trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError
from .cells import MISSING, find_value, json_cell, row_id, short, unknown_column
from .completions import Completion, Message
from .examples import Example, Task
from .formats import Row
from .sources import named_rows
from .splits import VALIDATION_SHARE, split_rows
from .tokens.completions import answer_text, prompt_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LABELS = ("chosen", "rejected")


def preference(id: str, prompt: str, chosen: str, rejected: str) -> Example:
    """A pair as an `Example` whose two options are the answers, the chosen one the right one.

    Args:
        id: the pair's name.
        prompt: the text in front of both answers; may be empty.
        chosen: the better answer.
        rejected: the other.

    Returns:
        Options 0 (chosen) and 1 (rejected), target 0.

    Raises:
        DataError: an empty or the same text on both sides.

    Example:
        >>> preference("1", "Q: Is the sun a star?\\nA:", " Yes.", " No.").options
        (' Yes.', ' No.')
    """
    for name, text in zip(LABELS, (chosen, rejected), strict=True):
        if not text.strip():
            raise DataError(f"example {id!r}: the {name} text is empty; there is nothing to score")
    if chosen == rejected:
        raise DataError(
            f"example {id!r}: chosen and rejected are the same text {chosen[:60]!r}; "
            "there is nothing to prefer"
        )
    return Example(id=id, prompt=prompt, labels=LABELS, target=0, question=prompt, options=(chosen, rejected))


def holds_preferences(path: str | Path) -> bool:
    """Whether the first row of a file or hub dataset has the columns `chosen` and `rejected`; False where
    there is no row.

    Raises:
        DataError: the file cannot be read.
    """
    first = next(named_rows(path), None)
    return first is not None and has_pair(first.values)


def has_pair(values: Mapping[str, object]) -> bool:
    """Whether a row has the columns `chosen` and `rejected`."""
    return all(find_value(values, name) is not MISSING for name in LABELS)


def holds_chats(path: str | Path) -> bool:
    """Whether a file of pairs has lists of messages, which a tokenizer must render.

    Raises:
        DataError: the file cannot be read.
    """
    return any(
        not isinstance(_parsed(row, name), str) for row in named_rows(path) for name in ("prompt", *LABELS)
    )


def load_preferences(
    path: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[Example, ...]:
    """The pairs of a file, or of 'hub:owner/name:split' (or 'hub:owner/name:config:split').

    The columns are those that TRL reads: `chosen` and `rejected`, with `prompt` in front of both or without
    it; texts, taken as they are, or lists of chat messages {"role", "content"}, which the tokenizer's
    template renders. A column `id` names the rows.

    Args:
        path: the file, or the name of a hub dataset.
        tokenizer: whose chat template renders lists of messages.

    Returns:
        One `Example` of two options a row, the chosen one the target.

    Raises:
        DataError: anything in the file that cannot be used, with the file and the line; or chats without a
            tokenizer.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "pairs.jsonl"
        >>> _ = path.write_text('{"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}\\n')
        >>> load_preferences(path)[0].options
        (' 4', ' 5')
    """
    examples = tuple(row_to_preference(row, tokenizer=tokenizer) for row in named_rows(path))
    if not examples:
        raise DataError(f"{path}: no rows; at least one pair is needed")
    return examples


def preferences_from_files(
    train: str | Path,
    validation: str | Path | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    validation_share: float = VALIDATION_SHARE,
    seed: int = 0,
) -> Task:
    """A task of pairs from a file to train on and, where there is one, a file to evaluate on; else a share as
    in `task_from_files`.

    Args:
        train: a file, or 'hub:owner/name:split'.
        validation: the same; None: a share of the training rows.
        tokenizer: as for `load_preferences`.
        validation_share: that share, between 0 and 1.
        seed: of the rows that are drawn for it.

    Returns:
        The two parts.

    Raises:
        ConfigError: a share that is not between 0 and 1.
        DataError: as `load_preferences`; or a single row, which cannot be split.
    """
    rows = load_preferences(train, tokenizer=tokenizer)
    if validation is not None:
        return Task(Path(train).stem, rows, load_preferences(validation, tokenizer=tokenizer))
    return Task(Path(train).stem, *split_rows(rows, share=validation_share, seed=seed, name=str(train)))


def row_to_preference(row: Row, *, tokenizer: PreTrainedTokenizerBase | None = None) -> Example:
    """The pair of a row; `tokenizer` renders chats.

    Raises:
        DataError: a row that cannot be used.
    """
    if row.problem is not None:
        raise row.error(row.problem)
    for name in LABELS:
        if find_value(row.values, name) is MISSING:
            raise row.error(
                f"{unknown_column(name, row.values)}. Needed are chosen and rejected, "
                "and prompt in front of both"
            )
    id = row_id(row)
    prompt, chosen, rejected = (_parsed(row, name) for name in ("prompt", *LABELS))
    if isinstance(chosen, str) and isinstance(rejected, str) and isinstance(prompt, str):
        texts = prompt, chosen, rejected
    else:
        texts = _rendered(
            row,
            tokenizer,
            _messages(row, "prompt", prompt),
            _messages(row, "chosen", chosen),
            _messages(row, "rejected", rejected),
        )
    try:
        return preference(id, *texts)
    except DataError as error:
        raise row.error(str(error).partition(": ")[2]) from None


def _parsed(row: Row, column: str) -> object:
    value = find_value(row.values, column)
    if value in (MISSING, None):
        return ""
    return json_cell(value) if isinstance(value, str) and value.startswith('[{"') else value


def _messages(row: Row, name: str, value: object) -> tuple[Message, ...]:
    if value == "" and name == "prompt":
        return ()
    if isinstance(value, str) and name != "prompt":
        return (Message("assistant", value),)
    if isinstance(value, str):
        return (Message("user", value),)
    return tuple(_checked(row, name, value))


def _checked(row: Row, name: str, value: object) -> Iterator[Message]:
    for message in value if isinstance(value, list | tuple) and value else [None]:
        role, content = (
            (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
        )
        if not isinstance(role, str) or not isinstance(content, str):
            raise row.error(
                f'column {name!r} holds {short(value)}; a text, or a list of {{"role": ..., "content": ...}} '
                "is needed"
            )
        yield Message(role, content)


def _rendered(
    row: Row,
    tokenizer: PreTrainedTokenizerBase | None,
    prompt: tuple[Message, ...],
    chosen: tuple[Message, ...],
    rejected: tuple[Message, ...],
) -> tuple[str, str, str]:
    """Prompt and answers of a chat as the template writes them; what both have in common stands in the
    prompt.
    """
    good, bad = (*prompt, *chosen), (*prompt, *rejected)
    if good[:-1] != bad[:-1] or good[-1].role != "assistant" or bad[-1].role != "assistant":
        raise row.error("chosen and rejected must differ in their last message alone, the assistant's")
    if tokenizer is None:
        raise row.error("chat messages are rendered by the tokenizer's template; pass tokenizer=, or texts")
    pair = [Completion(row.id, good[:-1], message.content) for message in (good[-1], bad[-1])]
    text = prompt_text(good[:-1], tokenizer, where=row.place)
    prompt_only = text.removeprefix(_leading_token(text, tokenizer))
    return prompt_only, answer_text(pair[0], text, tokenizer), answer_text(pair[1], text, tokenizer)


def chat_text(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, where: str) -> str:
    """A chat that ends in an answer as the text that reward models are trained on: what the template writes,
    without the token in front, which the tokenizer puts there again.

    Raises:
        DataError: no answer at the end, or a template that cannot render it; it begins with `where`.
    """
    *before, last = messages
    if not before or last.role != "assistant":
        raise DataError(f"{where}: a chat needs a prompt, and the assistant's message at its end")
    text = prompt_text(tuple(before), tokenizer, where=where)
    answer = answer_text(Completion(where, tuple(before), last.content), text, tokenizer)
    return (text + answer).removeprefix(_leading_token(text, tokenizer))


def _leading_token(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The token in front that the tokenizer will put there again."""
    start = tokenizer.bos_token
    return (
        start
        if start and text.startswith(start) and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
        else ""
    )
