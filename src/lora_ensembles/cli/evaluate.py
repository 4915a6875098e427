"""Measure a saved ensemble beside its single members, by default on the rows that it remembers from its
training.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..data.sources import HUB_PREFIX
from ..errors import ConfigError
from .common import (
    SHOWN,
    Arguments,
    add_ensemble_flags,
    add_order_flag,
    count,
    load_ensemble,
    metrics_table,
    say,
    show_table,
    some,
    spread_to_dict,
)
from .flags import baseline
from .flags.data import (
    Source,
    add_column_flags,
    has_open_answers,
    load_pair,
    merged_answer,
    merged_columns,
    read_questions,
    source_from_flags,
)
from .flags.heads import add_head_flags
from .flags.memory import Memory, remembered
from .screen.first_screen import few_rows, say_read
from .screen.parts import InParts

if TYPE_CHECKING:
    from ..ensemble import LoraEnsemble
    from ..prediction.completions import CompletionMetrics
    from ..prediction.evaluation import Metrics
    from ..prediction.intervals import Interval
    from ..prediction.metrics import MemberSpread
    from ..prediction.prediction import Predictor

SUMMARY = "measure a saved ensemble"
EXAMPLES = """examples:
  lora-ensembles evaluate runs/cqa\
                                      on the validation part of the task it was trained on
  lora-ensembles evaluate runs/cqa --intervals --json
  lora-ensembles evaluate runs/obqa --task arcc --data datasets --ood mmlu
  lora-ensembles evaluate runs/exam --file exam-2024.csv --only 0,1,2
  lora-ensembles evaluate runs/chats --file more-chats.jsonl\
             open answers: how probable they are, token by token
  lora-ensembles evaluate runs/obqa --baseline temperature               a baseline on the same questions
  lora-ensembles evaluate --baseline last-layer --task world-cqa
  lora-ensembles evaluate --baseline last-layer --head multiple-choice --task arcc --data datasets\
 --base bert-base-uncased
  lora-ensembles evaluate runs/obqa --base /models/llama-2-7b --dtype bfloat16"""


class Measured(NamedTuple):
    """Name of the out-of-distribution set, if any; the ensemble's metrics, the single members', and the
    ensemble's intervals.
    """

    ood: str | None
    metrics: Metrics | CompletionMetrics
    spread: dict[str, MemberSpread]
    intervals: dict[str, Interval]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_ensemble_flags(parser, needed=False)
    data = parser.add_argument_group("data")
    data.add_argument("--task", metavar="NAME", help="another task than the one it was trained on")
    data.add_argument("--data", type=Path, metavar="DIR", help="folder with the paper's datasets")
    data.add_argument(
        "--file", metavar="FILE", help="your own labelled file (.jsonl, .csv, ...), or hub:owner/name:split"
    )
    data.add_argument(
        "--ood",
        metavar="NAME",
        help="out-of-distribution set: one that has a name, or a FILE whose rows need no answers; 'none' for "
        "none (default: the task's own, where its data is at hand)",
    )
    data.add_argument(
        "--limit",
        type=count,
        metavar="N",
        help="only a sample of N rows of each set, class by class where rows have classes",
    )
    add_column_flags(parser)
    add_order_flag(parser)
    parser.add_argument(
        "--intervals", action="store_true", help="95 %% intervals of the ensemble's metrics, over questions"
    )
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    baseline.add_arguments(parser)
    add_head_flags(parser, "of a baseline that is trained here; an ensemble has its own, see docs/heads.md")


def run(args: Arguments) -> dict[str, Any]:
    """Predict and measure; returns the summary."""
    begin = time.monotonic()
    if args.baseline is not None:
        baseline.check(args)
    elif args.ensemble is None:
        raise ConfigError(
            "evaluate: DIR is needed, the folder of an ensemble; or --baseline NAME with --task NAME"
        )
    elif args.head != "causal-lm":
        raise ConfigError(
            f"--head {args.head}: it is for a baseline that is trained here, and {args.ensemble} "
            "has its own; leave it out"
        )
    memory = remembered(args.ensemble)
    if args.ensemble is not None and not (args.task or args.file):
        _refuse_lost_files(args.ensemble, memory.source)
    name, train, every, source = _rows(args, memory)  # before anything slow, since most mistakes are here
    ensemble = load_ensemble(args) if args.ensemble is not None else None
    predictor: Any = ensemble
    if args.baseline is not None:
        if source.open_ended:
            raise ConfigError(
                f"--baseline {args.baseline}: baselines answer questions with options; "
                "the rows here have open answers"
            )
        predictor, every = baseline.predictor(
            args, ensemble=ensemble, train=train, validation=tuple(every), task=source.task
        )
    measure = _measure_completions if source.open_ended else _measure_questions
    ood, metrics, spread, intervals = measure(args, predictor, name, every, source)
    show_table(metrics_table(spread, metrics, intervals=intervals, baseline=args.baseline))
    few_rows(metrics.num_examples)
    measured: dict[str, Any] = metrics.to_dict()
    kept = None if args.baseline or ensemble is None else ensemble.calibrated
    if kept is not None:
        say(f"calibration: {kept.calibration}; single members are not calibrated")
    if measured.get("order_flips") is not None:
        say(f"order of the options: {measured['order_flips']:.1%} of pairs of orders give different answers")
    if intervals:
        measured["intervals"] = {
            metric: [interval.low, interval.high] for metric, interval in intervals.items()
        }
    return {
        "ensemble_dir": None if args.ensemble is None else str(args.ensemble),
        "baseline": args.baseline,
        "task": name,
        "ood": ood,
        "members": metrics.num_members,
        "calibration": None if kept is None else str(kept.calibration),
        "single": spread_to_dict(spread),
        "ensemble": measured,
        "seconds": round(time.monotonic() - begin, 1),
    }


def _measure_questions(
    args: Arguments, predictor: Predictor, name: str, every: Sequence[Any], source: Source
) -> Measured:
    from ..prediction import metrics
    from ..prediction.evaluation import evaluate, evaluate_members
    from ..prediction.intervals import bootstrap_interval
    from ..prediction.prediction import predict

    pair = load_pair(source.task, source, asked=args.ood)
    examples, others = some(every, args.limit), some(pair[1], args.limit) if pair else ()
    say(
        f"{name}: {len(examples)} questions"
        + (f", {len(others)} of {pair[0]} out of distribution" if pair else "")
    )
    if args.baseline is None:
        total = (len(examples) + len(others)) * (args.order_passes or 1)
        predictor = InParts(predictor, total=total, show=not args.no_progress)
    asked = {"max_rows": args.max_rows, "order_passes": args.order_passes}
    prediction = predict(predictor, examples, **asked)
    ood = predict(predictor, others, **asked) if pair else None
    left_out = {"ood_auroc"} if prediction.target_probs is not None else {"ood_auroc", "kl_from_targets"}
    shown = {name: getattr(metrics, name) for name in SHOWN if name not in left_out}
    intervals = _intervals(shown, prediction) if args.intervals else {}
    if args.intervals and ood is not None:
        intervals["ood_auroc"] = bootstrap_interval(metrics.ood_auroc, prediction, ood=ood)
    spread = evaluate_members(prediction, ood=ood)
    return Measured(pair[0] if pair else None, evaluate(prediction, ood=ood), spread, intervals)


def _measure_completions(
    args: Arguments, ensemble: LoraEnsemble, name: str, every: Sequence[Any], source: Source
) -> Measured:
    from ..heads.lm.completions import score_completions
    from ..prediction.completions import METRICS, evaluate_completion_members, evaluate_completions

    if args.ood not in (None, "none"):
        raise ConfigError("--ood: for questions with options; the rows here have open answers. Leave it out")
    if args.order_passes is not None:
        raise ConfigError("--order-passes: for questions with options; the rows here have open answers")
    examples = some(every, args.limit)
    say(f"{name}: {len(examples)} open answers")
    scores = score_completions(ensemble, examples, max_rows=args.max_rows)
    intervals = _intervals(METRICS, scores) if args.intervals else {}
    return Measured(None, evaluate_completions(scores), evaluate_completion_members(scores), intervals)


def _refuse_lost_files(ensemble: Path, source: Source) -> None:
    """Refuse an ensemble whose own files are not where it remembers them, before its base is loaded."""
    for name in (source.train, source.validation):
        if name is not None and not name.startswith(HUB_PREFIX) and not Path(name).exists():
            raise ConfigError(
                f"{name}, which {ensemble} was trained on, is not found from {Path.cwd()}; "
                "pass --file FILE, or call from the folder where it was trained"
            )


def _rows(args: Arguments, memory: Memory) -> tuple[str, tuple[Any, ...], Sequence[Any], Source]:
    """The rows' name, those to train on, those to measure on, and the source that says where a paired set
    would be.
    """
    if args.task and args.file:
        raise ConfigError("give --task NAME or --file FILE, not both")
    data = str(args.data) if args.data else memory.source.data
    answer = merged_answer(args, memory.source)
    if args.file:
        examples, open_ended = _file_rows(args, memory)
        source = Source(
            data=data,
            columns=merged_columns(args, memory.source),
            labels=args.labels or memory.labels,
            answer=answer,
            open_ended=open_ended,
        )
        return Path(args.file).stem, (), examples, source
    source = source_from_flags(args, train=None, validation=None) if args.task else memory.source
    if source.task is None and source.train is None:
        raise ConfigError(
            f"{args.ensemble} does not say what it was trained on; pass --task NAME or --file FILE"
        )
    source = dataclasses.replace(source, answer=answer)
    if source.task is not None:
        source = dataclasses.replace(source, data=data)
    loaded = source.load(tokenizer=lambda: _tokenizer(args, memory))
    say_read(loaded.files[-1:], classes=source.labels)
    return loaded.task.name, loaded.task.train, loaded.task.validation, source


def _file_rows(args: Arguments, memory: Memory) -> tuple[Sequence[Any], bool]:
    """The rows of --file, and whether they have open answers."""
    from ..data import load_completions
    from ..data.preferences import holds_chats, load_preferences

    if memory.kind == "reward":
        tokenizer = _tokenizer(args, memory) if holds_chats(args.file) else None
        return load_preferences(args.file, tokenizer=tokenizer), False
    if has_open_answers(args, args.file):
        return load_completions(args.file), True
    labels = args.labels or memory.labels
    whole = read_questions(
        args.file,
        columns=merged_columns(args, memory.source),
        labels=labels,
        skip_bad_rows=args.skip_bad_rows,
        answer=merged_answer(args, memory.source),
    )
    say_read([whole], classes=labels)
    return whole.examples, False


def _tokenizer(args: Arguments, memory: Memory) -> Any:
    from ..embedded import resolve_tokenizer

    return resolve_tokenizer(args.base or memory.base or "embedded")


def _intervals(shown: Mapping[str, Callable[[Any], float]], prediction: Any) -> dict[str, Interval]:
    from ..prediction.intervals import bootstrap_interval

    return {name: bootstrap_interval(metric, prediction) for name, metric in shown.items()}
