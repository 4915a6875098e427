"""Train an ensemble on a named task or on your own file, measure it on the validation part, and save it."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..calibration.kinds import FEWEST
from ..data.prompts import rendered
from ..disk.atomic import check_writable
from ..disk.claimed import check_free
from ..disk.layout import RUN_FOLDER
from ..errors import ConfigError, DataError
from .common import (
    Arguments,
    add_model_flags,
    add_quantize_flag,
    count,
    metrics_table,
    say,
    share,
    show_table,
    some,
    spread_to_dict,
    whole,
    words,
)
from .flags import heads, settings
from .flags.answer import AUTO, chosen_answer, in_answers
from .flags.data import Source, add_column_flags, source_from_flags
from .flags.fitting_head import CLASSIFIER, fitting_head, other_way
from .flags.ranks import Alone, add_shard_flag, in_ranks
from .flags.workers import add_worker_flags, check_worker_flags
from .screen.first_screen import few_rows, same_file, say_parts, say_read

if TYPE_CHECKING:
    from ..data import CompletionTask, Example, Task
    from ..distributed.ranks import Ranks
    from ..ensemble import LoraEnsemble
    from ..training.trainee import TrainResult

SUMMARY = "train an ensemble"
KINDS_OF_ROWS = {"open_ended": "open answers", "preferences": "pairs"}
EXAMPLES = """examples:
  lora-ensembles train tickets.csv\
                                      columns text and label; into runs/tickets
  lora-ensembles train --task world-cqa --out runs/cqa
  lora-ensembles train --task obqa --data datasets --base meta-llama/Llama-2-7b-hf --dtype bfloat16\
 --preset paper --out runs/obqa
  lora-ensembles train --train exam.csv --question-column stem --options-column a,b,c,d\
 --answer-column correct --out runs/exam
  lora-ensembles train --train reviews.jsonl --labels positive,negative --base Qwen/Qwen3-0.6B --members 8\
 --out runs/reviews
  lora-ensembles train --train chats.jsonl --base Qwen/Qwen3-0.6B --out runs/chats\
   open answers: prompt and completion, or messages
  lora-ensembles train --task world-obqa --members 3 --weight-decay-b 0.01,20,50 --epochs 10 --out runs/sweep\
   one value a member
  lora-ensembles train --head multiple-choice --task arcc --data datasets --base bert-base-uncased\
 --out runs/arcc
  lora-ensembles train --head sequence-classification --train reviews.csv --base roberta-base\
 --out runs/reviews   columns text and label
  lora-ensembles train --head reward --train pairs.jsonl --base Qwen/Qwen3-0.6B --out runs/reward\
   prompt, chosen and rejected
  lora-ensembles train --config settings.yaml --out runs/again --seed 1
  lora-ensembles train tickets.csv --members 8 --on ray --workers 4\
             slices of the members on the workers of a Ray cluster
  lora-ensembles train --task world-cqa --out runs/cqa --resume\
                                                 go on after a break"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_data_arguments(parser)
    add_column_flags(parser, auto=True)
    _add_ensemble_arguments(parser)
    add_shard_flag(parser)
    _add_run_arguments(parser)


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data")
    data.add_argument(
        "--task", metavar="NAME", help="a task that has a name; `lora-ensembles tasks` lists them"
    )
    data.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder with the paper's datasets (default: the Hugging Face hub)",
    )
    data.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        help="your own file (.jsonl, .csv, ...), or hub:owner/name:split: "
        "questions, texts and their classes, or open answers",
    )
    data.add_argument("--train", metavar="FILE", help="the same, as a flag")
    data.add_argument(
        "--validation", metavar="FILE", help="the rows to evaluate on (default: a fifth of FILE is held out)"
    )
    for flag, rows in (("--limit", "training"), ("--limit-validation", "validation")):
        data.add_argument(
            flag,
            type=count,
            metavar="N",
            help=f"only N {rows} rows: a random sample, class by class where rows have classes",
        )


