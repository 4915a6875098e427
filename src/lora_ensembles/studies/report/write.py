"""The report of a folder of records: the claims first, then every figure and table beside what the paper
shows there, and provenance.

Everything on the page comes from the records; the paper's own numbers and findings stand beside them, marked
as such.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...disk.atomic import file_written_aside
from ...errors import DataError
from ...prediction.plots.style import save_figure
from ..claims.judge import LEAST_TASKS, Claim
from . import open_tables, tables
from .claim_tables import FIGURES as CLAIM_FIGURES, claims_with_text, finding, parts_table
from .figures import DRAWINGS, Drawing
from .figures.values import Records, by_task, check_one_grid, seeds_of, smaller_grid, task_order
from .findings import base_words, findings
from .page import Beside, Block, Chapter, Code, Heading, Link, Picture, Table, Text, page

HTML_FILE, MARKDOWN_FILE, FIGURES = "report.html", "report.md", "figures"
OF_CLAIMS = tuple(drawing.name for drawing in DRAWINGS if drawing.name in CLAIM_FIGURES.values())
TITLE = "LoRA ensembles: the paper's evidence, made again"


@dataclass(frozen=True)
class Written:
    """The files that were written: the page, the same in Markdown, the figures; and each figure or table that
    was left out, with the reason.
    """

    html: Path
    markdown: Path
    figures: tuple[Path, ...]
    left_out: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The fields as `json.dumps` takes them."""
        return {
            "report": str(self.html),
            "markdown": str(self.markdown),
            "figures": [str(path) for path in self.figures],
            "left_out": self.left_out,
        }


