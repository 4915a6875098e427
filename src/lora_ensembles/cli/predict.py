"""Answer the questions of a file: probabilities, the members' votes, and how uncertain the ensemble is, one
row a question.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from ..calibration.kinds import Score
from ..data.cells import row_id
from ..data.formats import FORMATS as TEXT_FORMATS
from ..errors import ConfigError, DataError
from ..training.progress import Progress
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
from .flags import heads
from .flags.asked import Asked, Part, asked_rows, is_pipe
from .flags.data import add_column_flags
from .flags.guarantees import Guarantees, add_guarantee_flags, check_guarantees
from .flags.memory import Memory, remembered
from .screen.outputs import check_output
from .screen.partial import Output, check_partial, rows_output
from .screen.parts import ROWS
from .screen.rows import FORMATS, RowWriter, bad_record, joined

if TYPE_CHECKING:
    from ..data import Example
    from ..ensemble import LoraEnsemble
    from ..prediction.prediction import Prediction

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
    format = check_output(args, formats=FORMATS, format=args.format, resume=args.resume)
    if args.json and format == "csv" and args.out == "-":
        raise ConfigError(
            "--json would end the csv on standard output by a line that is none; give --out FILE"
        )
    if args.resume and is_pipe(args.source):
        raise ConfigError(f"--resume: {args.source} cannot be read again; put the rows into a file")
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
    with rows_output(args, format=format, total=asked.total) as output:
        ensemble = load_ensemble(args)
        kept = ensemble.calibrated
        guarantees = Guarantees.of(args, kept)
        counts = _answer_all(args, ensemble, asked, guarantees, output, format=format)
    seconds = round(time.monotonic() - begin, 1)
    outcome = "texts scored" if asked.texts else "questions answered"
    left = f", {counts.bad} bad rows with an error instead" if counts.bad else ""
    before = f", {output.begun.rows} rows of them before" if output.begun.rows else ""
    answered = counts.rows - counts.bad
    say(f"{answered} {outcome} by {ensemble.num_members} members in {seconds} s{before}{left}")
    if args.top is not None:
        end = "lowest" if args.by == "confidence" else "highest"
        say(f"written: the {min(args.top, answered)} rows of the {end} {args.by}")
    if kept is not None:
        say(f"calibration: {kept.calibration}")
    for sentence in guarantees.said():
        say(sentence)
    return {
        "questions": answered,
        "bad_rows": counts.bad,
        "members": ensemble.num_members,
        "out": args.out,
        "format": format,
        "calibration": None if kept is None else str(kept.calibration),
        "guarantees": guarantees.to_dict(),
        "seconds": seconds,
    }


def _refuse_open_answers(args: Arguments, memory: Memory) -> None:
    if memory.source.open_ended:
        raise ConfigError(
            f"{args.ensemble} was trained on open answers, so there are no options to predict; "
            f"let it answer by lora-ensembles generate {args.ensemble} --in FILE"
        )


def _answer_all(
    args: Arguments,
    ensemble: LoraEnsemble,
    asked: Asked,
    guarantees: Guarantees,
    output: Output,
    *,
    format: str,
) -> Counts:
    """Answer the rows that the output does not have yet, each part written before the next is read."""
    begun = output.begun
    counts = Counts(begun.rows, begun.bad)
    writer = RowWriter(
        format,
        members=args.members or list(range(ensemble.num_members)),
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
    for part in asked.parts(begun.rows):
        records = _answered(args, ensemble, part, asked.keep, guarantees)
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


def _answered(
    args: Arguments, ensemble: LoraEnsemble, part: Part, keep: Sequence[str], guarantees: Guarantees
) -> list[dict[str, Any]]:
    """A record for each row of a part, in the order of the file."""
    records = {bad.number: bad_record(bad, keep) for bad in part.bad}
    answers = _records(args, ensemble, part, range(len(part.rows)), guarantees) if part.rows else []
    for place, row, record in zip(part.numbers, part.rows, answers, strict=True):
        records[place] = joined(record, place, row, keep)
    return [records[place] for place in sorted(records)]


def _records(
    args: Arguments, ensemble: LoraEnsemble, part: Part, places: range, guarantees: Guarantees
) -> list[dict[str, Any]]:
    """The records of some rows; with --skip-bad-rows, a row that cannot be encoded gets an error, and the
    others are asked without it.
    """
    from ..prediction.prediction import predict
    from ..prediction.rows import prediction_records

    rows = slice(places.start, places.stop)
    try:
        examples = [example for example in part.examples[rows] if example is not None]
        if not examples:
            return heads.reward_records(ensemble, part.rows[rows], args)
        # Without targets: nothing is scored here, and rows that served to calibrate may be answered.
        unlabelled = [dataclasses.replace(example, target=None, target_probs=None) for example in examples]
        prediction = predict(ensemble, unlabelled, max_rows=args.max_rows, order_passes=args.order_passes)
        columns = guarantees.columns(prediction, examples)
        second = _second_confidence(args, ensemble, prediction, unlabelled)
        return [
            record | more | beside
            for record, more, beside in zip(
                prediction_records(prediction, examples), columns, second, strict=True
            )
        ]
    except DataError as error:
        if not args.skip_bad_rows:
            raise
        if len(places) == 1:
            return [{"id": row_id(part.rows[places.start]), "error": str(error)}]
    half = len(places) // 2
    return [
        record
        for some in (places[:half], places[half:])
        for record in _records(args, ensemble, part, some, guarantees)
    ]


def _second_confidence(
    args: Arguments, ensemble: LoraEnsemble, prediction: Prediction, examples: Sequence[Example]
) -> list[dict[str, float]]:
    """The column of --confidence, for each row."""
    from ..heads import label_mass
    from ..prediction.confidence import confidence

    if args.confidence is None:
        return [{} for _ in examples]
    mass = label_mass(ensemble, examples, max_rows=args.max_rows) if args.confidence == "mass" else None
    values = confidence(prediction, kind=args.confidence, label_mass=mass)
    return [{f"confidence_{args.confidence}": value} for value in values.tolist()]
