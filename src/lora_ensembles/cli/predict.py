"""Answer the questions of a file: probabilities, the members' votes, and how uncertain the ensemble is, one
row a question.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..data.cells import row_id
from ..data.formats import FORMATS as TEXT_FORMATS, Row
from ..data.sources import named_rows, stream_rows
from ..data.whole_file import BadRow
from ..errors import ConfigError, DataError
from ..training.progress import Progress
from .common import (
    Arguments,
    add_ensemble_flags,
    load_ensemble,
    number,
    read_standard_input,
    say,
    text_words,
)
from .flags import heads
from .flags.data import add_column_flags, merged_answer, merged_columns
from .flags.guarantees import Guarantees, add_guarantee_flags, check_guarantees
from .flags.memory import Memory, remembered
from .screen.outputs import check_output, open_output
from .screen.rows import FORMATS, bad_record, joined, kept_columns, write_rows

if TYPE_CHECKING:
    from ..data import Example
    from ..ensemble import LoraEnsemble

SUMMARY = "answer the questions of a file, with probabilities and uncertainty"
EXAMPLES = """examples:
  lora-ensembles predict runs/cqa --in questions.jsonl                     to standard output
  lora-ensembles predict runs/cqa --in questions.jsonl --out answers.csv
  lora-ensembles predict runs/exam --in exam.csv --question-column stem --options-column a,b,c,d --out answers.jsonl
  lora-ensembles predict runs/tickets --in new.csv --risk 0.05 --out answers.csv     abstain; after lora-ensembles calibrate
  cat questions.jsonl | lora-ensembles predict runs/cqa --in - | jq .prediction"""


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
        "--k",
        type=number,
        default=1.0,
        metavar="X",
        help="of a reward model: the lower bound is mean - K * std (default: 1)",
    )
    add_column_flags(parser)
    add_guarantee_flags(parser)
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


@dataclass(frozen=True)
class Asked:
    """The rows of a file that can be answered, each with its number, the questions that they hold, and the
    rows that cannot.

    `examples` is None for texts that a reward model scores as they are.
    """

    rows: tuple[Row, ...]
    numbers: tuple[int, ...]
    examples: tuple[Example, ...] | None
    bad: tuple[BadRow, ...] = ()


def run(args: Arguments) -> dict[str, Any]:
    """Read, predict, write; returns the summary."""
    begin = time.monotonic()
    format = check_output(args, formats=FORMATS, format=args.format)
    if args.json and format == "csv" and args.out == "-":
        raise ConfigError(
            "--json would end the csv on standard output by a line that is none; give --out FILE"
        )
    memory = remembered(args.ensemble)
    _refuse_open_answers(args, memory)
    check_guarantees(args, calibrated=memory.calibrated)
    asked = _asked(args, memory)  # before the base is loaded, since most mistakes are here
    keep = kept_columns(args.keep_columns, asked.rows)
    ensemble = load_ensemble(args)
    kept = ensemble.calibrated
    guarantees = Guarantees.of(args, kept)
    records = _answered(args, ensemble, asked, keep, guarantees)
    members = args.members or list(range(ensemble.num_members))
    with open_output(args.out, overwrite=args.overwrite) as stream:
        write_rows(records, stream, format=format, members=members)
    seconds = round(time.monotonic() - begin, 1)
    bad = sum("error" in record for record in records)
    outcome = "questions answered" if asked.examples is not None else "texts scored"
    left = f", {bad} bad rows with an error instead" if bad else ""
    say(f"{len(records) - bad} {outcome} by {ensemble.num_members} members in {seconds} s{left}")
    if kept is not None:
        say(f"calibration: {kept.calibration}")
    for sentence in guarantees.said():
        say(sentence)
    return {
        "questions": len(records) - bad,
        "bad_rows": bad,
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


def _asked(args: Arguments, memory: Memory) -> Asked:
    """The rows of --in, read without what takes time to load unless chats must be rendered."""
    from ..data.preferences import has_pair
    from ..data.prompts import rendered
    from ..data.whole_file import read_whole

    skip = args.skip_bad_rows
    if args.source == "-":
        rows = stream_rows(read_standard_input(), name="<stdin>", format=args.in_format, keep_bad=skip)
    else:
        rows = named_rows(args.source, keep_bad=skip)
    name = "<stdin>" if args.source == "-" else args.source
    if memory.kind != "reward":
        whole = read_whole(
            rows,
            name=name,
            columns=merged_columns(args, memory.source),
            labels=args.labels or memory.labels,
            labelled=False,
            skip_bad_rows=skip,
        )
        examples = rendered(whole.examples, merged_answer(args, memory.source))
        return Asked(whole.rows, whole.numbers, examples, whole.bad)
    every = list(rows)
    if not every:
        raise DataError(f"{name}: no rows; at least one text is needed")
    if has_pair(every[0].values):
        heads.refuse_pairs_from(args.source)
        examples = _pairs(args, memory)
        return Asked(tuple(every), tuple(range(len(every))), examples)
    return _texts(every, skip=skip)


def _texts(rows: Sequence[Row], *, skip: bool) -> Asked:
    good, bad = [], []
    for place, row in enumerate(rows):
        try:
            heads.reward_text(row)
        except DataError as error:
            if not skip:
                raise
            bad.append(BadRow(place, row, str(error)))
        else:
            good.append(place)
    if not good:
        raise DataError(bad[0].error)
    return Asked(tuple(rows[place] for place in good), tuple(good), None, tuple(bad))


def _pairs(args: Arguments, memory: Memory) -> tuple[Example, ...]:
    from ..data.preferences import holds_chats, load_preferences
    from ..embedded import resolve_tokenizer

    chats = holds_chats(args.source)
    return load_preferences(
        args.source, tokenizer=resolve_tokenizer(args.base or memory.base) if chats else None
    )


def _answered(
    args: Arguments, ensemble: LoraEnsemble, asked: Asked, keep: Sequence[str], guarantees: Guarantees
) -> list[dict[str, Any]]:
    """A record for each row, in the order of the file."""
    from .screen.parts import ROWS

    records = {bad.number: bad_record(bad, keep) for bad in asked.bad}
    total = len(asked.rows)
    progress = Progress(total=total, unit="row", show=total > ROWS and not args.no_progress)
    for start in range(0, total, ROWS):
        part = range(start, min(start + ROWS, total))
        for place, record in zip(part, _records(args, ensemble, asked, part, guarantees), strict=True):
            number, row = asked.numbers[place], asked.rows[place]
            records[number] = joined(record, number, row, keep)
        progress.update(len(part))
    return [records[number] for number in sorted(records)]


def _records(
    args: Arguments, ensemble: LoraEnsemble, asked: Asked, places: range, guarantees: Guarantees
) -> list[dict[str, Any]]:
    """The records of some rows; with --skip-bad-rows, a row that cannot be encoded gets an error, and the
    others are asked without it.
    """
    from ..prediction.prediction import predict
    from ..prediction.rows import prediction_records

    rows = slice(places.start, places.stop)
    try:
        if asked.examples is None:
            return heads.reward_records(ensemble, asked.rows[rows], args)
        examples = asked.examples[rows]
        # Without targets: nothing is scored here, and rows that served to calibrate may be answered.
        unlabelled = [dataclasses.replace(example, target=None) for example in examples]
        prediction = predict(ensemble, unlabelled, max_rows=args.max_rows)
        columns = guarantees.columns(prediction, examples)
        return [
            record | more
            for record, more in zip(prediction_records(prediction, examples), columns, strict=True)
        ]
    except DataError as error:
        if not args.skip_bad_rows:
            raise
        if len(places) == 1:
            return [{"id": row_id(asked.rows[places.start]), "error": str(error)}]
    half = len(places) // 2
    return [
        record
        for part in (places[:half], places[half:])
        for record in _records(args, ensemble, asked, part, guarantees)
    ]