def write_report(records: Records, claims: Sequence[Claim], out: Path) -> Written:
    """Draw every figure there are records for, and write page, Markdown and figures into `out`, over an
    earlier report.

    Args:
        records: by kind, as `store.by_kind` reads them.
        claims: as `judge` finds them.
        out: a folder; it is made where there is none.

    Raises:
        DataError: records of different grids, or no sweep among them.
        CheckpointError: `out` cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    check_one_grid(records)
    by_task(records, "sweep")
    left_out: dict[str, str] = {}
    drawn = {drawing.name: _drawn(drawing, records, claims, out, left_out) for drawing in DRAWINGS}
    chapters = [
        _claims_chapter(claims),
        Chapter(
            "The figures",
            tuple(block for name, blocks in drawn.items() if name in OF_CLAIMS for block in blocks),
        ),
        _tables_chapter(records, left_out),
        _diversity_chapter(records, drawn, left_out),
        _open_chapter(records, drawn, left_out),
        _provenance_chapter(records),
    ]
    paths = tuple(out / FIGURES / f"{name}.png" for name in drawn if name not in left_out)
    return write_pages(TITLE, chapters, out, intro=_intro(records), figures=paths, left_out=left_out)


def write_pages(
    title: str,
    chapters: Sequence[Chapter],
    out: Path,
    *,
    intro: str,
    figures: tuple[Path, ...],
    left_out: dict[str, str] | None = None,
) -> Written:
    """Write chapters as one HTML page and as Markdown, over earlier ones; figures are there already.

    Raises:
        CheckpointError: `out` cannot be written.
    """
    with file_written_aside(out / HTML_FILE, replace=True) as file:
        file.write(page(title, [chapter.to_section() for chapter in chapters], intro=intro, contents=True))
    with file_written_aside(out / MARKDOWN_FILE, replace=True) as file:
        file.write("\n".join([f"# {title}\n\n{intro}\n", *(chapter.to_markdown() for chapter in chapters)]))
    return Written(out / HTML_FILE, out / MARKDOWN_FILE, figures, left_out or {})


def provenance(records: Records) -> Table:
    """The provenance of the records: versions, device, commit, and every setting, with all the values that
    occur.
    """
    every = [record for runs in records.values() for record in runs]
    rows: dict[str, list[str]] = {}
    for record in every:
        given = record["environment"]
        shown: dict[str, Any] = {
            **{name: one for name, one in given.items() if name != "versions"},
            **given.get("versions", {}),
        }
        shown |= {
            name: one for name, one in record["settings"].items() if name not in ("kind", "task", "seed")
        }
        for name, one in shown.items():
            text = one if isinstance(one, str) else json.dumps(one)
            if text not in rows.setdefault(name, []):
                rows[name].append(text)
    return Table(
        ("setting", "value"),
        tuple((name, "; ".join(values)) for name, values in rows.items()),
        prose=frozenset({1}),
    )


def counts(records: Records) -> Table:
    """The number of records of each kind, of which tasks and seeds."""
    rows = []
    for kind, runs in records.items():
        names = sorted({str(record["settings"].get("task", "-")) for record in runs}, key=task_order)
        seeds = ", ".join(map(str, seeds_of({kind: runs})))
        rows.append((kind, str(len(runs)), ", ".join(names), seeds))
    return Table(("kind", "records", "tasks", "seeds"), tuple(rows), prose=frozenset({2}))


def _intro(records: Records) -> str:
    settings = next(iter(by_task(records, "sweep").values()))[0]["settings"]
    smaller = smaller_grid(records)
    return (
        f"The comparisons of arXiv:2310.00035 on {base_words(settings.get('base', 'embedded'))}. Ensembles "
        f"of {settings['members']} LoRA adapters, {len(by_task(records, 'sweep'))} tasks, seeds "
        f"{', '.join(map(str, seeds_of(records)))}. "
        + (f"Made on a smaller grid than the full one: {smaller}." if smaller else "Made on the full grid.")
    )


def _claims_chapter(claims: Sequence[Claim]) -> Chapter:
    blocks: list[Block] = [claims_with_text(claims), Text(READING)]
    for claim in claims:
        figure = CLAIM_FIGURES.get(claim.id)
        blocks += [Heading(f"{claim.id}. {claim.text}", claim.id.lower()), Text(finding(claim))]
        blocks += [parts_table(claim)]
        blocks += [Link("The figure", figure)] if figure else []
    return Chapter("The claims", tuple(blocks))


SHARED = (
    "Of one task and seed, the members without a regulariser are the same in every kind of record: in the "
    "sweep, in the pool, with both sources of randomness, at the adapters' own rank and start, and among "
    "the methods. Figures that show them are not independent of one another."
)
READING = (
    "Each verdict follows from the records alone. A clause is a difference in every setting (task and "
    "seed); its interval is the 95 % t interval over tasks, each the mean over its seeds; its p, of a "
    "two-sided t test (for “within 0.1 of 0”, of the distance to the nearer edge), is adjusted for the other "
    "clauses of the claim by Holm's method. The intervals are not adjusted, so one may leave out 0 although "
    "its clause is inconclusive. A clause is supported if p is below 0.05 and the difference lies where the "
    "claim says, contradicted if it lies elsewhere, and inconclusive otherwise; with fewer than "
    f"{LEAST_TASKS} tasks always. A claim is supported if all its clauses are, contradicted if one is; a "
    "clause without records leaves it open. Rows without a verdict are shown beside the clauses and decide "
    "nothing."
)


def _drawn(
    drawing: Drawing, records: Records, claims: Sequence[Claim], out: Path, left_out: dict[str, str]
) -> list[Block]:
    """The figure's blocks, with its files written; or why it is left out."""
    missing = [kind for kind in drawing.needs if not records.get(kind)]
    try:
        if missing:
            commands = " and ".join(f"`lora-ensembles study {kind} --out DIR`" for kind in missing)
            raise DataError(
                f"there are no records of the kind {' or '.join(missing)}; make them with {commands}"
            )
        figure = drawing.draw(records)
    except DataError as error:
        left_out[drawing.name] = str(error)
        (out / FIGURES / f"{drawing.name}.png").unlink(missing_ok=True)  # of other records
        return [
            Heading(drawing.title, drawing.name),
            Text(f"Left out: {error}."),
            Beside((("In the paper", drawing.paper),)),
        ]
    save_figure(figure, out / FIGURES / drawing.name)
    picture = Picture(
        (out / FIGURES / f"{drawing.name}.png").read_bytes(), drawing.title, f"{FIGURES}/{drawing.name}.png"
    )
    shown = {kind: runs for kind, runs in records.items() if kind in drawing.needs}
    seeds = ", ".join(map(str, seeds_of(shown)))
    found = findings(drawing.name, records, claims)
    return [
        Heading(drawing.title, drawing.name),
        picture,
        Text(f"{drawing.caption} Seeds: {seeds}."),
        Beside((*((("Here", found),) if found else ()), ("In the paper", drawing.paper))),
    ]


DIVERSITY = (
    "Agreement: share of equal answers, mean over pairs. Correlation: of the probabilities of the right "
    "option, mean over pairs. Change: ensemble minus single member. Means over tasks; where there are "
    "several seeds, ± the standard deviation over seeds of that mean."
)
SIDE_BY_SIDE = (
    "Means over the tasks and seeds that all methods have; where there are several seeds, ± the standard "
    "deviation over seeds of the mean over tasks. Guessing evenly: each of a question's options is equally "
    "likely. Few-shot: mean over draws; single member: mean of the members' own metrics; scaled: with a "
    "temperature that was fitted on other validation questions; snapshots: the states of one member after "
    "each of the measured epochs, as members; MC dropout: as many passes as the ensemble has members, mean "
    "over the members. AUROC: telling the validation questions from those of another distribution by the "
    "largest probability; where these have fewer options, values below 0.5 may say no more than that."
)


