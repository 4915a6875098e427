"""Writes docs/performance.md from the records: `python benchmarks/report.py`; with --check it fails where the
page is not what they give.

Records: results/performance/cpu.json of `make bench`, cpu-smollm2-*.json of `train.py`, `score.py` and
`decode.py --profile smollm2`, breakdown-*.json of `train.py --breakdown --profile demo` and `smollm2`, and
any other *.json there, which holds rows of these or of `memory.py` made on a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import decode
import score
import train

REPOSITORY = Path(__file__).resolve().parent.parent
RECORDS = REPOSITORY / "results" / "performance"
PAGE = REPOSITORY / "docs" / "performance.md"
Row = dict[str, Any]

ARMS = ("A", "A'", "B", "C")
EVEN = 0.1  # a ratio this near to 1 is called even
MEANING = {
    "T0": "the paper's own: LLaMA-13B shape, M = 5",
    "T1": "0.5B, M = 8, 4 rows of 128 tokens",
    "T2": "1.5B, M = 8, 4 rows of 128 tokens",
    "T3": "8B, M = 8, 4 rows of 512 tokens: compute-bound",
    "T4": "8B, M = 8, 1 row of 128 tokens",
    "T5": "T2 with KL to the base: its states cached, against live",
    "T7": "the curve over M: a step over what it must take",
    "D1": "decoding 8B, M = 8, one prompt of 1,024 tokens",
    "D2": "decoding 8B, M = 8, 8 prompts",
    "E1": "option scoring 1.5B, M = 8, 512 questions of 300 tokens",
    "E2": "5 shots, 1.5B, 512 questions: shared demonstrations against none shared",
}
INTRO = """\
# Performance

Written by `python benchmarks/report.py` from the records in `results/performance`; do not edit it by hand.

Arms, all in one process on the same tokens, taken in turn, median over windows, without set-up, warm-up and \
compilation:

- **the library**: M members stacked, one pass for all
- **A**: M PEFT models one after another, by Hugging Face's `Trainer` in training, by a usual script in \
scoring and decoding
- **A'**: the best plain loop without stacking: rows tokenised and padded on the right beforehand, no mask, \
no cache, the head at the
  answers alone, no casts, fused AdamW, and on a CPU the library's own products of frozen weights; in \
decoding, members merged into bases
  of their own
- **B**: PEFT's mixed batch, `adapter_names`
- **C**: the limit, which is arithmetic: below

A column A, A' or B is that arm's time over the library's, so above 1 the library is faster. C is the share \
of the limit that the library
reaches. Members' weights, log-probabilities or texts are compared with the peers' in the same run, and a \
row does not hold where they
differ.

## Two regimes

While one member's step does not fill the device, stacking wins by the number of operators it launches: a \
stacked layer launches as many for
16 members as for one. Once the products of the base fill the device, all arms do the same arithmetic, and \
only what is around it can be
saved. A number of one regime says nothing about the other.
"""
SMOLLM2 = ("train", "score", "decode")
PRETRAINED = """\
## A pre-trained model on a CPU

SmolLM2-135M-Instruct (`make smollm2`) in fp32: training and scoring of questions with labels in words, of \
OpenBookQA with `--data DIR`
and else of the embedded world-obqa, and decoding. In scoring, the arms
read a row for each label, and the library reads their prompt once. `python benchmarks/train.py --profile \
smollm2 --out results/performance/cpu-smollm2-train.json`, and so `score.py` and `decode.py`, with \
OMP_NUM_THREADS=1:

{environments}

{rows}

{said}"""
LIMITS = """\
## The limit

P parameters of the body's linears, Q those of the head, f the share of tokens whose logits are needed, s \
the mean causal length, n heads of
size d, L layers, F the device's FLOP/s, BW its bandwidth.

- training, a token: 4 (P + Q f) + 12 L n d s + 6 P_lora FLOP. The base is frozen: it has a forward pass and \
gradients of activations, no
  gradients of weights
- scoring, a token: 2 (P + Q f) + 4 L n d s + 2 P_lora FLOP
- decoding, a step: the longer of what is read, [base + M adapters + M B S keys and values] / BW, and of
  M B (2 (P + Q) + 4 L n d S) / F
- a member's state in training: 16 bytes a LoRA parameter (fp32 weight, gradient, two moments); beside a \
bf16 base a working copy of 2 more

F and BW are measured in the same run by a large product and a copy, or known (H200: 788 TFLOP/s in bf16 as \
measured, 4.8 TB/s by its data
sheet). A small model does not reach the F of a large product even where nothing is wasted.
"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def ratio_cells(row: Row) -> list[str]:
    """The four arms' columns, then the others by name."""
    cells = [f"{row['ratios'][arm]:.2f}" if arm in row["ratios"] else "" for arm in ARMS]
    others = "; ".join(f"{name} {value:.3g}" for name, value in row["ratios"].items() if name not in ARMS)
    return [*cells, others]


