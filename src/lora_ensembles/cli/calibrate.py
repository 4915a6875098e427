"""Calibrate a saved ensemble on labelled rows that were held out: from then on evaluate and predict give
calibrated probabilities, and predict can abstain or answer with sets under a guarantee.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, get_args

from ..calibration.kinds import Kind
from ..errors import ConfigError, DataError
from ..studies.report.page import Table
from .common import Arguments, add_ensemble_flags, add_order_flag, load_ensemble, say, show_table
from .flags.data import add_column_flags, merged_answer, merged_columns, read_questions
from .flags.memory import Memory, remembered
from .screen.first_screen import few_rows, say_read

SUMMARY = "calibrate a saved ensemble on held-out rows"
EXAMPLES = """examples:
  lora-ensembles calibrate runs/tickets --on held-out.csv
  lora-ensembles calibrate runs/exam --on exam-2023.csv --kind temperature --json
  lora-ensembles calibrate runs/reviews --on hub:owner/reviews:validation"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_ensemble_flags(parser)
    parser.add_argument(
        "--on",
        required=True,
        metavar="FILE",
        help="labelled rows that were neither trained on nor will be scored (.jsonl, .csv, ...), or "
        "hub:owner/name:split",
    )
    parser.add_argument(
        "--kind",
        choices=("auto", *get_args(Kind)),
        default="auto",
        help="what is fitted (default: auto, the one with the lowest NLL on rows that it was not fitted on)",
    )
    add_order_flag(parser)
    add_column_flags(parser)


def run(args: Arguments) -> dict[str, Any]:
    """Read, predict, fit, save; returns the summary."""
    from ..calibration.calibrated import calibrate
    from ..storage.calibration import write_calibration

    begin = time.monotonic()
    if args.members is not None:
        raise ConfigError("--only: a calibration is that of all members; leave it out")
    memory = remembered(args.ensemble)
    if memory.source.open_ended or memory.kind == "reward":
        raise ConfigError(
            f"{args.ensemble} does not answer with options, "
            "so there are no probabilities of answers to calibrate"
        )
    whole = read_questions(
        args.on,
        columns=merged_columns(args, memory.source),
        labels=args.labels or memory.labels,
        skip_bad_rows=args.skip_bad_rows,
        answer=merged_answer(args, memory.source),
    )
    say_read([whole], classes=args.labels or memory.labels)
    trained_on = _trained_on(memory)
    ensemble = load_ensemble(args)
    calibration = calibrate(
        ensemble,
        whole.examples,
        kind=args.kind,
        trained_on=trained_on,
        source=str(args.on),
        max_rows=args.max_rows,
        order_passes=args.order_passes or 1,
    )
    assert ensemble.calibrated is not None
    write_calibration(args.ensemble, ensemble.calibrated)
    if calibration.nll:
        chosen = [f"{name} (chosen)" if name == calibration.kind else name for name in calibration.nll]
        values = [f"{value:.4f}" for value in calibration.nll.values()]
        show_table(
            Table(
                ("calibration", "NLL on rows it was not fitted on"), tuple(zip(chosen, values, strict=True))
            )
        )
    few_rows(len(whole.examples))
    say(f"calibration: {calibration}; saved to {args.ensemble}")
    return {
        "ensemble_dir": str(args.ensemble),
        "calibration": calibration.to_dict(),
        "seconds": round(time.monotonic() - begin, 1),
    }


def _trained_on(memory: Memory) -> tuple[Any, ...]:
    """The rows of the training, where they are at hand; what cannot be read again cannot be compared."""
    source = memory.source
    if source.task is None and source.train is None:
        return ()
    try:
        return tuple(source.load().task.train)
    except (DataError, ConfigError, OSError) as error:
        say(f"note: the rows of the training cannot be read ({error}), so overlap with them is not checked")
        return ()
