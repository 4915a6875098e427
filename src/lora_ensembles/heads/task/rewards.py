"""Rewards of texts by the members of a reward model, and how far they disagree.

Shapes: M members, N texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...errors import ConfigError, DataError
from ...passes.stacked_model import StackedModel
from .encoding import plain_table
from .head import task_head_of


@dataclass(frozen=True, eq=False)
class RewardPrediction:
    """The members' scores of N texts, on the CPU in float32.

    Training on pairs fixes differences of scores only, so each member's scores have an origin of their own.
    Where members are compared over texts that answer one prompt, or against a set of reference texts,
    `centred` takes it away.

    Attributes:
        member_scores: (M, N); higher is better, without unit.
        ids: the N texts' names, in order.

    Example:
        >>> rewards = RewardPrediction(torch.tensor([[1.0, 3.0], [2.0, 0.0]]))
        >>> rewards.mean.tolist(), rewards.std.tolist(), rewards.lower_bound(2.0).tolist()
        ([1.5, 1.5], [0.5, 1.5], [0.5, -1.5])
    """

    member_scores: Tensor
    ids: tuple[str, ...] = field(default=())

    @property
    def mean(self) -> Tensor:
        """(N,) mean over the members."""
        return self.member_scores.mean(dim=0)

    @property
    def std(self) -> Tensor:
        """(N,) standard deviation over the members, as that of a population: 0 for one member."""
        return self.member_scores.std(dim=0, correction=0)

    def lower_bound(self, k: float = 1.0) -> Tensor:
        """(N,) mean - k * std: a reward that members who disagree do not give away.

        Raises:
            ConfigError: a negative k, which would reward disagreement.
        """
        if not k >= 0:
            raise ConfigError(f"k={k}; the lower bound is mean - k * std with k of at least 0")
        return self.mean - k * self.std

    def centred(self) -> RewardPrediction:
        """The same with each member's mean over these texts at 0."""
        return RewardPrediction(self.member_scores - self.member_scores.mean(dim=1, keepdim=True), self.ids)


def predict_rewards(
    ensemble: StackedModel, texts: Sequence[str] | str, *, max_rows: int | None = None
) -> RewardPrediction:
    """Every member's score of each text: a prompt with its answer behind it, as in training.

    Raises:
        ConfigError: the ensemble is no reward model; or `max_rows` is below 1.
        DataError: no texts, or one that is empty or too long.

    Example:
        >>> from lora_ensembles import LoraEnsemble, load_base
        >>> base, tokenizer = load_base("embedded", head="sequence-classification", num_labels=1)
        >>> ensemble = LoraEnsemble(base, tokenizer, num_members=3)
        >>> predict_rewards(ensemble, ["The otter lives in Bath.", "The otter lives in a lake."]).member_scores.shape
        torch.Size([3, 2])
    """
    head = task_head_of(ensemble, "predict_rewards")
    if head.kind != "reward":
        raise ConfigError(
            f"predict_rewards on members with {head.kind} heads; it needs a reward model: a sequence classifier of 1 label"
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
    return RewardPrediction(scores, tuple(str(number) for number in range(len(texts))))
