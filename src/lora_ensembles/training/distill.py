"""Distillation: a single member trained on the probabilities of a whole ensemble.

Shapes: M members, N examples, C labels.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..calibration.calibrated import calibrate
from ..calibration.kinds import FEWEST
from ..data import Example
from ..data.inputs import as_examples
from ..ensemble import LoraEnsemble
from ..errors import ConfigError, DataError
from ..heads import member_log_probs
from ..prediction.evaluation import evaluate, evaluate_members
from ..prediction.prediction import Prediction, Predictor, predict
from .adapters import train
from .config import TrainConfig
from .trainee import TrainResult

if TYPE_CHECKING:
    from peft import LoraConfig

METRICS = ("accuracy", "nll", "ece", "brier")


@dataclass(frozen=True)
class Timed:
    """A prediction of the validation examples, and the milliseconds that each of them took."""

    prediction: Prediction
    milliseconds: float

    @property
    def row(self) -> dict[str, float]:
        """The ensemble's metrics, and the milliseconds."""
        metrics = evaluate(self.prediction)
        return {name: getattr(metrics, name) for name in METRICS} | {"milliseconds": self.milliseconds}


@dataclass(frozen=True)
class Distilled:
    """A student, and what it loses against its teacher.

    Attributes:
        student: an ensemble of one member, on the base that the teacher had.
        trained: the result of its training.
        teacher: of the ensemble, before; None without validation examples.
        single: of its first member alone, before; None without validation examples.
        predicted: of the student; None without validation examples.
    """

    student: LoraEnsemble
    trained: TrainResult
    teacher: Timed | None = None
    single: Timed | None = None
    predicted: Timed | None = None

    def table(self) -> dict[str, dict[str, float]]:
        """Accuracy, NLL (nats), ECE, Brier score and milliseconds a question of a single member, the student
        and the ensemble; a single member's metrics are the mean over the teacher's members.

        Returns:
            A row for each of "single member", "student" and "ensemble".

        Raises:
            ConfigError: there were no validation examples.
        """
        if self.teacher is None or self.single is None or self.predicted is None:
            raise ConfigError("distill was given no validation examples, so there is nothing to compare")
        members = evaluate_members(self.teacher.prediction)
        single = {name: members[name].mean for name in METRICS} | {"milliseconds": self.single.milliseconds}
        return {"single member": single, "student": self.predicted.row, "ensemble": self.teacher.row}


def distill(
    ensemble: LoraEnsemble,
    examples: Sequence[Example],
    config: TrainConfig | None = None,
    *,
    adapter: LoraConfig | None = None,
    seed: int = 0,
    validation: Sequence[Example] = (),
    held_out: Sequence[Example] = (),
    progress: bool = True,
) -> Distilled:
    """Train one adapter on the probabilities that an ensemble gives to examples; answers are not needed.

    The student minimises the cross-entropy -sum_c q_c log p_c to the ensemble's q (Hinton et al. 2015,
    arXiv:1503.02531, at temperature 1), which is its divergence from the ensemble up to a constant. q is
    calibrated where the ensemble is, so the student learns calibrated probabilities. What a single
    distribution cannot hold is lost: mutual information and the members' disagreement.

    The student takes the ensemble's place on the base, as after `ensemble.unload()`: save the ensemble
    before.

    Args:
        ensemble: the teacher, of M members whose answers have labels, classes or options.
        examples: N examples or texts; the more the better, and best not those that it was trained on, on
            which it is far too sure.
        config: of the training; None: the defaults. The loss is over the labels, and labels and long prompts
            are read as the ensemble reads them; `max_rows` holds for the predictions too.
        adapter: the student's; None: that of the ensemble's members.
        seed: of the student.
        validation: labelled examples, on which single member, student and ensemble are compared.
        held_out: labelled examples to calibrate the student on; without, it has the calibration that it
            learnt.
        progress: show a progress bar.

    Returns:
        The student, and the comparison.

    Raises:
        ConfigError: the ensemble gives no probabilities of labels (rewards), or a setting that does not fit.
        DataError: examples that the ensemble cannot read, or too few that are held out.

    Example:
        >>> from lora_ensembles import LoraEnsemble, TrainConfig, load_base, load_task
        >>> task = load_task("world-obqa")
        >>> ensemble = LoraEnsemble(*load_base(), num_members=2)
        >>> made = distill(ensemble, task.train[:8], TrainConfig(epochs=1), validation=task.validation[:8])
        >>> made.student.num_members, list(made.table())
        (1, ['single member', 'student', 'ensemble'])
    """
    if ensemble.info.head.kind == "reward":
        raise ConfigError("distill: members with reward heads give scores, not probabilities of answers")
    if 0 < len(held_out) < FEWEST:
        raise DataError(
            f"{len(held_out)} held-out examples are too few to calibrate a student on; give {FEWEST} or more"
        )
    info = ensemble.info
    config = dataclasses.replace(
        config or TrainConfig(),
        loss="labels" if info.head.kind == "causal-lm" else "auto",
        label_score=info.label_score,
        overlong=info.overlong,
    )
    soft = soft_labelled(ensemble, as_examples(examples, info), max_rows=config.max_rows)
    judged = as_examples(validation, info, name="validation", labelled=True) if validation else []
    teacher = single = predicted = None
    if judged:
        teacher = _timed(ensemble, judged, config.max_rows)
        single = _timed(_First(ensemble), judged, config.max_rows)
    student = LoraEnsemble(
        ensemble.unload(),
        ensemble.tokenizer,
        num_members=1,
        adapter=adapter or ensemble.adapter,
        seed=seed,
        head=info.head,
    )
    student.info = dataclasses.replace(student.info, task=_memory(info.task))
    trained = train(
        student,
        soft,
        config,
        validation=judged,
        progress=progress,
    )
    if held_out:
        calibrate(student, held_out, trained_on=soft, max_rows=config.max_rows)
    if judged:
        predicted = _timed(student, judged, config.max_rows)
    return Distilled(student, trained, teacher, single, predicted)


@dataclass(frozen=True)
class _First:
    """A `Predictor` that is the first member of an ensemble, computed without the others."""

    ensemble: LoraEnsemble

    def member_log_probs(self, examples: Sequence[Example], *, max_rows: int | None = None) -> Tensor:
        return member_log_probs(self.ensemble.view(range(1)), examples, max_rows=max_rows)


def soft_labelled(
    ensemble: LoraEnsemble, examples: Sequence[Example], *, max_rows: int | None = None
) -> list[Example]:
    """The examples with an ensemble's probabilities, calibrated where it is, as their soft labels."""
    unlabelled = [dataclasses.replace(example, target=None, target_probs=None) for example in examples]
    probs = predict(ensemble, unlabelled, max_rows=max_rows).log_probs.double().exp()
    return [
        dataclasses.replace(example, target_probs=tuple(row[: len(example.labels)]))
        for example, row in zip(unlabelled, probs.tolist(), strict=True)
    ]


def _memory(task: dict[str, Any]) -> dict[str, Any]:
    """The memory of how rows are read, without the teacher's metrics."""
    return {name: value for name, value in task.items() if name not in ("metrics", "single")}


def _timed(predictor: Predictor, examples: Sequence[Example], max_rows: int | None) -> Timed:
    begin = time.perf_counter()
    prediction = predict(predictor, examples, max_rows=max_rows)
    return Timed(prediction, 1000 * (time.perf_counter() - begin) / len(examples))
