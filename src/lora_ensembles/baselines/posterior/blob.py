"""BLoB: a Gaussian over every entry of A, trained by backpropagation with Flipout.

Shapes: M members, R rank, D features, P_a entries of a member's A matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from ...checks import number_between
from ...data import Example
from ...ensemble import LoraEnsemble
from ...stack.dropout import stream_key
from ...stack.sites import MemberWeights
from ...training.config import TrainConfig
from ...training.trainee import TrainResult
from .base import WeightPosterior
from .flat import member_of, normal_rows, scaling_of
from .flipout import perturbed
from .trainee import Family, fit


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
        self._family: _Entries | None = None
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
        """Train mu, rho and B, and draw the samples; see `train`.

        Raises:
            ConfigError, DataError, CheckpointError, TrainingError: as `train`.
        """
        config = config or TrainConfig()

        def family_of(inner: object) -> Family:
            weight = self.kl_weight / len(examples)
            self._family = _Entries(self.ensemble, prior=self.prior, spread=self.spread, kl_weight=weight)
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
        own = {name: flat[mode].cpu() for name, flat in self._family.buffers.items()}
        a = own["a"] + own["rho"].square() * torch.randn(own["a"].shape, generator=generator)
        flats = [a, own["b"], *([own["head"]] if "head" in own else [])]
        return member_of(self.ensemble.stack, flats, self._scaling[mode])

    @property
    def num_trained_parameters(self) -> int:
        stack = self.ensemble.stack
        return sum(buffer.shape[1] for buffer in stack.buffers) + stack.a.shape[1]


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
    """mu and rho of A (M, P_a), beside B and heads."""

    def __init__(self, ensemble: LoraEnsemble, *, prior: float, spread: float, kl_weight: float):
        stack = ensemble.stack
        self._stack, self._prior, self._kl_weight = stack, prior, kl_weight
        uniform = torch.stack(
            [
                torch.rand(stack.a.shape[1], generator=torch.Generator().manual_seed(seeds.init))
                for seeds in ensemble.info.seeds
            ]
        ).to(stack.a)
        low = spread / 2**0.5
        self.buffers = {
            "a": stack.a.detach().clone(),
            "b": stack.b.detach().clone(),
            "rho": low + (spread - low) * uniform,
        }
        self.decays = ("weight_decay_a", "weight_decay_b", None)
        if stack.heads.sites:
            self.buffers["head"] = stack.heads.flat.detach().clone()
            self.decays += ("weight_decay_head",)
        self._noise = torch.zeros_like(stack.a)
        self._keys: Sequence[int] = ()

    def place(self, weights: Sequence[Tensor], keys: Sequence[int] | None) -> None:
        weights[0].copy_(self.buffers["a"])
        weights[1].copy_(self.buffers["b"])
        if len(weights) > 2:
            weights[2].copy_(self.buffers["head"])
        if keys is not None:
            self._noise = normal_rows(keys, self.buffers["a"], name="A")
            self._keys = [stream_key(key, "signs") for key in keys]
            if self._gradient is not None:
                self._gradient.zero_()

    def around(self) -> AbstractContextManager[None]:
        return perturbed(self._stack, self.buffers["rho"].square() * self._noise, self._keys)

    @property
    def _gradient(self) -> Tensor | None:
        """Of the perturbation, (M, P_a); None before the first pass."""
        return getattr(self._stack, "perturbation_gradient", None)

    def carry_over(
        self, weights: Sequence[Tensor], gradients: Sequence[Tensor], totals: Sequence[Tensor]
    ) -> None:
        of_noise = self._gradient
        assert of_noise is not None
        of = dict(zip(self.buffers, totals, strict=True))
        mean, rho, kl = self.buffers["a"], self.buffers["rho"], self._kl_weight
        spread = rho.square()
        of["a"].add_(gradients[0] + kl * mean / self._prior**2)
        of_spread = of_noise * self._noise + kl * (spread / self._prior**2 - 1 / spread)
        of["rho"].add_(2 * rho * of_spread)
        of["b"].add_(gradients[1])
        if "head" in of:
            of["head"].add_(gradients[2])
