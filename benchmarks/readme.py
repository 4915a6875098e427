"""Fills README's table of what an ensemble gains and costs: `python benchmarks/readme.py`; with --check it
fails where the table is not what the records give.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lora_ensembles.studies.claims.judge import judge
from lora_ensembles.studies.report import tables
from lora_ensembles.studies.report.claim_tables import interval, signed
from lora_ensembles.studies.report.page import Table
from lora_ensembles.studies.store import by_kind

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "results"
README = REPOSITORY / "README.md"
BEGIN, END = "<!-- numbers of the records -->\n", "<!-- end -->"
# Folders of records, with the base and the command that makes them.
BASES = {
    "smollm2": ("SmolLM2-135M", "lora-ensembles study all --base smollm2 --data DIR --out results/smollm2"),
    "minilm": ("MiniLM", "python benchmarks/minilm.py --data DIR --out results/minilm"),
    "embedded": ("embedded base", "lora-ensembles study all --out results/embedded"),
}
OVERFIT = ("guessing evenly", "single member", "ensemble", "single member, scaled", "ensemble, scaled")
GAINS = {"accuracy": "accuracy ↑", "NLL": "NLL (nats) ↓", "ECE": "ECE ↓"}
GIGABYTE = 1e9


def table() -> str:
    """The tables in Markdown, each row with the command that makes it: what an ensemble gains on each base,
    and what it costs; between them the NLL of SmolLM2 beside that of guessing evenly.
    """
    gained = Table(("ensemble of 5 minus single member", *GAINS.values(), "made by"), tuple(gains()))
    cost = Table(("5 members", "cost", "made by"), tuple(costs()))
    return "\n".join([gained.to_markdown(), f"{overfit()}\n", cost.to_markdown()])


def overfit() -> str:
    """The NLL of members and ensemble beside that of guessing evenly, and with a temperature."""
    shown = tables.side_by_side(by_kind(RESULTS / "smollm2"))
    column = next(place for place, name in enumerate(shown.header) if name.startswith("NLL"))
    by_name = {row[0]: row[column] for row in shown.rows}
    losses = (f"{name.replace(', scaled', ' with a temperature')} {by_name[name]}" for name in OVERFIT)
    return (
        "Members are overfit on SmolLM2-135M and MiniLM, as the paper's are. NLL on SmolLM2-135M: "
        f"{', '.join(losses)}. So calibrate as well: `train --calibrate 0.2` and `calibrate` fit a "
        "temperature, or what else is better. The embedded base was kept as a test bed because ensembles "
        "help on it."
    )


def gains() -> Iterator[tuple[str, ...]]:
    """Differences of metrics on each base, from the records of its study."""
    for folder, (base, command) in BASES.items():
        (claim,) = (claim for claim in judge(by_kind(RESULTS / folder)) if claim.id == "C1")
        parts = {part.name: part for part in claim.parts}
        found = [parts[f"{metric}, no regulariser"] for metric in GAINS]
        cells = (f"{signed(part.difference)} ({interval(part)})" for part in found)
        yield f"{base}, {found[0].tasks} tasks", *cells, f"`{command}`"


def span(rows: Sequence[dict[str, Any]], arm: str) -> str:
    """The smallest and the largest ratio against an arm of docs/performance.md."""
    ratios = [f"{row['ratios'][arm]:.1f}" for row in rows]
    return " to ".join(dict.fromkeys([min(ratios, key=float), max(ratios, key=float)]))


def costs() -> Iterator[tuple[str, str, str]]:
    """Time and memory, from the benchmarks' records and the memory plans."""
    for name, words, peer in (
        ("train", "training", "5 runs of PEFT with the Trainer"),
        ("decode", "decoding", "5 PEFT models in turn"),
    ):
        record = json.loads((RESULTS / "performance" / f"cpu-smollm2-{name}.json").read_text())
        against_runs, against_mixed = (span(record["rows"], arm) for arm in "AB")
        data = " --data DIR" if record["rows"][0].get("task") == "obqa" else ""
        yield (
            f"{words}, SmolLM2-135M, one CPU core",
            f"{against_runs} times as fast as {peer}, {against_mixed} times as fast as PEFT's mixed batch",
            f"`python benchmarks/{name}.py --profile smollm2{data}`",
        )
    plan = next(
        row
        for row in json.loads((RESULTS / "plans.json").read_text())["rows"]
        if row["model"] == "Llama-2-7B" and row["memory_gb"] == 24
    )
    base, members = plan["base"] / GIGABYTE, plan["members"] / GIGABYTE
    yield (
        "memory in training, Llama-2-7B",
        f"{members:.2f} GB of adapters, gradients and optimiser state in addition to a base of {base:.1f} "
        f"GB; {'fits' if plan['fits'] else 'does not fit'} {plan['memory_gb']} GB",
        "`python benchmarks/plans.py --out results/plans.json`",
    )


def filled(readme: str) -> str:
    """The README with the table between its two marks."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END, 1)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where the table is out of date")
    arguments = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    made = filled(text)
    if arguments.check and made != text:
        sys.exit("README.md is not what the records give; run: python benchmarks/readme.py")
    README.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
