"""Members in several processes against members stacked in one, and one core against two:
`python benchmarks/scale.py --out results/scale/cpu.json`; on a GPU with `--device cuda --shape 1.5B --dtype
bfloat16 --out results/scale/gpu.json`.

Arms: one process with all members, on one thread and on two (CPU only); two processes that share the device,
with half of the members each, on one thread each. The processes stay, and train in turn, several windows; a
window's clock runs from the word to begin until the last process is done. Ratios compare medians of one run.

Shapes: M members, B rows of a member, S tokens of a row.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from timing import add_record_flags, end_with, rounded
from workloads import SHAPES, build, questions, tokenizer

from lora_ensembles import LoraEnsemble, TrainConfig, train

SPAWNED = multiprocessing.get_context("spawn")  # a GPU cannot be used in a forked process
KIBIBYTE = 1024  # of the resident size that Linux counts in


@dataclass(frozen=True)
class Work:
    """The work of one process: an epoch of its members on a base of random weights."""

    shape: str
    members: int
    batch_size: int
    tokens: int
    steps: int
    dtype: str
    device: str


def serve(work: Work, line: Connection) -> None:
    """A process that trains an epoch with as many threads as it is told, until it is told 0.

    It answers each time by the most bytes that it had on the device, or in memory on a CPU.
    """
    shape, device = SHAPES[work.shape], torch.device(work.device)
    base = build(shape, dtype=getattr(torch, work.dtype), device=device)
    ensemble = LoraEnsemble(base, tokenizer(shape.vocabulary), num_members=work.members, seed=0)
    rows = questions(work.steps * work.batch_size, length=work.tokens, words=shape.vocabulary)
    config = TrainConfig(epochs=1, batch_size=work.batch_size)
    line.send(0)
    while threads := line.recv():
        torch.set_num_threads(threads)
        train(ensemble, rows, config, progress=False)
        if device.type == "cuda":
            torch.cuda.synchronize()
            line.send(torch.cuda.max_memory_allocated())
        else:
            line.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBIBYTE)


@dataclass(frozen=True)
class Arm:
    """Processes that train at the same time, with so many threads each."""

    lines: tuple[Connection, ...]
    threads: int

    def epoch(self) -> tuple[float, int]:
        """Seconds until all are done, and bytes of all together."""
        begin = time.perf_counter()
        for line in self.lines:
            line.send(self.threads)
        sizes = [line.recv() for line in self.lines]
        return time.perf_counter() - begin, sum(sizes)


@contextmanager
def processes(works: list[Work]) -> Iterator[list[Connection]]:
    """A process for each work, ready to train; they end with the context."""
    lines, started = [], []
    try:
        for work in works:
            here, there = SPAWNED.Pipe()
            process = SPAWNED.Process(target=serve, args=(work, there), daemon=True)
            process.start()
            there.close()
            lines.append(here)
            started.append(process)
        for line in lines:
            line.recv()
        yield lines
        for line in lines:
            line.send(0)
        for process in started:
            process.join()
    finally:
        for process in started:
            process.terminate()


def measure(work: Work, *, windows: int) -> dict[str, Any]:
    """The record: seconds and bytes of each arm, and the ratios."""
    half = Work(**{**vars(work), "members": work.members // 2})
    with processes([work, half, half]) as (whole, first, second):
        arms = {"one process": Arm((whole,), 1), "two processes": Arm((first, second), 1)}
        if work.device == "cpu":
            arms["one process, two threads"] = Arm((whole,), 2)
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        sizes = dict.fromkeys(arms, 0)
        for window in range(windows + 1):  # the first does not count
            for name, arm in arms.items():
                took, size = arm.epoch()
                if window:
                    seconds[name].append(took)
                    sizes[name] = max(sizes[name], size)
            print(f"window {window} of {windows}", file=sys.stderr, flush=True)
    found = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "work": vars(work),
        "windows": windows,
        "arms": {
            name: {
                "seconds": rounded(seconds[name]),
                "median": rounded(median),
                "seconds_a_member_and_epoch": rounded(median / work.members),
                "bytes": sizes[name],
            }
            for name, median in found.items()
        },
        "ratios": rounded(ratios(seconds)),
    }


def ratios(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians over the windows of ratios within a window, which whatever else runs meets alike."""

    def over(one: str, other: str) -> float:
        pairs = zip(seconds[one], seconds[other], strict=True)
        return statistics.median(first / second for first, second in pairs)

    found = {"two processes over one": over("two processes", "one process")}
    if "one process, two threads" in seconds:
        found["efficiency of two workers"] = over("one process", "two processes") / 2
        found["efficiency of two threads"] = over("one process", "one process, two threads") / 2
        found["two threads over two processes"] = over("one process, two threads", "two processes")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="hidden512")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--members", type=int, default=8, help="an even number")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8, help="of an epoch")
    parser.add_argument("--windows", type=int, default=7)
    add_record_flags(parser)
    arguments = parser.parse_args()
    if arguments.members < 2 or arguments.members % 2:
        parser.error(f"--members {arguments.members}: two processes need an even number")
    names = ("shape", "members", "batch_size", "tokens", "steps", "dtype", "device")
    record = measure(Work(*(getattr(arguments, name) for name in names)), windows=arguments.windows)
    for name, arm in record["arms"].items():
        member = arm["seconds_a_member_and_epoch"]
        print(f"{name:26} {member:8.4f} s a member and epoch, {arm['bytes'] / 1e9:6.2f} GB")
    for name, ratio in record["ratios"].items():
        print(f"  {name:32} {ratio:6.3f}")
    end_with(record, arguments, device=arguments.device)


if __name__ == "__main__":
    main()
