"""Typed decisions: the three layouts as one row for each question, and an ensemble trained on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from command_line import base_folder, call
from lora_ensembles import load_file
from lora_ensembles.calibration.held_out import held_out_split
from lora_ensembles.data.decisions import decision_rows
from lora_ensembles.data.formats import Row
from lora_ensembles.data.inputs import as_examples
from lora_ensembles.data.splits import split_rows
from lora_ensembles.errors import DataError

STATE = {"ticket": "The invoice shows the wrong amount.", "customer": {"plan": "pro"}}
STATE_TEXT = '{"ticket": "The invoice shows the wrong amount.", "customer": {"plan": "pro"}}'
CRITERIA = {"billing": "Money and invoices.", "bug": "Something does not work."}
LEVELS = ["can wait", "this week", "today"]

# The columns of LocalLLaMA/typed-decisions: JSON texts, questions by name, "noul" for yes or no.
HUB: dict[str, Any] = {
    "id": "case-1",
    "workflow": "triage",
    "state": json.dumps(STATE),
    "questions": json.dumps(
        {
            "queue": {"type": "choice", "instructions": "Which queue?", "criteria": CRITERIA},
            "reply": {
                "type": "noul",
                "instructions": "It needs a reply.",
                "criteria": {"true": "A person waits."},
            },
            "urgency": {"type": "score", "instructions": "How urgent?", "criteria": LEVELS},
        }
    ),
    "gold": json.dumps(
        {
            "queue": {"probabilities": {"bug": 0.1, "billing": 0.9}},
            "reply": {"probabilities": {"true": 0.8, "false": 0.2}},
            "urgency": {"probabilities": {"0": 0.2, "1": 0.5, "2": 0.3}},
        }
    ),
}
FLAT: dict[str, Any] = {
    "id": "case-1",
    "workflow": "triage",
    "request": {
        "state": STATE,
        "questions": [
            {"id": "queue", "type": "choice", "question": "Which queue?", "options": CRITERIA},
            {
                "id": "reply",
                "type": "boolean",
                "question": "It needs a reply.",
                "criteria": {"true": "A person waits."},
            },
            {"id": "urgency", "type": "score", "question": "How urgent?", "levels": LEVELS},
        ],
    },
    "labels": {
        "queue": {"bug": 0.1, "billing": 0.9},
        "reply": {"true": 0.8, "false": 0.2},
        "urgency": {"0": 0.2, "1": 0.5, "2": 0.3},
    },
}
OPENAI: dict[str, Any] = {
    "id": "case-1",
    "workflow": "triage",
    "state": STATE,
    "questions": [
        {
            "name": "queue",
            "type": "choice",
            "instructions": "Which queue?",
            "choices": [{"value": name, "description": said} for name, said in CRITERIA.items()],
        },
        {
            "name": "reply",
            "type": "predicate",
            "instructions": "It needs a reply.",
            "criteria": {"yes": "A person waits."},
        },
        {
            "name": "urgency",
            "type": "score",
            "instructions": "How urgent?",
            "levels": [{"label": level} for level in LEVELS],
        },
    ],
    "answers": {
        "queue": {
            "probabilities": [{"value": "billing", "probability": 0.9}, {"value": "bug", "probability": 0.1}]
        },
        "reply": {"yes": 0.8, "no": 0.2},
        "urgency": [0.2, 0.5, 0.3],
    },
}
LAYOUTS = {"hub": HUB, "flat": FLAT, "openai": OPENAI}


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_examples(tmp_path: Path, layout: str) -> None:
    queue, reply, urgency = load_file(written(tmp_path / "cases.jsonl", LAYOUTS[layout]))
    assert (queue.id, reply.id, urgency.id) == ("case-1:queue", "case-1:reply", "case-1:urgency")
    assert queue.question == f"{STATE_TEXT}\n\nWhich queue?"
    assert queue.options == ("billing: Money and invoices.", "bug: Something does not work.")
    assert reply.options == ("yes: A person waits.", "no")
    assert urgency.options == ("0: can wait", "1: this week", "2: today")
    assert queue.target_probs == pytest.approx((0.9, 0.1))
    assert reply.target_probs == pytest.approx((0.8, 0.2))
    assert urgency.target_probs == pytest.approx((0.2, 0.5, 0.3))
    assert (queue.target, reply.target, urgency.target) == (0, 0, 1)
    assert (queue.type, reply.type, urgency.type) == ("choice", "predicate", "score")
    assert all(one.prompt.startswith(f"Q: {STATE_TEXT}\n\n") for one in (queue, reply, urgency))


@pytest.mark.parametrize(
    ("answers", "targets"),
    [
        ({"queue": "bug", "reply": True, "urgency": 2}, [1, 0, 2]),
        ({"queue": "bug", "reply": "no", "urgency": "today"}, [1, 1, 2]),
        ({"queue": "bug", "reply": "false"}, [1, 1, None]),
    ],
)
def test_one_right_answer_is_named_as_people_write_it(
    tmp_path: Path, answers: dict[str, Any], targets: list[int | None]
) -> None:
    examples = load_file(written(tmp_path / "cases.jsonl", OPENAI | {"answers": answers}), labelled=False)
    assert [one.target for one in examples] == targets
    assert all(one.target_probs is None for one in examples)


def test_answers_in_the_order_of_the_options_may_stand_under_probabilities(tmp_path: Path) -> None:
    answers = {"queue": {"probabilities": [0.9, 0.1]}, "reply": [0.8, 0.2]}
    queue, reply, _ = load_file(
        written(tmp_path / "cases.jsonl", OPENAI | {"answers": answers}), labelled=False
    )
    assert queue.target_probs == pytest.approx((0.9, 0.1))
    assert reply.target_probs == pytest.approx((0.8, 0.2))


def test_fields_that_a_table_fills_with_null_are_not_there() -> None:
    import datasets

    rows = [
        OPENAI,
        {**FLAT["request"], "id": "case-2", "workflow": "triage", "answers": {"reply": {"true": 1.0}}},
    ]
    rows[0] = rows[0] | {"answers": {"queue": {"billing": 0.9, "bug": 0.1}}}
    table = datasets.Dataset.from_list([row | {"questions": _as_list(row["questions"])} for row in rows])
    assert table[0]["questions"][1]["choices"] is None
    examples = as_examples(table)
    assert [one.id for one in examples] == [
        f"case-{n}:{name}" for n in (1, 2) for name in ("queue", "reply", "urgency")
    ]
    assert [one.target_probs for one in examples] == [(0.9, 0.1), None, None, None, (1.0, 0.0), None]
    assert examples[2].options == examples[5].options == ("0: can wait", "1: this week", "2: today")


def _as_list(questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Questions whose fields have one type in all rows, as a table needs them."""
    made = []
    for question in questions:
        fields = {
            name: value for name, value in question.items() if name not in ("options", "levels", "criteria")
        }
        levels = question.get("levels")
        if levels is not None:
            fields["levels"] = [{"label": one} if isinstance(one, str) else one for one in levels]
        if "options" in question:
            fields["choices"] = [{"value": name, "description": said} for name, said in CRITERIA.items()]
        made.append(fields)
    return made


