"""Benchmarks of scale: processes side by side run on a minimal shape, and the arithmetic of a thousand
members is that of its record.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from breadth import LONG

REPOSITORY = Path(__file__).parents[2]
BENCHMARKS = REPOSITORY / "benchmarks"


@LONG
@pytest.mark.slow
def test_processes_side_by_side_are_measured_against_one() -> None:
    words = "--shape tiny --members 2 --batch-size 2 --tokens 8 --steps 2 --windows 1 --json".split()
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "scale.py", *words], capture_output=True, text=True, check=True
    )
    record = json.loads(done.stdout.splitlines()[-1])
    assert set(record["arms"]) == {"one process", "two processes", "one process, two threads"}
    assert all(arm["median"] > 0 and arm["bytes"] > 0 for arm in record["arms"].values())


def test_ratios_are_medians_within_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    seconds = {"one process": [4.0, 40.0, 6.0], "two processes": [2.0, 20.0, 2.0]}
    found = importlib.import_module("scale").ratios(seconds)
    assert found == {"two processes over one": 0.5}


def test_recorded_efficiency_is_even_work_over_time() -> None:
    record = json.loads((REPOSITORY / "results" / "scale" / "schedule.json").read_text())
    for row, measured in zip(record["run"]["rows"], record["scheduled"]["rows"], strict=True):
        assert row["members_of_a_worker"] == -(-1000 // row["workers"])
        even = 1000 * record["run"]["seconds_a_member"] / row["workers"]
        assert row["efficiency"] == pytest.approx(even / row["seconds"], rel=1e-3)
        assert row["lost_to_scheduling"] == measured["overhead"] < 1
        assert row["efficiency"] > 0.95
