"""An ensemble called from another folder than the one where it was trained: base and data with relative
names.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path

import pytest
import torch

from command_line import base_folder, call
from lora_ensembles import DataError, LoraEnsemble, load_base
from lora_ensembles.storage.folder import read_ensemble
from tiny_ensembles import adapter

ROWS = [
    {"question": f"The sun is number {n}", "options": ["planet", "star"], "answer": "ab"[n % 2]}
    for n in range(10)
]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base, a file of questions and a run, all named as one types them there; the tests begin
    elsewhere.
    """
    (tmp_path / "project").mkdir()
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(base_folder(), tmp_path / "project" / "tinybase")
    monkeypatch.chdir(tmp_path / "project")
    Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    made = LoraEnsemble(*load_base("tinybase"), num_members=2, adapter=adapter())
    made.info = dataclasses.replace(made.info, task={"name": "rows", "source": {"train": "rows.jsonl"}})
    made.save_pretrained("runs/rows")
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "project"


def test_a_base_with_a_relative_name_is_found_from_another_folder(capsys, project):
    rows = project / "rows.jsonl"
    done = call(capsys, "predict", project / "runs" / "rows", "--in", rows)
    assert done.code == 0
    assert len(done.out.splitlines()) == 10


def test_a_project_that_was_moved_as_a_whole_and_a_linked_run_find_their_base(project):
    project.rename(project.with_name("moved"))
    link = project.parent / "elsewhere" / "link"
    link.symlink_to(project.with_name("moved") / "runs" / "rows")

    loaded = LoraEnsemble.from_pretrained(link)
    assert Path(loaded.base.name_or_path) == project.with_name("moved") / "tinybase"


def test_the_file_says_the_way_to_the_base_and_names_nothing_of_the_machine(project):
    content = (project / "runs" / "rows" / "ensemble.json").read_text()
    assert json.loads(content)["base"]["folder"] == "../../tinybase"
    assert str(project.parent) not in content


def test_a_base_beside_the_present_folder_serves_a_run_that_was_moved_alone(project, monkeypatch):
    (project / "runs" / "rows").rename(project.parent / "elsewhere" / "alone")
    with pytest.raises(
        DataError, match=r"was the folder 'tinybase', which is not found .*pass base= and tokenizer="
    ):
        LoraEnsemble.from_pretrained("alone")
    monkeypatch.chdir(project)
    assert LoraEnsemble.from_pretrained("../elsewhere/alone").num_members == 2


@pytest.mark.parametrize("name", ["./gone", "../gone", "/gone/base", "~/gone", "a/b/c", "gone/", "C:\\gone"])
def test_a_base_that_can_only_be_a_folder_and_is_not_there_is_refused_at_once(capsys, project, name):
    begin = time.monotonic()
    done = call(capsys, "predict", project / "runs" / "rows", "--in", project / "rows.jsonl", "--base", name)
    assert done.code == 2
    assert f"base model {name!r}: no such folder from" in done.err
    assert time.monotonic() - begin < 5  # a request to the hub is tried again for a minute


def test_a_base_that_is_gone_asks_for_the_flag(capsys, project):
    shutil.rmtree(project / "tinybase")
    done = call(capsys, "predict", project / "runs" / "rows", "--in", project / "rows.jsonl")
    assert done.code == 2
    assert "was the folder 'tinybase', which is not found" in done.err
    assert "--base" in done.err


def test_evaluate_asks_for_the_file_before_anything_is_loaded(capsys, project, monkeypatch):
    done = call(capsys, "evaluate", project / "runs" / "rows")
    assert done.code == 2
    assert "rows.jsonl, which " in done.err
    assert "pass --file FILE, or call from the folder where it was trained" in done.err
    assert call(capsys, "evaluate", project / "runs" / "rows", "--file", project / "rows.jsonl").code == 0
    monkeypatch.chdir(project)
    assert call(capsys, "evaluate", "runs/rows").code == 0


def test_weights_are_those_of_the_ensemble_that_was_saved(project):
    saved = read_ensemble(project / "runs" / "rows")
    loaded = LoraEnsemble.from_pretrained(project / "runs" / "rows")
    for index, weights in enumerate(saved.weights):
        assert all(torch.equal(loaded.stack.member(index).a[name], weights.a[name]) for name in weights.a)
