"""The page of a comparison of methods: its budget, tables and figure, as HTML and Markdown."""

from __future__ import annotations

from pathlib import Path

from ...prediction.plots.style import save_figure
from ..grid import COMPARISON, TRIALS
from .comparison import SCALED, chosen_table, comparison_table, costs_table, differences_table, draw
from .figures.values import Records, by_task, seeds_of
from .findings import base_words
from .page import Block, Chapter, Picture, Table, Text
from .write import FIGURES, Written, counts, provenance, write_pages

TITLE = "Methods at one budget"
FIGURE = f"{FIGURES}/pareto.png"
PARETO = (
    "Mean NLL of each method over tasks and seeds against the time to answer a question, in multiples of a "
    "single member's; left as it answers, right scaled by a temperature that was fitted on other questions. "
    "The line is the Pareto front: no other method is better in one of the two and no worse in the other. "
    "Triangles lie above the panel, at the NLL beside them."
)
COSTS = (
    "Costs; FLOPs and times are multiples of a single member's with its own settings, so fewer epochs cost "
    "less. The passes in which TFB searches its spread and Laplace its curvature are no training: they are "
    "in FLOPs and time, and not among the passes."
)


def is_comparison(records: Records) -> bool:
    """Whether records are those of a comparison of methods, and no others."""
    return bool(records.get(COMPARISON)) and set(records) <= {TRIALS, COMPARISON}


def settings_text(records: Records) -> str:
    """The budget, the questions and the trials of a comparison, in words."""
    first = records[COMPARISON][0]
    budget = first["settings"]["budget"]
    tasks = list(by_task(records, COMPARISON))
    seeds = seeds_of({COMPARISON: records[COMPARISON]})
    every = [record["result"]["sizes"] for record in records[COMPARISON]]
    most, judged = (max(one[part] for one in every) for part in ("train", "validation"))
    held_out = sorted({record["result"]["sizes"]["held_out"] for record in records[TRIALS]})
    return (
        f"On {_short(first['settings']['base'])}: {_counted(tasks, 'task')} ({', '.join(tasks)}), "
        f"{_counted(seeds, 'seed')}, up to {most} training and {judged} validation "
        f"questions. Every method has at most {budget['passes']} passes of a member over the training "
        f"questions, which the members of an ensemble share, and {budget['rows']} rows of the base for a "
        f"question. Every method has the same {budget['trials']} trials of step size, epochs and one setting "
        f"of its own, trained without {' or '.join(map(str, held_out))} of the training questions, and takes "
        "the one with the lowest NLL on these."
    )


def blocks(records: Records, *, picture: Block) -> tuple[Block, ...]:
    """The tables of a comparison around its picture, each after what it shows."""
    shown: list[tuple[str, Table]] = [
        ("As each method answers, means over tasks and seeds:", comparison_table(records)),
        (
            f"Scaled by a temperature that was fitted on other validation questions, in {_folds(records)} "
            "folds:",
            comparison_table(records, state=SCALED),
        ),
        (
            "Differences of the NLL within a task, with 95 % t intervals over tasks where there are four or "
            "more:",
            differences_table(records),
        ),
        (COSTS, costs_table(records)),
        (
            "The settings that each method chose, from the lowest to the highest over tasks:",
            chosen_table(records),
        ),
    ]
    around: list[Block] = [block for text, table in shown for block in (Text(text), table)]
    return (picture, Text(PARETO), *around)


def write_comparison(records: Records, out: Path) -> Written:
    """Write the page of a comparison and its figure into `out`, over an earlier one.

    Raises:
        DataError: there is no record of a comparison.
        CheckpointError: `out` cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    save_figure(draw(records), out / FIGURE)
    picture = Picture((out / FIGURE).read_bytes(), TITLE, FIGURE)
    chapters = [
        Chapter("The methods", blocks(records, picture=picture)),
        Chapter("Where the numbers come from", (counts(records), provenance(records))),
    ]
    return write_pages(TITLE, chapters, out, intro=settings_text(records), figures=(out / FIGURE,))


def _short(base: str) -> str:
    """A base's name in words, without what is said of it."""
    return base_words(base).partition(":")[0].partition(",")[0]


def _counted(values: list[str] | list[int], word: str) -> str:
    return f"{len(values)} {word}{'' if len(values) == 1 else 's'}"


def _folds(records: Records) -> int:
    return int(records[COMPARISON][0]["settings"]["budget"]["folds"])
