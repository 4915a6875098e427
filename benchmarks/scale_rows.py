"""Rows answered by the workers of a Ray cluster, of which some are killed:
`python benchmarks/scale_rows.py --rows 100000 --out results/scale/rows.json`.

Two members on the embedded base answer questions of `world-obqa`, drawn anew with their options in another
order, by `lora-ensembles predict --on ray --workers 2` on a cluster of this machine. A worker is killed
(SIGKILL) after a third of the rows, and another after two thirds. Every row must be in the output once and in
its place, and a sample of whole parts must be what one process predicts, byte for byte. Workers are found in
/proc, so this needs Linux.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from timing import add_record_flags, end_with, rounded

from lora_ensembles import LoraEnsemble, load_base, load_task
from lora_ensembles.cli.screen.parts import ROWS

MEMBERS, WORKERS = 2, 2
TASK = "world-obqa"
KILLS = (1 / 3, 2 / 3)  # of the rows
SAMPLED = 8  # parts, spread over the file
WORKER = "ray::MapWorker"
SECONDS = 0.2  # between two looks at the output


def write_questions(path: Path, rows: int) -> None:
    """Questions of the task, their options in an order of their own."""
    drawn, task = random.Random(0), load_task(TASK)
    with open(path, "w") as file:
        for number in range(rows):
            example = drawn.choice(task.train)
            options = drawn.sample(list(example.options), len(example.options))
            row = {"id": f"q{number}", "question": example.question, "options": options}
            file.write(json.dumps(row) + "\n")


def save_ensemble(folder: Path) -> None:
    """Members that differ."""
    ensemble = LoraEnsemble(*load_base(), num_members=MEMBERS)
    ensemble.stack.b.normal_(std=0.05)
    ensemble.save_pretrained(folder)


def command(folder: Path, source: Path, out: Path) -> list[str]:
    words = [sys.executable, "-m", "lora_ensembles.cli", "predict", str(folder / "ensemble")]
    return [*words, "--in", str(source), "--out", str(out), "--no-progress"]


def processes_below(parent: int) -> dict[int, str]:
    """The processes that a process started, and that these started in turn, with their titles."""
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                titles[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
                status = (entry / "stat").read_text()
            except OSError:  # it ended
                continue
            parents[int(entry.name)] = int(status.rpartition(")")[2].split()[1])
    found, left = {}, [parent]
    while left:
        one = left.pop()
        children = [number for number, own in parents.items() if own == one]
        found |= {number: titles[number] for number in children}
        left += children
    return found


def over_workers(folder: Path, out: Path, *, size: float) -> dict[str, Any]:
    """The run of which workers are killed; `size` is about that of a row in bytes of output."""
    words = [*command(folder, folder / "questions.jsonl", out), "--on", "ray", "--workers", str(WORKERS)]
    partial, waiting, killed = out.with_name(f"{out.name}.partial"), list(KILLS), []
    begin, first = time.monotonic(), None
    with subprocess.Popen(words) as process:
        while process.poll() is None:
            written = partial.stat().st_size if partial.exists() else 0
            first = first or (time.monotonic() - begin if written else None)
            there = [number for number, title in processes_below(process.pid).items() if WORKER in title]
            there = [number for number in there if number not in killed]
            if waiting and there and written >= waiting[0] * size:
                os.kill(there[0], signal.SIGKILL)
                killed.append(there[0])
                waiting.pop(0)
            time.sleep(SECONDS)
    return {
        "exit_code": process.returncode,
        "seconds": time.monotonic() - begin,
        "seconds_to_the_first_rows": first,
        "kills": len(killed),
    }


def row_numbers(path: Path) -> Iterator[int]:
    with open(path) as file:
        for line in file:
            yield json.loads(line)["row"]


def sample_differences(folder: Path, out: Path, *, rows: int) -> tuple[int, int]:
    """Whole parts of the input answered by one process: how many rows, and how many of them differ."""
    parts = -(-rows // ROWS)
    chosen = sorted({number * (parts - 1) // max(1, SAMPLED - 1) for number in range(SAMPLED)})
    wanted = [row for part in chosen for row in range(part * ROWS, min(rows, (part + 1) * ROWS))]
    sample, alone = folder / "sample.jsonl", folder / "sample-answers.jsonl"
    copy_lines(folder / "questions.jsonl", sample, wanted)
    subprocess.run(command(folder, sample, alone), check=True)
    expected = [{**json.loads(line), "row": row} for row, line in zip(wanted, alone.open(), strict=True)]
    copy_lines(out, folder / "found.jsonl", wanted)
    found = [json.loads(line) for line in (folder / "found.jsonl").open()]
    return len(wanted), sum(one != own for one, own in zip(found, expected, strict=True))


def copy_lines(source: Path, target: Path, wanted: list[int]) -> None:
    numbers = set(wanted)
    with open(source) as read, open(target, "w") as written:
        written.writelines(line for number, line in enumerate(read) if number in numbers)


def measure(folder: Path, rows: int) -> dict[str, Any]:
    """The whole run."""
    source, out = folder / "questions.jsonl", folder / "answers.jsonl"
    write_questions(source, rows)
    save_ensemble(folder / "ensemble")
    first = folder / "first.jsonl"
    copy_lines(source, first, list(range(min(rows, ROWS))))
    subprocess.run(command(folder, first, folder / "first-answers.jsonl"), check=True)
    size = (folder / "first-answers.jsonl").stat().st_size / min(rows, ROWS)
    run = over_workers(folder, out, size=size * rows)
    numbers = list(row_numbers(out))
    counts = Counter(numbers)
    sampled, different = sample_differences(folder, out, rows=rows)
    row = {
        "id": "scale-rows",
        "task": TASK,
        "rows": rows,
        "members": MEMBERS,
        "workers": WORKERS,
        **run,
        "rows_per_second": rows / run["seconds"],
        "duplicates": sum(count - 1 for count in counts.values()),
        "missing": len(set(range(rows)) - counts.keys()),
        "out_of_order": sum(later <= one for one, later in itertools.pairwise(numbers)),
        "sampled": sampled,
        "sampled_that_differ": different,
    }
    wrong = [
        row[name] for name in ("exit_code", "duplicates", "missing", "out_of_order", "sampled_that_differ")
    ]
    return {**row, "ok": not any(wrong) and row["kills"] == len(KILLS)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000)
    add_record_flags(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="scale-rows-") as folder:
        row = rounded(measure(Path(folder), arguments.rows), digits=5)
    for name, value in row.items():
        print(f"{name:<28}{value}")
    end_with(row, arguments)
    sys.exit(0 if row["ok"] else 1)


if __name__ == "__main__":
    main()