def musts(row: Row) -> str:
    """What a row must hold."""
    least = [f"{name} ≥ {value:g}" for name, value in row.get("must", {}).items()]
    most = [f"{name} ≤ {value:g}" for name, value in row.get("at_most", {}).items()]
    return ", ".join([*least, *most]) or "no target"


def sizes(row: Row) -> str:
    """The work of a row in a few words."""
    if "shape" not in row:
        return ""
    shape = row["shape"]
    said = f"{shape['layers']} layers of {shape['hidden']}, M = {row['members']}"
    if row.get("task"):
        said = f"{row['task']}, {said}"
    for name, words in (
        ("batch", "b"),
        ("rows", "B"),
        ("prompt", "prompt"),
        ("questions", "N"),
        ("tokens_a_row", "S"),
        ("length", "S"),
    ):
        if name in row:
            said += f", {words} {row[name]:.0f}"
    return said + (" (scaled down)" if row.get("scaled") else "")


def environment(record: Row) -> str:
    """Where a record comes from."""
    made = record["environment"]
    versions = ", ".join(f"{name} {made['versions'][name]}" for name in ("torch", "transformers", "peft"))
    threads = f"{made['threads']} thread{'s' if made['threads'] > 1 else ''}"
    return f"{made['device']}, {threads}, {made['platform']}, {versions}, commit {made['commit']}"


def cpu_section(record: Row) -> str:
    """Every row of `make bench`, and in words where the library wins and where not."""
    rows = record["rows"]
    return f"## On a CPU\n\n`make bench`: {environment(record)}.\n\n{rows_table(rows)}\n\n{verdicts(rows)}"


def rows_table(rows: Sequence[Row]) -> str:
    """A row of the page for each, with what it must hold."""
    cells = [
        [row["id"], sizes(row), *ratio_cells(row), musts(row), "yes" if row["ok"] else "**no**"]
        for row in rows
    ]
    return table(["row", "work", *ARMS, "others", "must", "holds"], cells)


def pretrained_section(records: dict[str, Row]) -> str:
    """The rows of SmolLM2 on a CPU, each from a record of its own."""
    found = {name: records[f"cpu-smollm2-{name}"] for name in SMOLLM2 if f"cpu-smollm2-{name}" in records}
    if not found:
        return ""
    rows = [
        {**row, "id": name + row["id"].partition("smollm2")[2]}
        for name, record in found.items()
        for row in record["rows"]
    ]
    made = "\n".join(f"- {name}: {environment(record)}" for name, record in found.items())
    return PRETRAINED.format(environments=made, rows=rows_table(rows), said=verdicts(rows))


def verdicts(rows: Sequence[Row]) -> str:
    """Where the library wins against its strongest peer, and where not, with the reason that the numbers
    give.
    """
    lines = []
    for row in rows:
        peers = {
            name: value for name, value in row["ratios"].items() if name in ("A'", "B", "unshared", "live")
        }
        if not peers:
            continue
        name = min(peers, key=lambda peer: peers[peer])
        said = f"- **{row['id']}**: against {name}, the fastest other arm, {peers[name]:.2f} times as fast"
        lines.append(said + reason(row, peers[name]))
    return "\n".join(["Against the fastest other arm of each row:", "", *lines])


def reason(row: Row, ratio: float) -> str:
    """The reason that the share of the limit gives for a ratio."""
    share = row["ratios"].get("C", 0.0)
    padding = row.get("padding", 0.0)
    padded = f", with {padding:.0%} of what is read padding" if padding > EVEN else ""
    if ratio >= 1 + EVEN:
        return f"; {share:.0%} of the limit{padded}."
    even = "even" if ratio >= 1 - EVEN else "slower"
    if share >= 0.3:
        return f": {even}. At {share:.0%} of the limit the work is arithmetic that every arm has to do."
    return (
        f": {even}, at {share:.0%} of the limit: the time goes into operators that are too small, "
        "or into memory."
    )


