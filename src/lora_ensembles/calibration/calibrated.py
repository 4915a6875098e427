"""The calibration of an ensemble: its predictions on held-out examples are kept, with what was fitted on
them, for the probabilities, thresholds and sets of everything that is predicted later.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from ..data import Example
from ..data.inputs import as_examples, known_to
from ..errors import DataError
from ..prediction.prediction import Prediction, Predictor, predict
from .conformal import ConformalSets, conformal_sets
from .held_out import fingerprints, refuse_known
from .kinds import FEWEST, KEEP_CHOICES, Kind, Method, Score
from .risk import RiskThreshold, risk_threshold
from .scaling import Calibration, fit_calibration


@dataclass(frozen=True)
class HeldOut:
    """The predictions of an ensemble on held-out examples, and its calibration.

    A guarantee needs examples that nothing was fitted on which changes an answer. Where the calibration keeps
    every choice ("none", "temperature"), thresholds and sets are made from the probabilities *before* it, and
    applied to these: so all held-out examples serve both. Otherwise half of them were fitted on, and
    thresholds and sets are made from the calibrated probabilities of the other half.

    Attributes:
        prediction: of the members, labelled and not calibrated; of the examples that guarantees are made
            from.
        calibration: what was fitted.
        marks: keys of all held-out examples, each with the example's id.
        source: where the examples came from, for a reader.
        order_passes: orders of the options that predictions average over.
    """

    prediction: Prediction
    calibration: Calibration
    marks: Mapping[str, str]
    source: str = ""
    order_passes: int = 1

    def refuse_scored(self, examples: Sequence[Example]) -> None:
        """Refuse labelled examples that the calibration was fitted on.

        Raises:
            DataError: one of them was.
        """
        refuse_known(
            examples,
            self.marks,
            "was used to calibrate the ensemble",
            "score other examples: on these the scores would be too good",
        )

    def ruled(self, prediction: Prediction) -> Prediction:
        """The probabilities of a prediction that thresholds and sets are applied to."""
        return prediction.uncalibrated if self.calibration.keeps_choices else self.calibration(prediction)

    def risk_threshold(
        self, *, risk: float, delta: float = 0.05, score: Score = "confidence"
    ) -> RiskThreshold:
        """See `risk.risk_threshold`; to be applied to `ruled(prediction)`."""
        return risk_threshold(self.ruled(self.prediction), risk=risk, delta=delta, score=score)

    def conformal_sets(self, *, coverage: float = 0.9, method: Method = "lac") -> ConformalSets:
        """See `conformal.conformal_sets`; to be applied to `ruled(prediction)`."""
        return conformal_sets(self.ruled(self.prediction), coverage=coverage, method=method)


class Calibratable(Predictor, Protocol):
    """A predictor that keeps its predictions on held-out examples."""

    calibrated: HeldOut | None


def calibrate(
    ensemble: Calibratable,
    held_out: Sequence[Example],
    *,
    kind: Kind | Literal["auto"] = "auto",
    trained_on: Sequence[Example] = (),
    source: str = "",
    max_rows: int | None = None,
    order_passes: int = 1,
) -> Calibration:
    """Fit a calibration on held-out examples and keep it with the ensemble.

    `predict` then returns calibrated probabilities, `save_pretrained` saves the calibration, and
    `ensemble.calibrated` makes thresholds and sets. Training or another set of members ends it.

    Args:
        ensemble: of M members.
        held_out: N labelled examples, from the population that will be answered.
        kind: see `Calibration`; "auto" takes the one with the lowest NLL on parts of `held_out` that it was
            not fitted on. A kind that may change an answer is fitted on half of the examples (see `HeldOut`),
            and needs 20 of them to be chosen.
        trained_on: what the ensemble was trained on; held-out examples among them are refused.
        source: where the examples came from, for a reader of the saved ensemble.
        max_rows: as in `predict`.
        order_passes: as in `predict`, which then averages over as many orders.

    Returns:
        The calibration; its `nll` says what each kind reached.

    Raises:
        DataError: no examples, one without an answer, one that was trained on, or too few.
        ConfigError: no such kind.

    Example:
        >>> from lora_ensembles import LoraEnsemble, load_base, load_task, predict
        >>> task = load_task("world-cqa")
        >>> ensemble = LoraEnsemble(*load_base(), num_members=2)
        >>> calibration = calibrate(
        ...     ensemble, task.validation[:120], trained_on=task.train, kind="temperature"
        ... )
        >>> 0.2 < calibration.temperatures[0] < 5
        True
        >>> predict(ensemble, task.validation[120:130]).calibrated is not None
        True
    """
    held_out = as_examples(held_out, known_to(ensemble), labelled=True)
    refuse_known(
        held_out,
        fingerprints(trained_on),
        "was trained on",
        "calibrate on examples that were not",
    )
    ensemble.calibrated = None
    prediction = predict(ensemble, held_out, max_rows=max_rows, order_passes=order_passes)
    calibration, rest = _fitted(prediction, kind)
    ensemble.calibrated = HeldOut(rest, calibration, fingerprints(held_out), source, order_passes)
    return calibration


def _fitted(prediction: Prediction, kind: Kind | Literal["auto"]) -> tuple[Calibration, Prediction]:
    """The calibration, and the prediction of the examples that guarantees are made from."""
    half = prediction.num_examples // 2
    if kind in KEEP_CHOICES or (kind == "auto" and half < FEWEST):
        return fit_calibration(prediction, kind=kind, among=KEEP_CHOICES), prediction
    if half == 0:
        raise DataError(
            "1 held-out example is too few for a kind that is fitted on half of them; give 2 or more"
        )
    order = torch.randperm(prediction.num_examples, generator=torch.Generator().manual_seed(0))
    fitted = fit_calibration(prediction.take(order[:half]), kind=kind)
    if fitted.keeps_choices:
        return dataclasses.replace(fit_calibration(prediction, kind=fitted.kind), nll=fitted.nll), prediction
    return fitted, prediction.take(order[half:])
