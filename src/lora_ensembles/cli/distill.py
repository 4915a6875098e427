"""Distil a saved ensemble into one adapter: a single member is trained on the ensemble's probabilities for
rows that need no answers.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

from ..disk.atomic import check_writable
from ..disk.claimed import check_free
from ..errors import ConfigError, DataError
from ..studies.report.page import Table
from .common import Arguments, add_ensemble_flags, load_ensemble, say, show_table, whole
from .flags import settings
from .flags.data import Source, add_column_flags, merged_answer, merged_columns, read_questions
from .flags.memory import Memory, remembered
from .screen.first_screen import say_read

SUMMARY = "train one adapter on the probabilities of a saved ensemble"
EXAMPLES = """examples:
  lora-ensembles distill runs/tickets --in more-tickets.csv --out runs/one              rows need no labels
  lora-ensembles distill runs/tickets --in more-tickets.csv --out runs/one --validation judged.csv --epochs 8
  lora-ensembles distill runs/cqa --in questions.jsonl --out runs/one --rank 16 --json"""


# Fields of TrainConfig that are the teacher's, that stand among other flags, or that a run without a folder
# has no use for.
NOT_OF_A_STUDENT = ("loss", "label_score", "overlong", "max_rows", "snapshot_epochs", "checkpoint_every")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_ensemble_flags(parser)
    parser.add_argument(
        "--in",
        dest="source",
        required=True,
        metavar="FILE",
        help="rows to learn from (.jsonl, .csv, ...), or hub:owner/name:split; answers are not read",
    )
    parser.add_argument(
        "--validation",
        metavar="FILE",
        help="labelled rows to compare on (default: "
        "those that the ensemble was measured on, where they are at hand)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the student is saved")
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="of the student (default: 0)")
    add_column_flags(parser)
    settings.add_adapter_flags(parser)
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="paper, default or embedded (default: embedded for the embedded base, else default)",
    )
    settings.add_training_flags(parser, without=NOT_OF_A_STUDENT)
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def run(args: Arguments) -> dict[str, Any]:
    """Read, predict, train, compare, save; returns the summary."""
    from ..embedded import is_embedded
    from ..training.distill import distill

    begin = time.monotonic()
    if args.members is not None:
        raise ConfigError("--only: a student learns from the whole ensemble; leave it out")
    check_free(args.out, resume=False, overwrite=False)
    check_writable(args.out)
    memory = remembered(args.ensemble)
    if memory.source.open_ended or memory.kind == "reward":
        raise ConfigError(
            f"{args.ensemble} does not answer with options, so there are no probabilities of answers to learn"
        )
    args.head = memory.kind
    config = settings.train_config(
        args, default="embedded" if is_embedded(memory.base) else "default", task=memory.source.task
    )
    whole_file = _read(args, memory, args.source, labelled=False)
    judged = _validation(args, memory)
    say_read([whole_file], classes=args.labels or memory.labels)
    ensemble = load_ensemble(args)
    teachers, calibrated = ensemble.num_members, ensemble.calibrated
    say(f"{len(whole_file.examples)} rows, {len(judged)} to compare on; the teacher has {teachers} members")
    made = distill(
        ensemble,
        whole_file.examples,
        config,
        adapter=dataclasses.replace(ensemble.adapter, **args.given(settings.ADAPTER_FIELDS)),
        seed=args.seed,
        validation=judged,
        progress=not args.no_progress,
    )
    made.student.save_pretrained(args.out)
    table = made.table() if judged else {}
    if table:
        show_table(_table(table))
    if calibrated is not None:
        say(
            "the student learnt calibrated probabilities; "
            f"the teacher's calibration: {calibrated.calibration}"
        )
    say(f"saved to {args.out}; next: lora-ensembles predict {args.out} --in FILE")
    return {
        "out": str(args.out),
        "rows": len(whole_file.examples),
        "members_of_teacher": teachers,
        **{name.replace(" ", "_"): row for name, row in table.items()},
        "seconds": round(time.monotonic() - begin, 1),
    }


def _read(args: Arguments, memory: Memory, path: str, *, labelled: bool) -> Any:
    return read_questions(
        path,
        columns=merged_columns(args, memory.source),
        labels=args.labels or memory.labels,
        labelled=labelled,
        skip_bad_rows=args.skip_bad_rows,
        answer=merged_answer(args, memory.source),
    )


def _validation(args: Arguments, memory: Memory) -> tuple[Any, ...]:
    """The rows of --validation, else those that the ensemble was measured on; none where they are not at
    hand.
    """
    if args.validation is not None:
        return tuple(_read(args, memory, args.validation, labelled=True).examples)
    source: Source = dataclasses.replace(memory.source, answer=merged_answer(args, memory.source))
    if source.task is None and source.train is None:
        return ()
    try:
        return tuple(source.load().task.validation)
    except (DataError, ConfigError, OSError) as error:
        say(
            f"note: the rows that {args.ensemble} was measured on cannot be read ({error}); "
            "pass --validation FILE"
        )
        return ()


def _table(rows: dict[str, dict[str, float]]) -> Table:
    columns = ("", "accuracy", "NLL", "ECE", "Brier", "ms a question")
    return Table(
        columns,
        tuple(
            (
                title,
                *(f"{row[name]:.4f}" for name in ("accuracy", "nll", "ece", "brier")),
                f"{row['milliseconds']:.2f}",
            )
            for title, row in rows.items()
        ),
    )
