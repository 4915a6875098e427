"""Writes what was measured into docs/methods.md: `python benchmarks/methods_page.py`; with --check it fails
where the page is not what the records give.

The records are those of `lora-ensembles study methods --budget P`, in results/methods, a folder for each
base; where there are none, the page says so.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pages import with_block

from lora_ensembles.prediction.plots.style import save_figure
from lora_ensembles.studies.report.comparison import (
    PARETO,
    SCALED,
    chosen_table,
    comparison_table,
    costs_table,
    differences_table,
    draw,
)
from lora_ensembles.studies.store import by_kind

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE, RESULTS = REPOSITORY / "docs" / "methods.md", REPOSITORY / "results" / "methods"
COMMANDS = {
    "embedded": "lora-ensembles study methods --budget 15 --out results/methods/embedded",
    "smollm2": "make smollm2\n"
    "lora-ensembles study methods --budget 4 --trials 3 --seeds 0 --base smollm2 --tasks arce,obqa "
    "--data DATA --out results/methods/smollm2",
}
Records = Mapping[str, Sequence[Mapping[str, Any]]]


def block(base: str, folder: Path) -> str:
    """The text of a base: settings, tables and figure."""
    records = by_kind(folder)
    parts = [
        _settings(records),
        "As each method answers, mean over tasks and seeds:",
        comparison_table(records).to_markdown().strip(),
        "The same, scaled by a temperature that was fitted on other validation questions (five folds):",
        comparison_table(records, state=SCALED).to_markdown().strip(),
        "Differences of the NLL within a task, with 95 % t intervals over tasks where there are four or "
        "more:",
        differences_table(records).to_markdown().strip(),
        f"![NLL against the time to answer, {base}](../results/methods/{base}/pareto.png)",
        f"*{PARETO}*",
        "Costs; FLOPs and times are multiples of a single member's with its own settings, so fewer epochs "
        "cost less:",
        costs_table(records).to_markdown().strip(),
        "The settings that the methods chose, from the lowest to the highest over tasks:",
        chosen_table(records).to_markdown().strip(),
        f"<!-- not run: it takes hours -->\n```sh\n{COMMANDS[base]}\n```",
    ]
    return "\n\n".join(parts)


def _settings(records: Records) -> str:
    first = records["comparison"][0]
    settings, sizes = first["settings"], first["result"]["sizes"]
    budget = settings["budget"]
    tasks = sorted({record["settings"]["task"] for record in records["comparison"]})
    seeds = sorted({record["settings"]["seed"] for record in records["comparison"]})
    held_out = statistics.fmean(record["result"]["sizes"]["held_out"] for record in records["trials"])
    return (
        f"{len(tasks)} {'task' if len(tasks) == 1 else 'tasks'} ({', '.join(tasks)}), "
        f"{len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'}, up to {sizes['train']} training and "
        f"{sizes['validation']} validation questions. Every method has {budget['passes']} passes of a member "
        f"over the training questions (M members share them) and {budget['rows']} rows of the base for "
        f"a question, at most. Every method has the same {budget['trials']} trials of step size, epochs and "
        f"one setting of its own, trained without {held_out:.0f} of the training questions; it takes the "
        "one with the lowest NLL on these."
    )


def page(*, check: bool) -> int:
    """Write the blocks and figures of the records that are there, or compare the blocks."""
    text = new = PAGE.read_text()
    for base in COMMANDS:
        folder = RESULTS / base
        if any(folder.glob("comparison-*.json")):
            new = with_block(new, f"methods {base}", block(base, folder))
            if not check:
                save_figure(draw(by_kind(folder)), folder / "pareto.png")
    if check:
        return 0 if new == text else _said(f"{PAGE} is not what the records give; run this without --check")
    PAGE.write_text(new)
    return 0


def _said(words: str) -> int:
    print(words, file=sys.stderr)
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    return page(check=parser.parse_args().check)


if __name__ == "__main__":
    sys.exit(main())
