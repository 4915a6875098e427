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
from ..prediction.completions import CompletionMetrics, evaluate_completion_members, evaluate_completions
from ..prediction.metrics import Metrics, evaluate, evaluate_members
from ..prediction.prediction import predict
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
    ensemble: LoraEnsemble,
    examples: Sequence[Example] | Sequence[Completion],
    *,
    max_rows: int | None,
    last: bool,
) -> dict[str, Any]:
    """Metrics of the ensemble and of its members; in the `last` epoch with a warning where all rows get one
    label.
    """
    completions = [example for example in examples if isinstance(example, Completion)]
    if completions:
        scores = score_completions(ensemble, completions, max_rows=max_rows)
        measured: Metrics | CompletionMetrics = evaluate_completions(scores)
        spreads = evaluate_completion_members(scores)
    else:
        questions = [example for example in examples if isinstance(example, Example)]
        prediction = predict(ensemble, questions, max_rows=max_rows)
        if last:
            warn_of_one_label(prediction, questions)
        measured, spreads = evaluate(prediction), evaluate_members(prediction)
    return {
        "ensemble": measured.to_dict(),
        "members": {name: list(spread.values) for name, spread in spreads.items()},
    }
