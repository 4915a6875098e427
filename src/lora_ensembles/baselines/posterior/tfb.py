"""TFB, a posterior without training: noise on a trained adapter, as large as the training loss bears.

Shapes: M members, S samples, R rank, D features, N examples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...checks import number_between, whole_number
from ...data import Example
from ...ensemble import LoraEnsemble
from ...prediction.prediction import predict
from ...stack.sites import MemberWeights
from ...training.config import TrainConfig
from ...training.loop import Examples as Rows
from ...training.trainee import TrainResult
from .base import WeightPosterior

LEAST = 1e-6  # beside a singular value of B: a direction that B does not use bears no noise without bound


class TFB(WeightPosterior):
    """A Gaussian around each trained member, by the largest spread within a tolerance of its training loss.

    With the singular values B = U diag(s) V', the adapter is written as B' = U diag(s), A' = V' A, which
    computes the same; row i of A' gets noise of standard deviation beta / s_i. Then the noise of B' A' has
    the standard deviation beta in every direction of B's columns. `fit` finds beta by bisection: the largest
    one in [0, `largest`] at which the negative log-likelihood of the mean probabilities of S samples on the
    examples is at most (1 + `tolerance`) times the trained member's own. Source: Shi et al. 2024
    (arXiv:2412.05723), Eq. 5 and Alg. 1. `Differs:` each member of an ensemble has a beta of its own; the
    tolerance is relative to the loss and not divided by the number of examples; likelihoods of the given
    answers, not of the member's own predictions.

    Args:
        ensemble: trained members.
        samples: S.
        seed: of the samples.
        tolerance: largest relative rise of the training loss.
        largest: of beta.
        steps: of the bisection; each asks all samples for the examples once.

    Raises:
        ConfigError: a number out of its range.

    Example:
        >>> from lora_ensembles import LoraEnsemble, TrainConfig, load_base, load_task, train
        >>> task = load_task("world-cqa")
        >>> ensemble = LoraEnsemble(*load_base(), num_members=1)
        >>> _ = train(ensemble, task.train[:64], TrainConfig(epochs=2, learning_rate=2e-3), progress=False)
        >>> tfb = TFB(ensemble, samples=4)
        >>> _ = tfb.fit(task.train[:32])
        >>> tfb.member_log_probs(task.validation[:3]).shape
        torch.Size([4, 3, 5])
    """

    def __init__(
        self,
        ensemble: LoraEnsemble,
        *,
        samples: int = 10,
        seed: int = 0,
        tolerance: float = 0.01,
        largest: float = 1.0,
        steps: int = 8,
    ):
        super().__init__(ensemble, samples=samples, seed=seed)
        self.tolerance = number_between("tolerance", tolerance, above=0)
        self.largest = number_between("largest", largest, above=0)
        self.steps = whole_number("steps", steps)
        self.betas: list[float] = []
        self._split: list[tuple[MemberWeights, dict[str, Tensor]]] = []

    def trainee(self, examples: Rows, config: TrainConfig) -> None:
        return None

    def take(self, result: TrainResult, examples: Rows) -> None:
        questions = [example for example in examples if isinstance(example, Example)]
        members = [self.ensemble.stack.member(index) for index in range(self.num_modes)]
        self._split = [split_by_singular_values(member) for member in members]
        with self.ensemble.keeping_states():
            self.betas = self._largest_within(questions)

    def _largest_within(self, questions: Sequence[Example]) -> list[float]:
        allowed = (1 + self.tolerance) * self._losses(questions, per=1)
        low, high = torch.zeros(self.num_modes), torch.full((self.num_modes,), self.largest)
        for _ in range(self.steps):
            middle = (low + high) / 2
            self.betas = middle.tolist()
            self.resample()
            within = self._losses(questions, per=self.samples) <= allowed
            low, high = torch.where(within, middle, low), torch.where(within, high, middle)
        return low.tolist()

    def sample(self, mode: int, generator: torch.Generator) -> MemberWeights:
        member, values = self._split[mode]
        beta = self.betas[mode]
        noisy = {
            name: a + beta / (values[name] + LEAST)[:, None] * torch.randn(a.shape, generator=generator)
            for name, a in member.a.items()
        }
        return MemberWeights(noisy, member.b, member.scaling, member.head)

    def _losses(self, examples: Sequence[Example], *, per: int) -> Tensor:
        """The negative log-likelihood (M,) of the answers, by the mean probability of `per` members each."""
        prediction = predict(self.ensemble, examples)
        rows = torch.arange(prediction.num_examples)
        chosen = prediction.member_log_probs[:, rows, prediction.labelled_targets("TFB")]
        mean = chosen.view(-1, per, len(rows)).logsumexp(dim=1) - torch.tensor(float(per)).log()
        return -mean.mean(dim=1)


def split_by_singular_values(member: MemberWeights) -> tuple[MemberWeights, dict[str, Tensor]]:
    """An equal member whose B has orthogonal columns, and their lengths (R,), the singular values, by layer.

    Example:
        >>> b, a = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.eye(2)
        >>> split, values = split_by_singular_values(MemberWeights({"q": a}, {"q": b}, {"q": 1.0}))
        >>> values["q"].tolist(), torch.allclose(split.b["q"] @ split.a["q"], b @ a)
        ([3.0, 1.0], True)
    """
    a, b, values = {}, {}, {}
    for name, matrix in member.b.items():
        left, values[name], right = torch.linalg.svd(matrix, full_matrices=False)
        b[name] = (left * values[name]).contiguous()
        a[name] = (right @ member.a[name]).contiguous()
    return MemberWeights(a, b, member.scaling, member.head), values
