"""The demo's table, what its rows and columns say, and its page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...data import OOD_PAIRS, Example
from ...prediction import plots
from ...prediction.prediction import Prediction
from ...prediction.uncertainty import mutual_information
from ..report.claim_tables import signed
from ..report.page import Section, Table, folded, page, paragraph, pictures, png, preformatted, subheading
from .comparison import NAMES, Comparison, DemoSettings

Rows = Mapping[str, Mapping[str, Any]]
NEAR_CHANCE = 0.1  # of an AUROC, on either side of 0.5
PICTURES = {
    "reliability": "Accuracy against confidence: below the diagonal a model is surer than it is right. Bins "
    "of fewer than ten questions are merged; grey is what chance alone does to a calibrated model.",
    "risk_coverage": "Errors among the questions that are answered, if only the surest are; lower is better.",
    "wrong_confidence": "How sure each one was of its wrong answers: mass near 1 is what harms in use.",
}


def row_names(members: int) -> dict[str, str]:
    """The name that a reader is shown for each row of the table."""
    return {
        "few_shot": "few-shot base",
        "single": f"single member (mean of {members})",
        "ensemble": f"ensemble of {members}",
        "ensemble_decay": f"ensemble of {members}, decay of B",
    }


def demo_table(metrics: Rows, members: int) -> Table:
    """The demo's one table: a row an arm, a column a metric; single members as mean ± standard deviation."""
    rows = []
    for row, shown in row_names(members).items():
        std = metrics[row].get("std")
        cells = [f"{metrics[row][name]:.3f}" + (f" ± {std[name]:.3f}" if std else "") for name in NAMES]
        rows.append((shown, *cells))
    return Table(("", "accuracy ↑", "NLL ↓", "ECE ↓", "Brier ↓", "OOD AUROC ↑"), tuple(rows))


def row_meanings(compared: Comparison, settings: DemoSettings) -> dict[str, str]:
    """The meaning of each row of the table, by the name that is shown."""
    members, learnt = compared.plain.prediction.num_members, compared.learnt
    meanings = (
        f"the frozen base, prompted with {settings.shots} solved questions; mean of {settings.draws} draws",
        "one LoRA adapter, as usual fine-tuning gives it; "
        f"right on {learnt['plain']:.0%} of its training questions",
        f"the mean of the probabilities of these {members} members, "
        "each trained from its own seed and data order",
        "the same with strong weight decay of B (Eq. 5 of the paper), the half of an adapter that starts at "
        f"zero: its members memorise less, and are right on {learnt['decay']:.0%} of their training "
        "questions",
    )
    return dict(zip(row_names(members).values(), meanings, strict=True))


def reading(rows: Rows, alone: Mapping[str, Any], *, options: int, ood: str) -> list[str]:
    """Sentences on what the table shows, computed from its rows.

    Args:
        rows: metrics by row.
        alone: those of a single member with decay of B.
        options: of a question.
        ood: the name of the out-of-distribution set.
    """
    single, ensemble = rows["single"], rows["ensemble"]
    sentences = [
        f"Against its own members the ensemble's accuracy is {_moved(single, ensemble, 'accuracy')}, its NLL "
        f"{_moved(single, ensemble, 'nll')} and its ECE {_moved(single, ensemble, 'ece')}. NLL is in nats; "
        f"guessing evenly has {math.log(options):.2f}. ± is the standard deviation over members.",
        f"With decay of B a single member has NLL {alone['nll']:.3f} (without: {single['nll']:.3f}); "
        f"averaging changes it by {signed(rows['ensemble_decay']['nll'] - alone['nll'])} there, and by "
        f"{signed(ensemble['nll'] - single['nll'])} without decay.",
        f"OOD AUROC tells questions of {ood} from the task's own by the largest probability; 0.5 is chance.",
    ]
    if all(abs(row["ood_auroc"] - 0.5) < NEAR_CHANCE for row in rows.values()):
        why = ": both sets ask about one made-up world" if ood.startswith("world-") else ""
        sentences[-1] += f" Here every row is near it{why}."
    return sentences