def curves_section(rows: Sequence[Row]) -> str:
    """The curves over members and over tokens in a step."""
    parts = ["## Curves"]
    for row in rows:
        if row["id"].endswith("T7"):
            head = [
                "M",
                "ms a step",
                "the base alone, ms",
                "over what it must take",
                "tokens/s",
                "C",
                "peak, MiB",
                "members' state, MiB",
            ]
            cells = [
                [
                    f"{point['members']}",
                    f"{1000 * point['seconds']:.1f}",
                    f"{1000 * point['base_seconds']:.1f}",
                    f"{point['growth']:.2f}",
                    f"{point['tokens_a_second']:,.0f}",
                    f"{point['share']:.2f}",
                    f"{point['peak_bytes'] / 2**20:.1f}",
                    f"{point['member_state_bytes'] / 2**20:.2f}",
                ]
                for point in row["curve"]
            ]
            parts += [f"Over the number of members, {sizes(row)}:", table(head, cells)]
        if row["id"] == "tokens":
            cells = [
                [
                    f"{point['tokens_a_step']:.0f}",
                    f"{point['tokens_a_second']:,.0f}",
                    *(f"{point['ratios'][arm]:.2f}" for arm in ARMS[1:]),
                ]
                for point in row["curve"]
            ]
            parts += [
                f"Over the tokens of a step, all members together, {sizes(row)} at the last line:",
                table(["tokens a step", "tokens/s", "A'", "B", "C"], cells),
            ]
    return "\n\n".join(parts)


def gpu_section(records: Sequence[Row]) -> str:
    """The rows whose targets are a GPU's, measured or not."""
    measured = {
        row["id"]: (row, record)
        for record in records
        for row in record["rows"]
        if record["environment"]["device"] != "cpu"
    }
    cells = []
    for name, profile in {**train.PROFILES, **decode.PROFILES, **score.PROFILES}.items():
        wanted = musts({"must": profile.must, "at_most": getattr(profile, "at_most", {})})
        found = [
            (row, record)
            for key, (row, record) in measured.items()
            if key.split()[0] == name and not row["scaled"]
        ]
        for row, record in found:
            holds = "yes" if row["ok"] else "**no**"
            cells.append(
                [row["id"], MEANING[name], *ratio_cells(row), wanted, holds, record["environment"]["device"]]
            )
        if not found:
            cells.append([name, MEANING[name], *[""] * 5, wanted, "not measured", ""])
    head = ["row", "work", *ARMS, "others", "must", "holds", "device"]
    command = (
        "`python benchmarks/train.py --profile T1 --json --out results/performance/h200-T1.json`, "
        "and so `decode.py` and `score.py`"
    )
    return f"## On a GPU\n\nTargets for one H200. A row is measured by {command}.\n\n{table(head, cells)}"


def breakdown_section(records: dict[str, Row]) -> str:
    """The parts of a training step: of the embedded demo, a column a record, and of SmolLM2."""
    parts = []
    for title, wanted in (("the embedded demo", False), ("SmolLM2-135M-Instruct", True)):
        found = {name: one for name, one in records.items() if name.endswith("smollm2") == wanted}
        parts += [parts_of(title, found)] if found else []
    return "\n\n".join(["## Parts of a step", *(parts or ["Not measured."])])


def parts_of(title: str, records: dict[str, Row]) -> str:
    """The parts of a training step, a column a record."""
    names = sorted(records, key=lambda name: (not name.endswith("before"), name))
    parts = list(dict.fromkeys(part for name in names for part in records[name]["parts"]))
    cells = []
    for part in parts:
        times = [records[name]["parts"].get(part) for name in names]
        cells.append(
            [part, *(f"{one['forward']:.1f} + {one['backward']:.1f}" if one else "" for one in times)]
        )
    cells.append(["**whole step**", *(f"{records[name]['milliseconds_a_step']:.1f}" for name in names)])
    made = "\n".join(f"- {name.removeprefix('breakdown-')}: {environment(records[name])}" for name in names)
    first = records[names[0]]
    what = (
        f"Training {title} on {first['task']}, {first['members']} members, {first['batch']} rows each: "
        "ms a step, forward + backward."
    )
    head = ["part", *(name.removeprefix("breakdown-") for name in names)]
    return f"{what}\n\n{table(head, cells)}\n\n{made}"


def page() -> str:
    """The whole page."""
    records = {path.stem: json.loads(path.read_text()) for path in sorted(RECORDS.glob("*.json"))}
    breakdowns = {name: record for name, record in records.items() if name.startswith("breakdown-")}
    parts = [INTRO.strip()]
    if "cpu" in records:
        parts += [cpu_section(records["cpu"]), curves_section(records["cpu"]["rows"])]
    else:
        parts.append("## On a CPU\n\nNot measured: run `make bench`.")
    parts += [section] if (section := pretrained_section(records)) else []
    parts += [
        gpu_section([record for record in records.values() if "rows" in record]),
        breakdown_section(breakdowns),
        LIMITS.strip(),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where the page is not what the records give"
    )
    arguments = parser.parse_args()
    if not arguments.check:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        sys.exit(
            f"{PAGE.relative_to(REPOSITORY)} is not what the records give; run: python benchmarks/report.py"
        )


if __name__ == "__main__":
    main()
