"""Every measurement that a CPU can make, in one process: `make bench`, or
`python benchmarks/bench.py --out results/performance/cpu.json`.

Rows with a "must" hold on any CPU of two cores. The rows of large models (T5, T7, E1, E2, D1) run scaled down
and say what a CPU says of their shape; their targets are for a GPU. The last line is JSON: {"rows": [{"id",
"ratios", "must", "at_most", "ok"}, ...]}. The exit status is 1 where a row does not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import decode
import memory
import operators
import score
import startup
import train
import training_rows
from timing import rounded, write_record

from lora_ensembles import load_base

Row = dict[str, Any]
Family = tuple[Callable[[], list[Row]], Callable[[Row], str]]
MEMBERS = (1, 16)
ARMS = ("A", "A'", "B", "C")
KEPT = ("id", "ratios", "must", "at_most", "ok")


def operators_row() -> Row:
    """Operators of a stacked layer, which may not depend on M."""
    _, words = load_base()
    counted = [
        operators.per_layer(lambda layers, m=members: operators.stacked(layers, m, words))
        for members in MEMBERS
    ]
    most = {way: max(one[way] for one in counted) for way in operators.MUST}
    at_most = {way: float(limit) for way, limit in operators.MUST.items()}
    ok = counted[0] == counted[1] and all(most[way] <= limit for way, limit in at_most.items())
    by_members = {f"M={members}": one for members, one in zip(MEMBERS, counted, strict=True)}
    return {
        "id": "operators",
        "operators_per_layer": by_members,
        "ratios": most,
        "must": {},
        "at_most": at_most,
        "ok": ok,
    }


def operators_shown(row: Row) -> str:
    """The row for a reader."""
    lines = [
        f"  {name}: {one['forward']:g} forward, {one['backward']:g} backward"
        for name, one in row["operators_per_layer"].items()
    ]
    return "\n".join(["operators of a stacked layer", *lines, f"  {'ok' if row['ok'] else 'NOT ok'}"])


def memory_shown(row: Row) -> str:
    """The row for a reader."""
    peaks = ", ".join(f"{name} {value:,d} bytes" for name, value in row["peak_bytes"].items())
    said = (
        f"{row['difference_bytes']:,d} of {row['formula_bytes']:,d} bytes by the formula; base once: "
        f"{row['base_in_memory_once']}"
    )
    return f"{row['id']}  peaks {peaks}\n  {said}\n  {'ok' if row['ok'] else 'NOT ok'}"


def families(windows: int, *, quick: bool) -> Iterator[Family]:
    """What is run, in order; `quick` leaves the smallest row of each family."""
    few = max(1, windows // 2)
    yield lambda: [operators_row()], operators_shown
    yield lambda: [startup.measure("tiny" if quick else "13B", windows=few)], startup.shown
    for name in ("tiny",) if quick else ("toy", "T1"):
        yield lambda name=name: [memory.measure(name, small=name == "T1", device="cpu")], memory_shown
    for name in ("tiny",) if quick else ("toy", "hidden512", "demo"):
        yield lambda name=name: train.measure(name, windows=windows), training_rows.shown
    for name in ("tiny",) if quick else ("toy", "embedded", "D1"):
        yield lambda name=name: [decode.measure(name, windows=windows)], decode.shown
    for name in ("tiny-E1", "tiny-E2") if quick else ("E1", "E2"):
        yield lambda name=name: [score.measure(name, windows=few)], score.shown
    for name in ("tiny-T5", "tiny-T7") if quick else ("T5", "T7", "tokens"):
        yield lambda name=name: train.measure(name, windows=few), training_rows.shown


def table(rows: list[Row]) -> str:
    """All rows for a reader: the ratios of the four arms, then the others, and what they must be."""
    lines = [f"{'row':<20}" + "".join(f"{arm:>8}" for arm in ARMS) + "   must"]
    for row in rows:
        cells = "".join(f"{row['ratios'][arm]:8.2f}" if arm in row["ratios"] else f"{'':>8}" for arm in ARMS)
        others = [f"{name} {value:.3g}" for name, value in row["ratios"].items() if name not in ARMS]
        musts = [f"{name} >= {value:g}" for name, value in row["must"].items()]
        musts += [f"{name} <= {value:g}" for name, value in row.get("at_most", {}).items()]
        lines.append(
            f"{row['id']:<20}{cells}   {'; '.join([*musts, 'ok' if row['ok'] else 'NOT ok', *others])}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=5, help="interleaved runs of every arm")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="the smallest row of each family, in seconds; its ratios say little",
    )
    parser.add_argument("--out", type=Path, help="write the record there")
    arguments = parser.parse_args()
    begin = time.monotonic()
    rows: list[Row] = []
    for run, shown in families(arguments.windows, quick=arguments.quick):
        for row in run():
            rows.append(rounded(row))
            print(shown(rows[-1]), flush=True)
    seconds = time.monotonic() - begin
    write_record(arguments.out, {"rows": rows, "windows": arguments.windows, "seconds": round(seconds)})
    print(
        f"\n{table(rows)}\n{seconds:.0f} seconds; a ratio A, A' or B is that arm's time over the library's, "
        "C the share of the limit"
    )
    print(json.dumps({"rows": [{name: row[name] for name in KEPT if name in row} for row in rows]}))
    sys.exit(0 if all(row["ok"] for row in rows) else 1)


if __name__ == "__main__":
    main()
