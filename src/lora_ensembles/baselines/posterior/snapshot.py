"""Snapshot ensemble: the members are what one member was at the end of each cycle of its step size.

Shapes: M members, S snapshots of each.
"""

from __future__ import annotations

import dataclasses

import torch

from ...checks import whole_number
from ...ensemble import LoraEnsemble
from ...errors import ConfigError
from ...stack.sites import MemberWeights
from ...training.config import TrainConfig
from ...training.loop import Examples as Rows
from ...training.trainee import TrainResult
from .base import WeightPosterior


class SnapshotEnsemble(WeightPosterior):
    """One training run with a cyclic step size, whose weights at each cycle's end are the members.

    The step size falls along half a cosine from `learning_rate` to 0 in each of S cycles, and starts again:
    alpha / 2 (cos(pi mod(t - 1, T / S) / (T / S)) + 1). Source: Huang et al. 2017 (arXiv:1704.00109), Eq. 2.
    `Differs:` AdamW in place of SGD with momentum, whose moments go on over the cycles.

    Args:
        ensemble: untrained members; each gives S snapshots.
        samples: S, the cycles.
        seed: not read; snapshots are not drawn.

    Raises:
        ConfigError: `samples` below 1.

    Example:
        >>> from lora_ensembles import LoraEnsemble, TrainConfig, load_base, load_task
        >>> task = load_task("world-cqa")
        >>> snapshots = SnapshotEnsemble(LoraEnsemble(*load_base(), num_members=1), samples=2)
        >>> trained = snapshots.fit(task.train[:64], TrainConfig(epochs=4, learning_rate=2e-3))
        >>> snapshots.member_log_probs(task.validation[:4]).shape
        torch.Size([2, 4, 5])
    """

    def __init__(self, ensemble: LoraEnsemble, *, samples: int = 5, seed: int = 0):
        super().__init__(ensemble, samples=samples, seed=seed)
        self._snapshots: list[list[MemberWeights]] = []

    def adapted(self, config: TrainConfig) -> TrainConfig:
        """As many epochs, or fewer, as split into whole cycles; one for each cycle at least."""
        each = max(1, config.epochs // self.samples)
        return dataclasses.replace(config, epochs=each * self.samples)

    def settings(self, config: TrainConfig, count: int) -> TrainConfig:
        if config.epochs % self.samples:
            raise ConfigError(
                f"epochs={config.epochs} do not split into samples={self.samples} cycles of whole epochs; "
                "train for a multiple of them"
            )
        each = config.epochs // self.samples
        ends = list(range(each, config.epochs + 1, each))
        return dataclasses.replace(
            config, schedule="cosine", cycles=self.samples, warmup_steps=0, snapshot_epochs=ends
        )

    def take(self, result: TrainResult, examples: Rows) -> None:
        self._snapshots = [result.snapshots[epoch] for epoch in sorted(result.snapshots)]

    def draw(self, samples: int | None = None, *, seed: int | None = None) -> list[MemberWeights]:
        """The snapshots of each member, or its last ones.

        Raises:
            ConfigError: more than there are, or nothing was fitted yet.
        """
        count = self.samples if samples is None else whole_number("samples", samples)
        if not self._snapshots or count > len(self._snapshots):
            raise ConfigError(f"{len(self._snapshots)} snapshots were taken, {count} are asked for")
        kept = self._snapshots[-count:]
        return [snapshot[mode] for mode in range(self.num_modes) for snapshot in kept]

    def sample(self, mode: int, generator: torch.Generator) -> MemberWeights:
        return self._snapshots[-1][mode]
