"""Typed decisions: rows that hold a state and several questions about it, as one row for each question.

A state is a text, a chat or any JSON; a question is a predicate (yes or no), a choice among named options, or
a score on ordered levels. Three layouts are read: that of OpenAI's Decisions API (`instructions`, `choices`
with descriptions, `levels`), the flat one of published data (`question`, `options` or `criteria`, `levels`,
with `labels` by question), and that of LocalLLaMA/typed-decisions on the hub, whose columns `state`,
`questions` and `gold` are JSON texts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import DataError, unknown_name
from .cells import json_cell, short
from .formats import Row

STATE, QUESTIONS = "state", "questions"
ANSWERS = ("labels", "gold", "answers")  # columns with the answers, by question
TYPES = {
    "predicate": "predicate",
    "boolean": "predicate",
    "noul": "predicate",
    "choice": "choice",
    "score": "score",
}
TEXTS = ("instructions", "question", "text")  # of a question, the first that is there
YES_NO = ("yes", "no")
TRUE_FALSE = ("true", "false")


@dataclass(frozen=True)
class Decision:
    """A question about a state: its type, its text, the names of its options in order, and what each stands
    for.
    """

    id: str
    type: str
    text: str
    names: tuple[str, ...]
    descriptions: tuple[str, ...]

    @property
    def options(self) -> list[str]:
        """The options as a model reads them: the name, and what it stands for where that is said."""
        return [
            f"{name}: {said}" if said and said != name else name
            for name, said in zip(self.names, self.descriptions, strict=True)
        ]


def decision_rows(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, with one row for each question in place of those that hold a state and questions about it.

    Such a row has the columns `question` (the state, an empty line, and the question's text), `options`,
    `answer` (a name, or probabilities in the order of the options), `type`, `case` and `question_id`, and
    those of the whole row; its `id` is that of the row and the question's. A row that cannot be read has a
    `problem`.

    Example:
        >>> values = {"id": "7", "state": "The door is open.", "questions": [
        ...     {"id": "leave", "type": "predicate", "instructions": "May the cat leave?"}],
        ...     "labels": {"leave": {"true": 0.9, "false": 0.1}}}
        >>> (row,) = decision_rows([Row("f.jsonl, line 1", "f.jsonl:1", values)])
        >>> row.values["id"], row.values["options"], row.values["answer"]
        ('7:leave', ['yes', 'no'], [0.9, 0.1])
    """
    for row in rows:
        if row.problem is None and holds_decisions(row.values):
            yield from _rows_of(row)
        else:
            yield row


def holds_decisions(values: Mapping[str, Any]) -> bool:
    """Whether the columns are a state and questions about it, at the top or in an object `request`."""
    inner = values.get("request", values)
    return isinstance(inner, Mapping) and STATE in inner and QUESTIONS in inner


def _rows_of(row: Row) -> Iterator[Row]:
    try:
        outer: dict[str, Any] = dict(row.values)
        request: Mapping[str, Any] = outer.pop("request", {})
        whole: dict[str, Any] = {**outer, **request}
        state, questions = json_cell(whole.pop(STATE)), _listed(json_cell(whole.pop(QUESTIONS)))
        answers: Any = next((json_cell(whole.pop(name)) for name in ANSWERS if name in whole), None) or {}
        if not questions:
            raise DataError("no questions; a state needs at least one")
        decisions = [_decision(question, number) for number, question in enumerate(questions)]
        if not isinstance(answers, Mapping):
            raise DataError(f"its answers are a {type(answers).__name__}; give an object, by question")
        answers, ids = _given(answers), [one.id for one in decisions]
        unknown = next((name for name in answers if name not in ids), None)
        if unknown is not None:
            raise DataError(unknown_name("question", str(unknown), ids))
        case, text = str(whole.pop("id", None) or row.id), _state_text(state)
        group = hashlib.sha256(f"{case}\n{text}".encode()).hexdigest()[:16]
        made = [
            {
                **whole,
                "id": f"{case}:{one.id}",
                "question": f"{text}\n\n{one.text}",
                "options": one.options,
                "answer": _answer(answers[one.id], one) if one.id in answers else None,
                "type": one.type,
                "case": case,
                "question_id": one.id,
            }
            for one in decisions
        ]
    except DataError as error:
        yield Row(row.place, row.id, {}, str(error))
        return
    for values in made:
        place = f"{row.place}, question {values['question_id']!r}"
        yield Row(place, str(values["id"]), values, group=group, type=str(values["type"]))


