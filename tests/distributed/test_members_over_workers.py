"""Slices of the members trained by the workers of a Ray cluster give what one process gives, bit for bit,
also where workers are killed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from breadth import LONG
from killing import workers_killed
from lora_ensembles import LoraEnsemble, TrainConfig, load_base, load_task, train
from lora_ensembles.data import Completion
from lora_ensembles.distributed.cluster import cluster
from lora_ensembles.errors import CheckpointError, ConfigError, TrainingError
from lora_ensembles.training.checkpoint import CHECKPOINT

CONFIG = TrainConfig(
    epochs=6,
    batch_size=4,
    learning_rate=(1e-3, 2e-3, 3e-3),
    weight_decay_b=20.0,
    kl_weight=0.1,
    dropout=0.2,
    max_grad_norm=1.0,
    snapshot_epochs=(1, 6),
    checkpoint_every=4,
    log_every=1,
    # A pass holds the members of a slice in both: products of other shapes are rounded in another way.
    max_rows=8,
)
KILLS = 10
FORKS = multiprocessing.get_context("spawn")  # Ray knows of no forked driver
TASK = load_task("world-cqa")
TRAIN, VALIDATION = TASK.train[:40], TASK.validation[:12]


@pytest.fixture(scope="module", autouse=True)
def started() -> Iterator[None]:
    """One cluster of this machine for all tests, and one thread here, as its workers have: it rounds sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with cluster():
        yield
    torch.set_num_threads(threads)


def build(members: int = 3) -> LoraEnsemble:
    return LoraEnsemble(*load_base(), num_members=members, seed=5)


def run(
    out: Path, *, workers: int | None, config: TrainConfig = CONFIG, resume: bool = False
) -> LoraEnsemble:
    ensemble = build()
    train(
        ensemble,
        TRAIN,
        config,
        validation=VALIDATION,
        out=out,
        resume=resume,
        progress=False,
        on=None if workers is None else "ray",
        workers=workers,
    )
    return ensemble


