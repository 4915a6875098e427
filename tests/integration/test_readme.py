"""What the README tells a newcomer to type works as it stands there."""

from __future__ import annotations

import re
import shutil
import subprocess
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
    targets = (REPOSITORY / "Makefile").read_text()
    assert re.search(r"^demo:", targets, re.M)
    assert re.search(r"^test:", targets, re.M)


def test_readme_commands_run_one_after_another(capsys, monkeypatch, tmp_path):
    assert len(OWN) >= 3
    shutil.copytree(REPOSITORY / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    for command in OWN:
        # That a command runs is the same with fewer epochs.
        command = command.replace(" --epochs 10", "").replace("train", "train --epochs 1", 1)
        done = call(capsys, *shell_words(command)[1:])
        assert done.code == 0, f"{command}\n{done.err}"
    assert (tmp_path / "runs/mine/ensemble.json").is_file()
    assert (tmp_path / "runs/answers.jsonl").read_text().count("\n") > 3


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_readme_link_leads_somewhere(link):
    assert link.startswith("https://") or (REPOSITORY / link).exists()


def test_readme_python_example_is_the_call_the_library_takes():
    """The block names a 7B model of the hub; the same lines run here with the embedded base and world in
    place of it.
    """
    block = next(
        block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "LoraEnsemble(" in block
    )
    code = block.replace(
        'AutoModelForCausalLM.from_pretrained("meta-llama/Llama-2-7b-hf", dtype="bfloat16")', "load_base()[0]"
    )
    code = code.replace('AutoTokenizer.from_pretrained("meta-llama/Llama-2-7b-hf")', "load_base()[1]")
    code = (
        code.replace('"obqa"', '"world-mmlu-ss"')
        .replace('"mmlu-stem"', '"world-mmlu-stem"')
        .replace("epochs=20", "epochs=1")
    )
    code = code.replace("task.train,", "task.train[:16],").replace("task.validation)", "task.validation[:8])")
    code = code.replace('.save_pretrained("runs/obqa")', ".save_pretrained(folder)")
    assert "meta-llama" not in code
    script = (
        "from lora_ensembles import load_base\nimport tempfile\nfolder = tempfile.mkdtemp() + '/run'\n" + code
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
