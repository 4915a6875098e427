"""The whole method on the embedded base in a few minutes: few-shot, members, ensembles, one report.

Members without and with decay of B are trained as one stacked run of 2 M members. Member m has the same seeds
in both arms, so that they differ by the decay alone.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..baselines import FewShot
from ..data import OOD_PAIRS, Example, Task, load_ood, load_task
from ..data.splits import sample
from ..disk.atomic import check_writable, written_aside
from ..disk.provenance import environment
from ..embedded import load_base
from ..ensemble import LoraEnsemble
from ..errors import CheckpointError, ConfigError, MissingExtraError, unknown_name
from ..prediction.evaluation import Metrics, evaluate, evaluate_members
from ..prediction.plots import reliability, wrong_confidence
from ..prediction.prediction import Prediction, predict
from ..prediction.uncertainty import mutual_information
from ..training.adapters import train
from ..training.config import TrainConfig
from .report.page import (
    Section,
    Table,
    page,
    paragraph,
    pictures,
    png,
    preformatted,
    subheading,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NAMES = ("accuracy", "nll", "ece", "brier", "ood_auroc")
REPORT_FILE, RESULTS_FILE = "report.html", "results.json"


@dataclass(frozen=True)
class DemoSettings:
    """Every number of the demo, chosen so that two CPU cores need about three minutes."""

    train_questions: int = 400
    validation_questions: int = 400
    ood_questions: int = 300  # a random choice of the set's questions, the same for every arm
    epochs: int = 12  # enough for single members to know their training answers by heart
    batch_size: int = 16
    learning_rate: float = (
        2e-3  # the embedded base is small, and takes steps 40 times as long as the paper's Llama-2
    )
    plain_decay_b: float = 0.01  # the usual decay of AdamW, and the paper's
    decay_b: float = 30.0  # times the learning rate: each step shrinks B by 6 %
    shots: int = 3  # as in the paper, like the number of draws
    draws: int = 10
    unsure_questions: int = 3


@dataclass(frozen=True)
class Arm:
    """One row of the demo's table: a predictor's answers in and out of distribution."""

    name: str
    prediction: Prediction
    ood: Prediction

    def ensemble(self) -> Metrics:
        """The metrics of the members' mean."""
        return evaluate(self.prediction, ood=self.ood)

    def single(self) -> dict[str, Any]:
        """The members' own metrics: their means by name, and their standard deviations under "std"."""
        spread = evaluate_members(self.prediction, ood=self.ood)
        return {
            **{name: spread[name].mean for name in NAMES},
            "std": {name: spread[name].std for name in NAMES},
        }


@dataclass(frozen=True)
class Comparison:
    """Measurements of the demo: three arms on the same questions, and the trained stack (members 0 to M - 1
    plain, M to 2 M - 1 decayed).
    """

    task: Task
    few_shot: Arm
    plain: Arm
    decayed: Arm
    stack: LoraEnsemble
    train_accuracy: list[float]  # of each of the 2 M members in the last epoch

    def metrics(self) -> dict[str, dict[str, Any]]:
        """accuracy, nll, ece, brier and ood_auroc by row: few_shot (a mean over draws), single (over
        members), ensemble, ensemble_decay.
        """
        few_shot = self.few_shot.single()
        del few_shot["std"]
        pooled = {"ensemble": self.plain.ensemble(), "ensemble_decay": self.decayed.ensemble()}
        rows = {row: {name: getattr(metrics, name) for name in NAMES} for row, metrics in pooled.items()}
        return {"few_shot": few_shot, "single": self.plain.single(), **rows}


@dataclass(frozen=True)
class DemoResult:
    """The metrics by row, the table for a reader, how long it took, and where the report is."""

    metrics: dict[str, dict[str, Any]]
    table: Table
    seconds: float
    report: Path

    def to_dict(self) -> dict[str, Any]:
        """The rows' metrics beside `seconds` and `report`, as `json.dumps` takes them."""
        return {**self.metrics, "seconds": self.seconds, "report": str(self.report)}


