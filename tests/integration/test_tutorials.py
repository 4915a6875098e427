"""Every tutorial runs, cell by cell, at a size that takes seconds; and its notebook is that of its source."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
SOURCES = sorted((DOCS / "tutorials").glob("[0-9][0-9]_*.py"))
NEEDS = {"04_reward_trl": "trl"}  # what a tutorial is about and this library does not bring
# Values of names in the cell tagged "parameters": that the cells run is the same at any size.
SMALL: dict[str, dict[str, Any]] = {
    "01_your_csv": {"rows": 60, "epochs": 1, "members": 2, "command_epochs": 1},
    "02_uncertainty": {
        "train_questions": 24,
        "few_questions": 12,
        "test_questions": 24,
        "epochs": 2,
        "members": 2,
    },
    "03_chat_that_knows": {"train_questions": 24, "test_questions": 16, "epochs": 2, "members": 2},
    "04_reward_trl": {
        "train_questions": 16,
        "test_questions": 16,
        "epochs": 1,
        "members": 2,
        "trl_members": 2,
    },
    "05_paper_on_smollm2": {"train_questions": 24, "test_questions": 24, "epochs": 2, "members": 2},
    "06_from_peft_adapters": {"train_questions": 16, "test_questions": 24, "epochs": 1, "adapters": 3},
}


@pytest.fixture
def notebooks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that makes the notebooks."""
    monkeypatch.syspath_prepend(str(DOCS / "build"))
    return importlib.import_module("notebooks")


@pytest.fixture(autouse=True)
def quiet_libraries_speak_again() -> Iterator[None]:
    """What a tutorial silences in its own process is as it was for the tests after it."""
    import datasets
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    datasets.enable_progress_bars()


# What other libraries warn of, a reader of the tutorial sees and passes over.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_tutorial_runs_cell_by_cell(source, notebooks, tmp_path, monkeypatch):
    if needed := NEEDS.get(source.stem):
        pytest.importorskip(needed, reason=f"the tutorial is about {needed}, which is not installed")
    pytest.importorskip("matplotlib", reason="the tutorials draw figures; the extra plots is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # where tutorials make their folders
    names: dict[str, Any] = {"__name__": "__main__"}
    small = dict(SMALL[source.stem])
    for number, cell in enumerate(notebooks.cells_of(source.read_text(encoding="utf-8")), start=1):
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "markdown" or "skip-execution" in tags:
            continue
        exec(compile(cell.source, f"{source}, cell {number}", "exec"), names)
        if "parameters" in tags:
            assert set(small) <= set(names), "a size that the tutorial does not have"
            names.update(small)


def test_every_tutorial_has_sizes_here():
    assert {path.stem for path in SOURCES} == set(SMALL)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_notebook_is_in_step_with_its_source_and_holds_no_outputs(source, notebooks):
    text = source.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert text == notebooks.notebook_of(source.read_text(encoding="utf-8")), "run docs/build/notebooks.py"
    for cell in json.loads(text)["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_tutorial_opens_with_what_it_teaches_a_colab_link_and_one_cell_of_parameters(source, notebooks):
    first, install, *others = notebooks.cells_of(source.read_text(encoding="utf-8"))
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert "two CPU cores" in first.source
    assert f"/blob/main/docs/tutorials/{source.stem}.ipynb)" in first.source
    assert {"colab", "skip-execution"} <= set(install.metadata["tags"])
    assert "!pip install" in install.source
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in others) == 1


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_links_of_a_tutorial_lead_somewhere(source):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", source.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (source.parent / link).is_file(), link


def test_check_of_the_script_names_a_notebook_that_is_out_of_date(notebooks, tmp_path, capsys):
    source = tmp_path / "01_one.py"
    source.write_text("# %% [markdown]\n# # One\n")
    assert notebooks.main(["--check"], folder=tmp_path) == 1
    assert "01_one.ipynb is not that of its source" in capsys.readouterr().err
    assert notebooks.main([], folder=tmp_path) == 0
    assert notebooks.main(["--check"], folder=tmp_path) == 0
    source.rename(tmp_path / "01_other.py")
    assert notebooks.main(["--check"], folder=tmp_path) == 1


def test_check_of_the_script_passes_as_a_command():
    done = subprocess.run(
        [sys.executable, DOCS / "build" / "notebooks.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
