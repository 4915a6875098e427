"""The command line with streams that are closed, full or interrupted: one line, an exit code, and never a
traceback.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command_line import base_folder, call
from lora_ensembles.cli.program import VERBS
from lora_ensembles.training import loop as training

COMMAND = f'"{sys.executable}" -m lora_ensembles.cli'


def in_shell(command: str, *, unbuffered: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("tasks >&-", "standard output is closed; send it to a file, or to /dev/null"),
        ("tasks --json >/dev/full", "standard output cannot be written: No space left on device"),
        ("--help >/dev/full", "standard output cannot be written: No space left on device"),
        ("tasks --data nowhere --json >/dev/full", "--data nowhere is no folder"),
        ("tasks --data nowhere 2>/dev/full", None),
        ("tasks --data nowhere 2>&-", None),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_stream_that_cannot_be_written_is_one_line_and_exit_code_2(command, message, unbuffered):
    done = in_shell(f"{COMMAND} {command}", unbuffered=unbuffered)
    assert (done.returncode, done.stdout) == (2, "")
    if message is None:
        assert done.stderr == ""
    else:
        assert done.stderr.splitlines()[-1].startswith(f"lora-ensembles: error: {message}")
        assert "Traceback" not in done.stderr


def test_closed_standard_input_is_named(tmp_path):
    code = "from lora_ensembles.cli.common import read_standard_input; read_standard_input()"
    done = in_shell(f'"{sys.executable}" -c "{code}" <&-')
    assert "--in -: standard input is closed; pipe the rows in, or name a file" in done.stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a.txt"),
            "a.txt: No such file or directory",
        ),
        (OSError(errno.EIO, "Input/output error"), "[Errno 5] Input/output error"),
        (OSError("two\nlines"), "two lines"),
        (
            UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "surrogates not allowed"),
            "text that is no valid Unicode",
        ),
    ],
)
def test_whatever_the_system_refuses_is_one_line_and_exit_code_2(capsys, monkeypatch, error, line):
    def refused(_):
        raise error

    monkeypatch.setattr(VERBS["tasks"], "run", refused)
    done = call(capsys, "tasks", "--json")
    assert done.code == 2
    assert done.err.startswith(f"lora-ensembles: error: {line}")
    assert done.err.count("\n") == 1
    assert done.summary == {"error": done.err.removeprefix("lora-ensembles: error: ").strip()}


@pytest.mark.parametrize("words", [["tasks", "--data", "nowhere"], ["tasks", "--unknown"], ["trian"]])
def test_with_json_an_error_is_an_object_on_standard_output_as_well(capsys, words):
    plain, done = call(capsys, *words), call(capsys, *words, "--json")
    assert plain.out == ""
    assert (done.code, done.err) == (2, plain.err)
    assert done.out == json.dumps({"error": plain.err.removeprefix("lora-ensembles: error: ").strip()}) + "\n"


def test_a_config_file_that_asks_for_json_gets_its_errors_so(capsys, tmp_path):
    (tmp_path / "a.json").write_text('{"json": true, "task": "world-cqa"}')
    done = call(capsys, "train", "--config", tmp_path / "a.json")
    assert done.summary == {"error": "train: --out DIR is needed; the ensemble is saved there"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_a_verb_works_clears_away_and_gives_the_shells_exit_code(tmp_path, number):
    code = (
        "import sys, time; from pathlib import Path; from lora_ensembles.cli import main\n"
        "from lora_ensembles.cli.program import VERBS; from lora_ensembles.disk.atomic import written_aside\n"
        "def work(_):\n"
        "    with written_aside(Path('out')): print('ready', flush=True); time.sleep(60)\n"
        "VERBS['tasks'].run = work; sys.exit(main(['tasks', '--json']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    word = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}[number]
    assert (process.returncode, err) == (128 + number, f"lora-ensembles: {word}\n")
    assert json.loads(out) == {"error": word}
    assert list(tmp_path.iterdir()) == []


def test_an_ignored_hang_up_stays_ignored():
    code = (
        "import os, signal, sys; from lora_ensembles.cli import main\n"
        "from lora_ensembles.cli.program import VERBS; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "VERBS['tasks'].run = lambda _: os.kill(os.getpid(), signal.SIGHUP); sys.exit(main(['tasks']))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


SAYS_WHEN_IT_IMPORTS = """
import sys
from lora_ensembles.cli import main

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "lora_ensembles.cli.program":
            print("up", flush=True)

sys.meta_path.insert(0, Finder())
sys.exit(main(["tasks"]))
"""


def test_ctrl_c_at_any_moment_of_the_first_second_shows_no_traceback():
    """Sent as soon as `main` imports its first module, and at moments while its modules are imported."""
    for delay in (0.0, 0.01, 0.03, 0.06, 0.1):
        process = subprocess.Popen(
            [sys.executable, "-c", SAYS_WHEN_IT_IMPORTS],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert "Traceback" not in err
        assert process.returncode in (130, 0)
        if process.returncode == 130:
            assert err == "lora-ensembles: interrupted\n"


def test_the_front_of_the_command_line_imports_none_of_its_verbs():
    code = (
        "import sys, lora_ensembles.cli; print([m for m in sys.modules if m.startswith('lora_ensembles') "
        "or m == 'argparse'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['lora_ensembles', 'lora_ensembles.cli']\n"


def test_a_file_opened_later_never_takes_the_place_of_a_closed_stream(tmp_path):
    code = (
        "import os, sys; from lora_ensembles.cli import main; from lora_ensembles.cli.program import VERBS\n"
        "VERBS['tasks'].run = lambda _: print(os.open('file', os.O_CREAT | os.O_WRONLY)); "
        "sys.exit(main(['tasks']))"
    )
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -c "$0" <&- 2>&-', code],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0
    assert int(done.stdout) > 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_training_says_how_to_go_on_and_the_same_command_with_resume_does(
    capsys, monkeypatch, tmp_path, number
):
    few = ["--limit", 16, "--limit-validation", 8, "--members", 2, "--epochs", 2, "--no-progress"]
    words = ["train", "--task", "world-cqa", "--base", base_folder(), *few, "--out", tmp_path / "run"]
    real = training._step

    def signalled(run, step):
        os.kill(os.getpid(), number)
        return real(run, step)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_step", signalled)
        done = call(capsys, *words)
    word = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[number]
    assert done.code == 128 + number
    line = done.err.splitlines()[-1]
    assert line.startswith(f"lora-ensembles: {word} after step 1 of ")
    assert f"The checkpoint of step 1 is kept in {tmp_path / 'run'}: go on from it by --resume" in line
    assert call(capsys, *words, "--resume").code == 0


def test_train_overwrites_a_run_and_a_failed_command_is_not_in_the_way_of_the_corrected_one(capsys, tmp_path):
    few = ["--limit", 16, "--limit-validation", 8, "--members", 2, "--epochs", 1, "--no-progress", "--json"]
    words = ["train", "--task", "world-cqa", "--base", base_folder(), *few, "--out", tmp_path / "run"]
    decays = ["--weight-decay-a", 0, "--weight-decay-b", 0]
    failed = call(capsys, *words, "--learning-rate", "1e38", "--batch-size", 4, *decays)
    assert (failed.code, failed.summary["error"].count("probably too high")) == (2, 1)
    assert call(capsys, *words).code == 0
    again = call(capsys, *words)
    assert again.code == 2
    assert "or replace it by --overwrite" in again.err
    assert call(capsys, *words, "--overwrite").code == 0
    assert "give one" in call(capsys, *words, "--overwrite", "--resume").err
