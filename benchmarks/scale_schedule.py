"""Slices of 1,000 members on up to 64 workers: `python benchmarks/scale_schedule.py --out
results/scale/schedule.json`; with the figure beside it.

The scheduler is real: a Ray cluster of this machine that is told to have 64 CPUs, and `map_calls`, with tasks
that sleep for the time of their slice, scaled to milliseconds a member. Beyond the longest sleep, what passes
is overhead: submitting, placing, fetching results. The time of a run is arithmetic: each member of
Llama-2-7B at the limit of an H200, imports and a base that each worker reads, and the measured overhead.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from plans import PEAK_FLOPS, SHAPES
from timing import rounded, write_record

from lora_ensembles.distributed import cluster
from lora_ensembles.distributed.slices import slices
from lora_ensembles.planning.frozen import FrozenWeights
from lora_ensembles.planning.memory import HEADROOM
from lora_ensembles.planning.work import Work, needs
from lora_ensembles.prediction.plots.style import SMALL, TEXT, canvas, save_figure

MEMBERS = 1000
WORKERS = (1, 2, 4, 8, 16, 32, 64)
SLEEP = 0.02  # seconds of a member in the simulation
REPEATS = 5
MEMORY = 80e9  # bytes of a worker's GPU
READ = 2e9  # bytes a second from a worker's disk, as is assumed
IMPORTS = 10.0  # seconds in which a worker's process imports torch and the rest, as is assumed
EXAMPLES, EPOCHS = 10_000, 3
PICTURE = Path(__file__).resolve().parent.parent / "results" / "scale" / "schedule.json"


def asleep(function: Callable[..., Any], threads: int, *call: Any) -> Any:
    """Stands for the library's call in a worker, without torch, whose import 64 times on one machine is not
    what a cluster does.
    """
    return function(*call)


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def overhead(ray: Any, naps: list[float]) -> float:
    """Seconds beyond the longest of the naps, that tasks take which all run at the same time."""
    share = cluster.Share(1, 0.0)
    begin = time.perf_counter()
    cluster.map_calls(ray, sleep, [(nap,) for nap in naps], share=share)
    return time.perf_counter() - begin - max(naps)


def start_all(ray: Any) -> None:
    """Have Ray start the processes of all workers, which one machine does slowly and a cluster at once."""
    share = cluster.Share(1, 0.0)
    there = 0
    while there < max(WORKERS):
        found = cluster.map_calls(ray, process_after, [(10.0,)] * max(WORKERS), share=share)
        there = len(set(found))
        print(f"{there} processes of workers", file=sys.stderr, flush=True)


def process_after(seconds: float) -> int:
    """The number of this process, after a while in which it takes no other task."""
    time.sleep(seconds)
    return os.getpid()


def scheduled() -> dict[str, Any]:
    """The overhead with each number of workers, and of a thousand small slices on 64."""
    import ray

    cluster._with_threads = asleep
    ray.init(
        address="local",
        num_cpus=max(WORKERS),
        logging_level=logging.ERROR,
        include_dashboard=False,
        log_to_driver=False,
    )
    try:
        begin = time.perf_counter()
        start_all(ray)
        started = time.perf_counter() - begin
        rows = []
        for workers in WORKERS:
            cut = slices(MEMBERS, workers)
            naps = [SLEEP * len(part) for part in cut]
            found = [overhead(ray, naps) for _ in range(REPEATS if workers > 2 else 1)]
            rows.append(
                {
                    "workers": workers,
                    "slices": len(cut),
                    "longest_sleep": max(naps),
                    "overhead": statistics.median(found),
                    "overheads": found,
                }
            )
            print(f"{workers:3} workers: {rows[-1]['overhead']:.3f} s", file=sys.stderr, flush=True)
        begin = time.perf_counter()
        cluster.map_calls(ray, sleep, [(0.0,)] * MEMBERS, share=cluster.Share(1, 0.0))
        small = time.perf_counter() - begin
    finally:
        ray.shutdown()
    return {"start_of_64_processes": started, "rows": rows, "seconds_of_1000_empty_tasks": small}


def arithmetic(measured: dict[str, Any]) -> dict[str, Any]:
    """The time of a run of 1,000 members with each number of workers.

    A worker takes its members in as many rounds as its memory needs, reads the base in each, and computes at
    the limit: operations over the GPU's peak.
    """
    kind, shape = SHAPES["Llama-2-7B"]
    config = kind(**shape)
    work = Work(members=4, batch_size=16, tokens=100, dtype=torch.bfloat16)
    frozen = FrozenWeights.of(config, work.dtype)
    four = needs(config, work, frozen)
    steps = math.ceil(EXAMPLES / work.batch_size) * EPOCHS
    member = steps * four.flops / work.members / PEAK_FLOPS
    room = HEADROOM * MEMORY - four.base - four.activations(1)
    fit = int(room // (four.members / work.members))
    rows = []
    for row in measured["rows"]:
        most = len(slices(MEMBERS, row["workers"])[0])
        rounds = math.ceil(most / fit)
        load = rounds * (IMPORTS + four.base / READ)
        seconds = load + most * member + row["overhead"]
        ideal = MEMBERS * member / row["workers"]
        rows.append(
            {
                "workers": row["workers"],
                "members_of_a_worker": most,
                "rounds": rounds,
                "seconds": seconds,
                "efficiency": ideal / seconds,
                "lost_to_uneven_slices": most * member - ideal,
                "lost_to_loading": load,
                "lost_to_scheduling": row["overhead"],
            }
        )
    return {
        "base": "Llama-2-7B",
        "batch_size": work.batch_size,
        "tokens": work.tokens,
        "examples": EXAMPLES,
        "epochs": EPOCHS,
        "peak_flops": PEAK_FLOPS,
        "bytes_read_a_second": READ,
        "seconds_of_imports": IMPORTS,
        "seconds_a_member": member,
        "members_that_fit": fit,
        "rows": rows,
    }


def draw(record: dict[str, Any], *, dark: bool) -> Any:
    """Time and efficiency against workers."""
    rows = record["run"]["rows"]
    figure, theme = canvas(2.5, dark=dark, columns=2)
    left, right = figure.axes
    workers = [row["workers"] for row in rows]
    hours = [row["seconds"] / 3600 for row in rows]
    ideal = [record["run"]["seconds_a_member"] * MEMBERS / count / 3600 for count in workers]
    left.plot(workers, ideal, color=theme.muted, lw=0.8)
    left.plot(workers, hours, color=theme.colours[0], marker="o", ms=4, lw=1.2)
    right.axhline(1, color=theme.muted, lw=0.8)
    right.plot(workers, [row["efficiency"] for row in rows], color=theme.colours[0], marker="o", ms=4, lw=1.2)
    left.set_yscale("log")
    left.set_yticks([0.5, 1, 2, 5, 10, 20], labels=["0.5", "1", "2", "5", "10", "20"])
    left.minorticks_off()
    right.set_ylim(0, 1.08)
    for axes, title in ((left, "hours of a run"), (right, "efficiency: even, lossless work over the run")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(workers, labels=[str(count) for count in workers])
        axes.minorticks_off()
        axes.set_xlabel("workers, a GPU each", color=theme.text, fontsize=TEXT)
        axes.set_title(title, color=theme.text, fontsize=TEXT, loc="left")
        axes.tick_params(labelsize=SMALL)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=PICTURE, help="the record")
    parser.add_argument(
        "--draw", action="store_true", help="only arithmetic and figure, from what the record measured"
    )
    arguments = parser.parse_args()
    if not arguments.draw:
        measured = scheduled()
        record = rounded({"members": MEMBERS, "sleep_a_member": SLEEP, "scheduled": measured})
        record = write_record(None, record)
    else:
        record = json.loads(arguments.out.read_text(encoding="utf-8"))
    record["run"] = rounded(arithmetic(record["scheduled"]))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for mode in ("light", "dark"):
        path = arguments.out.with_suffix(f".{mode}.png")
        save_figure(draw(record, dark=mode == "dark"), path)
    print("| workers | members each | hours | efficiency | scheduling |\n|---|---|---|---|---|")
    for row in record["run"]["rows"]:
        print(
            f"| {row['workers']} | {row['members_of_a_worker']} | {row['seconds'] / 3600:.2f} | "
            f"{row['efficiency']:.1%} | {row['lost_to_scheduling']:.2f} s |"
        )


if __name__ == "__main__":
    main()
