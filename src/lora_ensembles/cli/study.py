"""Re-make the paper's evidence: records of every comparison, the claims judged from them, and a report."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..disk.atomic import check_writable
from ..distributed.cluster import workers_of
from ..errors import ConfigError, unknown_name
from ..studies.kinds import KINDS
from ..studies.report.page import Table
from .common import Arguments, add_model_flags, count, load_model, say, words
from .flags.workers import add_worker_flags, base_for_workers, check_worker_flags

if TYPE_CHECKING:
    from ..studies.claims.judge import Claim
    from ..studies.grid import Grid

SUMMARY = "reproduce the paper's evidence"
EXAMPLES = """examples:
  lora-ensembles study all --quick --out runs/study\
                    every figure in minutes, on a smaller grid
  lora-ensembles study all --out runs/study\
                            the full grid on the embedded base; goes on where it stopped
  lora-ensembles study sweep --tasks world-cqa --out runs/study        one kind of record of the list above
  lora-ensembles study all --out runs/study --on ray --workers 4\
           records measured on the workers of a Ray cluster
  lora-ensembles study claims --from runs/study --json                 what the records say of each claim
  lora-ensembles study methods --budget 15 --out runs/methods\
          every method at one budget, with tuned settings
  lora-ensembles study methods --protocol published --base meta-llama/Llama-3.1-8B --dtype bfloat16\
 --out runs/published\
                        as papers on Bayesian LoRA compare methods
  lora-ensembles study all --base meta-llama/Llama-2-7b-hf --dtype bfloat16 --data datasets\
 --out runs/llama"""
WHAT = ("all", "claims", *KINDS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="WHAT", help=", ".join(WHAT))
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the records; what is in it is not measured again"
    )
    parser.add_argument(
        "--from", dest="records", type=Path, metavar="DIR", help="folder of the records that `claims` judges"
    )
    parser.add_argument("--quick", action="store_true", help="fewer tasks, strengths, epochs and questions")
    parser.add_argument("--tasks", type=words, metavar="a,b", help="only these tasks")
    parser.add_argument("--seeds", type=words, metavar="0,1,2", help="seeds (default: 0,1,2)")
    parser.add_argument("--members", type=count, metavar="M", help="members of an ensemble (default: 5)")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder with the datasets of tasks that are not embedded"
    )
    parser.add_argument(
        "--budget",
        type=count,
        metavar="P",
        help="of `methods`: compare all methods after at most P passes of a member over the training data",
    )
    parser.add_argument(
        "--trials",
        type=count,
        metavar="N",
        help="with --budget: settings of each method that are tried on held-out training data (default: 4)",
    )
    parser.add_argument(
        "--protocol",
        choices=("published",),
        help="of `methods`: compare methods as papers on Bayesian LoRA do, on six tasks at fixed settings; "
        "--tasks and --seeds narrow it, no other flag changes it",
    )
    parser.add_argument(
        "--head",
        choices=("causal-lm", "multiple-choice"),
        default="causal-lm",
        help="what members say about a question; see docs/heads.md",
    )
    add_worker_flags(parser, what="measure each record")
    add_model_flags(parser, base="embedded")


def run(args: Arguments) -> dict[str, Any]:
    """Measure what is missing, judge, show; returns the summary."""
    if args.what not in WHAT:
        raise ConfigError(unknown_name("study", args.what, WHAT))
    check_worker_flags(args)
    if args.what == "claims":
        if args.records is None:
            raise ConfigError("study claims: --from DIR is needed, the folder of the records")
        return _claims(args.records)
    if args.out is None:
        raise ConfigError(f"study {args.what}: --out DIR is needed; records are kept there")
    if args.protocol is not None:
        return _published(args)
    if args.trials is not None and args.budget is None:
        raise ConfigError("--trials without --budget: trials are those of `study methods --budget P`")
    if args.budget is None:
        return _measure(args)
    if args.what != "methods" or args.on is not None:
        raise ConfigError(
            f"--budget with study {args.what}{' --on ' + args.on if args.on else ''}: "
            "it compares methods in one process; use `study methods --budget P`, without --on"
        )
    return _compare(args)


def _compare(args: Arguments) -> dict[str, Any]:
    from ..studies.comparison.budget import Budget
    from ..studies.comparison.run import run_comparison
    from ..studies.report.comparison import comparison_table
    from ..studies.report.comparison_page import write_comparison
    from ..studies.store import by_kind

    begin, grid = time.monotonic(), _grid(args)
    check_writable(args.out / "record")
    budget = Budget(passes=args.budget, rows=grid.shared.members)
    budget = budget if args.trials is None else dataclasses.replace(budget, trials=args.trials)
    load = functools.partial(load_model, args.base, dtype=args.dtype, device=args.device, head=args.head)
    records = run_comparison(grid, budget, args.out, load, say=say)
    print(comparison_table(records))
    return {
        "out": str(args.out),
        "grid": grid.name,
        "budget": dataclasses.asdict(budget),
        "records": {kind: len(rows) for kind, rows in records.items()},
        "report": str(write_comparison(by_kind(args.out), args.out).html),
        "seconds": round(time.monotonic() - begin, 1),
    }


def _published(args: Arguments) -> dict[str, Any]:
    from ..studies import grid as grids
    from ..studies.comparison.run import run_protocol
    from ..studies.report.published import protocol_text

    _check_protocol(args)
    begin, grid = time.monotonic(), grids.PUBLISHED.having(shared={"base": args.base})
    if unknown := [task for task in args.tasks or () if task not in grid.tasks]:
        raise ConfigError(f"--protocol published: {unknown_name('task', unknown[0], grid.tasks)}")
    grid = dataclasses.replace(
        grid.on(args.tasks or grid.tasks),
        data=None if args.data is None else str(args.data),
        seeds=_seeds(args) or grid.seeds,
    )
    check_writable(args.out / "record")
    load = functools.partial(load_model, args.base, dtype=args.dtype, device=args.device, head=args.head)
    records = run_protocol(grid, args.out, load, say=say)
    print(protocol_text(records))
    return {
        "out": str(args.out),
        "grid": grid.name,
        "records": {kind: len(rows) for kind, rows in records.items()},
        "seconds": round(time.monotonic() - begin, 1),
    }


def _check_protocol(args: Arguments) -> None:
    """Refuse what --protocol says already, or cannot do."""
    if args.what != "methods":
        raise ConfigError(f"--protocol with study {args.what}: use `study methods --protocol published`")
    others = {
        "--budget": args.budget,
        "--trials": args.trials,
        "--members": args.members,
        "--quick": args.quick,
        "--on": args.on,
        "--head": args.head != "causal-lm",
    }
    if given := [flag for flag, value in others.items() if value]:
        raise ConfigError(
            f"{', '.join(given)} with --protocol: it fixes all settings, and runs in one process"
        )
    if args.base == "embedded":
        raise ConfigError(
            "--protocol published: --base NAME is needed, such as meta-llama/Llama-3.1-8B; "
            "the embedded base does not know such questions"
        )


def _measure(args: Arguments) -> dict[str, Any]:
    from ..studies.runner import run_grid

    begin = time.monotonic()
    grid = _grid(args)
    check_writable(args.out / "record")
    kinds = KINDS if args.what == "all" else (args.what,)
    with workers_of(args.on, args.workers) as workers:
        device, base = args.device, args.base
        if workers is not None:  # which may stand in other folders
            device = workers.share.device
            base = base_for_workers(base)
            grid = (
                grid if grid.data is None else dataclasses.replace(grid, data=str(Path(grid.data).absolute()))
            )
        load = functools.partial(load_model, base, dtype=args.dtype, device=device, head=args.head)
        measured = run_grid(grid, args.out, load, kinds=kinds, say=say, over=workers)
    summary: dict[str, Any] = {
        "out": str(args.out),
        "grid": grid.name,
        "records": {kind: len(rows) for kind, rows in measured.items()},
    }
    if args.what == "all":
        from ..studies.claims.judge import judge
        from ..studies.report.write import write_report
        from ..studies.store import by_kind

        records = by_kind(args.out)
        claims = judge(records)
        print(claims_table(claims))
        summary |= {
            "claims": [claim.to_dict() for claim in claims],
            "report": str(write_report(records, claims, args.out).html),
        }
    return {**summary, "seconds": round(time.monotonic() - begin, 1)}


def _grid(args: Arguments) -> Grid:
    from ..data import PAPER_TASKS, PUBLISHED_TASKS, task_names
    from ..embedded.gguf import SMOLLM2 as ON_SMOLLM2
    from ..studies.grid import ENCODER, FULL, PAPER, QUICK, SMOLLM2, quick

    grid = QUICK if args.quick else FULL
    if args.base != "embedded":
        start = ENCODER if args.head == "multiple-choice" else SMOLLM2 if args.base == ON_SMOLLM2 else PAPER
        grid = start.having(shared={"base": args.base})
        grid = dataclasses.replace(grid, data=None if args.data is None else str(args.data))
        grid = quick(grid) if args.quick else grid
    elif args.head != "causal-lm":
        raise ConfigError(
            "study --head multiple-choice: --base NAME is needed, an encoder; the embedded base is a decoder"
        )
    changes: dict[str, Any] = {}
    if args.tasks:
        for task in args.tasks:
            if task not in task_names():
                raise ConfigError(unknown_name("task", task, task_names()))
        grid = grid.on(args.tasks)
        if args.data is not None and set(args.tasks) & {*PAPER_TASKS, *PUBLISHED_TASKS}:
            changes["data"] = str(args.data)
    if seeds := _seeds(args):
        changes["seeds"] = seeds
    if args.members is not None:
        if args.members < 2:
            raise ConfigError(
                f"--members {args.members}; an ensemble of at least 2 is needed to compare "
                "it with its members"
            )
        grid = grid.having(shared={"members": args.members})
    return dataclasses.replace(grid, **changes)


def _seeds(args: Arguments) -> tuple[int, ...]:
    """The seeds that were given, or none."""
    if not all(seed.isdigit() for seed in args.seeds or ()):
        raise ConfigError(f"--seeds {','.join(args.seeds)}; whole numbers are needed, such as 0,1,2")
    return tuple(map(int, args.seeds or ()))


def _claims(folder: Path) -> dict[str, Any]:
    from ..studies.claims.judge import judge
    from ..studies.store import by_kind

    claims = judge(by_kind(folder))
    print(claims_table(claims))
    return {"claims": [claim.to_dict() for claim in claims]}


def claims_table(claims: list[Claim]) -> Table:
    """One row per claim."""
    from ..studies.report.claim_tables import DECIDING, deciding_cells

    rows = []
    for claim in claims:
        rows.append((claim.id, claim.verdict, *deciding_cells(claim), str(claim.tasks), str(claim.settings)))
    header = ("claim", "verdict", *DECIDING, "tasks", "settings")
    return Table(header, tuple(rows))