def _add_ensemble_arguments(parser: argparse.ArgumentParser) -> None:
    ensemble = parser.add_argument_group("ensemble")
    ensemble.add_argument(
        "--members", type=count, default=5, metavar="M", help="number of members (default: 5)"
    )
    ensemble.add_argument(
        "--seed", type=whole, default=0, metavar="N", help="members' seeds follow from it (default: 0)"
    )
    ensemble.add_argument(
        "--vary",
        type=words,
        default=["init", "order"],
        metavar="init,order",
        help="what differs between members (default: both)",
    )
    add_model_flags(parser, base="embedded")
    add_quantize_flag(parser, "load the base with its linear layers in 4 or 8 bits by bitsandbytes")
    heads.add_head_flags(parser, default=None)
    settings.add_adapter_flags(parser)
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="paper, default or embedded (default: embedded for the embedded base, else default)",
    )
    settings.add_training_flags(parser)


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    run_group = parser.add_argument_group("run")
    run_group.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where the ensemble is saved (default: runs/NAME for a file NAME.csv)",
    )
    run_group.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=".yaml or .json file that gives any of these flags a value; flags win",
    )
    run_group.add_argument(
        "--resume", action="store_true", help="go on with the run in --out from its last checkpoint"
    )
    run_group.add_argument(
        "--overwrite", action="store_true", help="replace the run or the ensemble in --out, and nothing else"
    )
    run_group.add_argument(
        "--calibrate",
        type=share,
        metavar="X",
        help="hold this share of the training rows out, and calibrate the ensemble on them",
    )
    add_worker_flags(run_group, what="slices of the members")
    run_group.add_argument("--no-progress", action="store_true", help="no progress bar")


expand = settings.expand_config


def run(args: Arguments) -> dict[str, Any]:
    """Train, measure, save; returns the summary."""
    with in_ranks(args) as ranks:
        return _run(args, ranks)


def _run(args: Arguments, ranks: Ranks | Alone) -> dict[str, Any]:
    from ..embedded import is_embedded, resolve_tokenizer

    begin = time.monotonic()
    check_worker_flags(args)
    if args.on is not None:
        args.device = "cpu"  # of this process, which leaves the GPUs to the workers
    train = _own_file(args)
    if args.out is None:
        raise ConfigError("train: --out DIR is needed; the ensemble is saved there")
    ranks.on_first(lambda: _check_out(args))
    chosen = args.head is None
    if chosen:
        args.head = "causal-lm" if train is None or args.task else fitting_head(args, train)
        chosen = args.head == CLASSIFIER
    heads.check_head_flags(args)
    heads.check_head_source(args.head, task=args.task, train=train)
    auto, args.answer = args.answer == AUTO, None if args.answer == AUTO else args.answer
    source = source_from_flags(args, train=train, validation=args.validation, head=args.head)
    config = settings.train_config(
        args, default="embedded" if is_embedded(args.base) else "default", task=source.task
    )
    loaded = source.load(tokenizer=lambda: resolve_tokenizer(args.base))
    task = _limited(loaded.task, args)
    say_read(loaded.files, classes=source.labels)
    if chosen:
        say(
            f"texts and their classes: each member gets a head of its own (--head {CLASSIFIER}); "
            f"with --labels {','.join(source.labels or ())[:60]} the language model itself would "
            "choose among these words"
        )
    if args.validation is not None and train is not None and same_file(train, args.validation):
        say(f"note: --validation {args.validation} is the training file itself")
    say_parts(task)
    held_out, task = _held_out(task, args)
    try:
        base, tokenizer = heads.load_base(args, heads.head_config(args), source.labels)
        if auto:
            answer = chosen_answer(base, tokenizer, task.train)
            source, task = dataclasses.replace(source, answer=answer), in_answers(task, answer)
            held_out = rendered(held_out, answer)
        ensemble = _build(args, source, task, (base, tokenizer))
        if not is_embedded(args.base):
            settings.say_small_base(args, base)
    except DataError as error:  # such as a base of which transformers has no classifier
        raise DataError(
            f"{error}. {other_way(train, source.labels)}" if chosen and train else str(error)
        ) from error
    result = _train(ensemble, task, config, args)
    spread = _record(ensemble, result, args.out)
    if held_out:
        _calibrate(ensemble, held_out, args, ranks)
    say(f"saved to {args.out}; next: lora-ensembles evaluate {args.out}")
    return {
        "out": str(args.out),
        "task": task.name,
        "members": ensemble.members_in_all,
        "single": spread_to_dict(spread),
        "ensemble": ensemble.info.task["metrics"],
        "calibration": None if ensemble.calibrated is None else str(ensemble.calibrated.calibration),
        "seconds": round(time.monotonic() - begin, 1),
    }


def _check_out(args: Arguments) -> None:
    check_free(args.out, resume=args.resume, overwrite=args.overwrite)
    check_writable(args.out / RUN_FOLDER)