def reading_of(compared: Comparison) -> list[str]:
    """The sentences on the demo's table."""
    task = compared.task
    return reading(
        compared.metrics(), compared.decayed.single, options=max(task.options), ood=OOD_PAIRS[task.name]
    )


def demo_pictures(compared: Comparison) -> dict[str, bytes]:
    """The pictures of the page as PNG, by the name of their file."""
    arms = {
        "few-shot base (one draw)": compared.few_shot.prediction.member(0),
        "single member (member 0)": compared.plain.prediction.member(0),
        compared.plain.name: compared.plain.prediction,
        compared.decayed.name: compared.decayed.prediction,
    }
    return {name: png(getattr(plots, name)(arms)) for name in PICTURES}


def demo_page(
    compared: Comparison, images: Mapping[str, bytes], settings: DemoSettings, made: Mapping[str, Any]
) -> str:
    """The whole page as HTML, with its pictures inside."""
    members = compared.plain.prediction.num_members
    meanings = Table(
        ("row", "what it is"), tuple(row_meanings(compared, settings).items()), prose=frozenset({1})
    )
    sections = [
        Section(
            "Result",
            (
                demo_table(compared.metrics(), members).to_html(),
                *map(paragraph, reading_of(compared)),
                meanings.to_html(),
            ),
        ),
        Section(
            "Calibration, and what it is good for",
            tuple(pictures([(images[name], caption)]) for name, caption in PICTURES.items()),
        ),
        Section("What the ensemble is unsure of", tuple(_unsure(compared, settings.unsure_questions))),
        Section(
            "How it was made",
            (folded("Settings, seeds and versions", preformatted(json.dumps(made, indent=2))),),
        ),
    ]
    intro = (
        f"{members} LoRA adapters on one frozen base, trained from different seeds and data orders on "
        f"{len(compared.task.train)} questions of the task {compared.task.name}, and measured on "
        f"{len(compared.task.validation)} others; the mean of their probabilities is the ensemble's answer."
    )
    return page(f"LoRA ensemble on {compared.task.name}", sections, intro=intro)


def option_texts(example: Example) -> list[str]:
    """The text that a reader sees of each option: "(b) the lake", or a label word alone."""
    labels = [label.strip() for label in example.labels]
    if not example.options or list(example.options) == labels:
        return labels
    return [f"({label}) {option}" for label, option in zip(labels, example.options, strict=True)]


def vote_table(prediction: Prediction, row: int, example: Example) -> Table:
    """Each member's and the ensemble's probabilities of a question's options; the largest are marked."""
    texts = option_texts(example)
    probs: Sequence[Sequence[float]] = [
        *prediction.member_log_probs[:, row].exp().tolist(),
        prediction.probs[row].tolist(),
    ]
    votes = [*prediction.member_choices[:, row].tolist(), int(prediction.choices[row])]
    names = [*(f"member {index}" for index in range(prediction.num_members)), "ensemble"]
    rows = tuple(
        (name, *(f"{value:.3f}" for value in values[: len(texts)]))
        for name, values in zip(names, probs, strict=True)
    )
    return Table(("", *texts), rows, frozenset((index, vote + 1) for index, vote in enumerate(votes)))


def _unsure(compared: Comparison, number: int) -> list[str]:
    """The questions on which members disagree most (largest mutual information), with each member's
    probabilities.
    """
    information = mutual_information(compared.plain.prediction)
    said = "The questions of the largest epistemic uncertainty (mutual information), about which members "
    parts = [paragraph(said + "contradict each other most. A member's vote is bold.")]
    for row in information.argsort(descending=True)[:number].tolist():
        example = compared.task.validation[row]
        parts += [
            subheading(example.question or example.prompt),
            paragraph(f"Mutual information {information[row].item():.2f} nats. {_answer(example)}"),
            vote_table(compared.plain.prediction, row, example).to_html(),
        ]
    return parts


def _answer(example: Example) -> str:
    shown = option_texts(example)
    return "" if example.target is None else f"The right answer: {shown[example.target]}."


def _moved(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> str:
    change = round(after[name] - before[name], 3)
    return "the same" if change == 0 else f"{'higher' if change > 0 else 'lower'} by {abs(change):.3f}"