def test_a_text_that_is_no_usable_json_stays_a_text() -> None:
    for text in ("[" * 20_000 + "]" * 20_000, '{"a": "\\ud83d"}', "{braces}"):
        row = Row("f.jsonl, line 1", "1", {**OPENAI, "state": text})
        first, *_ = decision_rows([row])
        assert first.values["question"] == f"{text}\n\nWhich queue?"


def test_a_chat_is_a_state_too_and_columns_of_the_row_stay() -> None:
    chat = [{"role": "user", "content": "It crashes."}, {"role": "assistant", "content": "When?"}]
    row = Row("f.jsonl, line 3", "f.jsonl:3", {**OPENAI, "state": chat})
    first, *_ = decision_rows([row])
    assert first.values["question"] == "user: It crashes.\nassistant: When?\n\nWhich queue?"
    assert (first.values["workflow"], first.values["case"], first.values["type"]) == (
        "triage",
        "case-1",
        "choice",
    )
    assert first.place == "f.jsonl, line 3, question 'queue'"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"questions": []}, "no questions"),
        ({"questions": "which?"}, "no list of objects"),
        ({"questions": [{"name": "a", "type": "rank", "instructions": "x"}]}, "unknown type 'rank'"),
        ({"questions": [{"name": "a", "type": "predicate"}], "answers": {}}, "question 'a' has no text"),
        (
            {
                "questions": [{"name": "a", "type": "choice", "instructions": "x", "choices": []}],
                "answers": {},
            },
            "0 options; at least 2",
        ),
        (
            {
                "questions": [{"name": "a", "type": "score", "instructions": "x", "levels": ["l", "l"]}],
                "answers": {},
            },
            "hold one twice",
        ),
        ({"answers": {"queue": "sales"}}, "question 'queue': unknown answer 'sales'"),
        ({"answers": {"que": "bug"}}, "unknown question 'que'"),
        ({"answers": OPENAI["answers"] | {"reply": {"yes": 0.8, "no": 0.8}}}, "sum to 1.6"),
        ({"answers": OPENAI["answers"] | {"reply": {"yes": 10**400}}}, "too large; give probabilities"),
        ({"answers": {"reply": {"yes": 0.8, "true": 0.2}}}, "'reply': its answer .* names an option twice"),
        (
            {"answers": {"reply": {"probabilities": 0.8}}},
            "'reply': its probabilities are 0.8; give one for each",
        ),
        (
            {"answers": OPENAI["answers"] | {"reply": {"probabilities": [{"value": "yes"}]}}},
            "sum to 0, not 1",
        ),
    ],
)
def test_what_is_wrong_with_a_case_is_said_with_its_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = written(tmp_path / "cases.jsonl", OPENAI, OPENAI | change)
    with pytest.raises(DataError, match=f"line 2.*{message}"):
        load_file(path)


