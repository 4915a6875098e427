"""From what a request holds to examples, read exactly as the rows of a file are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..data import ColumnMapping, Example
from ..data.columns import row_to_question
from ..data.decisions import decision_rows
from ..data.formats import Row
from ..data.inputs import answer_of, as_examples
from ..data.prompts import rendered
from ..errors import DataError

if TYPE_CHECKING:
    from ..stack.info import EnsembleInfo

CASE = "request"  # the id of a case that has none
CALLS = {"function_call": "arguments", "custom_tool_call": "input"}
OUTPUTS = ("function_call_output", "custom_tool_call_output")


def case_examples(
    info: EnsembleInfo, state: object, questions: Sequence[Mapping[str, Any]], *, case: str | None = None
) -> tuple[Example, ...]:
    """The examples of a state and the questions about it, as `decision_rows` reads them from a file, for the
    ensemble that this memory is of.

    The id of a case matters only where answers are averaged over orders of the options, which are drawn from
    it.

    Raises:
        DataError: a question that cannot be read.
    """
    values = {"id": case or CASE, "state": state, "questions": list(questions)}
    try:
        rows = list(decision_rows([Row("request", CASE, values)]))
    except RecursionError:
        raise DataError("the state is nested too deeply; give it as a text") from None
    for row in rows:
        if row.problem is not None:
            raise DataError(row.problem)
    return rendered([row_to_question(row, ColumnMapping()) for row in rows], answer_of(info))


def class_examples(info: EnsembleInfo, texts: Sequence[str]) -> tuple[Example, ...]:
    """The examples of texts with the classes that the ensemble was trained on.

    Raises:
        DataError: an empty text, or an ensemble that was trained on pairs of texts.
    """
    return tuple(as_examples(list(texts), info, name="input"))


def state_of(given: str | Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> object:
    """The state that the `input` of OpenAI's Decisions API means: a text, a JSON object, or a chat.

    Calls of tools and their outputs are messages by "assistant" and "tool".

    Raises:
        DataError: an image, or a part of another kind that is no text.

    Example:
        >>> state_of([{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}])
        [{'role': 'user', 'content': 'Hello'}]
    """
    if isinstance(given, str | Mapping):
        return given
    return [_message(item, f"input[{place}]") for place, item in enumerate(given)]


def text_of(content: object, where: str) -> str:
    """The text of a content: itself, or its parts with line breaks between.

    Raises:
        DataError: an image, or something that is no text.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or not all(isinstance(part, Mapping) for part in content):
        raise DataError(f"{where} is a {type(content).__name__}; give a text, or a list of parts")
    return "\n".join(_part(part, f"{where}[{place}]") for place, part in enumerate(content))


def _message(item: Mapping[str, Any], where: str) -> dict[str, str]:
    kind = item.get("type", "message")
    if kind in CALLS:
        called = text_of(item.get(CALLS[kind], ""), where)
        return {"role": "assistant", "content": f"{item.get('name', '')}({called})"}
    if kind in OUTPUTS:
        return {"role": "tool", "content": text_of(item.get("output", ""), f"{where}.output")}
    if kind != "message" or not isinstance(item.get("role"), str) or "content" not in item:
        raise DataError(f"{where} is no message; it needs a role and a content")
    return {"role": item["role"], "content": text_of(item["content"], f"{where}.content")}


def _part(part: Mapping[str, Any], where: str) -> str:
    for key in ("text", "refusal"):
        if isinstance(part.get(key), str):
            return str(part[key])
    if part.get("type") == "input_json" and "data" in part:
        return json.dumps(part["data"], ensure_ascii=False)
    kind = part.get("type")
    raise DataError(f"{where} is of type {str(kind)[:40]!r}; this server reads texts and JSON")
