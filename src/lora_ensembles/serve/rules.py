"""The thresholds and sets that requests ask for, kept once they are made."""

from __future__ import annotations

from ..calibration.conformal import ConformalSets
from ..calibration.risk import RiskThreshold
from ..ensemble import LoraEnsemble
from ..prediction.prediction import Prediction
from .settings import Guarantees

MOST = 256  # rules that are kept: a client may ask for any number


class Rules:
    """Thresholds and sets by ensemble and number."""

    def __init__(self) -> None:
        self._thresholds: dict[tuple[int, float], RiskThreshold] = {}
        self._sets: dict[tuple[int, float], ConformalSets] = {}

    def of(
        self, ensemble: LoraEnsemble, prediction: Prediction, guarantees: Guarantees
    ) -> tuple[list[bool] | None, list[list[bool]] | None]:
        """Of each example whether the ensemble abstains, and which options are in its set; None of what is not
        asked for, and of both where the ensemble is not calibrated.

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

    def check(self, ensemble: LoraEnsemble, guarantees: Guarantees) -> None:
        """Make the rules of these guarantees now.

        Raises:
            DataError: as `of`.
        """
        if ensemble.calibrated is not None and guarantees.risk is not None:
            self._threshold(ensemble, guarantees.risk)
        if ensemble.calibrated is not None and guarantees.coverage is not None:
            self._set(ensemble, guarantees.coverage)

    def _threshold(self, ensemble: LoraEnsemble, risk: float) -> RiskThreshold:
        key = (id(ensemble), risk)
        if key not in self._thresholds:
            _make_room(self._thresholds)
            assert ensemble.calibrated is not None
            self._thresholds[key] = ensemble.calibrated.risk_threshold(risk=risk)
        return self._thresholds[key]

    def _set(self, ensemble: LoraEnsemble, coverage: float) -> ConformalSets:
        key = (id(ensemble), coverage)
        if key not in self._sets:
            _make_room(self._sets)
            assert ensemble.calibrated is not None
            self._sets[key] = ensemble.calibrated.conformal_sets(coverage=coverage)
        return self._sets[key]


def _make_room(kept: dict[tuple[int, float], RiskThreshold] | dict[tuple[int, float], ConformalSets]) -> None:
    if len(kept) >= MOST:
        kept.clear()
