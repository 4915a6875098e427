"""AdamW over stacked adapters and heads: every hyper-parameter is a vector over members, and members never
meet in an operation.

Shapes: M members, P parameters of one member's A matrices, B matrices or head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPSILON = 1e-8


@dataclass
class AdamState:
    """First and second moments (M, P) of one flat buffer."""

    first: Tensor
    second: Tensor

    @classmethod
    def zeros_like(cls, parameters: Tensor) -> AdamState:
        return cls(torch.zeros_like(parameters), torch.zeros_like(parameters))


class Optimizer(Protocol):
    """An optimiser of flat buffers (M, P), whose members never meet.

    Attributes:
        states: of each buffer, what a checkpoint keeps.
        steps: updates made.
    """

    states: tuple[AdamState, ...]
    steps: int

    def step(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        *,
        factor: float = 1.0,
        unreached: Sequence[Sequence[slice]] = (),
    ) -> None:
        """One update in place; see `StackedAdamW.step`."""
        ...


@dataclass
class StackedAdamW:
    """AdamW with decoupled decay, for all members at once.

    B <- B - lr * adam(g) - lr * lambda_B * B and the same for A and for heads: the reading of Eq. 5 of
    arXiv:2310.00035, whose sign and letters are mixed. `learning_rate` and each of `decays`, one a buffer,
    are (M, 1). A member's result is that of `torch.optim.AdamW` run on it alone.
    """

    learning_rate: Tensor
    decays: tuple[Tensor, ...]
    states: tuple[AdamState, ...]
    steps: int = field(default=0)
    anchors: Sequence[Tensor] | None = None  # shaped as the buffers: where decay leads; None: to 0

    @classmethod
    def over(
        cls,
        buffers: Sequence[Tensor],
        *,
        learning_rate: Tensor,
        decays: Sequence[Tensor],
        anchors: Sequence[Tensor] | None = None,
    ) -> StackedAdamW:
        """One that has made no step yet; the rate and a decay for each buffer are (M,)."""
        states = tuple(AdamState.zeros_like(buffer) for buffer in buffers)
        return cls(
            learning_rate[:, None],
            tuple(decay[:, None] for _, decay in zip(buffers, decays, strict=True)),
            states,
            anchors=anchors,
        )

    def step(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        *,
        factor: float = 1.0,
        unreached: Sequence[Sequence[slice]] = (),
    ) -> None:
        """One update in place.

        Args:
            factor: the schedule's multiple of the learning rate.
            unreached: of each buffer, the columns without a gradient. They stay as they are, undecayed, with
                their moments: so does `torch.optim.AdamW` with parameters whose gradient is None.
        """
        self.steps += 1
        rate = self.learning_rate * factor
        for number, (parameter, gradient, state, decay) in enumerate(
            zip(parameters, gradients, self.states, self.decays, strict=True)
        ):
            still = unreached[number] if unreached else ()
            kept = [
                (whole, columns, whole[:, columns].clone())
                for columns in still
                for whole in (parameter, state.first, state.second)
            ]
            if self.anchors is None:
                parameter.mul_(1 - rate * decay)
            else:
                parameter.lerp_(self.anchors[number], rate * decay)
            self._update(parameter, gradient, state, rate=rate)
            for whole, columns, before in kept:
                whole[:, columns] = before

    def _update(self, parameter: Tensor, gradient: Tensor, state: AdamState, *, rate: Tensor) -> None:
        beta1, beta2 = BETAS
        state.first.lerp_(gradient, 1 - beta1)
        state.second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = (state.second / (1 - beta2**self.steps)).sqrt_().add_(EPSILON)
        parameter.sub_(rate / (1 - beta1**self.steps) * state.first / denominator)


def gradient_norms(gradients: Sequence[Tensor]) -> Tensor:
    """Each member's own gradient norm over all its parameters: (M,)."""
    first, *others = (gradient.square().sum(dim=1) for gradient in gradients)
    return sum(others, start=first).sqrt()


def clip_per_member(gradients: Sequence[Tensor], max_norm: float, *, norms: Tensor | None = None) -> Tensor:
    """Scale each member's gradient in place so that its own norm is at most `max_norm`; returns the norms
    before, (M,).

    `norms` are given where the gradients are not all of a member's. A member's result is that of
    `torch.nn.utils.clip_grad_norm_` on it alone.

    Example:
        >>> gradients = torch.tensor([[3.0], [0.1]]), torch.tensor([[4.0], [0.0]])
        >>> clip_per_member(gradients, 1.0).tolist(), gradients[0][1].item() == torch.tensor(0.1).item()
        ([5.0, 0.10000000149011612], True)
    """
    norms = gradient_norms(gradients) if norms is None else norms
    scale = (max_norm / (norms + 1e-6)).clamp(max=1.0)[:, None]
    for gradient in gradients:
        gradient.mul_(scale)
    return norms
