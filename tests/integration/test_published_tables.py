"""The published tables: what they hold, and our own rows beside them."""

from __future__ import annotations

import importlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from lora_ensembles.errors import DataError
from lora_ensembles.studies import grid

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("published")


def write_record(folder: Path, *, base: str, task: str, seed: int, accuracy: float) -> None:
    """A record of one method that holds what tables read."""
    part = {"accuracy": accuracy, "ece": accuracy / 10, "nll": 1.5}
    own = {"raw": part, "scaled": part}
    if task == "obqa-dev":
        own["elsewhere"] = {"mmlu-college-physics": {"raw": part, "scaled": part}}
    record = {
        "name": "published",
        "settings": {"kind": grid.BY_PROTOCOL, "task": task, "seed": seed, "base": base},
        "result": {"methods": {"ensemble": own}},
        "environment": {},
    }
    folder.mkdir(exist_ok=True)
    (folder / f"published-{task}-{seed}.json").write_text(json.dumps(record))


def rows_of(markdown: str, base: str, metric: str) -> dict[str, list[str]]:
    section = markdown.split(f"### {base}\n")[1].split("###")[0]
    table = next(part for part in section.strip().split("\n\n") if part.startswith(f"| method, {metric}"))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {name: values for name, *values in cells[2:]}


def test_published_rows_are_those_of_the_source(published: Any) -> None:
    markdown = published.published_tables()
    assert rows_of(markdown, "Llama-3.1-8B", "ECE")["DALorRA"] == (
        "7.81 5.60 2.88 3.25 3.12 1.82 6.23 3.81 14.58 15.46".split()
    )
    assert rows_of(markdown, "Llama-2-7B", "accuracy")["ENS"] == (
        [*"68.98 68.57 86.24 77.39 82.20 88.07".split(), *"----"]
    )
    assert "2607.02182" in markdown
    assert "average logits" in markdown
    assert "ours" not in markdown


def test_every_published_number_is_in_its_range() -> None:
    content = tomllib.loads((REPOSITORY / "docs" / "published.toml").read_text(encoding="utf-8"))
    for base in content["bases"].values():
        lengths = {len(values) for row in base["rows"].values() for values in row.values()}
        assert lengths in ({6}, {10})
        for row in base["rows"].values():
            assert list(row) == ["accuracy", "ece", "nll"]
            assert all(30 < value < 95 for value in row["accuracy"])
            assert all(1 < value < 50 for value in row["ece"])
            assert all(0.2 < value < 3.1 for value in row["nll"])


def test_our_rows_stand_below_those_of_the_same_base(published: Any, tmp_path: Path) -> None:
    name = "meta-llama/Llama-3.1-8B"
    for seed, accuracy in enumerate((0.5, 0.6)):
        write_record(tmp_path / "a", base=name, task="boolq", seed=seed, accuracy=accuracy)
    write_record(tmp_path / "a", base=name, task="obqa-dev", seed=0, accuracy=0.25)
    markdown = published.published_tables([tmp_path / "a"])
    ours = rows_of(markdown, "Llama-3.1-8B", "accuracy")["ours: ensemble"]
    assert ours == [*"----", "25.00", "55.00", *"---", "25.00"]
    assert rows_of(markdown, "Llama-3.1-8B", "NLL")["ours: ensemble + T"][5] == "1.50"
    assert "ours: ensemble" not in rows_of(markdown, "Llama-2-7B", "accuracy")


def test_columns_that_are_not_those_of_the_tables_are_refused(published: Any, tmp_path: Path) -> None:
    source = tmp_path / "other.toml"
    source.write_text('columns = ["WG-S"]\n')
    with pytest.raises(DataError, match="its columns are"):
        published.published_tables(source=source)


def test_the_script_prints_them(published: Any, capsys: pytest.CaptureFixture[str]) -> None:
    published.main([])
    assert capsys.readouterr().out == published.published_tables()
