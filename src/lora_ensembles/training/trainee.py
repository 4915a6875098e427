"""Trainees, which the training loop trains: M members' flat parameters, the rows they learn from, and what a
pass over these needs.

Shapes: M members, B rows of a member, N rows in all, P parameters of a member.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..data import Completion, Example
from ..disk.atomic import written_aside
from ..distributed.ranks import ALONE, Ranks
from ..errors import ConfigError
from ..heads.base import TrainingRows
from ..passes.memory import PASS_TOKENS
from .config import TrainConfig
from .optim import Optimizer, StackedAdamW, gradient_norms

PARAMETERS_FILE = "parameters.safetensors"


class Trainee(ABC):
    """Members in training.

    Attributes:
        rows: what they learn from.
        order_seeds: of each member's order of the rows.
        decays: the settings of `TrainConfig` by which each of the buffers decays; None: it does not.
        dtype: in which the base computes.
        tokens_a_row: token vectors that a row of a pass holds, which says how many rows suit a CPU.
        can_recompute: whether there are layers whose activations can be computed twice, to save memory.
        variants: rows of each example that follow each other, of which a member reads one in an epoch.
        ranks: the processes that train together; the first writes files, and all make the same passes.
    """

    rows: TrainingRows
    order_seeds: list[int]
    decays: tuple[str | None, ...]
    dtype: torch.dtype
    tokens_a_row: float
    can_recompute: bool = False
    variants: int = 1
    ranks: Ranks = ALONE

    @property
    @abstractmethod
    def buffers(self) -> dict[str, Tensor]:
        """Flat fp32 parameters (M, P) by name, which training changes in place; each of them decays apart."""

    @abstractmethod
    def add_gradients(self, loss: Tensor, totals: tuple[Tensor, ...]) -> None:
        """Add the gradients of `loss` to fp32 totals shaped like the buffers."""

    @abstractmethod
    def settings(self, config: TrainConfig) -> dict[str, Any]:
        """The settings that decide the result; a run goes on only with those it had."""

    @abstractmethod
    def validate(
        self,
        examples: Sequence[Example] | Sequence[Completion],
        *,
        epoch: int,
        max_rows: int | None,
        last: bool,
    ) -> dict[str, Any]:
        """Metrics of the ensemble and of its members on examples, as a row of the history holds them;
        `epoch` is counted from 1."""

    @property
    def num_members(self) -> int:
        """M, the members that this process trains."""
        return len(self.order_seeds)

    @property
    def pass_tokens(self) -> int | None:
        """The token vectors that a pass more must spare in padding; None: a step is read in no more passes
        than memory asks for. So on other devices than a CPU, where ranks make the same passes, and where no
        padding is read.
        """
        return PASS_TOKENS if self.device.type == "cpu" and self.ranks.size == 1 else None

    @property
    def members_in_all(self) -> int:
        """The members, those that other ranks train included."""
        return self.num_members

    def own(self, values: Tensor) -> Tensor:
        """Of a value for each member in all, those (M,) of this process's."""
        return values

    def of_all(self, values: Tensor) -> Tensor:
        """The values (K, members in all) from those (K, M) of this process."""
        return values

    def whole(self, name: str, flat: Tensor) -> Tensor:
        """The flat values of all members, from what this process has of them, shaped as the buffer `name`."""
        return flat

    def part(self, name: str, whole: Tensor) -> Tensor:
        """The part of such values that this process has: the inverse of `whole`."""
        return whole

    def gradient_norms(self, gradients: Sequence[Tensor]) -> Tensor:
        """Each member's own gradient norm over all its parameters: (M,)."""
        return gradient_norms(gradients)

    @property
    def device(self) -> torch.device:
        return next(iter(self.buffers.values())).device

    @property
    def kept(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint holds beside the buffers and their moments, and that training changes in
        place.
        """
        return {}

    def optimizer(self, *, learning_rate: Tensor, decays: Sequence[Tensor]) -> Optimizer:
        """The optimiser of the buffers, from the learning rate and a decay of each, (M,): AdamW."""
        return StackedAdamW.over(tuple(self.buffers.values()), learning_rate=learning_rate, decays=decays)

    def begin_step(self, gradients: Sequence[Tensor], step: int) -> None:
        """Zero the gradients; a step for which memory ran out begins again. Steps count from 0."""
        for gradient in gradients:
            gradient.zero_()

    def end_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Complete the gradients of a step, once all its passes are made."""
        return

    def stepped(self, step: int, total: int) -> None:
        """Take notice of an update: `step` of `total` are done."""
        return

    def unreached(self) -> Sequence[Sequence[slice]]:
        """The columns of each buffer that no pass of the step reached, which do not decay; none
        by default.
        """
        return ()

    def refresh(self) -> None:
        """Take notice that the buffers changed."""
        return

    def in_step(self, step: int) -> AbstractContextManager[None]:
        """Context in which passes of a step run, forward and backward: with dropout, say."""
        return nullcontext()

    def recomputed(self) -> AbstractContextManager[None]:
        """Context in which passes keep less and compute it again in the backward pass,
        where `can_recompute`.
        """
        return nullcontext()

    def members(self) -> list[Any]:
        """A copy of every member's parameters on the CPU, for a snapshot."""
        copies = {name: buffer.detach().cpu().clone() for name, buffer in self.buffers.items()}
        return [{name: buffer[index] for name, buffer in copies.items()} for index in range(self.num_members)]

    def save(self, path: Path) -> None:
        """Write the members to a folder of their own, whole or not at all."""
        with written_aside(path) as folder:
            save_file(
                {name: buffer.contiguous() for name, buffer in self.buffers.items()}, folder / PARAMETERS_FILE
            )

    def load(self, path: Path) -> list[Any]:
        """The members that `save` wrote, as `members` gives them."""
        saved = load_file(path / PARAMETERS_FILE)
        return [{name: buffer[index] for name, buffer in saved.items()} for index in range(self.num_members)]

    def finish(self, out: Path) -> None:
        """Put the result beside the run's own folder in `out`; nothing, where the last checkpoint is the
        result.
        """
        return


class Observer(Protocol):
    """A view of members in training, with a memory of its own."""

    @property
    def kept(self) -> dict[str, Tensor]:
        """The tensors of its memory, which it changes in place; checkpoints hold them."""
        ...

    def stepped(self, buffers: dict[str, Tensor], step: int) -> None:
        """Take notice of the buffers after `step` updates."""
        ...


@dataclass(frozen=True)
class TrainResult:
    """The result of a run beside the trained members.

    Attributes:
        history: one row per epoch: each member's training loss and accuracy, means over its rows, and, with
            validation examples, the metrics of the ensemble and of its members.
        snapshots: every member's weights after the epochs that were asked for; `restore` puts them back.
    """

    history: list[dict[str, Any]]
    snapshots: dict[int, list[Any]]

    def restore(self, ensemble: Any, *, epoch: int) -> None:
        """Give the members of the ensemble that was trained the weights they had after an epoch.

        Args:
            ensemble: the one that was trained.
            epoch: counted from 1.

        Raises:
            ConfigError: there is no snapshot of that epoch.
        """
        if epoch not in self.snapshots:
            there = ", ".join(map(str, self.snapshots)) or "none"
            raise ConfigError(
                f"no snapshot of epoch {epoch} (there: {there}); "
                "name the epochs by TrainConfig(snapshot_epochs=[...])"
            )
        ensemble.set_members(self.snapshots[epoch])

    def __repr__(self) -> str:
        last = self.history[-1] if self.history else {}
        losses = ", ".join(f"{loss:.4f}" for loss in last.get("train_loss", ()))
        measured = last.get("ensemble", {})
        shown = [f"{name} {measured[name]:.4f}" for name in ("accuracy", "nll") if name in measured]
        kept = (
            f"snapshots of epochs {', '.join(map(str, self.snapshots))}" if self.snapshots else "no snapshots"
        )
        return (
            f"TrainResult({len(self.history)} epochs, last training loss of members {losses}; "
            f"{', '.join([*shown, kept])})"
        )