def _own_file(args: Arguments) -> str | None:
    """The file to train on, given as FILE or by --train; --out is named after it where it is not given."""
    if args.file is not None and args.train is not None:
        raise ConfigError(f"train: FILE {args.file} and --train {args.train}; give the file once")
    train: str | None = args.file if args.train is None else args.train
    if args.out is None and train is not None:
        args.out = Path("runs") / Path(train.rpartition(":")[2]).stem
    return train


def _limited(task: Task | CompletionTask, args: Arguments) -> Task | CompletionTask:
    parts: dict[str, Any] = {
        "train": some(task.train, args.limit),
        "validation": some(task.validation, args.limit_validation),
    }
    return dataclasses.replace(task, **parts)


def _build(
    args: Arguments, source: Source, task: Task | CompletionTask, model: tuple[Any, Any]
) -> LoraEnsemble:
    from ..ensemble import LoraEnsemble

    base, tokenizer = model
    ensemble = LoraEnsemble(
        base,
        tokenizer,
        num_members=args.members,
        adapter=settings.adapter_config(args, base),
        seed=args.seed,
        vary=args.vary,
        head=heads.head_config(args),
    )
    remembered = {
        "name": task.name,
        "source": source.to_dict(),
        "dtype": str(base.dtype).removeprefix("torch."),
    }
    ensemble.info = dataclasses.replace(ensemble.info, task=remembered)
    return ensemble


def _train(ensemble: LoraEnsemble, task: Task | CompletionTask, config: Any, args: Arguments) -> TrainResult:
    from ..training.adapters import train

    examples, validation = task.train, task.validation
    remembered = ensemble.info.task["source"]
    kind = next((words for name, words in KINDS_OF_ROWS.items() if remembered.get(name)), "questions")
    sizes = f"{len(examples)} training and {len(validation)} validation {kind}"
    say(f"{task.name}: {sizes}, {ensemble.members_in_all} members on {ensemble.device}")
    return train(
        ensemble,
        examples,
        config,
        validation=validation,
        out=args.out,
        resume=args.resume,
        overwrite=args.overwrite,
        progress=not args.no_progress,
        on=args.on,
        workers=args.workers,
    )


def _record(ensemble: LoraEnsemble, result: TrainResult, out: Path) -> dict[str, Any]:
    """Put the last epoch's metrics into the saved ensemble and show them; returns the single members'."""
    from ..prediction.completions import CompletionMetrics
    from ..prediction.evaluation import Metrics
    from ..prediction.metrics import MemberSpread
    from ..storage.folder import update_info

    last = result.history[-1]
    open_ended = "perplexity" in last["ensemble"]
    metrics = CompletionMetrics(**last["ensemble"]) if open_ended else Metrics(**last["ensemble"])
    spread = {name: MemberSpread(tuple(values)) for name, values in last["members"].items()}
    measured = {"metrics": metrics.to_dict(), "single": spread_to_dict(spread)}
    ensemble.info = dataclasses.replace(ensemble.info, task={**ensemble.info.task, **measured})
    update_info(ensemble, out)
    show_table(metrics_table(spread, metrics))
    few_rows(metrics.num_examples)
    return spread


def _held_out(
    task: Task | CompletionTask, args: Arguments
) -> tuple[tuple[Example, ...], Task | CompletionTask]:
    """The share of the training rows that --calibrate holds out, and the task without them."""
    from ..calibration.held_out import held_out_split
    from ..data import Task

    if args.calibrate is None:
        return (), task
    if not isinstance(task, Task) or args.head == "reward":
        raise ConfigError("--calibrate: for questions with options; there are none here. Leave it out")
    held_out, rest = held_out_split(
        task.train, share=args.calibrate, seed=args.seed, trained_on=task.validation
    )
    if len(held_out) < FEWEST:
        raise DataError(
            f"--calibrate {args.calibrate:g}: that is {len(held_out)} of {len(task.train)} training rows, "
            f"too few to calibrate on; hold {FEWEST} or more out"
        )
    say(f"{len(held_out)} of {len(task.train)} training rows are held out to calibrate on")
    return held_out, dataclasses.replace(task, train=rest)


def _calibrate(
    ensemble: LoraEnsemble, held_out: Sequence[Example], args: Arguments, ranks: Ranks | Alone
) -> None:
    from ..calibration.calibrated import calibrate
    from ..storage.calibration import write_calibration

    source = f"{args.calibrate:g} of the training rows"
    calibration = calibrate(ensemble, held_out, source=source)
    kept = ensemble.calibrated
    assert kept is not None
    ranks.on_first(lambda: write_calibration(args.out, kept))
    say(f"calibration: {calibration}")
