"""The validation examples of a run: what cannot be measured is refused before the first epoch, the rest is
measured after each.

Shapes: M members, N examples, C options.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ..data import Completion, Example
from ..disk.atomic import bytes_written_aside
from ..ensemble import LoraEnsemble
from ..errors import CheckpointError, DataError
from ..heads.lm.completions import score_completions
from ..heads.remarks import warn_of_one_label
from ..passes.stacked_model import StackedModel
from ..prediction.completions import CompletionScores
from ..prediction.evaluation import evaluate, evaluate_members
from ..prediction.prediction import Prediction, Predictor, predict
from .config import TrainConfig

Answers = Prediction | CompletionScores


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


def answers(
    predictor: Predictor, examples: Sequence[Example] | Sequence[Completion], *, max_rows: int | None
) -> Answers:
    """The members' answers to validation examples; open answers are a language model's alone."""
    completions = [example for example in examples if isinstance(example, Completion)]
    if completions and isinstance(predictor, StackedModel):
        return score_completions(predictor, completions, max_rows=max_rows)
    return predict(predictor, _questions(examples), max_rows=max_rows)


def measured(
    result: Answers, examples: Sequence[Example] | Sequence[Completion], *, last: bool
) -> dict[str, Any]:
    """Metrics of the ensemble and of its members; in the `last` epoch with a warning where all rows get one
    label.
    """
    if last and isinstance(result, Prediction):
        warn_of_one_label(result, _questions(examples))
    return {
        "ensemble": evaluate(result).to_dict(),
        "members": {name: list(spread.values) for name, spread in evaluate_members(result).items()},
    }


def _questions(examples: Sequence[Example] | Sequence[Completion]) -> list[Example]:
    return [example for example in examples if isinstance(example, Example)]


def keep_answers(result: Answers, folder: Path, *, epoch: int) -> None:
    """Write the answers of some of an ensemble's members to a folder, whole or not at all."""
    tensors = {"member_log_probs": result.member_log_probs.contiguous()}
    if isinstance(result, CompletionScores):
        tensors["counted"] = result.counted.contiguous()
    bytes_written_aside(_file(folder, epoch), save(tensors))


def joined_answers(
    folders: Sequence[Path], examples: Sequence[Example] | Sequence[Completion], *, epoch: int
) -> Answers:
    """The answers of all members, in the order of the folders that hold those of some.

    Raises:
        CheckpointError: a folder does not hold them.
    """
    parts = []
    for folder in folders:
        file = _file(folder, epoch)
        try:
            parts.append(load_file(file))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{file}, the answers of some members, cannot be read ({error}); train anew by overwrite=True"
            ) from error
    log_probs = torch.cat([part["member_log_probs"] for part in parts])
    if "counted" in parts[0]:
        return CompletionScores(log_probs, parts[0]["counted"], tuple(example.id for example in examples))
    return predict(_Answered(log_probs), _questions(examples))


@dataclass(frozen=True)
class _Answered:
    """A `Predictor` whose answers (M, N, C) are there already."""

    log_probs: Tensor

    def member_log_probs(self, examples: Sequence[Example], *, max_rows: int | None = None) -> Tensor:
        return self.log_probs


def _file(folder: Path, epoch: int) -> Path:
    return folder / f"epoch_{epoch:03d}.safetensors"
