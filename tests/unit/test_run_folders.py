"""The folder of a run: one process at a time, replaced only when asked and only what is ours, left by signals
ready to go on.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from lora_ensembles.disk.claimed import FolderLock
from lora_ensembles.ensemble import LoraEnsemble
from lora_ensembles.errors import CheckpointError, ConfigError, TrainingError
from lora_ensembles.training.adapters import train
from lora_ensembles.training.config import TrainConfig
from lora_ensembles.training.signals import Interrupted, signals_held
from tiny_ensembles import ensemble, files_below, llama, questions, tokenizer

SHORT = TrainConfig(epochs=2, batch_size=4, learning_rate=1e-2)
TOO_FAST = dataclasses.replace(SHORT, learning_rate=1e38, weight_decay_a=0.0, weight_decay_b=0.0)


def run(
    out: Path, config: TrainConfig = SHORT, *, resume: bool = False, overwrite: bool = False, seed: int = 0
) -> LoraEnsemble:
    made = ensemble(seed=seed)
    train(made, questions(8), config, out=out, resume=resume, overwrite=overwrite, progress=False)
    return made


def loaded(out: Path) -> LoraEnsemble:
    return LoraEnsemble.from_pretrained(out, base=llama(), tokenizer=tokenizer())


# Locks

HOLDER = """
import sys, time
from pathlib import Path
from lora_ensembles.disk.claimed import FolderLock
lock = FolderLock(Path(sys.argv[1])); print("held", flush=True); time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that has the lock of the folder `out`."""
    (tmp_path / "out").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("how", ["resume", "overwrite", "anew"])
def test_second_process_is_refused_by_the_number_of_the_first(
    tmp_path: Path, holder: subprocess.Popen[str], how: str
) -> None:
    before = files_below(tmp_path)
    with pytest.raises(CheckpointError, match=rf"a run is going on in .*out \(process {holder.pid}\); wait"):
        run(tmp_path / "out", resume=how == "resume", overwrite=how == "overwrite")
    assert files_below(tmp_path) == before


def test_killed_run_leaves_no_lock(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    assert files_below(tmp_path / "out") == {".lock"}

    run(tmp_path / "out")

    assert ".lock" not in files_below(tmp_path / "out")


def test_lock_can_be_taken_again_once_it_is_given_back_and_many_racers_have_one_winner(
    tmp_path: Path,
) -> None:
    first = FolderLock(tmp_path)
    first.release()
    start, winners, losers = threading.Barrier(8), [], []

    def race() -> None:
        start.wait()
        try:
            winners.append(FolderLock(tmp_path))
        except CheckpointError:
            losers.append(1)

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(winners), len(losers)) == (1, 7)
    winners[0].release()
    assert files_below(tmp_path) == set()


# Failures


def test_failed_run_without_a_checkpoint_leaves_the_folder_free_for_the_corrected_one(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"No update was made$"):
        run(tmp_path / "out", TOO_FAST)
    assert files_below(tmp_path) == set()

    assert torch.equal(run(tmp_path / "out").stack.b, loaded(tmp_path / "out").stack.b)


def test_failed_run_in_an_empty_folder_of_the_users_keeps_that_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(TrainingError, match="probably too high"):
        run(tmp_path / "out", TOO_FAST)
    assert files_below(tmp_path) == {"out"}


def test_failed_run_with_a_checkpoint_says_how_to_go_on_or_replace_it(tmp_path: Path) -> None:
    # The warm-up's first step changes nothing, and the second far too much.
    wrong = dataclasses.replace(TOO_FAST, epochs=20, warmup_steps=2, checkpoint_every=1)
    with pytest.raises(
        TrainingError,
        match=r"No update was made\. The checkpoint of step \d+ is kept in .*out: "
        r"go on from it by resume=True, or replace the run by overwrite=True$",
    ):
        run(tmp_path / "out", wrong)

    made = run(tmp_path / "out", overwrite=True)
    assert torch.equal(made.stack.b, loaded(tmp_path / "out").stack.b)


# Overwriting


def test_overwritten_run_leaves_what_a_fresh_one_does(tmp_path: Path) -> None:
    run(tmp_path / "out", dataclasses.replace(SHORT, epochs=3, snapshot_epochs=[1]))
    (tmp_path / "out" / ".lock").write_text("of a killed process")
    run(tmp_path / "fresh", seed=1)

    made = run(tmp_path / "out", overwrite=True, seed=1)

    boards = "training/tensorboard/"  # whose files have the time in their names
    old, new = (
        {name for name in files_below(tmp_path / folder) if not name.startswith(boards)}
        for folder in ("fresh", "out")
    )
    assert new == old
    assert torch.equal(made.stack.b, loaded(tmp_path / "out").stack.b)


def test_saved_ensemble_can_be_overwritten_and_a_linked_folder_stays_linked(tmp_path: Path) -> None:
    ensemble(members=3).save_pretrained(tmp_path / "saved")
    (tmp_path / "link").symlink_to("saved")

    run(tmp_path / "link", overwrite=True)

    assert (tmp_path / "link").is_symlink()
    assert loaded(tmp_path / "saved").num_members == 2


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "training/notes.txt",
        "member_000/notes.txt",
        "member_000/deep/adapter_config.json",
        "model.safetensors",
        ".git/HEAD",
    ],
)
def test_folder_with_a_file_of_the_users_is_never_overwritten(tmp_path: Path, name: str) -> None:
    run(tmp_path / "out")
    (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / name).write_text("mine")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}

    with pytest.raises(CheckpointError, match=rf"out holds {name}, so it is not overwritten; choose another"):
        run(tmp_path / "out", overwrite=True)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_folder_without_run_or_ensemble_and_one_with_a_link_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "README.md").write_text("mine")
    with pytest.raises(CheckpointError, match="card holds no run and no ensemble, so it is not overwritten"):
        run(tmp_path / "card", overwrite=True)

    (tmp_path / "elsewhere").mkdir()
    run(tmp_path / "out")
    (tmp_path / "out" / "training" / "checkpoint" / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="holds training/checkpoint/more, so it is not overwritten"):
        run(tmp_path / "out", overwrite=True)


def test_overwriting_what_is_not_there_is_training_anew_and_resuming_as_well_is_refused(
    tmp_path: Path,
) -> None:
    run(tmp_path / "out", overwrite=True)
    with pytest.raises(ConfigError, match=r"goes on with a run, overwrite=True replaces it; give one"):
        run(tmp_path / "out", overwrite=True, resume=True)


# Resuming what was damaged


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{broken", "Expecting property name"),
        ("[1]", "list indices"),
        ('{"loss": 1}', "'step'"),
        ('{"step": "x"}', "not supported"),
    ],
)
def test_broken_complete_line_of_the_log_is_named(tmp_path: Path, line: str, reason: str) -> None:
    run(tmp_path / "out", dataclasses.replace(SHORT, log_every=1))
    log = tmp_path / "out" / "training" / "log.jsonl"
    first, *rest = log.read_text().splitlines()
    log.write_text("\n".join([first, line, *rest]) + "\n")

    with pytest.raises(
        CheckpointError, match=rf"log\.jsonl, line 2: no row of a log \(.*{reason}.*remove the line"
    ):
        run(tmp_path / "out", dataclasses.replace(SHORT, log_every=1), resume=True)
    assert line in log.read_text()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("step", "4", "step is '4'; it has to be a whole number"),
        ("step", -1, "step is -1"),
        ("history", {}, "history is {}; it has to be a list"),
        ("history", [3], r"history\[0\] is 3; it has to be an object"),
        ("partial", {"sums": [["a"]]}, r"partial\.sums\[0\]\[0\] is 'a'; it has to be a number"),
        ("partial", {"sums": [[1.0]], "count": 1}, r"partial\.sums is not 2 by 2"),
    ],
)
def test_value_of_another_type_in_a_checkpoint_is_named(
    tmp_path: Path, name: str, value: object, message: str
) -> None:
    run(tmp_path / "out")
    path = tmp_path / "out" / "training" / "checkpoint" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))

    with pytest.raises(CheckpointError, match=rf"checkpoint .* is corrupt .*{message}.*train anew"):
        run(tmp_path / "out", resume=True)
    assert path.exists()


@pytest.mark.parametrize("text", ["[1]", "3", '"a"'])
def test_settings_of_a_run_that_are_no_object_are_named(tmp_path: Path, text: str) -> None:
    run(tmp_path / "out")
    (tmp_path / "out" / "training" / "config.json").write_text(text)

    with pytest.raises(CheckpointError, match=r"config\.json is corrupt .*it has to be an object"):
        run(tmp_path / "out", resume=True)


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_in_training_finishes_the_step_saves_it_and_the_resumed_run_is_the_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    from lora_ensembles.training import loop as training

    config = dataclasses.replace(SHORT, epochs=5, checkpoint_every=100)
    whole = run(tmp_path / "whole", config)
    real, calls = training._step, []

    def step(*args):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), number)  # in the middle of the third step
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_step", step)
        with pytest.raises(
            Interrupted, match=r"after step 3 of 10\. The checkpoint of step 3 is kept in .*out: go on"
        ) as caught:
            run(tmp_path / "out", config)
    assert caught.value.number == number
    assert len(calls) == 3
    assert ".lock" not in files_below(tmp_path / "out")

    assert torch.equal(run(tmp_path / "out", config, resume=True).stack.b, whole.stack.b)


def test_second_signal_ends_at_once() -> None:
    def end_twice() -> None:
        with signals_held() as held:
            os.kill(os.getpid(), signal.SIGINT)
            assert held.number == signal.SIGINT
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)

    began = time.monotonic()
    with pytest.raises(Interrupted, match="interrupted"):
        end_twice()
    assert time.monotonic() - began < 5


def test_handler_of_the_callers_and_an_ignored_signal_stay(tmp_path: Path) -> None:
    came = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_held() as held:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)
        assert (came, held.number) == ([signal.SIGTERM], None)
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGHUP, ignored)


def test_run_in_another_thread_trains_without_handlers(tmp_path: Path) -> None:
    made: list[LoraEnsemble] = []
    thread = threading.Thread(target=lambda: made.append(run(tmp_path / "out")))
    thread.start()
    thread.join()
    assert loaded(tmp_path / "out").num_members == made[0].num_members
