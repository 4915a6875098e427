"""The measurements of the demo: the base with few shots, and members without and with decay of B.

Both arms are trained as one stacked run of 2 M members. Member m has the same seeds in both, so that they
differ by the decay alone.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ...baselines import FewShot
from ...data import OOD_PAIRS, Task, load_ood, load_task
from ...data.splits import sample
from ...embedded import load_base
from ...ensemble import LoraEnsemble
from ...prediction.evaluation import Metrics, evaluate, evaluate_members
from ...prediction.prediction import Prediction, predict
from ...training.adapters import train
from ...training.config import TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NAMES = ("accuracy", "nll", "ece", "brier", "ood_auroc")


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

    @cached_property
    def ensemble(self) -> Metrics:
        """The metrics of the members' mean."""
        return evaluate(self.prediction, ood=self.ood)

    @cached_property
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
        few_shot = {name: self.few_shot.single[name] for name in NAMES}
        pooled = {"ensemble": self.plain.ensemble, "ensemble_decay": self.decayed.ensemble}
        rows = {row: {name: getattr(metrics, name) for name in NAMES} for row, metrics in pooled.items()}
        return {"few_shot": few_shot, "single": self.plain.single, **rows}

    @property
    def learnt(self) -> dict[str, float]:
        """The share of training questions that members had right in the last epoch, a mean over each arm."""
        half = len(self.train_accuracy) // 2
        parts = {"plain": self.train_accuracy[:half], "decay": self.train_accuracy[half:]}
        return {name: round(sum(values) / half, 4) for name, values in parts.items()}


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


def _say(show: bool, text: str) -> None:
    if show:
        print(text, file=sys.stderr, flush=True)
