"""IVON: a diagonal Gaussian over an adapter, trained by a variational online Newton method.

Shapes: M members, P parameters of a member, N examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...checks import number_between
from ...ensemble import LoraEnsemble
from ...stack.sites import MemberWeights
from ...training.adapter_trainee import BUFFERS
from ...training.config import TrainConfig
from ...training.optim import AdamState, Optimizer
from .base import WeightPosterior
from .flat import normal_rows
from .trainee import Family


@dataclass
class StackedIVON:
    """IVON over flat buffers, for all members at once, with one draw per step.

    With the draw theta = m + noise, noise ~ N(0, 1 / (ess (h + delta))), and the gradient g at theta:

        f = ess (h + delta) noise g                       (an estimate of the Hessian's diagonal)
        h <- beta2 h + (1 - beta2) f + (1 - beta2)^2 (h - f)^2 / (2 (h + delta))
        u <- beta1 u + (1 - beta1) g
        m <- m - lr clip((u / (1 - beta1^t) + delta m) / (h + delta))

    Source: Shen et al. 2024 (arXiv:2402.17641), Alg. 1.

    Attributes:
        learning_rate: (M, 1).
        noise: of the step, shaped as the buffers.
        states: u (`first`) and h (`second`) of each buffer.
        ess: the effective sample size; N for the posterior of the data.
        delta: the prior's precision over ess.
        clip: the largest step of a parameter, in multiples of the rate.
    """

    learning_rate: Tensor
    noise: Sequence[Tensor]
    states: tuple[AdamState, ...]
    ess: float
    delta: float
    clip: float
    betas: tuple[float, float]
    steps: int = field(default=0)

    def step(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        *,
        factor: float = 1.0,
        unreached: Sequence[Sequence[slice]] = (),
    ) -> None:
        """One update in place; see `Optimizer`. Columns without a gradient stay as they are."""
        self.steps += 1
        beta1, beta2 = self.betas
        rate = self.learning_rate * factor
        for number, (mean, gradient, noise, state) in enumerate(
            zip(parameters, gradients, self.noise, self.states, strict=True)
        ):
            reached = torch.ones(mean.shape[1], dtype=torch.bool, device=mean.device)
            for columns in unreached[number] if unreached else ():
                reached[columns] = False
            precision = state.second + self.delta
            estimate = self.ess * precision * noise * gradient
            hessian = beta2 * state.second + (1 - beta2) * estimate
            hessian += 0.5 * (1 - beta2) ** 2 * (state.second - estimate).square() / precision
            momentum = beta1 * state.first + (1 - beta1) * gradient
            state.second.copy_(torch.where(reached, hessian, state.second))
            state.first.copy_(torch.where(reached, momentum, state.first))
            direction = state.first / (1 - beta1**self.steps) + self.delta * mean
            direction = (direction / (state.second + self.delta)).clamp(-self.clip, self.clip)
            mean.sub_(torch.where(reached, rate * direction, torch.zeros_like(mean)))


class IVON(WeightPosterior):
    """A Gaussian around each member, with a variance for each parameter that the optimiser keeps: N(m, 1 /
    (ess (h + delta))).

    IVON stands in the place of AdamW, at its cost; see `StackedIVON`. Source: Cong et al. 2024
    (arXiv:2411.04421), IVON for LoRA; the defaults are of the size of theirs. No parameter moves by more than
    learning rate * `clip` in a step, as with AdamW by about the learning rate. `Differs:` one draw per step;
    the decays of `TrainConfig` are not read, since `delta` is IVON's. AdamW's learning rate over `clip` suits
    most.

    Args:
        ensemble: M untrained members; several are trained side by side, and their samples are one mixture.
        samples: S.
        seed: of the samples.
        ess: the effective sample size. The number of training examples gives the posterior of the data, which
            is often too wide to train with; a larger one a narrower, "colder" one.
        hess_init: h at the start, where the standard deviation is 1 / sqrt(ess (hess_init + delta)).
        delta: the prior's precision over ess.
        clip: the largest step of a parameter, in multiples of the learning rate.
        betas: of the momentum and of the Hessian.

    Raises:
        ConfigError: a number out of its range.

    Example:
        >>> from lora_ensembles import LoraEnsemble, TrainConfig, load_base, load_task
        >>> task = load_task("world-cqa")
        >>> ivon = IVON(LoraEnsemble(*load_base(), num_members=1), samples=3)
        >>> trained = ivon.fit(task.train[:64], TrainConfig(epochs=2, learning_rate=2.0))
        >>> ivon.member_log_probs(task.validation[:4]).shape
        torch.Size([3, 4, 5])
    """

    trained_by = ("ess", "hess_init", "delta", "clip", "betas")

    def __init__(
        self,
        ensemble: LoraEnsemble,
        *,
        samples: int = 10,
        seed: int = 0,
        ess: float = 1e7,
        hess_init: float = 3e-4,
        delta: float = 1e-6,
        clip: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99999),
    ):
        super().__init__(ensemble, samples=samples, seed=seed)
        self.ess = number_between("ess", ess, above=0)
        self.hess_init = number_between("hess_init", hess_init, above=0)
        self.delta = number_between("delta", delta, least=0)
        self.clip, self.betas = number_between("clip", clip, above=0), betas
        self._family: _Diagonal | None = None

    def adapted(self, config: TrainConfig) -> TrainConfig:
        """AdamW's rate over `clip`, with which a step moves parameters as far as AdamW does, and no decay."""
        rate = config.learning_rate
        rate = [one / self.clip for one in rate] if isinstance(rate, Sequence) else rate / self.clip
        return dataclasses.replace(config, learning_rate=rate, weight_decay_a=0.0, weight_decay_b=0.0)

    def family(self, rows: int) -> Family:
        self._family = _Diagonal(self)
        return self._family

    def sample(self, mode: int, generator: torch.Generator) -> MemberWeights:
        assert self._family is not None
        spreads = dict(zip(self.trained, self._family.spreads(), strict=True))
        drawn = {
            name: mean[mode] + spreads[name][mode].cpu() * torch.randn(mean.shape[1], generator=generator)
            for name, mean in self.trained.items()
        }
        return self.member_of(mode, drawn)

    @property
    def num_trained_parameters(self) -> int:
        return 2 * super().num_trained_parameters


class _Diagonal(Family):
    """Means (M, P) of all weights; their variances are the optimiser's."""

    def __init__(self, posterior: IVON):
        flats = posterior.ensemble.stack.buffers
        self.drawn = len(flats)
        self.buffers = {name: flat.detach().clone() for name, flat in zip(BUFFERS, flats, strict=False)}
        self.decays = (None,) * self.drawn
        self.noise = [torch.zeros_like(flat) for flat in flats]
        self._posterior = posterior
        self._states = tuple(
            AdamState(torch.zeros_like(flat), torch.full_like(flat, posterior.hess_init)) for flat in flats
        )

    def optimizer(self, *, learning_rate: Tensor, decays: Sequence[Tensor]) -> Optimizer:
        own = self._posterior
        return StackedIVON(
            learning_rate[:, None],
            self.noise,
            self._states,
            ess=own.ess,
            delta=own.delta,
            clip=own.clip,
            betas=own.betas,
        )

    def unreached(self, columns: Sequence[Sequence[slice]]) -> Sequence[Sequence[slice]]:
        return columns

    def spreads(self) -> list[Tensor]:
        """Standard deviations (M, P) of all weights."""
        own = self._posterior
        return [(own.ess * (state.second + own.delta)).rsqrt() for state in self._states]

    def place(self, weights: Sequence[Tensor], keys: Sequence[int] | None) -> None:
        parts = zip(weights, self.buffers.items(), self.noise, self.spreads(), strict=True)
        for weight, (name, mean), noise, spread in parts:
            if keys is not None:
                noise.copy_(spread * normal_rows(keys, mean, name=name))
            weight.copy_(mean if keys is None else mean + noise)

    def carry_over(self, gradients: Sequence[Tensor], totals: Sequence[Tensor]) -> None:
        for gradient, total in zip(gradients, totals, strict=True):
            total.add_(gradient)
