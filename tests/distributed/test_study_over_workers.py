"""Records of a study are the same whether one process measures them or the workers of a Ray cluster, also
where a worker is killed, and where a study is stopped and goes on in one process.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from breadth import LONG
from killing import processes_named, workers_killed
from lora_ensembles import load_base
from lora_ensembles.cli import main
from lora_ensembles.distributed.cluster import workers_of
from lora_ensembles.errors import CheckpointError
from lora_ensembles.studies import grid
from lora_ensembles.studies.runner import run_grid
from lora_ensembles.studies.under_way import UnderWay

TINY = dataclasses.replace(
    grid.QUICK,
    name="tiny",
    tasks=("world-mmlu-stem",),
    seeds=(0, 1),
    few_tasks=("world-mmlu-stem",),
    open_tasks=("world-mmlu-stem",),
).having(shared={"members": 2, "snapshots": (1, 2), "limit": (24, 12, 8)}, methods={"draws": 2})
KINDS = ("randomness", "methods")
SPAWNED = multiprocessing.get_context("spawn")  # Ray knows of no forked driver


def content(out: Path) -> dict[str, tuple[Any, Any]]:
    """Settings and result of each record, without seconds."""
    return {
        path.name: (record["settings"], without_seconds(record["result"]))
        for path in out.glob("*-*.json")
        for record in [json.loads(path.read_text())]
    }


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_seconds(one) for name, one in value.items() if "seconds" not in name}
    return [without_seconds(one) for one in value] if isinstance(value, list) else value


def check_equal(made: dict[str, Any], expected: dict[str, Any]) -> None:
    """Hold records to each other: to the bit, but those of timed runs, which have all threads of a node."""
    assert made.keys() == expected.keys()
    for name, (settings, result) in made.items():
        assert settings == expected[name][0]
        if settings["kind"] == "methods":
            assert flat(result) == pytest.approx(flat(expected[name][1]), abs=1e-4)
        else:
            assert result == expected[name][1]


def flat(value: Any, path: str = "") -> dict[str, float]:
    """The numbers of a result by their place in it."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {name: one for key, held in pairs for name, one in flat(held, f"{path}/{key}").items()}
    return {path: value} if isinstance(value, int | float) else {}


@pytest.fixture(scope="module")
def of_one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("one")
    run_grid(TINY, out, load_base, kinds=KINDS, say=lambda _: None)
    return content(out)


def checkpoints(out: Path) -> bool:
    """Whether a record is under way that has a checkpoint."""
    return any(out.glob("unfinished/*/*/training/checkpoint"))


@LONG
def test_records_over_workers_of_which_one_is_killed_are_those_of_one_process(
    of_one_process: dict[str, Any], tmp_path: Path
) -> None:
    said: list[str] = []
    run = functools.partial(run_grid, TINY, tmp_path, load_base, kinds=KINDS, say=said.append)
    with workers_of("ray", 2) as workers:

        def measuring() -> list[int]:
            return processes_named("ray::measure_record") if checkpoints(tmp_path) else []

        with workers_killed(measuring, 1) as killed:
            made = run(over=workers)
        assert run(over=workers) == made  # nothing is left to do
    assert len(killed) == 1
    check_equal(content(tmp_path), of_one_process)
    assert said[0] == "1 of 3: randomness, world-mmlu-stem, seed 0"
    assert said[1] == "3 of 3: randomness, world-mmlu-stem, seed 1"
    assert said[2] == "2 of 3: methods, world-mmlu-stem, seed 0"  # which is timed, so it comes last
    assert len(said) == 3
    assert not (tmp_path / "unfinished").exists()


@LONG
def test_a_study_over_workers_that_is_stopped_goes_on_in_one_process(
    of_one_process: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "study"
    driver = SPAWNED.Process(target=study_alone, args=(out,))
    driver.start()
    while driver.is_alive() and not checkpoints(out):
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGTERM)
    driver.join()
    assert driver.exitcode == 128 + signal.SIGTERM
    assert checkpoints(out)
    run_grid(TINY, out, load_base, kinds=KINDS, say=lambda _: None)
    check_equal(content(out), of_one_process)
    assert not (out / "unfinished").exists()


def study_alone(out: Path) -> None:
    """The command on a cluster of its own."""
    grid.QUICK = TINY
    words = ["study", "randomness", "--quick", "--out", str(out), "--on", "ray", "--workers", "2"]
    sys.exit(main(words))


def test_a_record_that_another_process_measures_is_waited_for_or_refused(tmp_path: Path) -> None:
    first, second = UnderWay(tmp_path / "unfinished" / "one"), UnderWay(tmp_path / "unfinished" / "one")
    with first.alone(patience=0.0):
        refused = pytest.raises(CheckpointError, match=r"a run is going on in .*one \(process \d+\)")
        with refused, second.alone(patience=0.0):
            pass
        first.remove()
    with second.alone(patience=0.0):
        assert second.folder.is_dir()
    assert list(tmp_path.iterdir()) == []
