"""What the README tells a newcomer to type works as it stands there."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from pathlib import Path

import pytest

from command_line import call, shell_words

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.S)
    for line in block.splitlines()
]
OWN = [command for command in COMMANDS if command.startswith("lora-ensembles")]


def test_readme_opens_with_the_two_make_targets():
    assert COMMANDS[:2] == ["make demo", "make test"]
    assert COMMANDS[2] == 'pip install "lora-ensembles[plots]"'
    targets = (REPOSITORY / "Makefile").read_text()
    assert re.search(r"^demo:", targets, re.M)
    assert re.search(r"^test:", targets, re.M)


def test_readme_commands_run_one_after_another(capsys, monkeypatch, tmp_path):
    assert len(OWN) >= 3
    shutil.copytree(REPOSITORY / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    for command in OWN:
        # That a command runs is the same with fewer epochs, of which an ensemble is right less often.
        command = command.replace(" --epochs 10", "").replace("train", "train --epochs 1", 1)
        command = command.replace("--epochs 8", "--epochs 2").replace("--risk 0.1", "--risk 0.5")
        done = call(capsys, *shell_words(command)[1:])
        assert done.code == 0, f"{command}\n{done.err}"
    assert (tmp_path / "runs/mine/ensemble.json").is_file()
    assert (tmp_path / "runs/answers.jsonl").read_text().count("\n") > 3


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_readme_link_leads_somewhere(link):
    assert link.startswith("https://") or (REPOSITORY / link).exists()


def test_readme_python_example_runs_as_it_stands(capsys, monkeypatch, tmp_path):
    """In one epoch, and with fewer questions."""
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len([line for line in block.splitlines() if line.strip()]) <= 12
    code = block.replace("epochs=10", "epochs=1").replace("task.train,", "task.train[:16],")
    code = code.replace("task.validation)", "task.validation[:8])")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.count("accuracy") == 2
    assert (tmp_path / "runs/mine/member_004/adapter_model.safetensors").is_file()


def test_readme_table_is_what_the_records_give(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    monkeypatch.setattr(sys, "argv", ["readme.py", "--check"])
    importlib.import_module("readme").main()
