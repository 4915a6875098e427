"""docs/reproduction.md and docs/real-data.md are made from records and from sentences that are kept apart."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from lora_ensembles.studies.claims.contrasts import CLAIMS
from lora_ensembles.studies.claims.judge import judge
from lora_ensembles.studies.grid import OPEN_KINDS
from study_records import study_records

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def reproduction(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script that writes the page."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import reproduction

    return reproduction


@pytest.fixture
def source(reproduction: Any, tmp_path: Path) -> Any:
    """What a page is made from, with the records of a small grid."""
    for found in study_records().values():
        for record in found:
            (tmp_path / f"{record['name']}-{record['settings']['seed']:012d}.json").write_text(
                json.dumps(record) + "\n"
            )
    return dataclasses.replace(reproduction.EMBEDDED, records=tmp_path)


def test_both_pages_are_what_their_sources_give(reproduction: Any) -> None:
    for source in (reproduction.EMBEDDED, reproduction.REAL_DATA):
        assert source.page.read_text(encoding="utf-8") == reproduction.page(source, source.sentences()), (
            source.name
        )


def test_every_claim_and_every_open_question_has_its_sentences(reproduction: Any) -> None:
    sentences = reproduction.EMBEDDED.sentences()
    assert list(sentences) == [*(name for name, _, _ in CLAIMS), *OPEN_KINDS, "correlation"]
    for name, given in sentences.items():
        assert set(given) == {"paper", "here", "why"} if name.startswith("C") else {"paper", "here"}, name
        assert given["paper"].endswith("."), name


def test_page_has_each_claims_verdict_and_parts_from_the_records(reproduction: Any, source: Any) -> None:
    text = reproduction.page(source, reproduction.EMBEDDED.sentences())
    sections = re.split(r"^### ", text, flags=re.MULTILINE)
    for claim in judge(study_records()):
        (section,) = [one for one in sections if one.startswith(f"{claim.id}. ")]
        assert f"Verdict: **{claim.verdict}**" in section
        for part in claim.parts:
            assert f"| {part.name} | {part.verdict} |" in section
    assert "The grid is smaller than the full one: 2 of 6 tasks" in text


def test_page_has_a_table_for_every_open_question_and_says_what_is_missing(
    reproduction: Any, source: Any
) -> None:
    sentences = reproduction.EMBEDDED.sentences()
    text = reproduction.page(source, sentences)
    for start in (
        "| ensemble, scaled |",
        "| Gaussian, same order |",
        "| rank 64 |",
        "| none, stopped after epoch 1 |",
        "| gain in ECE |",
    ):
        assert text.count(f"\n{start}") >= 1
    for path in source.records.glob("rank-*.json"):
        path.unlink()
    assert "Not measured: there is no record of the kind 'rank'." in reproduction.page(source, sentences)


def test_sentences_by_hand_are_shown_where_there_are_any(reproduction: Any, source: Any) -> None:
    sentences = reproduction.EMBEDDED.sentences()
    assert "Here:" not in reproduction.page(
        source, sentences | {name: given | {"here": ""} for name, given in sentences.items()}
    )
    told = sentences | {"C5": {"paper": "It says so.", "here": "So it is."}}
    text = reproduction.page(source, told)
    assert "In the paper: It says so.\n\nHere: So it is." in text


def test_without_records_the_page_names_the_commands_and_the_claims(
    reproduction: Any, tmp_path: Path
) -> None:
    text = reproduction.page(
        dataclasses.replace(reproduction.EMBEDDED, records=tmp_path), reproduction.EMBEDDED.sentences()
    )
    assert "lora-ensembles study all --out results/embedded" in text
    assert all(f"- **{name}** {claim}" in text for name, claim, _ in CLAIMS)


def test_real_data_has_a_table_of_every_task_and_the_papers_sentences_once(
    reproduction: Any, source: Any
) -> None:
    real = dataclasses.replace(reproduction.REAL_DATA, records=source.records)
    sentences = real.sentences()
    for name, given in reproduction.EMBEDDED.sentences().items():
        assert sentences[name]["paper"] == given["paper"]
    text = reproduction.page(real, sentences | {"reading": {"text": "It carries over."}})
    for task in ("world-cqa", "world-mmlu-stem"):
        (section,) = re.findall(rf"^### {task}$(.*?)^##", text, re.MULTILINE | re.DOTALL)
        assert "| ensemble |" in section
    assert "## Reading\n\nIt carries over." in text