def run_demo(
    out: str | Path,
    *,
    task: str = "world-arcc",
    members: int = 5,
    seed: int = 0,
    model: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
    settings: DemoSettings | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> DemoResult:
    """Train and compare on one task; write report, pictures, numbers and both ensembles into `out`.

    Args:
        out: a new folder.
        task: a task that has an out-of-distribution set (`OOD_PAIRS`), such as the embedded "world-arcc".
        members: M; 2 M are trained together.
        seed: members' seeds, few-shot draws and the choice of out-of-distribution questions follow from it.
        model: base and tokenizer; the embedded ones by default.
        settings: `DemoSettings()` by default.
        overwrite: replace what an earlier demo left in `out`.
        progress: show what is going on, on standard error.

    Raises:
        ConfigError: a task without an out-of-distribution set, or a setting that cannot work.
        CheckpointError: `out` exists, and is not an earlier demo's or `overwrite` is off.
        MissingExtraError: matplotlib is not installed.
    """
    begin = time.monotonic()
    out, settings = Path(out), settings or DemoSettings()
    check_ready(out, task=task, overwrite=overwrite)
    compared = compare(task, members=members, seed=seed, model=model, settings=settings, progress=progress)
    seconds = round(time.monotonic() - begin, 1)
    made = _made(compared, settings, seed=seed, seconds=seconds)
    with written_aside(out, replace=overwrite or out.exists()) as folder:
        _write(folder, compared, settings, made)
    metrics = compared.metrics()
    return DemoResult(
        metrics, demo_table(metrics, compared.plain.prediction.num_members), seconds, out / REPORT_FILE
    )


def check_ready(out: Path, *, task: str, overwrite: bool) -> None:
    """Find what would fail at the end, before the work."""
    if task not in OOD_PAIRS:
        raise ConfigError(
            f"the demo needs a task with an out-of-distribution set: {unknown_name('task', task, OOD_PAIRS)}"
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError(
            'the demo needs matplotlib, which is not installed; run: pip install "lora-ensembles[plots]"'
        )
    empty = out.is_dir() and not any(out.iterdir())
    if out.exists() and not empty and not overwrite:
        raise CheckpointError(
            f"{out} exists already; choose another folder, or replace the demo in it by overwrite=True"
        )
    if out.exists() and not empty and not (out / RESULTS_FILE).is_file():
        raise CheckpointError(
            f"{out} does not hold an earlier demo, so it is not overwritten; choose another folder"
        )
    check_writable(out)


def compare(
    task: str,
    *,
    members: int,
    seed: int,
    model: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
    settings: DemoSettings,
    progress: bool = False,
) -> Comparison:
    """Ask the base with few shots, train both arms in one stack, and predict the same questions with all."""
    full = load_task(task)
    part = Task(
        task,
        sample(full.train, settings.train_questions, seed=0),
        sample(full.validation, settings.validation_questions, seed=0),
    )
    ood = sample(load_ood(OOD_PAIRS[task]), settings.ood_questions, seed=seed)
    base, tokenizer = model or load_base()
    questions = len(part.validation) + len(ood)
    _say(
        progress, f"asking the base {questions} questions, {settings.draws} times with {settings.shots} shots"
    )
    few_shot = FewShot(base, tokenizer, part.train, shots=settings.shots, draws=settings.draws, seed=seed)
    asked = Arm("few-shot base", predict(few_shot, part.validation), predict(few_shot, ood))
    _say(
        progress,
        f"training {members} members without and {members} with decay of B, all in one run, "
        f"on {len(part.train)} questions",
    )
    stack = twice(LoraEnsemble(base, tokenizer, num_members=members, seed=seed))
    config = TrainConfig(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay_b=[settings.plain_decay_b] * members + [settings.decay_b] * members,
    )
    history = train(stack, part.train, config, progress=progress).history
    prediction, other = predict(stack, part.validation), predict(stack, ood)
    halves = list(range(members)), list(range(members, 2 * members))
    plain, decayed = (
        Arm(name, prediction.select(half), other.select(half))
        for name, half in zip(("ensemble", "ensemble, decay of B"), halves, strict=True)
    )
    return Comparison(part, asked, plain, decayed, stack, history[-1]["train_accuracy"])


def twice(ensemble: LoraEnsemble) -> LoraEnsemble:
    """The ensemble with every member in it twice: first all, then all again, weights and seeds alike."""
    weights = [ensemble.stack.member(index) for index in range(ensemble.num_members)]
    ensemble.stack.set_members(weights * 2)
    ensemble.info = dataclasses.replace(ensemble.info, seeds=ensemble.info.seeds * 2)
    return ensemble


def demo_table(metrics: dict[str, dict[str, Any]], members: int) -> Table:
    """The demo's one table: a row an arm, a column a metric; single members as mean ± standard deviation."""
    names = {
        "few_shot": "few-shot base",
        "single": f"single member (mean of {members})",
        "ensemble": f"ensemble of {members}",
        "ensemble_decay": f"ensemble of {members}, decay of B",
    }
    rows = []
    for row, shown in names.items():
        std = metrics[row].get("std")
        cells = [f"{metrics[row][name]:.3f}" + (f" ± {std[name]:.3f}" if std else "") for name in NAMES]
        rows.append((shown, *cells))
    return Table(("", "accuracy ↑", "NLL ↓", "ECE ↓", "Brier ↓", "OOD AUROC ↑"), tuple(rows))


def _made(compared: Comparison, settings: DemoSettings, *, seed: int, seconds: float) -> dict[str, Any]:
    half = compared.plain.prediction.num_members
    accuracies = compared.train_accuracy[:half], compared.train_accuracy[half:]
    return {
        "task": compared.task.name,
        "out_of_distribution": OOD_PAIRS[compared.task.name],
        "seed": seed,
        "member_seeds": [dataclasses.asdict(seeds) for seeds in compared.stack.info.seeds[:half]],
        "settings": dataclasses.asdict(settings),
        "train_accuracy": {
            name: round(sum(values) / half, 4)
            for name, values in zip(("plain", "decay"), accuracies, strict=True)
        },
        "environment": environment(compared.stack.device),
        "seconds": seconds,
    }


def _write(folder: Path, compared: Comparison, settings: DemoSettings, made: dict[str, Any]) -> None:
    metrics = compared.metrics()
    singles = {
        "few-shot base (one draw)": compared.few_shot.prediction.member(0),
        "single member (member 0)": compared.plain.prediction.member(0),
    }
    arms = singles | {arm.name: arm.prediction for arm in (compared.plain, compared.decayed)}
    images = {
        "reliability": png(reliability(arms)),
        "wrong_confidence": png(wrong_confidence(arms)),
    }
    for name, image in images.items():
        (folder / f"{name}.png").write_bytes(image)
    (folder / RESULTS_FILE).write_text(json.dumps({**metrics, **made}, indent=2) + "\n")
    (folder / REPORT_FILE).write_text(_report(compared, images, settings, made), encoding="utf-8")
    _save_arms(folder, compared, metrics)


def _save_arms(folder: Path, compared: Comparison, metrics: dict[str, dict[str, Any]]) -> None:
    stack, half = compared.stack, compared.plain.prediction.num_members
    weights = [stack.stack.member(index) for index in range(stack.num_members)]
    whole = stack.info
    for arm, start in (("ensemble", 0), ("ensemble_decay", half)):
        part = slice(start, start + half)
        stack.stack.set_members(weights[part])
        remembered = {
            "name": compared.task.name,
            "source": {"task": compared.task.name},
            "metrics": metrics[arm],
        }
        stack.info = dataclasses.replace(whole, next_index=half, seeds=whole.seeds[part], task=remembered)
        stack.save_pretrained(folder / arm)
    stack.stack.set_members(weights)
    stack.info = whole


def _report(
    compared: Comparison, images: dict[str, bytes], settings: DemoSettings, made: dict[str, Any]
) -> str:
    half = compared.plain.prediction.num_members
    captions = (
        (images["reliability"], "Confidence against accuracy; below the diagonal a model is overconfident."),
        (
            images["wrong_confidence"],
            "How sure each one was of its wrong answers; overconfidence piles up at 1.",
        ),
    )
    sections = [
        Section("Result", (demo_table(compared.metrics(), half).to_html(), paragraph(_reading(made)))),
        Section("Calibration", (pictures(captions),)),
        Section("What the ensemble is unsure of", tuple(_unsure(compared, settings.unsure_questions))),
        Section("How it was made", (preformatted(json.dumps(made, indent=2)),)),
    ]
    intro = (
        f"{half} LoRA adapters on one frozen base, trained from different seeds and data orders on the task "
        f"{compared.task.name}; the mean of their probabilities is the ensemble's answer."
    )
    return page(f"LoRA ensemble on {compared.task.name}", sections, intro=intro)


def _reading(made: dict[str, Any]) -> str:
    accuracy = made["train_accuracy"]
    return (
        f"On their training questions single members were right {accuracy['plain']:.1%} of the time in the "
        f"last epoch ({accuracy['decay']:.1%} with decay). ± is the standard deviation over members; NLL in "
        f"nats; OOD AUROC tells questions of {made['out_of_distribution']} from the task's own by the "
        "largest probability."
    )


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


def _say(show: bool, text: str) -> None:
    if show:
        print(text, file=sys.stderr, flush=True)
