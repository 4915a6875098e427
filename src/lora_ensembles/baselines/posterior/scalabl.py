"""ScalaBL: a Gaussian over the R scales of each layer's A alone.

Shapes: M members, R rank, D features, K scales of a member (R of each layer), P parameters of a member.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...checks import number_between
from ...data import Example
from ...ensemble import LoraEnsemble
from ...stack.buffers import AdapterStack
from ...stack.sites import MemberWeights
from ...training.config import TrainConfig
from ...training.trainee import TrainResult
from .base import WeightPosterior
from .flat import member_of, normal_rows, rank_starts, scaling_of
from .trainee import Family, fit


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
        self._family: _Scales | None = None
        self._scaling = [scaling_of(ensemble.stack, mode) for mode in range(self.num_modes)]

    def fit(
        self,
        examples: Sequence[Example],
        config: TrainConfig | None = None,
        *,
        validation: Sequence[Example] = (),
        out: str | Path | None = None,
        resume: bool = False,
        progress: bool = False,
    ) -> TrainResult:
        """Train scales, V and B, and draw the samples; see `train`.

        Raises:
            ConfigError, DataError, CheckpointError, TrainingError: as `train`.
        """
        config = config or TrainConfig()

        def family_of(inner: object) -> Family:
            weight = self.kl_weight / len(examples)
            self._family = _Scales(self.ensemble, prior=self.prior, spread=self.spread, kl_weight=weight)
            return self._family

        result = fit(
            self.ensemble,
            examples,
            config,
            family_of,
            validation=validation,
            out=out,
            resume=resume,
            progress=progress,
        )
        self._samples_drawn()
        return result

    def sample(self, mode: int, generator: torch.Generator) -> MemberWeights:
        assert self._family is not None
        buffers = self._family.buffers
        mean, spread = buffers["log_mean"][mode].exp(), buffers["log_spread"][mode].exp()
        scales = mean.cpu() + spread.cpu() * torch.randn(mean.shape, generator=generator)
        stack = self.ensemble.stack
        directions = buffers["directions"][mode].cpu()
        a = scaled(directions[None], scales[None], stack)[0]
        flats = [a, buffers["b"][mode], *([buffers["head"][mode]] if "head" in buffers else [])]
        return member_of(stack, flats, self._scaling[mode])

    @property
    def num_trained_parameters(self) -> int:
        stack = self.ensemble.stack
        return sum(buffer.shape[1] for buffer in stack.buffers) + 2 * sum(site.rank for site in stack.sites)


def scaled(directions: Tensor, scales: Tensor, stack: AdapterStack) -> Tensor:
    """Flat A (M, P_a) of flat V (M, P_a) and the scales (M, K) of its rows."""
    a = torch.empty_like(directions)
    for site, ranks in zip(stack.sites, rank_starts(stack.sites), strict=True):
        torch.mul(site.view_a(directions), scales[:, ranks, None], out=site.view_a(a))
    return a


class _Scales(Family):
    """Scales' means and spreads, as logarithms (M, K), beside V, B and heads."""

    def __init__(self, ensemble: LoraEnsemble, *, prior: float, spread: float, kl_weight: float):
        stack = ensemble.stack
        self._stack, self._prior, self._kl_weight = stack, prior, kl_weight
        directions = torch.empty_like(stack.a)
        ranks = rank_starts(stack.sites)
        means = stack.a.new_empty(len(stack.a), ranks[-1].stop)
        for site, place in zip(stack.sites, ranks, strict=True):
            _, values, vectors = torch.linalg.svd(site.view_a(stack.a), full_matrices=False)
            site.view_a(directions).copy_(vectors)
            means[:, place] = values
        uniform = torch.stack(
            [
                torch.rand(means.shape[1], generator=torch.Generator().manual_seed(seeds.init))
                for seeds in ensemble.info.seeds
            ]
        ).to(means)
        low = spread / 2**0.5
        self.buffers = {
            "directions": directions,
            "b": stack.b.detach().clone(),
            "log_mean": means.log(),
            "log_spread": (low + (spread - low) * uniform).log(),
        }
        self.decays = ("weight_decay_a", "weight_decay_b", None, None)
        if stack.heads.sites:
            self.buffers["head"] = stack.heads.flat.detach().clone()
            self.decays += ("weight_decay_head",)
        self._noise = torch.zeros_like(means)

    def place(self, weights: Sequence[Tensor], keys: Sequence[int] | None) -> None:
        mean, spread = self.buffers["log_mean"].exp(), self.buffers["log_spread"].exp()
        if keys is not None:
            self._noise = normal_rows(keys, mean, name="scales")
            mean = mean + spread * self._noise
        weights[0].copy_(scaled(self.buffers["directions"], mean, self._stack))
        weights[1].copy_(self.buffers["b"])
        if len(weights) > 2:
            weights[2].copy_(self.buffers["head"])

    def carry_over(
        self, weights: Sequence[Tensor], gradients: Sequence[Tensor], totals: Sequence[Tensor]
    ) -> None:
        of = dict(zip(self.buffers, totals, strict=True))
        mean, spread = self.buffers["log_mean"].exp(), self.buffers["log_spread"].exp()
        scales, of_scales = mean + spread * self._noise, torch.empty_like(mean)
        for site, ranks in zip(self._stack.sites, rank_starts(self._stack.sites), strict=True):
            gradient, directions = site.view_a(gradients[0]), site.view_a(self.buffers["directions"])
            site.view_a(of["directions"]).add_(gradient * scales[:, ranks, None])
            of_scales[:, ranks] = (gradient * directions).sum(dim=-1)
        kl, prior = self._kl_weight, self._prior**2
        of["log_mean"].add_(mean * (of_scales + kl * mean / prior))
        of["log_spread"].add_(spread * of_scales * self._noise + kl * (spread.square() / prior - 1))
        of["b"].add_(gradients[1])
        if "head" in of:
            of["head"].add_(gradients[2])