def _listed(questions: Any) -> list[Mapping[str, Any]]:
    """Questions as a list, each with its id and the fields that are given; they may be an object, by id."""
    if isinstance(questions, Mapping):
        questions = [
            {"id": name, **one} if isinstance(one, Mapping) else one
            for name, one in _given(questions).items()
        ]
    if not isinstance(questions, list) or not all(isinstance(one, Mapping) for one in questions):
        raise DataError("its questions are no list of objects; give one object for each question")
    return [_given(one) for one in questions]


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are not null:
    in a table, such as a parquet file, an object has the fields of all rows.
    """
    return {name: value for name, value in values.items() if value is not None}


def _decision(question: Mapping[str, Any], number: int) -> Decision:
    id = str(question.get("id", question.get("name")) or number)
    given = str(question.get("type"))
    if given not in TYPES:
        raise DataError(f"question {id!r}: {unknown_name('type', given, tuple(TYPES))}")
    text = next((question[name] for name in TEXTS if isinstance(question.get(name), str)), None)
    if not text or not text.strip():
        raise DataError(f"question {id!r} has no text; give it as {TEXTS[0]!r}")
    type = TYPES[given]
    criteria = json_cell(question.get("criteria"))
    if type == "predicate":
        said = criteria if isinstance(criteria, Mapping) else {}
        named = {
            name: said.get(flag, said.get(name, "")) for name, flag in zip(YES_NO, TRUE_FALSE, strict=True)
        }
    elif type == "choice":
        named = _named(json_cell(question.get("choices", question.get("options", criteria))), key="value")
    else:
        named = _levels(json_cell(question.get("levels", criteria)))
    if len(named) < 2:
        raise DataError(f"question {id!r} has {len(named)} options; at least 2 are needed")
    return Decision(id, type, text.strip(), tuple(named), tuple(str(one or "") for one in named.values()))


def _named(options: Any, *, key: str) -> dict[str, Any]:
    """Options by name, with what each stands for, of an object, of a list of names, or of objects that have
    both.
    """
    if isinstance(options, Mapping):
        return {str(name): said for name, said in options.items()}
    if not isinstance(options, list):
        return {}
    pairs = [(str(one[key]) if isinstance(one, Mapping) and key in one else str(one), one) for one in options]
    named = {name: one.get("description", "") if isinstance(one, Mapping) else "" for name, one in pairs}
    if len(named) < len(pairs):
        raise DataError(f"its options {[name for name, _ in pairs]} hold one twice; each needs its own name")
    return named


def _levels(levels: Any) -> dict[str, Any]:
    """Levels by their number, counted from 0, with what each stands for."""
    named = _named(levels, key="label")
    return {
        str(number): f"{label}: {said}" if said else label
        for number, (label, said) in enumerate(named.items())
    }


def _state_text(state: Any) -> str:
    """The text of a state: itself, a chat with a line for each message, or JSON."""
    if isinstance(state, str):
        return state.strip()
    if (
        isinstance(state, list)
        and state
        and all(isinstance(one, Mapping) and "content" in one for one in state)
    ):
        return "\n".join(f"{one.get('role', 'user')}: {one['content']}" for one in state)
    return json.dumps(state, ensure_ascii=False)


def _answer(answer: Any, decision: Decision) -> object:
    """The answer as one of the options, or as probabilities in their order."""
    inner = answer.get("probabilities", answer) if isinstance(answer, Mapping) else answer
    if isinstance(inner, list) and inner and all(isinstance(one, Mapping) for one in inner):
        # As a server gives them: names beside probabilities.
        pairs = [(one.get("value", one.get("label")), one.get("probability")) for one in inner]
    elif isinstance(inner, Mapping):
        pairs = list(inner.items())
    elif isinstance(inner, list):
        return inner
    elif isinstance(answer, Mapping):
        raise DataError(
            f"question {decision.id!r}: its probabilities are {short(inner)}; give one for each option"
        )
    else:
        return decision.options[decision.names.index(_name(answer, decision))]
    given = [(name, value) for name, value in pairs if value is not None]
    probs = {_name(name, decision): value for name, value in given}
    if len(probs) < len(given):
        raise DataError(f"question {decision.id!r}: its answer {short(answer)} names an option twice")
    return [probs.get(name, 0.0) for name in decision.names]


def _name(given: Any, decision: Decision) -> str:
    """The name of the option that an answer means."""
    text = str(given).lower() if isinstance(given, bool) else str(given).strip()
    if decision.type == "predicate":
        text = dict(zip(TRUE_FALSE, YES_NO, strict=True)).get(text.lower(), text.lower())
    if text in decision.names:
        return text
    by_text = {said: name for name, said in zip(decision.names, decision.descriptions, strict=True) if said}
    if text in by_text:
        return by_text[text]
    raise DataError(f"question {decision.id!r}: {unknown_name('answer', text, decision.names)}")
