"""docs/reproduction.md is made from records and from sentences that are kept apart."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lora_ensembles.studies.claims.judge import judge
from lora_ensembles.studies.claims.paper import CLAIMS
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
def bases(reproduction: Any, tmp_path: Path) -> Any:
    """Two bases with the records of a small grid, and one that was not measured."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        for found in study_records().values():
            for record in found:
                file = f"{record['name']}-{record['settings']['seed']:012d}.json"
                (tmp_path / name / file).write_text(json.dumps(record) + "\n")
    return [reproduction.Base(name, tmp_path / name, f"make {name}") for name in ("one", "other", "none")]


def test_the_page_is_what_its_sources_give(reproduction: Any) -> None:
    page = (REPOSITORY / "docs" / "reproduction.md").read_text(encoding="utf-8")
    assert page == reproduction.page(reproduction.BASES, reproduction.read_sentences())


def test_every_claim_and_every_open_question_has_its_sentences(reproduction: Any) -> None:
    sentences = reproduction.read_sentences()
    assert list(sentences) == ["bases", "trial", *(name for name, _, _ in CLAIMS), *OPEN_KINDS, "correlation"]
    assert set(sentences.pop("trial")) == {"text"}
    assert set(sentences.pop("bases")) <= {base.name for base in reproduction.BASES}
    for name, given in sentences.items():
        assert set(given) == {"paper", "why" if name.startswith("C") else "here"}, name
        assert given["paper"].endswith("."), name


def test_page_has_each_claims_verdict_on_every_base_and_its_clauses_side_by_side(
    reproduction: Any, bases: Any
) -> None:
    text = reproduction.page(bases, reproduction.read_sentences())
    sections = re.split(r"^### ", text, flags=re.MULTILINE)
    assert "| no. | claim of the paper (LLaMA-13B) | one | other |" in text
    for claim in judge(study_records()):
        (section,) = [one for one in sections if one.startswith(f"{claim.id}. ")]
        for name in ("one", "other"):
            assert f"- {name}: {claim.id} {claim.verdict}" in section
        for part in claim.parts:
            if part.difference is not None and part.verdict != "shown":
                (row,) = re.findall(rf"^\| {re.escape(part.name)} \|.*$", section, re.MULTILINE)
                assert row.count(f", {part.verdict}") == 2
    assert "smaller than planned: 2 of 6 tasks" in text


def test_page_has_a_table_for_every_open_question_and_says_what_is_missing(
    reproduction: Any, bases: Any
) -> None:
    sentences = reproduction.read_sentences()
    text = reproduction.page(bases, sentences)
    for start in (
        "| ensemble, scaled |",
        "| Gaussian, same order |",
        "| rank 64 |",
        "| none, stopped after epoch 1 |",
        "| gain in ECE |",
    ):
        assert text.count(f"\n{start}") >= 2
    for base in bases[:2]:
        for path in base.records.glob("rank-*.json"):
            path.unlink()
    assert "\n\nNot measured.\n\n" in reproduction.page(bases, sentences)


def test_sentences_by_hand_are_shown_where_there_are_any(reproduction: Any, bases: Any) -> None:
    sentences = reproduction.read_sentences()
    bare = {name: given | {"why": "", "here": ""} for name, given in sentences.items()}
    assert "Why:" not in reproduction.page(bases, bare)
    told = bare | {
        "bases": {"one": "It is small."},
        "C5": {"paper": "It says so.", "why": "So it is."},
        "rank": {"paper": "One.", "here": "Several."},
    }
    text = reproduction.page(bases, told)
    assert "In the paper: It says so." in text
    assert "\n\nWhy: So it is.\n\n" in text
    assert "\n\nIt is small.\n\n" in text
    assert "In the paper: One.\n\nHere: Several." in text


def test_without_records_the_page_names_the_commands_and_the_claims(reproduction: Any, bases: Any) -> None:
    text = reproduction.page(bases[2:], reproduction.read_sentences())
    assert "make none" in text
    assert all(f"- **{name}** {claim}" in text for name, claim, _ in CLAIMS)
