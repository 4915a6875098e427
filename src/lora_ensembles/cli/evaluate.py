"""Measure a saved ensemble beside its single members, by default on the questions that it remembers from its training."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .common import SHOWN, Arguments, add_ensemble_flags, count, first, load_ensemble, metrics_table, say, spread_to_dict
from .data import Source, add_column_flags, given_columns, load_pair, remembered_source

if TYPE_CHECKING:
    from ..ensemble import LoraEnsemble
    from ..intervals import Interval
    from ..prediction import Prediction
    from ..tasks import Example

SUMMARY = "measure a saved ensemble"
EXAMPLES = """examples:
  lora-ensembles evaluate runs/cqa                                      on the validation part of the task it was trained on
  lora-ensembles evaluate runs/cqa --intervals --json
  lora-ensembles evaluate runs/obqa --task arcc --data datasets --ood mmlu
  lora-ensembles evaluate runs/exam --file exam-2024.csv --members 0,1,2
  lora-ensembles evaluate runs/obqa --base /models/llama-2-7b --dtype bfloat16"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_ensemble_flags(parser)
    data = parser.add_argument_group("data")
    data.add_argument("--task", metavar="NAME", help="another task than the one it was trained on")
    data.add_argument("--data", type=Path, metavar="DIR", help="folder with the paper's datasets")
    data.add_argument("--file", metavar="FILE", help="your own labelled .jsonl or .csv file, or hub:owner/name:split")
    data.add_argument(
        "--ood", metavar="NAME", help="out-of-distribution set; 'none' for none (default: the task's own, where its data is at hand)"
    )
    data.add_argument("--limit", type=count, metavar="N", help="only the first N questions of each set")
    add_column_flags(parser)
    parser.add_argument("--intervals", action="store_true", help="95 %% bootstrap intervals of the ensemble's metrics")


def run(args: Arguments) -> dict[str, Any]:
    """Predict and measure; returns the summary."""
    from ..metrics import evaluate, evaluate_members
    from ..prediction import predict

    begin = time.monotonic()
    ensemble = load_ensemble(args)
    name, every, source = _questions(args, ensemble)
    pair = load_pair(source.task, source, asked=args.ood)
    examples = first(every, args.limit)
    say(f"{name}: {len(examples)} questions" + (f", {len(first(pair[1], args.limit))} of {pair[0]} out of distribution" if pair else ""))
    prediction = predict(ensemble, examples, max_rows=args.max_rows)
    ood = predict(ensemble, first(pair[1], args.limit), max_rows=args.max_rows) if pair else None
    metrics, spread = evaluate(prediction, ood=ood), evaluate_members(prediction, ood=ood)
    intervals = _intervals(prediction) if args.intervals else {}
    print(metrics_table(spread, metrics, intervals=intervals))
    measured: dict[str, Any] = metrics.to_dict()
    if intervals:
        measured["intervals"] = {metric: [one.low, one.high] for metric, one in intervals.items()}
    return {
        "ensemble_dir": str(args.ensemble),
        "task": name,
        "ood": pair[0] if pair else None,
        "members": ensemble.num_members,
        "single": spread_to_dict(spread),
        "ensemble": measured,
        "seconds": round(time.monotonic() - begin, 1),
    }


def _questions(args: Arguments, ensemble: LoraEnsemble) -> tuple[str, tuple[Example, ...], Source]:
    """The questions to measure on, what to call them, and the source that says where a paired set would be."""
    from ..tasks import ColumnMapping, load_file

    if args.task and args.file:
        raise ConfigError("give --task NAME or --file FILE, not both")
    remembered = remembered_source(ensemble.info.task)
    data = str(args.data) if args.data else remembered.data
    if args.file:
        columns, labels = given_columns(args) or remembered.columns, args.labels or remembered.labels
        examples = load_file(args.file, columns=ColumnMapping(**columns) if columns else None, labels=labels)
        return Path(args.file).stem, examples, Source(data=data)
    source = Source(task=args.task, data=data) if args.task else remembered
    if source.task is None and source.train is None:
        raise ConfigError(f"{args.ensemble} does not say what it was trained on; pass --task NAME or --file FILE")
    if source.task is not None:
        source = Source(task=source.task, data=data)
    task = source.load()
    return task.name, task.validation, source


def _intervals(prediction: Prediction) -> dict[str, Interval]:
    from .. import metrics
    from ..intervals import bootstrap_interval

    return {name: bootstrap_interval(getattr(metrics, name), prediction) for name in SHOWN if name != "ood_auroc"}
