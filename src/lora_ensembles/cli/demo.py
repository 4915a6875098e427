"""Train ensembles without and with decay of B, compare them with the base and with single members, and write
a report.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

from .common import Arguments, add_model_flags, count, load_model, say, whole

SUMMARY = "the whole method in a few minutes, with a report; no network needed"
EXAMPLES = """examples:
  lora-ensembles demo --out runs/demo
  lora-ensembles demo --task world-mmlu-ss --members 8 --seed 1 --out runs/demo-ss
  lora-ensembles demo --out runs/demo --overwrite --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task",
        default="world-arcc",
        metavar="NAME",
        help="a task with an out-of-distribution set (default: world-arcc)",
    )
    parser.add_argument(
        "--members", type=count, default=5, metavar="M", help="members of each ensemble (default: 5)"
    )
    parser.add_argument(
        "--seed", type=whole, default=0, metavar="N", help="all randomness follows from it (default: 0)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for report, pictures, numbers and both ensembles",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier demo in --out")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    add_model_flags(parser, base="embedded")


def run(args: Arguments) -> dict[str, Any]:
    """Run the demo; returns the summary."""
    from ..studies.demo import check_ready, run_demo

    check_ready(args.out, task=args.task, overwrite=args.overwrite)
    result = run_demo(
        args.out,
        task=args.task,
        members=args.members,
        seed=args.seed,
        model=load_model(args.base, dtype=args.dtype, device=args.device),
        overwrite=args.overwrite,
        progress=not args.no_progress,
    )
    print(result.table)
    for said in (
        "",
        *(f"{row}: {meaning}" for row, meaning in result.meanings.items()),
        "",
        *result.sentences,
    ):
        say(textwrap.fill(said, 110, subsequent_indent="  "))
    say(f"report: {result.report}   next: lora-ensembles evaluate {args.out / 'ensemble_decay'} --intervals")
    return result.to_dict()