def content(out: Path) -> dict[str, bytes]:
    """Every file of a run but TensorBoard's, whose events hold the time."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and "tensorboard" not in path.parts
    }


@pytest.fixture(scope="module")
def of_one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("one") / "run"
    run(out, workers=None)
    return content(out)


def training_now(out: Path) -> set[int]:
    """The processes that hold the lock of a slice."""
    found = set()
    for lock in out.glob("workers/members_*/.lock"):
        with suppress(OSError, ValueError):  # it is gone, or about to be written
            found.add(int(lock.read_text().rpartition(" ")[2]))
    return {number for number in found if Path(f"/proc/{number}").exists()}


def check_equal(made: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """Hold two runs' files to each other: all to the bit, but metrics of all members, which are those of
    predictions in passes of other shapes.
    """
    assert made.keys() == expected.keys()
    measured = ("training/log.jsonl", "training/checkpoint/state.json")
    assert [name for name in made if name not in measured and made[name] != expected[name]] == []
    rows, others = (
        map(json.loads, content["training/log.jsonl"].splitlines()) for content in (made, expected)
    )
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        for name in row:
            assert row[name] == other[name] or name in ("ensemble", "members")
        for name, value in row.get("ensemble", {}).items():
            assert value == pytest.approx(other["ensemble"][name], abs=1e-6)
        for name, values in row.get("members", {}).items():
            assert values == pytest.approx(other["members"][name], abs=1e-6)


@LONG
def test_two_workers_write_what_one_process_writes_bit_for_bit(
    of_one_process: dict[str, bytes], tmp_path: Path
) -> None:
    run(tmp_path / "run", workers=2)
    check_equal(content(tmp_path / "run"), of_one_process)


@LONG
def test_members_are_the_same_to_the_bit_where_workers_are_killed(
    of_one_process: dict[str, bytes], tmp_path: Path
) -> None:
    with workers_killed(lambda: training_now(tmp_path / "run"), KILLS, within=0.5) as killed:
        ensemble = run(tmp_path / "run", workers=2)
    assert len(set(killed)) == KILLS
    check_equal(content(tmp_path / "run"), of_one_process)
    saved = LoraEnsemble.from_pretrained(tmp_path / "run")
    assert torch.equal(ensemble.stack.a, saved.stack.a)
    assert torch.equal(ensemble.stack.b, saved.stack.b)


@LONG
def test_a_run_whose_driver_is_killed_goes_on(of_one_process: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "run"
    driver = FORKS.Process(target=run_alone, args=(out,))
    driver.start()
    while driver.is_alive() and not list(out.glob("workers/*/training/checkpoint")):
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.join()
    assert not (out / "ensemble.json").exists()
    with pytest.raises(CheckpointError, match="holds a run over workers; go on with it by on='ray'"):
        run(out, workers=None, resume=True)
    run(out, workers=2, resume=True)
    check_equal(content(out), of_one_process)
    run(out, workers=2, resume=True)  # nothing is left to do
    check_equal(content(out), of_one_process)


def run_alone(out: Path) -> None:
    """A run on a cluster of its own."""
    run(out, workers=2)


@LONG
def test_open_answers_and_members_with_heads_are_trained_over_workers(tmp_path: Path) -> None:
    texts = [Completion(f"q{row}", question.prompt, " the lake") for row, question in enumerate(TRAIN)]
    config = TrainConfig(epochs=2, batch_size=4, max_rows=4)
    for kind, rows in (("causal-lm", texts), ("sequence-classification", TRAIN)):
        base, tokenizer = load_base(head=kind, num_labels=None if kind == "causal-lm" else 5)
        histories = []
        for on in (None, "ray"):
            ensemble = LoraEnsemble(base, tokenizer, num_members=2, head=kind)
            out = tmp_path / f"{kind}-{on}"
            made = train(
                ensemble,
                rows,
                config,
                validation=rows[:8],
                out=out,
                progress=False,
                on=on,
                workers=on and 2,  # with a thread each, as this process
            )
            histories.append(made.history)
            ensemble.unload()
        files = [content(tmp_path / f"{kind}-{on}") for on in (None, "ray")]
        check_equal(*files)
        assert histories[0][0].keys() == histories[1][0].keys()


def test_an_error_of_a_worker_is_the_callers_and_leaves_only_checkpoints(tmp_path: Path) -> None:
    """The other worker is stopped: before its first step it leaves nothing, and later what it has."""
    config = replace(CONFIG, learning_rate=1e38, weight_decay_b=0.0, weight_decay_a=0.0)
    with pytest.raises(TrainingError, match=r"member 0 is nan at step 2: its learning rate 1e\+38") as raised:
        run(tmp_path / "run", workers=2, config=config)
    kept = "checkpoints are kept" in str(raised.value)
    assert (tmp_path / "run").exists() == kept
    assert kept == any((tmp_path / "run").rglob(CHECKPOINT))


def test_options_that_do_not_fit_workers_are_refused(tmp_path: Path) -> None:
    ensemble = build()
    with pytest.raises(ConfigError, match="workers=2 without an engine"):
        train(ensemble, TRAIN, out=tmp_path / "a", workers=2)
    with pytest.raises(ConfigError, match="on='slurm'; known: 'ray'"):
        train(ensemble, TRAIN, out=tmp_path / "a", on="slurm")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="on='ray' without `out`"):
        train(ensemble, TRAIN, on="ray")
    with pytest.raises(ConfigError, match="2 values for 3 members"):
        train(ensemble, TRAIN, TrainConfig(learning_rate=[1e-3, 1e-4]), out=tmp_path / "a", on="ray")
    ensemble.base.config._name_or_path = ""
    with pytest.raises(ConfigError, match="built in code, so workers cannot load it by name"):
        train(ensemble, TRAIN, out=tmp_path / "a", on="ray")
    assert not (tmp_path / "a").exists()
