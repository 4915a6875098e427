"""A Bernoulli mask on the ranks of each layer: which of the R rank-one parts are there is uncertain.

Shapes: M members, R rank, D features, K ranks of a member in all layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...checks import number_between
from ...ensemble import LoraEnsemble
from ...stack.sites import MemberWeights
from .base import WeightPosterior
from .flat import rows_dotted, rows_scaled, uniform_rows
from .trainee import Family


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

    trained_by = ("prior", "keep", "temperature", "kl_weight")

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

    def family(self, rows: int) -> Family:
        return _Masks(self, kl_weight=self.kl_weight / rows)

    def sample(self, mode: int, generator: torch.Generator) -> MemberWeights:
        own = {name: flat[mode] for name, flat in self.trained.items()}
        keep = own["logits"].sigmoid()
        mask = (torch.rand(keep.shape, generator=generator) < keep).float()
        a = rows_scaled(own["masked"][None], mask[None], self.ensemble.stack)
        return self.member_of(mode, own | {"a": a[0]})

    @property
    def num_trained_parameters(self) -> int:
        return super().num_trained_parameters + sum(site.rank for site in self.ensemble.stack.sites)


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
    """A before its mask (M, P_a), and pi as logits (M, K)."""

    decays = ("weight_decay_a", None)

    def __init__(self, posterior: RankMask, *, kl_weight: float):
        stack = posterior.ensemble.stack
        self._stack, self._temperature, self._kl_weight = stack, posterior.temperature, kl_weight
        self._prior = torch.tensor(posterior.prior).logit()
        count = sum(site.rank for site in stack.sites)
        start = torch.tensor(posterior.keep).logit()
        logits = stack.a.new_full((len(stack.a), count), start.item())
        self.buffers = {"masked": stack.a.detach().clone(), "logits": logits}
        self._mask = logits.sigmoid()

    def place(self, weights: Sequence[Tensor], keys: Sequence[int] | None) -> None:
        logits = self.buffers["logits"]
        self._mask = logits.sigmoid()
        if keys is not None:
            uniform = uniform_rows(keys, logits, name="mask").clamp(1e-6, 1 - 1e-6)
            self._mask = ((logits + uniform.logit()) / self._temperature).sigmoid()
        weights[0].copy_(rows_scaled(self.buffers["masked"], self._mask, self._stack))

    def carry_over(self, gradients: Sequence[Tensor], totals: Sequence[Tensor]) -> None:
        logits, mask = self.buffers["logits"], self._mask
        keep = logits.sigmoid()
        of_mask = rows_dotted(gradients[0], self.buffers["masked"], self._stack)
        of_prior = self._kl_weight * keep * (1 - keep) * (logits - self._prior)
        totals[0].add_(rows_scaled(gradients[0], mask, self._stack))
        totals[1].add_(of_mask * mask * (1 - mask) / self._temperature + of_prior)
