"""Log-probabilities of given answers, and what they say of the ensemble and of its single members: how well
answers are foreseen.

Shapes: M members, N examples, K answer tokens of a row.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property

from torch import Tensor

from ..errors import ConfigError
from .metrics import MemberSpread


@dataclass(frozen=True, eq=False)
class CompletionScores:
    """The members' log-probabilities of each token of N given answers, on the CPU in float32.

    Attributes:
        member_log_probs: (M, N, K) log p of each answer token, given the prompt and the answer's earlier
            tokens; 0 where there is none.
        counted: (N, K) bool, true where an answer has a token; its end-of-sequence token is one of them.
        ids: the N examples' identifiers, in row order.

    Example:
        >>> import torch
        >>> log_probs = torch.tensor([[[0.5, 0.5]], [[0.25, 1.0]]]).log()
        >>> scores = CompletionScores(log_probs, torch.tensor([[True, True]]), ("q1",))
        >>> scores.log_probs.exp()  # the mean of the members' probabilities at each step
        tensor([[0.3750, 0.7500]])
    """

    member_log_probs: Tensor
    counted: Tensor
    ids: tuple[str, ...] = field(default=())

    @property
    def num_members(self) -> int:
        """M, the number of members."""
        return self.member_log_probs.shape[0]

    @property
    def num_examples(self) -> int:
        """N, the number of examples."""
        return self.member_log_probs.shape[1]

    @property
    def num_tokens(self) -> int:
        """The number of tokens of all answers together."""
        return int(self.counted.sum())

    @cached_property
    def log_probs(self) -> Tensor:
        """(N, K) float32 log of the mean of the members' probabilities of each token (Eq. 2 of
        arXiv:2310.00035 at each step).
        """
        mean = self.member_log_probs.double().logsumexp(dim=0) - math.log(self.num_members)
        return mean.clamp_max(0.0).float().masked_fill(~self.counted, 0.0)

    def member(self, index: int) -> CompletionScores:
        """The scores of one member alone (M = 1).

        Raises:
            ConfigError: no such member.
        """
        if index not in range(self.num_members):
            raise ConfigError(f"no member {index}; there are members 0 to {self.num_members - 1}")
        return CompletionScores(self.member_log_probs[index : index + 1], self.counted, self.ids)

    def take(self, rows: Tensor) -> CompletionScores:
        """The scores of some of the examples, in the order of `rows`, an int64 tensor of row numbers that may
        repeat.
        """
        taken = copy.copy(self)
        vars(
            taken
        ).update(  # past the constructor, with the mean taken along: a bootstrap does this a thousand times
            member_log_probs=self.member_log_probs[:, rows],
            counted=self.counted[rows],
            ids=tuple(self.ids[row] for row in rows.tolist()) if self.ids else (),
            log_probs=self.log_probs[rows],
        )
        return taken


@dataclass(frozen=True)
class CompletionMetrics:
    """Metrics of how well given answers are foreseen; lower is better.

    Attributes:
        num_members, num_examples, num_tokens: of what was measured; an answer's end-of-sequence token counts.
        nll: -log p(answer | prompt), the sum over its tokens, mean over the answers, in nats.
        nll_per_token: the same sum over all answers, per token, in nats.
        perplexity: exp(nll_per_token).
    """

    num_members: int
    num_examples: int
    num_tokens: int
    nll: float
    nll_per_token: float
    perplexity: float

    def to_dict(self) -> dict[str, int | float]:
        """The fields as a dictionary."""
        return asdict(self)


def evaluate_completions(scores: CompletionScores) -> CompletionMetrics:
    """Negative log-likelihood and perplexity of the ensemble: the mean of the members' probabilities at each
    step.

    Example:
        >>> import torch
        >>> log_probs = torch.tensor([[[0.5, 0.5]], [[0.5, 0.5]]]).log()
        >>> scores = CompletionScores(log_probs, torch.tensor([[True, True]]))
        >>> evaluate_completions(scores).nll, evaluate_completions(scores).perplexity
        (1.3862943649291992, 2.0)
    """
    return CompletionMetrics(
        scores.num_members,
        scores.num_examples,
        scores.num_tokens,
        answer_nll(scores),
        answer_nll_per_token(scores),
        answer_perplexity(scores),
    )


def answer_nll(scores: CompletionScores) -> float:
    """-log p(answer | prompt), the sum over its tokens, mean over the answers, in nats."""
    return nll_of_each_answer(scores).mean().item() + 0.0  # + 0.0 makes -0.0 a plain zero


def answer_nll_per_token(scores: CompletionScores) -> float:
    """The sum of -log p over all tokens of all answers, per token, in nats."""
    return nll_of_each_answer(scores).sum().item() / scores.num_tokens + 0.0


def answer_perplexity(scores: CompletionScores) -> float:
    """exp of the negative log-likelihood per token; inf beyond what a float holds."""
    return exp_or_inf(answer_nll_per_token(scores))


def nll_of_each_answer(scores: CompletionScores) -> Tensor:
    """-log p of each answer (N,), the sum over its tokens, in nats, float64."""
    return -scores.log_probs.double().sum(-1)


def exp_or_inf(value: float) -> float:
    """exp, inf where it would overflow."""
    return math.exp(value) if value < 700 else math.inf


METRICS: dict[str, Callable[[CompletionScores], float]] = {
    "nll": answer_nll,
    "nll_per_token": answer_nll_per_token,
    "perplexity": answer_perplexity,
}


def evaluate_completion_members(scores: CompletionScores) -> dict[str, MemberSpread]:
    """`evaluate_completions` of every member on its own, by metric name.

    Example:
        >>> import torch
        >>> scores = CompletionScores(torch.tensor([[[0.5]], [[0.25]]]).log(), torch.tensor([[True]]))
        >>> print(evaluate_completion_members(scores)["perplexity"])
        3.0000 ± 1.4142
    """
    single = [evaluate_completions(scores.member(m)) for m in range(scores.num_members)]
    return {name: MemberSpread(tuple(getattr(metrics, name) for metrics in single)) for name in METRICS}
