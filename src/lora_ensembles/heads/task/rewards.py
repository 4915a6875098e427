"""Rewards of texts by the members of a reward model.

Shapes: M members, N texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...errors import ConfigError, DataError
from ...passes.stacked_model import StackedModel
from ...prediction.rewards import RewardPrediction
from .encoding import plain_table
from .head import task_head_of


def predict_rewards(
    ensemble: StackedModel, texts: Sequence[str] | str, *, max_rows: int | None = None
) -> RewardPrediction:
    """Every member's score of each text: a prompt with its answer behind it, as in training.

    Args:
        ensemble: members with a reward head.
        texts: N texts, or one.
        max_rows: the most rows (member and example pairs) in one forward pass; None: a number that suits most
            machines.

    Returns:
        (M, N) scores, without unit.

    Raises:
        ConfigError: the ensemble is no reward model; or `max_rows` is below 1.
        DataError: no texts, or one that is empty or too long.

    Example:
        >>> from lora_ensembles import LoraEnsemble, load_base
        >>> base, tokenizer = load_base("embedded", head="sequence-classification", num_labels=1)
        >>> ensemble = LoraEnsemble(base, tokenizer, num_members=3)
        >>> answers = ["The otter lives in Bath.", "The otter lives in a lake."]
        >>> predict_rewards(ensemble, answers).member_scores.shape
        torch.Size([3, 2])
    """
    head = task_head_of(ensemble, "predict_rewards")
    if head.kind != "reward":
        raise ConfigError(
            f"predict_rewards on members with {head.kind} heads; it needs a reward model: "
            "a sequence classifier of 1 label"
        )
    if not texts:
        raise DataError("no texts to score; give at least one")
    texts = [texts] if isinstance(texts, str) else list(texts)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"texts[{number}] is of type {type(text).__name__}; pass texts")
    if max_rows is not None and max_rows < 1:
        raise ConfigError(
            f"max_rows is {max_rows}; use at least 1, or None for a number that suits most machines"
        )
    table = plain_table(
        texts, ensemble.base, ensemble.tokenizer, head=head.config, overlong=ensemble.info.overlong
    )
    with torch.no_grad():
        scores = head.scores(ensemble, table, max_rows=max_rows)[..., 0]
    scores = ensemble.stack.sharding.of_all(scores)
    return RewardPrediction(scores, tuple(str(number) for number in range(len(texts))))
