"""Writes docs/reproduction.md: `python benchmarks/reproduction.py`; with --check it fails where the page is not what its sources give.

Tables come from the records in results/embedded, which `lora-ensembles study all --out results/embedded` makes, and nowhere else; what the
paper says, and what a person has to add, are sentences in docs/reproduction.toml.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lora_ensembles.errors import DataError
from lora_ensembles.report import Table
from lora_ensembles.studies import open_tables, tables
from lora_ensembles.studies.claims import Claim, judge
from lora_ensembles.studies.contrasts import CLAIMS
from lora_ensembles.studies.figures.values import Records, smaller_grid
from lora_ensembles.studies.grid import KINDS
from lora_ensembles.studies.report import claims_with_text, counts, parts_table, provenance
from lora_ensembles.studies.store import by_kind

REPOSITORY = Path(__file__).resolve().parent.parent
RECORDS = REPOSITORY / "results" / "embedded"
SENTENCES = REPOSITORY / "docs" / "reproduction.toml"
PAGE = REPOSITORY / "docs" / "reproduction.md"
Sentences = Mapping[str, Mapping[str, str]]
Make = Callable[[Records], Table]

COMMANDS = "lora-ensembles study all --out results/embedded\nlora-ensembles report results/embedded\npython benchmarks/reproduction.py"
INTRO = """\
# Reproduction

Written by `python benchmarks/reproduction.py` from the records in `results/embedded` and the sentences in `docs/reproduction.toml`; do not
edit it by hand. It holds the claims of arXiv:2310.00035 against what was measured here, and then what that paper leaves open.

A contrast is a difference in every setting (task and seed); its interval is the 95 % bootstrap interval over tasks and seeds. A claim is
supported if the intervals of all its parts lie where it says, contradicted if one lies on the other side, and open otherwise."""
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
FIGURES = {"C1": "2", "C2": "2", "C3": "3", "C4": "4", "C6": "5", "C7": "6", "C8": "7", "C9": "8", "C10": "2", "C11": "1a"}


def page(folder: Path, sentences: Sentences) -> str:
    """The whole page."""
    if not any(folder.glob("*-*.json")):
        wanted = [f"- **{name}** {text} In the paper: {sentences[name]['paper']}" for name, text, _ in CLAIMS]
        return "\n\n".join([INTRO, "Not measured yet:", f"```sh\n{COMMANDS}\n```", "## The claims", "\n".join(wanted)]) + "\n"
    records = by_kind(folder)
    claims = judge(records)
    parts = [INTRO, grid(records), "## The claims", claims_with_text(claims).to_markdown()]
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
    parts += ["## What the paper leaves open"]
    for name, (question, several) in OPEN.items():
        parts += [f"### {question}", *spoken(sentences[name]), *picture(name, folder)]
        parts += [text for title, make in several.items() for text in (f"{title}:", made(make, records))]
    parts += ["## Where the numbers come from", counts(records).to_markdown(), provenance(records).to_markdown(), f"```sh\n{COMMANDS}\n```"]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def grid(records: Records) -> str:
    """What was measured, in a sentence."""
    settings = records["sweep"][0]["settings"]
    smaller = smaller_grid(records)
    made_on = f"The grid is smaller than the full one: {smaller}." if smaller else "The grid is the full one."
    missing = [kind for kind in KINDS if not records.get(kind)]
    left = f" Not measured yet: {', '.join(missing)}." if missing else ""
    return f"Base: {settings['base']}; ensembles of {settings['members']}. {made_on}{left}"


def claim_section(claim: Claim, sentences: Mapping[str, str], folder: Path) -> list[str]:
    """A claim: what the paper says, what the records do, and what a person adds."""
    verdict = f"Verdict: **{claim.verdict}**" + (f" ({claim.reason})" if claim.reason else "")
    figure = picture(f"figure_{FIGURES[claim.id]}", folder) if claim.id in FIGURES else []
    return [f"### {claim.id}. {claim.text}", *spoken(sentences), verdict, parts_table([claim]).to_markdown(), *figure]


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page is not what its sources give")
    arguments = parser.parse_args()
    text = page(RECORDS, read(SENTENCES))
    if not arguments.check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit(f"{PAGE.relative_to(REPOSITORY)} is not what its sources give; run: python benchmarks/reproduction.py")


if __name__ == "__main__":
    main()
