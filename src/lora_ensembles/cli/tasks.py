"""List the tasks that have a name: their sizes, and which set is out of distribution for them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..studies.report.page import Table
from .common import Arguments, say

SUMMARY = "list the named tasks"
EXAMPLES = """examples:
  lora-ensembles tasks                        the embedded tasks, and where the others come from
  lora-ensembles tasks --data datasets        the paper's six, and others that are there, read from files
  lora-ensembles tasks --data datasets --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder with the paper's datasets as .jsonl files; see docs/data.md",
    )


def run(args: Arguments) -> dict[str, Any]:
    """Print the table; returns the summary.

    Raises:
        DataError: --data is no folder, or none of the tasks can be read from it.
    """
    from ..data import PAPER_TASKS, PUBLISHED_TASKS, task_folder, task_repository

    if args.data is None:
        from ..data.world.tasks import EMBEDDED_OPEN_TASK, EMBEDDED_TASKS, load_embedded_completions

        summary, words = _described(EMBEDDED_TASKS, None), load_embedded_completions()
        summary["open_ended"] = {
            EMBEDDED_OPEN_TASK: {"train": len(words.train), "validation": len(words.validation)}
        }
        summary["named"] = {name: task_repository(name) for name in (*PAPER_TASKS, *PUBLISHED_TASKS)}
    elif not args.data.is_dir():
        raise DataError(
            f"--data {args.data} is no folder; give the one that holds commonsense_qa/, openbookqa/, "
            "ai2_arc/ and mmlu/"
        )
    else:
        others = tuple(name for name in PUBLISHED_TASKS if (args.data / task_folder(name)).is_dir())
        summary = _described((*PAPER_TASKS, *others), args.data)
        if not summary["tasks"]:
            raise DataError(
                f"none of the tasks can be read from {args.data}: {next(iter(summary['missing'].values()))}"
            )
    print(_table(summary))
    for name, repository in summary.get("named", {}).items():
        say(
            f"{name:<12} {repository} on the Hugging Face hub: --task {name} reads it over the network, "
            "or from files with --data DIR"
        )
    return summary


def _described(names: tuple[str, ...], data: Path | None) -> dict[str, Any]:
    from ..data import OOD_PAIRS, load_ood, load_task

    summary: dict[str, Any] = {"tasks": {}, "ood": {}}
    for name in names:
        try:
            task = load_task(name, data=data)
            summary["tasks"][name] = {
                "train": len(task.train),
                "validation": len(task.validation),
                "options": task.options,
            }
            if name in OOD_PAIRS:
                paired = OOD_PAIRS[name]
                summary["ood"][name] = {"set": paired, "questions": len(load_ood(paired, data=data))}
        except DataError as error:
            say(f"{name}: {error}")
            summary.setdefault("missing", {})[name] = str(error)
    return summary


def _table(summary: dict[str, Any]) -> Table:
    rows = []
    for name, task in summary["tasks"].items():
        ood = summary["ood"].get(name)
        sizes = str(task["train"]), str(task["validation"]), ", ".join(map(str, task["options"]))
        rows.append((name, *sizes, f"{ood['set']} ({ood['questions']})" if ood else "-"))
    for name, task in summary.get("open_ended", {}).items():
        rows.append((name, str(task["train"]), str(task["validation"]), "open answers", "-"))
    return Table(("task", "train", "validation", "options", "out of distribution"), tuple(rows))
