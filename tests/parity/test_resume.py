"""A run that is killed and resumed ends with the weights of one that never was, bit for bit."""

from __future__ import annotations

import functools
import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from breadth import tried
from lora_ensembles import TrainConfig, train
from lora_ensembles.data import Completion, Example
from lora_ensembles.errors import CheckpointError
from tiny_heads import build_ensemble as build_heads, examples_for
from tiny_models import build_ensemble, letter_examples, open_examples

# All that a step depends on beside weights and moments: the order of the epoch, the schedule, dropout, the
# base's states, the clip.
CONFIG = TrainConfig(
    epochs=14,
    batch_size=4,
    learning_rate=2e-3,
    weight_decay_b=20.0,
    kl_weight=0.1,
    dropout=0.2,
    schedule="cosine",
    warmup_steps=4,
    max_grad_norm=1.0,
    snapshot_epochs=(1, 14),
    # Not a multiple of the epoch's 3 steps: the sums of an epoch under way are kept as well.
    checkpoint_every=4,
    log_every=1,
)
STEPS = 3 * CONFIG.epochs
# Processes are forked from one that has imported the libraries, once for all tests here.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])
EXAMPLES: dict[str, Callable[[], Sequence[Example] | Sequence[Completion]]] = {
    "questions": letter_examples,
    "open answers": open_examples,
}
HEADS = ("sequence-classification", "multiple-choice", "reward")
EXAMPLES |= {kind: functools.partial(examples_for, kind) for kind in HEADS}


def run(
    out: str | Path, kind: str = "questions", *, resume: bool = False, config: TrainConfig = CONFIG
) -> list[dict[str, object]]:
    ensemble = (
        build_heads("bert", kind, members=2, init="base") if kind in HEADS else build_ensemble(members=2)
    )
    examples = EXAMPLES[kind]()
    return train(
        ensemble, examples, config, validation=examples[:2], out=out, resume=resume, progress=False
    ).history


def results(out: Path) -> dict[str, bytes]:
    """All that a run leaves, but for the last checkpoint's and the log's own files."""
    paths = [
        path
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.suffix in (".safetensors", ".json", ".md")
    ]
    return {
        str(path.relative_to(out)): path.read_bytes() for path in paths if path.name != "environment.json"
    }


def log(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]


def kill_in_the_middle(out: Path, kind: str) -> int:
    """Start a run in a process of its own and kill it as soon as it has a checkpoint; returns the
    checkpoint's step.
    """
    state = out / "training" / "checkpoint" / "state.json"
    child = FORKS.Process(target=run, args=(out, kind))
    child.start()
    deadline = time.monotonic() + 120
    while not state.exists() and child.is_alive() and time.monotonic() < deadline:
        time.sleep(0.001)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    return int(json.loads(state.read_text())["step"])


@pytest.mark.parametrize("kind", tried(["questions", "open answers", "multiple-choice"], ["questions"]))
def test_run_resumed_after_kill_9_equals_one_never_killed_bit_for_bit(kind: str, tmp_path: Path) -> None:
    expected_history = run(tmp_path / "whole", kind)
    step = kill_in_the_middle(tmp_path / "killed", kind)
    assert 0 < step < STEPS
    assert not (tmp_path / "killed" / "ensemble.json").exists()
    history = run(tmp_path / "killed", kind, resume=True)
    whole, resumed = results(tmp_path / "whole"), results(tmp_path / "killed")
    assert {"member_000/adapter_model.safetensors", "training/checkpoint/state.safetensors"} <= whole.keys()
    assert resumed.keys() == whole.keys()
    assert [name for name in whole if resumed[name] != whole[name]] == []
    assert history == expected_history
    steps = [row["step"] for row in log(tmp_path / "killed") if "epoch" not in row]
    assert steps == sorted(set(steps))  # no step is logged twice


def test_a_finished_run_resumes_to_itself(tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=2, snapshot_epochs=())
    first = run(tmp_path / "run", config=config)
    before = results(tmp_path / "run")
    assert run(tmp_path / "run", resume=True, config=config) == first
    assert results(tmp_path / "run") == before


def test_a_run_does_not_go_on_with_other_settings_or_over_an_existing_one(tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=1, snapshot_epochs=())
    run(tmp_path / "run", config=config)
    with pytest.raises(CheckpointError, match="exists already"):
        run(tmp_path / "run", config=config)
    with pytest.raises(CheckpointError, match=r"learning_rate was 0.002, is 0.001"):
        run(tmp_path / "run", resume=True, config=replace(config, learning_rate=1e-3))
