"""ScalaBL: a Gaussian over the R scales of each layer's A alone.

Shapes: M members, R rank, D features, K scales of a member (R of each layer), P parameters of a member.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...checks import number_between
from ...ensemble import LoraEnsemble
from ...stack.sites import MemberWeights
from .base import WeightPosterior
from .flat import normal_rows, rows_dotted, rows_scaled, uniform_rows
from .trainee import Family


class ScalaBL(WeightPosterior):
    """A = diag(s) V in every layer, with s ~ N(mu, sigma^2) of R dimensions, V and B trained as they are.

    mu = exp(log_mu) and sigma = exp(log_sigma) are trained by one draw a step (s = mu + sigma * noise) on the
    loss plus `kl_weight` / N times KL(N(mu, sigma^2) || N(0, `prior`^2)). V begins as the right singular
    vectors of PEFT's A, mu as its singular values, sigma between `spread` / sqrt(2) and `spread`. Source:
    Samplawski et al. 2025 (arXiv:2506.21408). `Differs:` one AdamW for all parameters, in place of a second
    optimiser for the divergence, which is the one from the posterior to the prior.

    Args:
        ensemble: M untrained members.
        samples: S.
        seed: of the samples.
        prior: standard deviation of the prior of a scale.
        spread: of the scales, at the start.
        kl_weight: of the divergence; 1: the evidence lower bound.

    Raises:
        ConfigError: a number out of its range.

    Example:
        >>> from lora_ensembles import LoraEnsemble, TrainConfig, load_base, load_task
        >>> task = load_task("world-cqa")
        >>> scales = ScalaBL(LoraEnsemble(*load_base(), num_members=1), samples=3)
        >>> trained = scales.fit(task.train[:64], TrainConfig(epochs=2, learning_rate=2e-3))
        >>> scales.member_log_probs(task.validation[:4]).shape
        torch.Size([3, 4, 5])
    """

    trained_by = ("prior", "spread", "kl_weight")

    def __init__(
        self,
        ensemble: LoraEnsemble,
        *,
        samples: int = 10,
        seed: int = 0,
        prior: float = 1.0,
        spread: float = 0.05,
        kl_weight: float = 1.0,
    ):
        super().__init__(ensemble, samples=samples, seed=seed)
        self.prior = number_between("prior", prior, above=0)
        self.spread = number_between("spread", spread, above=0)
        self.kl_weight = number_between("kl_weight", kl_weight, least=0)

    def family(self, rows: int) -> Family:
        return _Scales(self, kl_weight=self.kl_weight / rows)

    def sample(self, mode: int, generator: torch.Generator) -> MemberWeights:
        own = {name: flat[mode] for name, flat in self.trained.items()}
        mean, spread = own["log_mean"].exp(), own["log_spread"].exp()
        scales = mean + spread * torch.randn(mean.shape, generator=generator)
        a = rows_scaled(own["directions"][None], scales[None], self.ensemble.stack)
        return self.member_of(mode, own | {"a": a[0]})

    @property
    def num_trained_parameters(self) -> int:
        return super().num_trained_parameters + 2 * sum(site.rank for site in self.ensemble.stack.sites)


class _Scales(Family):
    """V (M, P_a), and the scales' means and spreads as logarithms, (M, K) each."""

    decays = ("weight_decay_a", None, None)

    def __init__(self, posterior: ScalaBL, *, kl_weight: float):
        stack = posterior.ensemble.stack
        self._stack, self._prior, self._kl_weight = stack, posterior.prior, kl_weight
        directions, means = torch.empty_like(stack.a), []
        for site in stack.sites:
            _, values, vectors = torch.linalg.svd(site.view_a(stack.a), full_matrices=False)
            site.view_a(directions).copy_(vectors)
            means.append(values)
        mean = torch.cat(means, dim=1)
        keys = [seeds.init for seeds in posterior.ensemble.info.seeds]
        low, high = posterior.spread / 2**0.5, posterior.spread
        spread = low + (high - low) * uniform_rows(keys, mean, name="spread")
        self.buffers = {"directions": directions, "log_mean": mean.log(), "log_spread": spread.log()}
        self._noise = torch.zeros_like(mean)

    def place(self, weights: Sequence[Tensor], keys: Sequence[int] | None) -> None:
        if keys is not None:
            self._noise = normal_rows(keys, self._noise, name="scales")
        scales = self._scales() if keys is not None else self.buffers["log_mean"].exp()
        weights[0].copy_(rows_scaled(self.buffers["directions"], scales, self._stack))

    def carry_over(self, gradients: Sequence[Tensor], totals: Sequence[Tensor]) -> None:
        mean, spread = self.buffers["log_mean"].exp(), self.buffers["log_spread"].exp()
        of_scales = rows_dotted(gradients[0], self.buffers["directions"], self._stack)
        kl, prior = self._kl_weight, self._prior**2
        totals[0].add_(rows_scaled(gradients[0], self._scales(), self._stack))
        totals[1].add_(mean * (of_scales + kl * mean / prior))
        totals[2].add_(spread * of_scales * self._noise + kl * (spread.square() / prior - 1))

    def _scales(self) -> Tensor:
        """The scales (M, K) of the step."""
        return self.buffers["log_mean"].exp() + self.buffers["log_spread"].exp() * self._noise
