"""The validation examples of a run: what cannot be measured is refused before the first epoch, the rest is
measured after each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..data import Completion, Example
from ..ensemble import LoraEnsemble
from ..errors import DataError
from ..heads.lm.completions import score_completions
from ..heads.remarks import warn_of_one_label
from ..passes.stacked_model import StackedModel
from ..prediction.completions import CompletionScores
from ..prediction.evaluation import evaluate, evaluate_members
from ..prediction.prediction import Prediction, Predictor, predict
from .config import TrainConfig


def check_validation(
    ensemble: LoraEnsemble,
    examples: Sequence[Example] | Sequence[Completion],
    validation: Sequence[Example] | Sequence[Completion],
    config: TrainConfig,
) -> None:
    """Refuse validation examples that could not be measured after an epoch.

    Raises:
        DataError: one cannot be encoded, or has no answer.
    """
    ensemble.head.check_rows(ensemble, examples, validation, overlong=config.overlong)
    check_answers(validation)


def check_answers(validation: Sequence[Example] | Sequence[Completion]) -> None:
    """Refuse validation examples without an answer.

    Raises:
        DataError: as it says.
    """
    for example in validation:
        if isinstance(example, Example) and example.target is None:
            raise DataError(
                f"validation example {example.id!r} has no answer; every validation example needs one"
            )


def validate(
    predictor: Predictor,
    examples: Sequence[Example] | Sequence[Completion],
    *,
    max_rows: int | None,
    last: bool,
) -> dict[str, Any]:
    """Metrics of the ensemble and of its members; in the `last` epoch with a warning where all rows get one
    label. Open answers are a language model's alone.
    """
    completions = [example for example in examples if isinstance(example, Completion)]
    result: Prediction | CompletionScores
    if completions and isinstance(predictor, StackedModel):
        result = score_completions(predictor, completions, max_rows=max_rows)
    else:
        questions = [example for example in examples if isinstance(example, Example)]
        result = predict(predictor, questions, max_rows=max_rows)
        if last:
            warn_of_one_label(result, questions)
    return {
        "ensemble": evaluate(result).to_dict(),
        "members": {name: list(spread.values) for name, spread in evaluate_members(result).items()},
    }
