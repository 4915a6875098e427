"""Answer the questions of a file: probabilities, the members' votes, and how uncertain the ensemble is, one
row a question.
"""

from __future__ import annotations

import argparse
import heapq
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from ..calibration.kinds import Score
from ..data.formats import FORMATS as TEXT_FORMATS
from ..distributed.cluster import Workers, workers_of
from ..errors import ConfigError
from ..training.progress import Progress
from .answers.over_workers import answered_over
from .answers.part import answered
from .common import (
    Arguments,
    add_ensemble_flags,
    add_order_flag,
    count,
    load_ensemble,
    number,
    say,
    text_words,
)
from .flags.asked import Asked, asked_rows, is_pipe
from .flags.data import add_column_flags
from .flags.guarantees import Guarantees, add_guarantee_flags, check_guarantees
from .flags.memory import Memory, remembered
from .flags.workers import add_worker_flags, check_worker_flags
from .screen.outputs import check_output
from .screen.partial import Output, check_partial, rows_output
from .screen.parts import ROWS
from .screen.rows import FORMATS, RowWriter

if TYPE_CHECKING:
    from ..calibration.calibrated import HeldOut

SUMMARY = "answer the questions of a file, with probabilities and uncertainty"
EXAMPLES = """examples:
  lora-ensembles predict runs/cqa --in questions.jsonl                     to standard output
  lora-ensembles predict runs/cqa --in questions.jsonl --out answers.csv
  lora-ensembles predict runs/exam --in exam.csv --question-column stem --options-column a,b,c,d\
 --out answers.jsonl
  lora-ensembles predict runs/tickets --in new.csv --risk 0.05 --out answers.csv\
     abstain; after lora-ensembles calibrate
  lora-ensembles predict runs/cqa --in big.parquet --out answers.jsonl --resume\
                 go on after a stop
  lora-ensembles predict runs/cqa --in big.parquet --out answers.jsonl --on ray --workers 4\
     on a Ray cluster
  lora-ensembles predict runs/tickets --in pool.csv --top 100 --out label-next.csv\
              worth labelling next
  tail -f questions.jsonl | lora-ensembles predict runs/cqa --in - | jq .prediction"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_ensemble_flags(parser)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--in",
        dest="source",
        required=True,
        metavar="FILE",
        help="a file (.jsonl, .csv, ...), hub:owner/name:split, or '-' for standard input; "
        "answers may be missing",
    )
    data.add_argument(
        "--in-format",
        choices=TEXT_FORMATS,
        default="jsonl",
        help="what standard input holds (default: jsonl)",
    )
    data.add_argument("--out", default="-", metavar="FILE", help="'-' for standard output, the default")
    data.add_argument(
        "--format", choices=FORMATS, help="of the output (default: by the suffix of --out, else jsonl)"
    )
    data.add_argument(
        "--keep-columns",
        type=text_words,
        metavar="a,b",
        help="columns of the input that the output has too, or 'all'",
    )
    data.add_argument("--overwrite", action="store_true", help="replace --out where it exists")
    data.add_argument(
        "--resume", action="store_true", help="go on with an --out FILE of which a stopped run wrote a part"
    )
    add_worker_flags(data, what="answer the rows")
    data.add_argument(
        "--top",
        type=count,
        metavar="N",
        help="only the N rows of the highest --by, the highest first: those worth labelling next",
    )
    data.add_argument(
        "--by",
        choices=get_args(Score),
        default="mutual_information",
        help="the score of --top; of confidence the lowest (default: mutual_information)",
    )
    data.add_argument(
        "--k",
        type=number,
        default=1.0,
        metavar="X",
        help="of a reward model: the lower bound is mean - K * std (default: 1)",
    )
    parser.add_argument(
        "--confidence",
        choices=("relative", "mass"),
        help="a second confidence, in a column of its own: relative to chance, as transformers' decision "
        "pipeline has it, or with the mass of the labels in the vocabulary, as vLLM has it; "
        "see docs/decisions.md",
    )
    add_order_flag(parser)
    add_column_flags(parser)
    add_guarantee_flags(parser)
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


@dataclass
class Counts:
    """The rows of an output, and how many of them are errors."""

    rows: int
    bad: int


def run(args: Arguments) -> dict[str, Any]:
    """Read, predict, write, part by part; returns the summary."""
    begin = time.monotonic()
    check_worker_flags(args)
    format = check_output(args, formats=FORMATS, format=args.format, resume=args.resume)
    if args.json and format == "csv" and args.out == "-":
        raise ConfigError(
            "--json would end the csv on standard output by a line that is none; give --out FILE"
        )
    if args.resume and is_pipe(args.source):
        raise ConfigError(f"--resume: {args.source} cannot be read again; put the rows into a file")
    if args.on is not None and is_pipe(args.source):
        raise ConfigError(
            f"--on {args.on}: {args.source} is answered as its rows come, in this process; leave --on "
            "out, or put the rows into a file"
        )
    if args.resume and args.top is not None:
        raise ConfigError("--resume: with --top nothing is written before the last row; leave it out")
    check_partial(args)
    memory = remembered(args.ensemble)
    _refuse_open_answers(args, memory)
    if args.top is not None and memory.kind == "reward":
        raise ConfigError(f"--top: {args.ensemble} gives rewards, which have no {args.by}; leave it out")
    check_guarantees(args, calibrated=memory.calibrated)
    # Before the base is loaded, since most mistakes are here.
    asked = asked_rows(args, memory, labels=format == "csv")
    with (
        rows_output(args, format=format, total=asked.total) as output,
        workers_of(args.on, args.workers) as workers,
    ):
        answers = _answers(args, asked, workers, first=output.begun.rows)
        counts = _write_all(args, answers, asked, output, format=format)
    seconds = round(time.monotonic() - begin, 1)
    outcome = "texts scored" if asked.texts else "questions answered"
    left = f", {counts.bad} bad rows with an error instead" if counts.bad else ""
    before = f", {output.begun.rows} rows of them before" if output.begun.rows else ""
    answered = counts.rows - counts.bad
    say(f"{answered} {outcome} by {len(answers.members)} members in {seconds} s{before}{left}")
    if args.top is not None:
        end = "lowest" if args.by == "confidence" else "highest"
        say(f"written: the {min(args.top, answered)} rows of the {end} {args.by}")
    kept = answers.kept
    if kept is not None:
        say(f"calibration: {kept.calibration}")
    for sentence in answers.guarantees.said():
        say(sentence)
    return {
        "questions": answered,
        "bad_rows": counts.bad,
        "members": len(answers.members),
        "out": args.out,
        "format": format,
        "calibration": None if kept is None else str(kept.calibration),
        "guarantees": answers.guarantees.to_dict(),
        "seconds": seconds,
    }


def _refuse_open_answers(args: Arguments, memory: Memory) -> None:
    if memory.source.open_ended:
        raise ConfigError(
            f"{args.ensemble} was trained on open answers, so there are no options to predict; "
            f"let it answer by lora-ensembles generate {args.ensemble} --in FILE"
        )


@dataclass(frozen=True)
class Answers:
    """The answers to the rows that an output does not have yet.

    Attributes:
        members: the indices of those that are asked.
        kept: what the ensemble keeps of its held-out rows.
        records: those of each part, made as they are asked for.
    """

    members: Sequence[int]
    kept: HeldOut | None
    guarantees: Guarantees
    records: Iterator[list[dict[str, Any]]]


def _answers(args: Arguments, asked: Asked, workers: Workers | None, *, first: int) -> Answers:
    """The answers from a row on, made here or by workers: then the base is not loaded in this process."""
    from ..storage.folder import read_ensemble

    if workers is None:
        ensemble = load_ensemble(args)
        count, kept = ensemble.num_members, ensemble.calibrated
    else:
        saved = read_ensemble(args.ensemble, members=args.members)
        count, kept = len(saved.weights), saved.calibrated
    guarantees = Guarantees.of(args, kept)
    records: Iterator[list[dict[str, Any]]]
    if workers is None:
        records = (answered(args, ensemble, part, asked.keep, guarantees) for part in asked.parts(first))
    else:
        records = answered_over(workers, args, asked, first=first)
    return Answers(args.members or range(count), kept, guarantees, records)


def _write_all(args: Arguments, answers: Answers, asked: Asked, output: Output, *, format: str) -> Counts:
    """Write the answers, each part before the next is read."""
    begun = output.begun
    counts = Counts(begun.rows, begun.bad)
    writer = RowWriter(
        format,
        members=list(answers.members),
        labels=asked.labels,
        errors=args.skip_bad_rows,
        columns=begun.columns,
    )
    show = not args.no_progress and (asked.total is None or asked.total > ROWS)
    progress = Progress(total=asked.total, unit="row", first=begun.rows, show=show)

    def write(records: list[dict[str, Any]], *, last: bool = False) -> None:
        before = writer.rows
        text = writer.text(records, last=last)
        output.write(text, rows=writer.rows - before)

    best: list[dict[str, Any]] = []
    for records in answers.records:
        if args.top is None:
            write(records)
        else:
            best = _highest([*best, *records], args.top, by=args.by)
        counts.rows += len(records)
        counts.bad += sum("error" in record for record in records)
        progress.update(len(records))
    write(best, last=True)
    progress.close()
    return counts


def _highest(records: Sequence[dict[str, Any]], top: int, *, by: str) -> list[dict[str, Any]]:
    """The records of the highest score, the highest first; of equal ones those that come first."""
    sign = -1 if by == "confidence" else 1
    scored = [record for record in records if "error" not in record]
    return heapq.nlargest(top, scored, key=lambda record: (sign * record[by], -record["row"]))
