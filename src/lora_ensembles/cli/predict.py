"""Answer the questions of a file: probabilities, the members' votes, and how uncertain the ensemble is, one row a question."""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import ConfigError
from . import heads
from .common import (
    Arguments,
    add_ensemble_flags,
    load_ensemble,
    number,
    read_standard_input,
    say,
)
from .data import add_column_flags, given_columns, remembered_source
from .outputs import check_output, open_output

if TYPE_CHECKING:
    from ..ensemble import LoraEnsemble
    from ..tasks import Example

SUMMARY = "answer the questions of a file, with probabilities and uncertainty"
EXAMPLES = """examples:
  lora-ensembles predict runs/cqa --in questions.jsonl                     to standard output
  lora-ensembles predict runs/cqa --in questions.jsonl --out answers.csv
  lora-ensembles predict runs/exam --in exam.csv --question stem --options a,b,c,d --out answers.jsonl
  cat questions.jsonl | lora-ensembles predict runs/cqa --in - | jq .prediction"""
FORMATS = ("jsonl", "csv")
GROUPS = {
    "prob": "probs",
    "vote": "votes",
    "reward": "member_rewards",
}  # columns of the csv, by what they begin with, and the record's key they come from


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_ensemble_flags(parser)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--in",
        dest="source",
        required=True,
        metavar="FILE",
        help=".jsonl, .csv, hub:owner/name:split, or '-' for standard input; answers may be missing",
    )
    data.add_argument(
        "--in-format", choices=FORMATS, default="jsonl", help="what standard input holds (default: jsonl)"
    )
    data.add_argument("--out", default="-", metavar="FILE", help="'-' for standard output, the default")
    data.add_argument(
        "--format", choices=FORMATS, help="of the output (default: by the suffix of --out, else jsonl)"
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


def run(args: Arguments) -> dict[str, Any]:
    """Read, predict, write; returns the summary."""
    begin = time.monotonic()
    format = check_output(args, formats=FORMATS, format=args.format)
    if args.json and format == "csv" and args.out == "-":
        raise ConfigError(
            "--json would end the csv on standard output by a line that is none; give --out FILE"
        )
    _refuse_open_answers(args)
    ensemble = load_ensemble(args)
    records, what = _records(args, ensemble)
    with open_output(args.out, overwrite=args.overwrite) as stream:
        if format == "csv":
            write_csv(records, stream)
        else:
            stream.writelines(f"{json.dumps(record)}\n" for record in records)
    seconds = round(time.monotonic() - begin, 1)
    say(f"{len(records)} {what} by {ensemble.num_members} members in {seconds} s")
    return {
        "questions": len(records),
        "members": ensemble.num_members,
        "out": args.out,
        "format": format,
        "seconds": seconds,
    }


def _records(args: Arguments, ensemble: LoraEnsemble) -> tuple[list[dict[str, Any]], str]:
    """A dictionary for each row of the file, and what was done with the rows."""
    from ..prediction import predict
    from ..records import prediction_records
    from ..tasks import load_preferences

    if ensemble.head.kind == "reward":
        rewards = heads.reward_records(ensemble, args)
        if rewards is not None:
            return rewards, "texts scored"
        heads.refuse_pairs_from(args.source)
        examples = load_preferences(args.source, tokenizer=ensemble.tokenizer)
    else:
        examples = _examples(args, ensemble)
    return list(
        prediction_records(predict(ensemble, examples, max_rows=args.max_rows), examples)
    ), "questions answered"


def _refuse_open_answers(args: Arguments) -> None:
    from ..description import read_description

    if remembered_source(read_description(args.ensemble)["task"]).open_ended:
        raise ConfigError(
            f"{args.ensemble} was trained on open answers, so there are no options to predict; let it answer by "
            f"lora-ensembles generate {args.ensemble} --in FILE"
        )


def _examples(args: Arguments, ensemble: LoraEnsemble) -> tuple[Example, ...]:
    from ..tasks import ColumnMapping, load_file, read_examples

    remembered = remembered_source(
        ensemble.info.task
    )  # the questions must read as those that the members were trained on
    columns = given_columns(args) or remembered.columns
    labels = args.labels or remembered.labels or heads.known_classes(ensemble)
    mapping = ColumnMapping(**columns) if columns else None
    if args.source != "-":
        return load_file(args.source, columns=mapping, labels=labels, labelled=False)
    return read_examples(
        read_standard_input(), format=args.in_format, columns=mapping, labels=labels, labelled=False
    )


def write_csv(records: Sequence[dict[str, Any]], stream: TextIO) -> None:
    """One row a record and one column a value: prob_LABEL for each label (empty where a row has no such option), vote_0, vote_1, ...

    Example:
        >>> import sys
        >>> record = {"id": "q1", "prediction": "a", "probs": {"a": 0.75, "b": 0.25}, "votes": ["a", "b"]}
        >>> write_csv([record], sys.stdout)
        id,prediction,prob_a,prob_b,vote_0,vote_1
        q1,a,0.75,0.25,a,b
    """
    rows = [_flat(record) for record in records]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    order = [*records[0]]  # a label that only later rows have still belongs among the probabilities
    columns.sort(key=lambda name: order.index(_key(name)))
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _key(column: str) -> str:
    group, found, _ = column.partition("_")
    return GROUPS.get(group, column) if found else column


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if name == "probs":
            flat |= {f"prob_{label}": probability for label, probability in value.items()}
        elif name == "votes":
            flat |= {f"vote_{member}": label for member, label in enumerate(value)}
        elif name == "member_rewards":
            flat |= {f"reward_{member}": score for member, score in enumerate(value)}
        else:
            flat[name] = value
    return flat
