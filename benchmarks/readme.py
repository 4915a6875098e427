"""Fills README's table of what an ensemble gains and costs: `python benchmarks/readme.py`; with --check it
fails where the table is not what the records give.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from lora_ensembles.studies.claims.judge import judge
from lora_ensembles.studies.report.claim_tables import interval, signed
from lora_ensembles.studies.store import by_kind

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "results"
README = REPOSITORY / "README.md"
BEGIN, END = "<!-- numbers of the records -->\n", "<!-- end -->"
# Folders of records, with the base and what `study` was asked for.
BASES = {
    "smollm2": ("SmolLM2-135M", "--base smollm2 --data DIR --out results/smollm2"),
    "embedded": ("embedded base", "--out results/embedded"),
}
GAINS = {"accuracy": "accuracy", "NLL": "NLL, nats", "ECE": "ECE"}
GIGABYTE = 1e9


def table() -> str:
    """The table in Markdown: what is measured, the numbers, and the command that makes them."""
    rows = [*gains(), *costs()]
    head = ["| what | single member -> ensemble | made by |", "|---|---|---|"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def gains() -> Iterator[tuple[str, str, str]]:
    """Differences of metrics on each base, from the records of its study."""
    for folder, (base, command) in BASES.items():
        (claim,) = (claim for claim in judge(by_kind(RESULTS / folder)) if claim.id == "C1")
        for metric, shown in GAINS.items():
            (part,) = (part for part in claim.parts if part.name == f"{metric}, no regulariser")
            text = f"{signed(part.difference)} ({interval(part)}), {part.tasks} tasks"
            yield f"{shown}, 5 members, {base}", text, f"`lora-ensembles study all {command}`"


def costs() -> Iterator[tuple[str, str, str]]:
    """Time and memory, from the benchmark's record and the memory plans."""
    rows = {row["id"]: row for row in json.loads((RESULTS / "performance" / "cpu.json").read_text())["rows"]}
    train, decode = (rows[name]["ratios"] for name in ("demo", "decode-embedded"))
    a, tuned = train["A"], train["A'"]  # arms of docs/performance.md
    yield (
        "training of 5 members, two CPU cores",
        f"{a:.1f} times as fast as 5 runs of PEFT with the Trainer, "
        f"{tuned:.1f} times as fast as a tuned loop",
        "`make bench`",
    )
    yield (
        "decoding with 5 members",
        f"{decode['A']:.1f} times as fast as 5 PEFT models in turn",
        "`make bench`",
    )
    plan = next(
        row
        for row in json.loads((RESULTS / "plans.json").read_text())["rows"]
        if row["model"] == "Llama-2-7B" and row["memory_gb"] == 24
    )
    base, members = plan["base"] / GIGABYTE, plan["members"] / GIGABYTE
    yield (
        "memory of 5 members in training, Llama-2-7B",
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
