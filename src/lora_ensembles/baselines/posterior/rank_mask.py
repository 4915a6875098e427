"""A Bernoulli mask on the ranks of each layer: which of the R rank-one parts are there is uncertain.

Shapes: M members, R rank, D features, K ranks of a member in all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...checks import number_between
from ...data import Example
from ...ensemble import LoraEnsemble
from ...stack.sites import MemberWeights
from ...training.config import TrainConfig
from ...training.trainee import TrainResult
from .base import WeightPosterior
from .flat import member_of, rank_starts, scaling_of
from .scalabl import scaled
from .trainee import Family, fit


class RankMask(WeightPosterior):
    """q(z) = product of Bernoulli(pi_k) over the ranks; the adapter is B diag(z) A.

    The loss is that of the rows plus `kl_weight` / N times KL(q || Bernoulli(`prior`)), which is exact. In
    training z is relaxed: z = sigmoid((logit pi + log u - log(1 - u)) / `temperature`) with one uniform u for
    each rank and step (the Gumbel-softmax of two classes). Samples have masks of zeros and ones. Source:
    Zhang et al. 2026 (arXiv:2607.02182), read from its abstract. `Differs:` where the paper says more than
    that.

    Args:
        ensemble: M untrained members.
        samples: S.
        seed: of the samples.
        prior: probability of a rank under the prior.
        keep: pi at the start.
        temperature: of the relaxation.
        kl_weight: of the divergence; 1: the evidence lower bound.

    Raises:
        ConfigError: a number out of its range.

    Example:
        >>> from lora_ensembles import LoraEnsemble, TrainConfig, load_base, load_task
        >>> task = load_task("world-cqa")
        >>> masks = RankMask(LoraEnsemble(*load_base(), num_members=1), samples=3)
        >>> trained = masks.fit(task.train[:64], TrainConfig(epochs=2, learning_rate=2e-3))
        >>> masks.member_log_probs(task.validation[:4]).shape
        torch.Size([3, 4, 5])
    """

    def __init__(
        self,
        ensemble: LoraEnsemble,
        *,
        samples: int = 10,
        seed: int = 0,
        prior: float = 0.5,
        keep: float = 0.9,
        temperature: float = 0.5,
        kl_weight: float = 1.0,
    ):
        super().__init__(ensemble, samples=samples, seed=seed)
        self.prior = number_between("prior", prior, above=0, below=1)
        self.keep = number_between("keep", keep, above=0, below=1)
        self.temperature = number_between("temperature", temperature, above=0)
        self.kl_weight = number_between("kl_weight", kl_weight, least=0)
        self._family: _Masks | None = None
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
        """Train pi, A and B, and draw the samples; see `train`.

        Raises:
            ConfigError, DataError, CheckpointError, TrainingError: as `train`.
        """
        config = config or TrainConfig()

        def family_of(inner: object) -> Family:
            self._family = _Masks(self, kl_weight=self.kl_weight / len(examples))
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
        mask = (torch.rand(own["logits"].shape, generator=generator) < own["logits"].sigmoid()).float()
        a = scaled(own["a"][None], mask[None], self.ensemble.stack)[0]
        flats = [a, own["b"], *([own["head"]] if "head" in own else [])]
        return member_of(self.ensemble.stack, flats, self._scaling[mode])

    @property
    def num_trained_parameters(self) -> int:
        stack = self.ensemble.stack
        return sum(buffer.shape[1] for buffer in stack.buffers) + sum(site.rank for site in stack.sites)


def bernoulli_kl(logits: Tensor, prior: float) -> Tensor:
    """KL(Bernoulli(sigmoid(logits)) || Bernoulli(prior)) in nats, summed over the last axis.

    Example:
        >>> bernoulli_kl(torch.zeros(3), 0.5)
        tensor(0.)
    """
    keep = logits.sigmoid()
    log_keep, log_drop = torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)
    of_prior = torch.tensor(prior)
    terms = keep * (log_keep - of_prior.log()) + (1 - keep) * (log_drop - (1 - of_prior).log())
    return terms.sum(dim=-1)


class _Masks(Family):
    """pi as logits (M, K), beside A, B and heads."""

    def __init__(self, posterior: RankMask, *, kl_weight: float):
        stack = posterior.ensemble.stack
        self._stack, self._temperature, self._kl_weight = stack, posterior.temperature, kl_weight
        self._prior = torch.tensor(posterior.prior)
        count = rank_starts(stack.sites)[-1].stop
        start = torch.tensor(posterior.keep).logit()
        self.buffers = {
            "a": stack.a.detach().clone(),
            "b": stack.b.detach().clone(),
            "logits": start.to(stack.a).expand(len(stack.a), count).clone(),
        }
        self.decays = ("weight_decay_a", "weight_decay_b", None)
        if stack.heads.sites:
            self.buffers["head"] = stack.heads.flat.detach().clone()
            self.decays += ("weight_decay_head",)
        self._mask = torch.ones_like(self.buffers["logits"])

    def place(self, weights: Sequence[Tensor], keys: Sequence[int] | None) -> None:
        logits = self.buffers["logits"]
        if keys is None:
            self._mask = logits.sigmoid()
        else:
            uniform = torch.stack(
                [torch.rand(logits.shape[1], generator=torch.Generator().manual_seed(key)) for key in keys]
            ).clamp(1e-6, 1 - 1e-6)
            self._mask = ((logits + uniform.logit().to(logits)) / self._temperature).sigmoid()
        weights[0].copy_(scaled(self.buffers["a"], self._mask, self._stack))
        weights[1].copy_(self.buffers["b"])
        if len(weights) > 2:
            weights[2].copy_(self.buffers["head"])

    def carry_over(
        self, weights: Sequence[Tensor], gradients: Sequence[Tensor], totals: Sequence[Tensor]
    ) -> None:
        of = dict(zip(self.buffers, totals, strict=True))
        of_mask = torch.empty_like(self._mask)
        for site, ranks in zip(self._stack.sites, rank_starts(self._stack.sites), strict=True):
            gradient = site.view_a(gradients[0])
            site.view_a(of["a"]).add_(gradient * self._mask[:, ranks, None])
            of_mask[:, ranks] = (gradient * site.view_a(self.buffers["a"])).sum(dim=-1)
        logits = self.buffers["logits"]
        keep = logits.sigmoid()
        relaxed = of_mask * self._mask * (1 - self._mask) / self._temperature
        of["logits"].add_(relaxed + self._kl_weight * keep * (1 - keep) * (logits - self._prior.logit()))
        of["b"].add_(gradients[1])
        if "head" in of:
            of["head"].add_(gradients[2])
