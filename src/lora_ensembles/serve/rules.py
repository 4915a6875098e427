"""The thresholds and sets that requests ask for, kept once they are made."""

from __future__ import annotations

from typing import Protocol
from weakref import WeakKeyDictionary

from ..calibration.calibrated import HeldOut
from ..calibration.conformal import ConformalSets
from ..calibration.risk import RiskThreshold
from ..prediction.prediction import Prediction
from .settings import Guarantees

MOST = 256  # rules of an ensemble that are kept: a client may ask for any number


class Calibrated(Protocol):
    """An ensemble that may keep a calibration."""

    @property
    def calibrated(self) -> HeldOut | None: ...


class Rules:
    """Thresholds and sets by ensemble and number."""

    def __init__(self) -> None:
        # An ensemble that is no longer served takes its rules with it.
        self._thresholds: WeakKeyDictionary[Calibrated, dict[float, RiskThreshold]] = WeakKeyDictionary()
        self._sets: WeakKeyDictionary[Calibrated, dict[float, ConformalSets]] = WeakKeyDictionary()

    def of(
        self, ensemble: Calibrated, prediction: Prediction, guarantees: Guarantees
    ) -> tuple[list[bool] | None, list[list[bool]] | None]:
        """Of each example whether the ensemble abstains, and which options are in its set; None of what is
        not asked for, and of both where the ensemble is not calibrated.

        Raises:
            DataError: the held-out examples are too few for it, or give no such guarantee.
        """
        kept = ensemble.calibrated
        if kept is None:
            return None, None
        abstain = inside = None
        ruled = kept.ruled(prediction)
        if guarantees.risk is not None:
            answered = self._threshold(ensemble, guarantees.risk).answered(ruled)
            abstain = (~answered).tolist()
        if guarantees.coverage is not None:
            inside = self._set(ensemble, guarantees.coverage).sets(ruled).tolist()
        return abstain, inside

    def check(self, ensemble: Calibrated, guarantees: Guarantees) -> None:
        """Make the rules of these guarantees now.

        Raises:
            DataError: as `of`.
        """
        if ensemble.calibrated is not None and guarantees.risk is not None:
            self._threshold(ensemble, guarantees.risk)
        if ensemble.calibrated is not None and guarantees.coverage is not None:
            self._set(ensemble, guarantees.coverage)

    def _threshold(self, ensemble: Calibrated, risk: float) -> RiskThreshold:
        kept = self._thresholds.setdefault(ensemble, {})
        if risk not in kept:
            _make_room(kept)
            assert ensemble.calibrated is not None
            kept[risk] = ensemble.calibrated.risk_threshold(risk=risk)
        return kept[risk]

    def _set(self, ensemble: Calibrated, coverage: float) -> ConformalSets:
        kept = self._sets.setdefault(ensemble, {})
        if coverage not in kept:
            _make_room(kept)
            assert ensemble.calibrated is not None
            kept[coverage] = ensemble.calibrated.conformal_sets(coverage=coverage)
        return kept[coverage]


def _make_room(kept: dict[float, RiskThreshold] | dict[float, ConformalSets]) -> None:
    if len(kept) >= MOST:
        kept.clear()
