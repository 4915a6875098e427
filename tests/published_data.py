"""Small files in the hub's schemas for the tasks of the published protocol, in words that
`tiny_ensembles.tokenizer` knows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[dict[str, Any]]

ANIMALS = "otter heron badger falcon beaver lynx marten plover".split()
PLACES = "lake forest moor coast".split()
WINOGRANDE: Rows = [
    {
        "sentence": f"the {animal} not the _ live : {PLACES[number % 4]} .",
        "option1": animal,
        "option2": ANIMALS[number - 1],
        "answer": str(1 + number % 2),
    }
    for number, animal in enumerate(ANIMALS)
]
BOOLQ: Rows = [
    {
        "question": f"does the {animal} live not",
        "passage": f"the {animal} does live : the {PLACES[number % 4]} .",
        "answer": number % 2 == 0,
    }
    for number, animal in enumerate(ANIMALS)
]


def _choice_rows(question: str) -> Rows:
    return [
        {
            "id": f"{question}-{number}",
            question: f"Where does the {animal} live",
            "choices": {"text": PLACES, "label": list("ABCD")},
            "answerKey": "ABCD"[number % 4],
        }
        for number, animal in enumerate(ANIMALS)
    ]


MMLU: Rows = [
    {
        "question": f"{subject} {animal}",
        "subject": subject,
        "choices": PLACES,
        "answer": number % 4,
    }
    for subject in ("college_chemistry", "high_school_chemistry", "college_physics", "high_school_physics")
    for number, animal in enumerate(ANIMALS[:3])
]
FOLDERS: dict[str, Rows] = {
    "winogrande/winogrande_s": WINOGRANDE,
    "winogrande/winogrande_m": WINOGRANDE,
    "boolq": BOOLQ,
    "openbookqa": _choice_rows("question_stem"),
    "ai2_arc/ARC-Easy": _choice_rows("question"),
    "ai2_arc/ARC-Challenge": _choice_rows("question"),
}


def write_rows(file: Path, rows: Rows) -> None:
    """Write rows as JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def write_published(folder: Path) -> None:
    """Write every dataset of the protocol: 8 training questions, 6 to evaluate on, 3 of each MMLU subject."""
    for place, rows in FOLDERS.items():
        ids = [{**row, "id": f"v-{row['id']}"} if "id" in row else row for row in rows]
        write_rows(folder / place / "train.jsonl", rows)
        write_rows(folder / place / "validation.jsonl", ids[:6])
    write_rows(folder / "mmlu" / "test.jsonl", MMLU)
