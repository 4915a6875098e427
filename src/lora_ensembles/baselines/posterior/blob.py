"""BLoB: a Gaussian over every entry of A, trained by backpropagation with Flipout.

Shapes: M members, R rank, D features, P_a entries of a member's A matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ...checks import number_between
from ...ensemble import LoraEnsemble
from ...stack.dropout import stream_key
from ...stack.sites import MemberWeights
from .base import WeightPosterior
from .flat import normal_rows, uniform_rows
from .flipout import perturbed
from .trainee import Family


class BLoB(WeightPosterior):
    """q(A) = N(mu, sigma^2) with sigma = rho^2 in every entry, B trained as it is.

    Each step draws sigma * noise once for a member, and gives it random signs for every token's features and
    ranks (Flipout), so that rows do not share their noise. The loss is that of the rows plus `kl_weight` / N
    times KL(q || N(0, `prior`^2)), whose gradients are mu / prior^2 and sigma / prior^2 - 1 / sigma. rho
    begins between `spread` / sqrt(2) and `spread`. Source: Wang et al. 2024 (arXiv:2406.11675), Eq. 6 to 11;
    Flipout from arXiv:1803.04386. `Differs:` one AdamW for all parameters, where the authors have a second
    optimiser for the divergence, and the weight 1 / N of the evidence lower bound of a mean loss.

    Args:
        ensemble: M untrained members.
        samples: S.
        seed: of the samples.
        prior: standard deviation of the prior of an entry of A.
        spread: of rho, at the start.
        kl_weight: of the divergence; 1: the evidence lower bound.

    Raises:
        ConfigError: a number out of its range.

    Example:
        >>> from lora_ensembles import LoraEnsemble, TrainConfig, load_base, load_task
        >>> task = load_task("world-cqa")
        >>> blob = BLoB(LoraEnsemble(*load_base(), num_members=1), samples=3)
        >>> trained = blob.fit(task.train[:64], TrainConfig(epochs=2, learning_rate=2e-3))
        >>> blob.member_log_probs(task.validation[:4]).shape
        torch.Size([3, 4, 5])
    """

    trained_by = ("prior", "spread", "kl_weight")

    def __init__(
        self,
        ensemble: LoraEnsemble,
        *,
        samples: int = 10,
        seed: int = 0,
        prior: float = 0.2,
        spread: float = 0.05,
        kl_weight: float = 1.0,
    ):
        super().__init__(ensemble, samples=samples, seed=seed)
        self.prior = number_between("prior", prior, above=0)
        self.spread = number_between("spread", spread, above=0)
        self.kl_weight = number_between("kl_weight", kl_weight, least=0)

    def family(self, rows: int) -> Family:
        return _Entries(self, kl_weight=self.kl_weight / rows)

    def sample(self, mode: int, generator: torch.Generator) -> MemberWeights:
        own = {name: flat[mode] for name, flat in self.trained.items()}
        noise = torch.randn(own["mean"].shape, generator=generator)
        return self.member_of(mode, own | {"a": own["mean"] + own["rho"].square() * noise})

    @property
    def num_trained_parameters(self) -> int:
        return super().num_trained_parameters + self.ensemble.stack.a.shape[1]


def gaussian_kl(mean: Tensor, spread: Tensor, prior: float) -> Tensor:
    """KL(N(mean, spread^2) || N(0, prior^2)) in nats, summed over the last axis.

    log(prior / spread) + (spread^2 + mean^2) / (2 prior^2) - 1/2 for each entry.

    Example:
        >>> gaussian_kl(torch.zeros(3), torch.full((3,), 0.2), 0.2)
        tensor(0.)
    """
    terms = (prior / spread).log() + (spread.square() + mean.square()) / (2 * prior**2) - 0.5
    return terms.sum(dim=-1)


class _Entries(Family):
    """mu and rho of A, (M, P_a) each."""

    decays = ("weight_decay_a", None)

    def __init__(self, posterior: BLoB, *, kl_weight: float):
        stack = posterior.ensemble.stack
        self._stack, self._prior, self._kl_weight = stack, posterior.prior, kl_weight
        keys = [seeds.init for seeds in posterior.ensemble.info.seeds]
        low, high = posterior.spread / 2**0.5, posterior.spread
        rho = low + (high - low) * uniform_rows(keys, stack.a, name="rho")
        self.buffers = {"mean": stack.a.detach().clone(), "rho": rho}
        self._noise, self._of_noise = torch.zeros_like(rho), torch.zeros_like(rho)
        self._keys: Sequence[int] = ()

    def place(self, weights: Sequence[Tensor], keys: Sequence[int] | None) -> None:
        weights[0].copy_(self.buffers["mean"])
        if keys is not None:
            self._noise = normal_rows(keys, self._noise, name="A")
            self._keys = [stream_key(key, "signs") for key in keys]
            self._of_noise.zero_()

    def around(self) -> AbstractContextManager[None]:
        noise = self.buffers["rho"].square() * self._noise
        return perturbed(self._stack, noise, self._keys, gradient=self._of_noise)

    def carry_over(self, gradients: Sequence[Tensor], totals: Sequence[Tensor]) -> None:
        mean, rho, kl = self.buffers["mean"], self.buffers["rho"], self._kl_weight
        spread = rho.square()
        of_spread = self._of_noise * self._noise + kl * (spread / self._prior**2 - 1 / spread)
        totals[0].add_(gradients[0] + kl * mean / self._prior**2)
        totals[1].add_(2 * rho * of_spread)
