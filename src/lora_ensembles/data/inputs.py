"""Examples or prompts as a caller passes them, read as the library's own records, or refused with the way to
convert it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from . import (
    ColumnMapping,
    Completion,
    CompletionTask,
    Example,
    Message,
    Prompt,
    Task,
    is_open_ended,
    load_completions,
    load_file,
)
from .completions import rows_to_completions
from .decisions import decision_rows
from .files import classes_of_rows
from .formats import SUFFIXES, Row
from .prompts import Answer, rendered
from .splits import classes_of
from .whole_file import read_whole

if TYPE_CHECKING:
    from ..stack.info import EnsembleInfo

WITHIN = ("ensemble", "predictor")  # where a predictor holds what it asks
WAYS_OUT = (
    "pass a list of Example (load_file makes them of a file), of texts, or of rows such "
    "as {'text': ..., 'label': ...}"
)


def as_examples(
    given: object, info: EnsembleInfo | None = None, *, name: str = "examples", labelled: bool = False
) -> list[Any]:
    """Examples of whatever can be read as such: examples, one of them, texts, rows as dictionaries, a
    datasets.Dataset, a DataFrame.

    Args:
        given: what the caller passed.
        info: of the ensemble that reads them; its columns and classes, from training, say what a text or a
            row is.
        name: what errors call it.
        labelled: whether every row must have an answer.

    Raises:
        DataError: something else; or texts and rows for an ensemble that does not know what to choose among.

    Example:
        >>> from lora_ensembles.stack.info import EnsembleInfo
        >>> info = EnsembleInfo(task={"source": {"labels": ["bug", "praise"]}})
        >>> as_examples("It crashes.", info)[0].labels
        (' bug', ' praise')
    """
    items = _listed(given, name)
    if all(_is_example(item) for item in items):
        return items
    if all(isinstance(item, str) for item in items):
        return _from_texts(items, info, name=name, labelled=labelled)
    if all(isinstance(item, Mapping) for item in items):
        return _from_rows(items, info, name=name, labelled=labelled)
    kinds = [_is_example(item) + 2 * isinstance(item, str) + 4 * isinstance(item, Mapping) for item in items]
    wrong = 0 if 0 in kinds else next(kind for kind in kinds if kind != kinds[0])
    place = kinds.index(wrong)
    raise DataError(f"{name}[{place}] is {_kind(items[place])}; {WAYS_OUT}")


def read_new(source: object, info: EnsembleInfo) -> list[Any]:
    """New rows as the ensemble was trained to read them: of a file, a hub dataset, or what `as_examples`
    takes; answers may be missing.

    Raises:
        DataError: as `load_file` and `as_examples`.
    """
    if not isinstance(source, str | os.PathLike):
        return as_examples(source, info, name="source")
    path = os.fspath(source)
    if (info.task.get("source") or {}).get("open_ended"):
        return list(load_completions(path, labelled=False))
    return list(
        load_file(path, columns=_columns(info), labels=_labels(info), labelled=False, answer=answer_of(info))
    )


def known_to(predictor: object) -> EnsembleInfo | None:
    """The memory of the ensemble within a predictor; None where there is none."""
    while predictor is not None:
        info: EnsembleInfo | None = getattr(predictor, "info", None)
        if info is not None:
            return info
        predictor = next(
            (vars(predictor)[name] for name in WITHIN if name in getattr(predictor, "__dict__", {})), None
        )
    return None


def with_labels(info: EnsembleInfo, examples: Sequence[Any]) -> EnsembleInfo:
    """The memory with the label words of a classification, where nothing is known of its source, so that new
    texts can be read as these were.
    """
    words = classes_of(examples)
    source = info.task.get("source") or {}
    if (
        words
        and not source
        and all(example.labels == tuple(f" {word}" for word in words) for example in examples)
    ):
        return dataclasses.replace(info, task={**info.task, "source": {"labels": list(words)}})
    return info


def as_prompts(given: object) -> list[Prompt]:
    """Prompts of a text, a chat or a list of these; messages may be dictionaries of role and content.

    Raises:
        DataError: something else.

    Example:
        >>> as_prompts("Otters live in"), as_prompts([{"role": "user", "content": "Hello"}])
        (['Otters live in'], [(Message(role='user', content='Hello'),)])
    """
    if isinstance(given, str) or _is_message(given):
        return [_prompt(given, 0)]
    if not isinstance(given, Iterable):
        raise DataError(f"prompts is {_kind(given)}; pass a text, a chat, or a list of these")
    items = _listed(given, "prompts")
    if items and all(_is_message(item) for item in items):
        return [_prompt(items, 0)]
    return [_prompt(item, place) for place, item in enumerate(items)]


def _prompt(item: Any, place: int) -> Prompt:
    if isinstance(item, str):
        return item
    if isinstance(item, Completion):
        return item.prompt
    messages = [item] if _is_message(item) else list(item) if isinstance(item, Sequence) else []
    if not messages or not all(_is_message(message) for message in messages):
        raise DataError(
            f"prompts[{place}] is {_kind(item)}; a prompt is a text, or a chat: "
            "messages such as {'role': 'user', 'content': ...}"
        )
    return tuple(
        message if isinstance(message, Message) else Message(message["role"], message["content"])
        for message in messages
    )


def _is_message(item: object) -> bool:
    return isinstance(item, Message) or (isinstance(item, Mapping) and {*item} >= {"role", "content"})


def _is_example(item: object) -> bool:
    return isinstance(item, Example | Completion) or (hasattr(item, "labels") and hasattr(item, "target"))


def _listed(data: Any, name: str) -> list[Any]:
    """A list of what was passed, one thing alone as a list of one."""
    if isinstance(data, Task | CompletionTask):
        raise DataError(
            f"{name} is the task {data.name!r}; pass one of its parts, task.train or task.validation"
        )
    if isinstance(data, os.PathLike) or (isinstance(data, str) and _names_file(data)):
        raise DataError(
            f"{name} is the name of a file, {str(data)!r}; read it first: "
            f"ensemble.read({str(data)!r}), or load_file"
        )
    if isinstance(data, Mapping) and data and all(hasattr(part, "column_names") for part in data.values()):
        raise DataError(
            f"{name} is {_kind(data)} of the splits {', '.join(map(str, data))}; "
            f"pass one, data[{next(iter(data))!r}]"
        )
    if isinstance(data, str | Mapping) or _is_example(data):
        return [data]
    if hasattr(data, "iloc") and hasattr(data, "columns"):  # pandas, whose missing cells are NaN
        return [
            {column: None if value != value else value for column, value in row.items()}
            for row in data.to_dict("records")
        ]
    if hasattr(data, "to_dicts"):  # polars
        return list(data.to_dicts())
    if not isinstance(data, Iterable):
        raise DataError(f"{name} is {_kind(data)}; {WAYS_OUT}")
    return list(data)


def _names_file(text: str) -> bool:
    return (
        Path(text).suffix.removeprefix(".") in SUFFIXES
        and "\n" not in text
        and len(text) < 255
        and Path(text).is_file()
    )


def _from_texts(texts: Sequence[str], info: EnsembleInfo | None, *, name: str, labelled: bool) -> list[Any]:
    if labelled:
        raise DataError(f"{name} holds texts without answers; {WAYS_OUT}")
    if info is not None and info.head.kind == "reward":
        raise DataError(f"{name} holds texts; a reward model scores texts by predict_rewards")
    labels = None if info is None else _labels(info)
    if labels is None:
        raise DataError(
            f"{name} holds texts, and it is not known what to choose among; pass rows such "
            "as {'question': ..., 'options': [...]}, or a list of Example (load_file makes them of a file)"
        )
    columns = (info and _columns(info)) or ColumnMapping("text", answer="label")
    return _from_rows(
        [{columns.question: text} for text in texts], info, name=name, labelled=False, columns=columns
    )


def _from_rows(
    values: Sequence[Mapping[str, object]],
    info: EnsembleInfo | None,
    *,
    name: str,
    labelled: bool,
    columns: ColumnMapping | None = None,
) -> list[Any]:
    rows = list(decision_rows(Row(f"{name}[{place}]", str(place), row) for place, row in enumerate(values)))
    if is_open_ended(values[0], labelled=labelled) and {*values[0]} & {"completion", "messages"}:
        return list(rows_to_completions(iter(rows), name=name, labelled=labelled))
    columns = columns or (None if info is None else _columns(info))
    labels = None if info is None else _labels(info)
    if labels is None and labelled and info is not None and info.head.kind == "sequence-classification":
        columns, labels = classes_of_rows(rows, name=name, columns=columns)
    whole = read_whole(rows, name=name, columns=columns, labels=labels, labelled=labelled)
    return list(rendered(whole.examples, "letter" if info is None else answer_of(info)))


def answer_of(info: EnsembleInfo) -> Answer:
    """The kind of answer of an ensemble's training: the letter of an option, or its text."""
    answer: Answer = (info.task.get("source") or {}).get("answer") or "letter"
    return answer


def _columns(info: EnsembleInfo) -> ColumnMapping | None:
    columns = (info.task.get("source") or {}).get("columns")
    return ColumnMapping(**columns) if columns else None


def _labels(info: EnsembleInfo) -> Sequence[str] | None:
    return (info.task.get("source") or {}).get("labels") or info.head.classes or None


def _kind(value: object) -> str:
    if value is None:
        return "None"
    module, kind = type(value).__module__, type(value).__qualname__
    return f"of type {kind if module == 'builtins' else f'{module}.{kind}'}"
