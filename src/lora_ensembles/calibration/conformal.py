"""Sets of answers that hold the right one with a stated probability: split conformal prediction.

Shapes: N examples, C options.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from ..checks import check_share
from ..errors import ConfigError, DataError, unknown_name
from ..prediction.prediction import Prediction
from .kinds import Method

PENALTY = 0.01
"""RAPS: added for each option beyond the first `FREE`."""
FREE = 2


@dataclass(frozen=True)
class ConformalSets:
    """A rule that gives each example the set of its options whose score is at most `threshold`.

    The set holds the right option with probability at least `coverage`, over the draw of the held-out
    examples and of the new one, if both are of one population; without ties at most 1 / (N + 1) above it.

    Attributes:
        method: "lac", "aps" or "raps".
        threshold: the largest score of an option in a set; infinite: every option.
        coverage: 1 - alpha, the probability that is promised.
        num_examples: N, the held-out examples.
    """

    method: Method
    threshold: float
    coverage: float
    num_examples: int

    def sets(self, prediction: Prediction) -> Tensor:
        """(N, C) bool: which options are in each example's set; none is possible, and says that no option is
        as probable as right ones usually are.

        Args:
            prediction: by the predictor that the threshold was made for.
        """
        return (option_scores(prediction, self.method) <= self.threshold) & prediction.present

    def __str__(self) -> str:
        return (
            f"sets of {self.method.upper()} that hold the right answer with probability {self.coverage:.4g}, "
            f"from {self.num_examples} held-out examples"
        )


def conformal_sets(held_out: Prediction, *, coverage: float = 0.9, method: Method = "lac") -> ConformalSets:
    """The rule with the k-th smallest score of the right options as threshold, k = ceil((N + 1) coverage).

    Args:
        held_out: a labelled prediction of examples that the predictor was not trained on, from the population
            that it will answer.
        coverage: 1 - alpha, in (0, 1).
        method: scores as in `option_scores`.

    Returns:
        The rule, which gives sets for other predictions of the same predictor.

    Raises:
        ConfigError: a coverage outside (0, 1), or an unknown method.
        DataError: the prediction is unlabelled, or has too few examples: N >= coverage / (1 - coverage).

    Example:
        >>> held_out = Prediction(
        ...     torch.tensor([[[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]]]).log(), torch.tensor([0, 0, 0])
        ... )
        >>> rule = conformal_sets(held_out, coverage=0.5)
        >>> rule.sets(Prediction(torch.tensor([[[0.85, 0.15], [0.5, 0.5]]]).log())).tolist()
        [[True, False], [False, False]]
    """
    check_share("coverage", coverage)
    targets = held_out.labelled_targets("conformal prediction")
    total = held_out.num_examples
    # Nine tenths in binary lie a hair above nine tenths: without the rounding 9 examples would be too few.
    rank = max(1, math.ceil(round((total + 1) * coverage, 9)))
    if rank > total:
        least = math.ceil(round(coverage / (1 - coverage), 9))
        raise DataError(
            f"{total} held-out examples are too few for sets that hold the right answer with probability "
            f"{coverage:g}; that takes {least} at least"
        )
    scores = option_scores(held_out, method).gather(1, targets[:, None])[:, 0]
    return ConformalSets(method, scores.sort().values[rank - 1].item(), coverage, total)


def option_scores(prediction: Prediction, method: Method) -> Tensor:
    """(N, C) float64 score of each option, higher where it fits less; infinite where an option is absent.

    LAC: -log p(c), which orders options and examples as 1 - p(c) does and keeps its digits near 1 (Sadinle et
    al. 2019, arXiv:1609.00451). APS: the sum of the probabilities of all options that are at least as
    probable, c's own included (Romano et al. 2020, arXiv:2006.02544), `Differs:` by no random part, so
    coverage lies above what is asked. RAPS: APS plus `PENALTY` for each option beyond the first `FREE`
    (Angelopoulos et al. 2021, arXiv:2009.14193).

    Raises:
        ConfigError: no such method.

    Example:
        >>> prediction = Prediction(torch.tensor([[[0.5, 0.3, 0.2]]]).log())
        >>> option_scores(prediction, "aps")
        tensor([[0.5000, 0.8000, 1.0000]], dtype=torch.float64)
    """
    if method not in get_args(Method):
        raise ConfigError(unknown_name("method", method, get_args(Method)))
    if method == "lac":
        return -prediction.log_probs.double()
    probs, order = prediction.probs.double().sort(dim=-1, descending=True)
    sums = probs.cumsum(dim=-1)
    if method == "raps":
        sums = sums + PENALTY * (torch.arange(1, sums.shape[1] + 1) - FREE).clamp_min(0)
    scores = torch.empty_like(sums).scatter(1, order, sums)
    return scores.masked_fill(~prediction.present, math.inf)
