"""The flags of `predict` that promise something:
answers that are seldom wrong, and sets that hold the right one.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from ...calibration.kinds import Method, Score
from ...errors import ConfigError
from ..common import Arguments, share

if TYPE_CHECKING:
    from ...calibration.calibrated import HeldOut
    from ...calibration.conformal import ConformalSets
    from ...calibration.risk import RiskThreshold
    from ...data import Example
    from ...prediction.prediction import Prediction


def add_guarantee_flags(parser: argparse.ArgumentParser) -> None:
    """--risk, --delta, --score, --coverage, --set-method."""
    group = parser.add_argument_group("guarantees, from the held-out rows of lora-ensembles calibrate")
    group.add_argument(
        "--risk",
        type=share,
        metavar="X",
        help="abstain on rows so that at most this share of the answers given is wrong; "
        "adds the column abstain",
    )
    group.add_argument(
        "--delta",
        type=share,
        default=0.05,
        metavar="X",
        help="probability that --risk may fail (default: 0.05)",
    )
    group.add_argument(
        "--score",
        choices=get_args(Score),
        default="confidence",
        help="by which --risk decides (default: confidence)",
    )
    group.add_argument(
        "--coverage",
        type=share,
        metavar="X",
        help="give sets of labels that hold the right one with this probability; "
        "adds the column prediction_set",
    )
    group.add_argument(
        "--set-method", choices=get_args(Method), default="lac", help="how sets are made (default: lac)"
    )


def check_guarantees(args: Arguments, *, calibrated: bool) -> None:
    """Refuse guarantees for which nothing was held out, before anything slow.

    Raises:
        ConfigError: the ensemble is not calibrated, or only some of its members are asked for.
    """
    flag = "--risk" if args.risk is not None else "--coverage" if args.coverage is not None else None
    if flag is None:
        return
    if not calibrated:
        raise ConfigError(
            f"{flag}: {args.ensemble} was not calibrated, so there are no held-out rows to promise anything "
            f"by; first lora-ensembles calibrate {args.ensemble} --on FILE, with labelled rows"
        )
    if args.members is not None:
        raise ConfigError(f"{flag}: the held-out rows were answered by all members; leave --only out")


@dataclass(frozen=True)
class Guarantees:
    """The rules that were asked for."""

    kept: HeldOut | None = None
    threshold: RiskThreshold | None = None
    sets: ConformalSets | None = None

    @classmethod
    def of(cls, args: Arguments, kept: HeldOut | None) -> Guarantees:
        """The rules from what an ensemble keeps of its held-out rows.

        Raises:
            DataError: there are too few held-out rows for them.
        """
        if kept is None:
            return cls()
        risk = args.risk and kept.risk_threshold(risk=args.risk, delta=args.delta, score=args.score)
        sets = args.coverage and kept.conformal_sets(coverage=args.coverage, method=args.set_method)
        return cls(kept, risk or None, sets or None)

    def columns(self, prediction: Prediction, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """The columns that a row gets beside the others."""
        rows: list[dict[str, Any]] = [{} for _ in examples]
        if self.kept is None or (self.threshold is None and self.sets is None):
            return rows
        ruled = self.kept.ruled(prediction)
        if self.threshold is not None:
            for row, answered in zip(rows, self.threshold.answered(ruled).tolist(), strict=True):
                row["abstain"] = not answered
        if self.sets is not None:
            for row, example, held in zip(rows, examples, self.sets.sets(ruled).tolist(), strict=True):
                labels = [label.strip() for label in example.labels]
                row["prediction_set"] = [label for label, inside in zip(labels, held, strict=False) if inside]
        return rows

    def said(self) -> list[str]:
        """Each rule in a sentence."""
        return [str(rule) for rule in (self.threshold, self.sets) if rule is not None]

    def to_dict(self) -> Mapping[str, Any]:
        """Each rule's numbers, of JSON's types: a threshold that answers everything is None."""
        rules = {"risk": self.threshold, "sets": self.sets}
        return {
            name: {
                key: None if isinstance(value, float) and math.isinf(value) else value
                for key, value in vars(rule).items()
            }
            for name, rule in rules.items()
            if rule is not None
        }
