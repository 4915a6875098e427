"""Rewards of texts by the members of a reward model, and how far they disagree.

Shapes: M members, N texts.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from ..errors import ConfigError


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

    def centred(self, groups: Sequence[Hashable] = ()) -> RewardPrediction:
        """The same with each member's mean over these texts at 0; of N texts in groups, such as those that
        answer one prompt, over the texts of each group.

        Example:
            >>> rewards = RewardPrediction(torch.tensor([[1.0, 3.0, 7.0]]))
            >>> rewards.centred(["a", "a", "b"]).member_scores.tolist()
            [[-1.0, 1.0, 0.0]]
        """
        rows: dict[Hashable, list[int]] = {}
        for row, group in enumerate(groups or [None] * self.member_scores.shape[1]):
            rows.setdefault(group, []).append(row)
        scores = self.member_scores.clone()
        for own in rows.values():
            scores[:, own] -= scores[:, own].mean(dim=1, keepdim=True)
        return RewardPrediction(scores, self.ids)


@dataclass(frozen=True)
class RewardMetrics:
    """The members' agreement on N texts; rewards have no labels, and their scale is each member's own.

    Attributes:
        std: mean over texts of the standard deviation over members, their means over the texts at 0.
        correlation: mean over pairs of members of Pearson's correlation over texts, -1 to 1; None where a
            member gives all texts one score, and for one member or one text.
    """

    num_members: int
    num_texts: int
    std: float
    correlation: float | None

    def to_dict(self) -> dict[str, int | float | None]:
        """The fields as a dictionary that `json.dumps` takes."""
        return asdict(self)


def evaluate_rewards(rewards: RewardPrediction) -> RewardMetrics:
    """The members' agreement on the texts.

    Example:
        >>> evaluate_rewards(RewardPrediction(torch.tensor([[1.0, 3.0], [2.0, 6.0]])))
        RewardMetrics(num_members=2, num_texts=2, std=0.5, correlation=1.0)
    """
    members, texts = rewards.member_scores.shape
    centred = rewards.centred()
    unit = centred.member_scores.double() / centred.member_scores.double().norm(dim=1, keepdim=True)
    pairs = torch.triu_indices(members, members, offset=1)
    correlation = (unit @ unit.T)[pairs[0], pairs[1]].mean().item()
    return RewardMetrics(
        members,
        texts,
        centred.std.mean().item(),
        None if correlation != correlation else round(correlation, 9),
    )
