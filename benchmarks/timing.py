"""What the benchmarks share: arms timed in turn within one process, the clock of a training run, and the
record of a run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from lora_ensembles.disk.provenance import environment
from lora_ensembles.stack.buffers import AdapterStack

WINDOWS = 7  # an odd number, of which the median is a measured one


def interleaved(
    arms: Mapping[str, Callable[[], object]],
    *,
    windows: int = WINDOWS,
    device: torch.device | str = "cpu",
    warm: bool = True,
) -> dict[str, float]:
    """The median seconds of each arm, over windows in which every arm runs once, after one run of each that
    does not count; with `warm` false all of them count.

    Whatever else the machine does meets all arms alike; a ratio of two of these medians means more than
    either. An arm that returns a float has measured itself, to leave out what is not its work; that number
    counts.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for window in range(0 if warm else 1, windows + 1):
        for name, run in arms.items():
            wait(device)
            begin = time.perf_counter()
            said = run()
            wait(device)
            if window:
                seconds[name].append(said if isinstance(said, float) else time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def wait(device: torch.device | str) -> None:
    """Until the device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


class StepClock:
    """The time of all steps of a run but the first, taken where a step or a pass of it begins: set-up and the
    first step do not count.
    """

    def __init__(self, device: torch.device | str):
        self.device = torch.device(device)
        self.marks: list[Any] = []

    def mark(self) -> None:
        if (
            self.device.type == "cuda"
        ):  # an event waits for nothing, so an arm that runs ahead of its device may
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds_a_step(self, steps: int) -> float:
        """The mean over steps 2 to `steps` of a run whose steps have equally many marks; the last mark is the
        run's end. A run may begin with fewer marks of another kind than it has steps.
        """
        passes = (len(self.marks) - 1) // steps
        if steps < 2 or not passes or len(self.marks) < steps * passes + 1:
            raise ValueError(
                f"{len(self.marks)} marks of a run of {steps} steps; at least 2 steps are needed, "
                "and a mark for each"
            )
        first, last = self.marks[-1 - (steps - 1) * passes], self.marks[-1]
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return float(first.elapsed_time(last)) / 1000 / (steps - 1)
        return float(last - first) / (steps - 1)


@contextmanager
def clocked(base: nn.Module, device: torch.device | str) -> Iterator[StepClock]:
    """A clock that is marked at every pass of the base, and at the end."""
    clock = StepClock(device)
    embeddings = base.get_input_embeddings()  # type: ignore[operator]
    handle = embeddings.register_forward_pre_hook(lambda *_: clock.mark())
    try:
        yield clock
    finally:
        handle.remove()
    clock.mark()


@contextmanager
def clocked_steps(stack: AdapterStack, device: torch.device | str) -> Iterator[StepClock]:
    """A clock that is marked at every training step of a stack, whose passes may be more or fewer, and at the
    end.
    """
    clock, begin_step = StepClock(device), stack.begin_step

    def marked(gradients: Sequence[Tensor]) -> None:
        clock.mark()
        begin_step(gradients)

    with mock.patch.object(stack, "begin_step", marked):
        yield clock
    clock.mark()


def write_record(
    path: Path | None, record: Mapping[str, Any], *, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """The record with the environment it was made in, written to `path` where there is one."""
    whole = {**record, "environment": environment(device)}
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(whole, indent=2) + "\n")
    return whole


def add_data_flag(parser: argparse.ArgumentParser) -> None:
    """--data, of the benchmarks that ask SmolLM2."""
    parser.add_argument(
        "--data",
        type=Path,
        help="a folder with the data sets: smollm2 is asked OpenBookQA (default: the embedded world-obqa)",
    )


def add_record_flags(parser: argparse.ArgumentParser) -> None:
    """--out and --json, which `end_with` reads."""
    parser.add_argument("--out", type=Path, help="write the record there")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")


def end_with(
    record: Mapping[str, Any], arguments: argparse.Namespace, *, device: torch.device | str = "cpu"
) -> None:
    """Write a record, and print it as the last line, where that was asked for."""
    whole = write_record(arguments.out, record, device=device)
    if arguments.json:
        print(json.dumps(whole))


def worst(*values: float) -> float:
    """The largest, and NaN where one of them is: Python's own `max` may pass over it."""
    return float(torch.tensor(values).max())


def ratio_lines(row: Mapping[str, Any]) -> list[str]:
    """A row's ratios for a reader, each with what it must be."""
    lines = []
    for arm, ratio in row["ratios"].items():
        least = f"  (at least {row['must'][arm]:g})" if arm in row["must"] else ""
        most = f"  (at most {row['at_most'][arm]:g})" if arm in row.get("at_most", {}) else ""
        lines.append(f"  {arm:<16} {ratio:9.2f}{least}{most}")
    return lines


def rounded(value: Any, digits: int = 4) -> Any:
    """JSON-able values with their floats cut to so many digits that count."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, Mapping):
        return {name: rounded(one, digits) for name, one in value.items()}
    return [rounded(one, digits) for one in value] if isinstance(value, list | tuple) else value