def _tables_chapter(records: Records, left_out: dict[str, str]) -> Chapter:
    cells = "Means over seeds; where there are several, ± their standard deviation."
    blocks = [
        *_table(
            "Table 1: LoRA ensemble against last-layer ensemble",
            cells,
            functools.partial(tables.table_1, records),
            left_out,
        ),
        Text("In the paper (LLaMA-13B, M = 5):"),
        tables.paper_table_1(),
        Text(
            "In the paper, last-layer ensembles underfit: they are clearly less accurate than LoRA "
            "ensembles on every task."
        ),
        *_table(
            "Table 2: the tasks' sizes",
            "Questions used here, and those of the paper's task. Its 8741 training questions of cqa are "
            "taken for a slip: the data set has 9741.",
            functools.partial(tables.table_2, records),
            left_out,
        ),
        *_table(
            "Methods side by side", SIDE_BY_SIDE, functools.partial(tables.side_by_side, records), left_out
        ),
        *_table("What each method costs", COSTS, functools.partial(tables.costs, records), left_out),
    ]
    times = tables.seconds(records)
    if times is not None:
        blocks += [
            Heading("Time"),
            Text("Training and measuring of a record, all its arms in one stack."),
            times,
        ]
    for metric in ("accuracy", "nll", "ece"):
        blocks += _table(
            f"By task: {tables.METRICS[metric]}",
            cells,
            functools.partial(tables.methods_by_task, records, metric),
            left_out,
        )
    return Chapter("The tables", tuple(blocks))


def _diversity_chapter(
    records: Records, drawn: Mapping[str, list[Block]], left_out: dict[str, str]
) -> Chapter:
    blocks = [block for name in ("reliability", "correlation") for block in drawn[name]]
    for title, reading, table in (
        ("Members' correlation and the ensemble's gain", RHO, open_tables.correlation),
        ("Members' likeness and the ensemble's gain", DIVERSITY, tables.diversity),
    ):
        blocks += _table(title, reading, functools.partial(table, records), left_out)
    return Chapter("Calibration and diversity", tuple(blocks))


def _open_chapter(records: Records, drawn: Mapping[str, list[Block]], left_out: dict[str, str]) -> Chapter:
    """The chapter on what the paper leaves open: each figure, and its numbers."""
    groups: dict[str, tuple[tuple[str, str, Callable[[Records], Table]], ...]] = {
        "methods": (
            ("Methods: metrics", OPEN, open_tables.methods),
            ("Methods: costs", SECONDS, open_tables.costs),
        ),
        "initialisation": (("Initialisation: numbers", OPEN, open_tables.initialisation),),
        "rank": (("Rank: numbers", OPEN, open_tables.rank),),
        "strength": (("Strength: numbers", OPEN, open_tables.strength),),
    }
    blocks: list[Block] = []
    for name, several in groups.items():
        blocks += drawn[name]
        for title, reading, table in several if records.get(name) else ():
            blocks += _table(title, reading, functools.partial(table, records), left_out)
    return Chapter("What the paper leaves open", tuple(blocks))


OPEN = (
    "Means over the tasks; where there are several seeds, ± the standard deviation over seeds of that mean. "
    "Single: mean of the members' own metrics."
)
SECONDS = (
    "Seconds as they were measured in each record, one method after another: on a CPU those that the "
    "process computed, over all its "
    'threads, elsewhere those of the clock. "Over single" is the ratio within a record. A single member is '
    "trained alone. Few-shot: one set of demonstrations. A temperature is fitted in no time beside them. "
    "Parameters are those of all members together."
)
RHO = (
    "Spearman's rank correlation between the members' correlation and what the ensemble gains over them, "
    "over the arms of each task and seed, the mean over tasks; its interval is the 95 % t interval over "
    "tasks. Below zero, an ensemble gains more where its members are less alike."
)
COSTS = (
    "Trained parameters in multiples of one member's. An ensemble's members share one forward pass of the "
    "base, in which a question is as many rows as there are members."
)


def _table(title: str, reading: str, make: Callable[[], Table], left_out: dict[str, str]) -> list[Block]:
    try:
        table = make()
    except DataError as error:
        left_out[title.partition(":")[0]] = str(error)
        return [
            Heading(title),
            Text(f"Left out: {error}; make what is missing with `lora-ensembles study all --out DIR`."),
        ]
    return [Heading(title), table, Text(reading)]


def _provenance_chapter(records: Records) -> Chapter:
    smaller = smaller_grid(records)
    settings = records["sweep"][0]["settings"]
    asked = "".join(f" --{name} {settings[name]}" for name in ("base", "head") if name in settings)
    data = "" if settings.get("base", "embedded") == "embedded" else " --data DATA"
    how = f"lora-ensembles study all{asked}{data} --out DIR\nlora-ensembles report DIR"
    grid = f"Smaller than the full grid: {smaller}." if smaller else "The full grid."
    return Chapter(
        "Where the numbers come from",
        (
            Text(grid),
            Text(SHARED),
            counts(records),
            provenance(records),
            Text("Records of this kind are made with:"),
            Code(how),
        ),
    )
