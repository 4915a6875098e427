"""Memory and resumption of `lora-ensembles predict` on a long file:
`python benchmarks/predict_stream.py --rows 1000000 --out results/predict-stream.json`.

A tiny Llama with two members answers a .jsonl file of short questions with the label words yes and no, twice.
The first run is left alone; its resident memory is sampled, and what it has after a tenth of the rows is held
against what it has at the end. The second run is killed (SIGKILL) at 40 % of the rows, told to end (SIGTERM)
at 70 %, and goes on by --resume each time; its output must be the first one's, byte for byte, with every row
number once and in order. Memory is read from /proc, so this needs Linux. A million rows take some minutes on
one core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timing import add_record_flags, end_with, rounded
from workloads import SHAPES, build, tokenizer

from lora_ensembles import LoraEnsemble

MEMBERS = 2
WORDS = 6  # of a question
SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)  # of the rows, at which memory is read
STOPS = ((0.4, signal.SIGKILL), (0.7, signal.SIGTERM))
AT_MOST_MB = (
    8.0  # that memory may grow after a tenth of the rows: less than 10 bytes for each of a million rows
)
SECONDS = 0.05  # between two looks at a process


@dataclass
class Watched:
    """A process that has ended: its exit code, its time, and its resident memory in MB by bytes of output."""

    code: int
    seconds: float
    samples: list[tuple[int, float]] = field(default_factory=list)

    def resident(self, size: int) -> float:
        """The memory when the output had so many bytes."""
        return next((memory for written, memory in self.samples if written >= size), self.samples[-1][1])


def write_questions(path: Path, rows: int) -> None:
    """Short questions, each of other words."""
    drawn, words = random.Random(0), SHAPES["tiny"].vocabulary
    with open(path, "w") as file:
        for number in range(rows):
            text = " ".join(f"w{drawn.randrange(3, words)}" for _ in range(WORDS))
            file.write(json.dumps({"id": f"q{number}", "question": text}) + "\n")


def save_ensemble(folder: Path) -> None:
    """An ensemble whose members differ, and its base beside it."""
    words = tokenizer(SHAPES["tiny"].vocabulary)
    base = build(SHAPES["tiny"])
    base.save_pretrained(folder / "base")
    words.save_pretrained(folder / "base")
    ensemble = LoraEnsemble(base, words, num_members=MEMBERS)
    ensemble.stack.b.normal_()
    ensemble.save_pretrained(folder / "ensemble")


def predict(folder: Path, out: Path, *, until: int | None = None, number: int = 0, resume: bool) -> Watched:
    """One run of the command; a signal of this number is sent once the output has `until` bytes."""
    words = [sys.executable, "-m", "lora_ensembles.cli", "predict", str(folder / "ensemble")]
    words += ["--base", str(folder / "base"), "--in", str(folder / "questions.jsonl"), "--labels", "yes,no"]
    words += ["--out", str(out), "--device", "cpu", *(["--resume"] if resume else [])]
    begin, partial, samples = time.monotonic(), out.with_name(f"{out.name}.partial"), []
    process = subprocess.Popen(words)
    while process.poll() is None:
        written = partial.stat().st_size if partial.exists() else 0
        memory = resident_mb(process.pid)
        if written and memory:
            samples.append((written, memory))
        if until is not None and written >= until:
            process.send_signal(number)
            until = None
        time.sleep(SECONDS)
    return Watched(process.returncode, time.monotonic() - begin, samples)


def resident_mb(process: int) -> float | None:
    """The resident memory of a process; None when it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:")), None)


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def row_numbers(path: Path) -> Iterator[int]:
    with open(path) as file:
        for line in file:
            yield json.loads(line)["row"]


def measure(folder: Path, rows: int) -> dict[str, Any]:
    """Both runs on so many rows."""
    write_questions(folder / "questions.jsonl", rows)
    save_ensemble(folder)
    whole, stopped = folder / "whole.jsonl", folder / "stopped.jsonl"
    left_alone = predict(folder, whole, resume=False)
    size = whole.stat().st_size
    stops = []
    for share, number in STOPS:
        done = predict(folder, stopped, until=int(share * size), number=number, resume=True)
        left = stopped.with_name(f"{stopped.name}.partial")
        with open(left if left.exists() else stopped, "rb") as file:
            stops.append({"signal": int(number), "exit_code": done.code, "rows": sum(1 for _ in file)})
    last = predict(folder, stopped, resume=True)
    memory = {f"{share:.0%}": left_alone.resident(int(share * size)) for share in SHARES}
    grown = memory["100%"] - memory["10%"]
    in_order = all(row == n for n, row in enumerate(row_numbers(stopped)))
    same = digest(whole) == digest(stopped)
    count = sum(1 for _ in row_numbers(stopped))
    return {
        "id": "predict-stream",
        "rows": rows,
        "members": MEMBERS,
        "exit_codes": [left_alone.code, last.code],
        "seconds": left_alone.seconds,
        "rows_per_second": rows / left_alone.seconds,
        "output_mb": size / 2**20,
        "resident_mb": memory,
        "largest_resident_mb": max(value for _, value in left_alone.samples),
        "grown_mb": grown,
        "at_most_mb": AT_MOST_MB,
        "stops": stops,
        "same_bytes_after_resuming": same,
        "every_row_once_in_order": in_order and count == rows,
        "ok": same and in_order and count == rows and grown <= AT_MOST_MB and last.code == 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_000)
    add_record_flags(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="predict-stream-") as folder:
        row = rounded(measure(Path(folder), arguments.rows), digits=5)
    print(f"rows a second  {row['rows_per_second']:12,.0f}")
    for share, value in row["resident_mb"].items():
        print(f"resident, {share:<5}{value:12,.1f} MB")
    print(f"grown          {row['grown_mb']:12,.1f} MB  (at most {AT_MOST_MB:g})")
    for stop in row["stops"]:
        print(f"signal {stop['signal']:<8}{stop['rows']:12,d} rows were written")
    print(f"resumed        {'the same bytes' if row['same_bytes_after_resuming'] else 'OTHER BYTES'}")
    print(f"every row once in order  {row['every_row_once_in_order']}")
    end_with(row, arguments)
    sys.exit(0 if row["ok"] else 1)


if __name__ == "__main__":
    main()