def test_the_command_line_trains_and_predicts_on_cases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = []
    for number in range(12):
        late = number % 2 == 0
        cases.append(
            {
                "id": f"c{number}",
                "state": f"Parcel {number} is {'late' if late else 'on time'}.",
                "questions": [
                    {"id": "late", "type": "predicate", "instructions": "Is the parcel late?"},
                    {
                        "id": "act",
                        "type": "choice",
                        "instructions": "What now?",
                        "choices": ["refund", "wait"],
                    },
                ],
                "labels": {"late": late, "act": {"refund": 0.75, "wait": 0.25} if late else {"wait": 1.0}},
            }
        )
    train = written(tmp_path / "train.jsonl", *cases)
    unlabelled = [{name: value for name, value in case.items() if name != "labels"} for case in cases[:2]]
    new = written(tmp_path / "new.jsonl", *unlabelled)
    out, answers = tmp_path / "run", tmp_path / "answers.jsonl"
    assert (
        call(
            capsys,
            "train",
            "--train",
            train,
            "--base",
            base_folder(),
            "--members",
            "2",
            "--epochs",
            "1",
            "--out",
            out,
        ).code
        == 0
    )
    evaluated = call(capsys, "evaluate", out, "--json")
    assert evaluated.code == 0
    assert evaluated.summary["ensemble"]["kl_from_targets"] > 0
    assert call(capsys, "predict", out, "--in", new, "--out", answers).code == 0
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["c0:late", "c0:act", "c1:late", "c1:act"]
    assert {row["answer"] for row in rows} <= {"yes", "no", "refund", "wait"}


def test_questions_about_one_case_stay_on_one_side_of_a_split() -> None:
    rows = [OPENAI | {"id": f"c{number}", "state": f"Case {number}."} for number in range(10)]
    examples = as_examples(rows, labelled=True)
    train, judged = split_rows(examples, share=0.3, seed=1, name="cases")
    assert len(judged) == 9
    assert not {one.group for one in train} & {one.group for one in judged}
    held_out, rest = held_out_split(examples, share=0.3, seed=1)
    assert len(held_out) == 9
    assert not {one.group for one in held_out} & {one.group for one in rest}
    with pytest.raises(DataError, match="about one case"):
        split_rows(examples[:3], share=0.3, seed=0, name="cases")
