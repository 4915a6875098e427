"""IVON: a diagonal Gaussian over an adapter, trained by a variational online Newton method.

Shapes: M members, P parameters of a member, N examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ...checks import number_between
from ...data import Example
from ...ensemble import LoraEnsemble
from ...stack.sites import MemberWeights
from ...training.config import TrainConfig
from ...training.optim import AdamState, Optimizer
from ...training.trainee import TrainResult
from .base import WeightPosterior
from .flat import member_of, normal_rows, scaling_of
from .trainee import Family, fit


@dataclass
class StackedIVON:
    """IVON over flat buffers, for all members at once, with one draw per step.

    With the draw theta = m + noise, noise ~ N(0, 1 / (ess (h + delta))), and the gradient g at theta:

        f = ess (h + delta) noise g                       (an estimate of the Hessian's diagonal)
        h <- beta2 h + (1 - beta2) f + (1 - beta2)^2 (h - f)^2 / (2 (h + delta))
        u <- beta1 u + (1 - beta1) g
        m <- m - lr clip((u / (1 - beta1^t) + delta m) / (h + delta))

    Source: Shen et al. 2024 (arXiv:2402.17641), Alg. 1. With `rescale`, lr is multiplied by h0 + delta, as by
    default in the authors' code, and has the size of SGD's.

    Attributes:
        learning_rate: (M, 1).
        noise: of the step, shaped as the buffers.
        states: u (`first`) and h (`second`) of each buffer.
        ess: the effective sample size; N for the posterior of the data.
        delta: the prior's precision over ess.
        h0: of the Hessian, at the start.
        clip: the largest step of a parameter, in multiples of the rate.
    """

    learning_rate: Tensor
    noise: Sequence[Tensor]
    states: tuple[AdamState, ...]
    ess: float
    delta: float
    h0: float
    clip: float
    betas: tuple[float, float]
    steps: int = field(default=0)
    rescale: bool = True

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
        rate = self.learning_rate * factor * (self.h0 + self.delta if self.rescale else 1.0)
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
    the decays of `TrainConfig` are not read, since `delta` is IVON's.

    Args:
        ensemble: M untrained members; several are trained side by side, and their samples are one mixture.
        samples: S.
        seed: of the samples.
        ess: the effective sample size. The number of training examples gives the posterior of the data, which
            is often too wide to train with; a larger one a narrower, "colder" one.
        hess_init: h0; a smaller one makes the posterior wider: at the start its standard deviation is
            1 / sqrt(ess (hess_init + delta)).
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
        """Train means and variances, and draw the samples; see `train`. AdamW's learning rate over `clip`
        suits most.

        Raises:
            ConfigError, DataError, CheckpointError, TrainingError: as `train`.
        """
        config = config or TrainConfig()

        def family_of(inner: object) -> Family:
            self._family = _Diagonal(self, ess=float(self.ess))
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
        flats = [
            mean[mode].cpu() + spread[mode].cpu() * torch.randn(mean.shape[1], generator=generator)
            for mean, spread in zip(self._family.buffers.values(), self._family.spreads(), strict=True)
        ]
        return member_of(self.ensemble.stack, flats, self._scaling[mode])

    @property
    def num_trained_parameters(self) -> int:
        return 2 * sum(buffer.shape[1] for buffer in self.ensemble.stack.buffers)


class _Diagonal(Family):
    """Means (M, P) of each buffer; their variances are the optimiser's."""

    def __init__(self, posterior: IVON, *, ess: float):
        stack = posterior.ensemble.stack
        names = ("a", "b", "head")[: len(stack.buffers)]
        self.buffers = {name: flat.detach().clone() for name, flat in zip(names, stack.buffers, strict=True)}
        self.decays = tuple(f"weight_decay_{name}" for name in names)
        self.noise = [torch.zeros_like(flat) for flat in self.buffers.values()]
        self._posterior, self._ess = posterior, ess
        self.states: tuple[AdamState, ...] = tuple(
            AdamState(torch.zeros_like(flat), torch.full_like(flat, posterior.hess_init))
            for flat in self.buffers.values()
        )

    def optimizer(self, *, learning_rate: Tensor, decays: Sequence[Tensor]) -> Optimizer:
        own = self._posterior
        return StackedIVON(
            learning_rate[:, None],
            self.noise,
            self.states,
            ess=self._ess,
            delta=own.delta,
            h0=own.hess_init,
            clip=own.clip,
            betas=own.betas,
            rescale=False,
        )

    def spreads(self) -> list[Tensor]:
        """Standard deviations (M, P) of each buffer."""
        return [(self._ess * (state.second + self._posterior.delta)).rsqrt() for state in self.states]

    def place(self, weights: Sequence[Tensor], keys: Sequence[int] | None) -> None:
        for weight, (name, mean), noise, spread in zip(
            weights, self.buffers.items(), self.noise, self.spreads(), strict=True
        ):
            if keys is not None:
                noise.copy_(spread * normal_rows(keys, mean, name=name))
            weight.copy_(mean if keys is None else mean + noise)

    def carry_over(
        self, weights: Sequence[Tensor], gradients: Sequence[Tensor], totals: Sequence[Tensor]
    ) -> None:
        for gradient, total in zip(gradients, totals, strict=True):
            total.add_(gradient)
