"""What the benchmarks share: arms timed in turn within one process, and the record of a run."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lora_ensembles.provenance import environment

WINDOWS = 7  # an odd number, of which the median is a measured one


def interleaved(
    arms: Mapping[str, Callable[[], object]], *, windows: int = WINDOWS, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """The median seconds of each arm, over windows in which every arm runs once, after one run of each that does not count.

    Whatever else the machine does meets all arms alike; a ratio of two of these medians means more than either.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for window in range(windows + 1):
        for name, run in arms.items():
            _wait(device)
            begin = time.perf_counter()
            run()
            _wait(device)
            if window:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _wait(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def write_record(path: Path | None, record: Mapping[str, Any], *, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The record with the environment it was made in, written to `path` where there is one."""
    whole = {**record, "environment": environment(device)}
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(whole, indent=2) + "\n")
    return whole
