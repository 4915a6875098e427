"""Answers that are seldom wrong: a threshold on an uncertainty score at which the error among the answered
examples is bounded, with a stated probability.

Shapes: N examples.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_share
from ..errors import ConfigError, DataError
from ..prediction.prediction import Prediction
from .kinds import Score
from .scores import uncertainty_score

MOST_EXAMPLES = 10**9  # that anyone holds out
STARTS = (0.0, 0.1, 0.25, 0.5, 0.75)
"""Shares of the held-out examples at which a sequence of tests begins; 0: as early as a test can succeed."""


@dataclass(frozen=True)
class RiskThreshold:
    """A rule that answers or abstains, and what is promised of it.

    An example is answered if its uncertainty score lies below `threshold`. With probability at least 1 -
    `delta` over the draw of the held-out examples, at most a share `risk` of the answers given are wrong, on
    examples of the same population.

    Attributes:
        score: "confidence" (its complement), "total_entropy", "expected_entropy", "mutual_information" or
            "disagreement".
        threshold: score from which on the rule abstains; infinite: everything is answered.
        risk: alpha, the largest share of wrong answers among those given.
        delta: probability that the promise fails.
        num_examples: N, the held-out examples.
        num_answered: how many of them are answered.
        num_wrong: how many of these answers are wrong.
    """

    score: Score
    threshold: float
    risk: float
    delta: float
    num_examples: int
    num_answered: int
    num_wrong: int

    def answered(self, prediction: Prediction) -> Tensor:
        """(N,) bool: which examples are answered; the others are left to somebody else.

        Args:
            prediction: by the predictor that the threshold was made for.
        """
        return uncertainty_score(prediction, self.score) < self.threshold

    @property
    def coverage(self) -> float:
        """The share of the held-out examples that is answered."""
        return self.num_answered / self.num_examples

    def __str__(self) -> str:
        return (
            f"at most {self.risk:.4g} of the answers wrong with probability {1 - self.delta:.4g}: of "
            f"{self.num_examples} held-out examples {self.num_answered} are answered ({self.coverage:.1%}), "
            f"{self.num_wrong} of them wrong"
        )


def risk_threshold(
    held_out: Prediction, *, risk: float, delta: float = 0.05, score: Score = "confidence"
) -> RiskThreshold:
    """The loosest threshold at which the error among answered examples is at most `risk`, with probability
    1 - `delta`.

    Learn then Test (Angelopoulos et al. 2021, arXiv:2110.01052) with the examples in order of their scores. A
    candidate answers what scores lower than one of the examples. Given that example's score, those below it
    are independent draws, so with m of them and w wrong, P(Bin(m, risk) <= w) is a p-value of "the error is
    above `risk`" (the bound of Clopper & Pearson). Candidates are tested one after the other towards more
    answers, until one fails, from five starts, each at level delta / 5, and the last that passed is taken.
    `Differs:` from a fixed grid of thresholds by these candidates, which lie where the examples are. The
    promise holds if, from a start on, the error passes `risk` once as more is answered.

    Args:
        held_out: a labelled prediction of examples that the predictor was not trained on, from the population
            that it will answer.
        risk: alpha, in (0, 1): the largest share of wrong answers among those given.
        delta: in (0, 1): the probability that the promise may fail.
        score: by which an answer is given or not; see `RiskThreshold`.

    Returns:
        The rule, with the numbers it rests on.

    Raises:
        ConfigError: a number outside its range, or an unknown score.
        DataError: the prediction is unlabelled; there are too few examples for any threshold; or none of them
            keeps the promise.

    Example:
        >>> sure = torch.linspace(0.5, 0.99, 400)
        >>> prediction = Prediction(
        ...     torch.stack([sure, 1 - sure], dim=1).log()[None],
        ...     targets=(torch.arange(400) % 2 == 0).where(sure < 0.7, torch.tensor(False)).long(),
        ... )  # half of the answers below 0.7 are wrong, none above
        >>> rule = risk_threshold(prediction, risk=0.05)
        >>> 0.5 < rule.coverage < 0.7, rule.num_wrong / rule.num_answered < 0.05
        (True, True)
    """
    check_share("risk", risk)
    check_share("delta", delta)
    targets = held_out.labelled_targets("a risk threshold")
    values, order = uncertainty_score(held_out, score).sort()
    wrong = (held_out.choices != targets)[order].long()
    total = len(values)
    first = fewest_examples(risk, delta)
    if total < first:
        raise DataError(
            f"{total} held-out examples cannot show that at most {risk:g} of the answers are wrong with "
            f"probability {1 - delta:g}, even if all are right; that takes {first} at least, and more where "
            "some answers are wrong"
        )
    thresholds, counts = _candidates(values)
    errors = torch.cat([torch.zeros(1, dtype=torch.long), wrong.cumsum(0)])[counts]
    passed = errors <= most_errors(total, risk, delta / len(STARTS))[counts]
    best = -1
    for share in STARTS:
        start = int(torch.searchsorted(counts, max(first, math.ceil(share * total))))
        failed = (~passed[start:]).nonzero()
        last = (start + int(failed[0]) if len(failed) else len(passed)) - 1
        best = max(best, last if last >= start else -1)
    if best < 0:
        enough = counts >= first
        seen = (errors[enough] / counts[enough]).min().item()
        raise DataError(
            f"no threshold of {score} keeps the share of wrong answers at or below {risk:g} with probability "
            f"{1 - delta:g} on {total} held-out examples: the share seen on the most certain ones is "
            f"{seen:.3g} at its lowest; allow a higher risk, or hold out more examples"
        )
    return RiskThreshold(
        score, thresholds[best].item(), risk, delta, total, int(counts[best]), int(errors[best])
    )


def _candidates(values: Tensor) -> tuple[Tensor, Tensor]:
    """Thresholds, each of the sorted scores once and infinity, and how many scores lie below each."""
    distinct, sizes = torch.unique_consecutive(values, return_counts=True)
    counts = torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)])
    return torch.cat([distinct, torch.tensor([math.inf], dtype=values.dtype)]), counts


def fewest_examples(risk: float, delta: float) -> int:
    """The least number of right answers, without a wrong one, that shows an error of at most `risk`.

    (1 - risk)^n <= delta / 5 for the five starts.

    Raises:
        ConfigError: a risk so low that it is more than `MOST_EXAMPLES`.

    Example:
        >>> fewest_examples(0.05, 0.05), fewest_examples(0.1, 0.1)
        (90, 38)
    """
    count = math.log(delta / len(STARTS)) / math.log1p(-risk)
    if not count < MOST_EXAMPLES:
        raise ConfigError(
            f"risk={risk}: no number of held-out examples shows an error that low; allow a higher risk"
        )
    return math.ceil(count)


@functools.lru_cache(maxsize=8)
def most_errors(total: int, risk: float, level: float) -> Tensor:
    """(total + 1,) int64: of n = 0, 1, ..., total answers, the most wrong ones that show an error of at most
    `risk` at this level, the largest k with P(Bin(n, risk) <= k) <= level; -1 where none do.

    From n to n + 1 the probability falls by risk * P(Bin(n, risk) = k), and k grows by one at most.

    Example:
        >>> most_errors(5, 0.5, 0.1)  # no error in four answers: 1/16; one in five: 6/32
        tensor([-1, -1, -1, -1,  0,  0])
    """
    most = torch.empty(total + 1, dtype=torch.long)
    k, cumulative, mass = 0, 1.0, 1.0  # the next k to be reached, P(Bin <= k) and P(Bin = k)
    for n in range(total + 1):
        while cumulative <= level:
            mass *= (n - k) / (k + 1) * risk / (1 - risk)
            k, cumulative = k + 1, cumulative + mass
        most[n] = k - 1
        cumulative -= risk * mass
        mass *= (1 - risk) * (n + 1) / (n + 1 - k)
    return most
