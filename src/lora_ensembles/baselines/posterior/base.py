"""The interface of distributions over adapters: fitted by the one training loop, sampled into members.

Shapes: M modes (the members that were trained), S samples of each, N examples, C options.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ...checks import whole_number
from ...data import Example
from ...ensemble import LoraEnsemble
from ...errors import ConfigError
from ...stack.dropout import stream_key
from ...stack.seeds import member_seeds, whole_seed
from ...stack.sites import MemberWeights
from ...training.config import TrainConfig
from ...training.trainee import TrainResult

Own = TypeVar("Own", bound="WeightPosterior")


class WeightPosterior(ABC):
    """A `Predictor` whose members are samples of a distribution over adapters, S around each of M modes.

    After `fit` the ensemble holds the samples as its members, mode by mode, so that everything that takes an
    ensemble takes them: `predict`, `calibrate`, generation, and `save_pretrained`, which writes each as a
    PEFT adapter folder. A sample is a function of (seed, mode, its number), so the first samples stay the
    same where more are drawn.

    Args:
        ensemble: M members, which become the modes.
        samples: S.
        seed: of the samples.

    Raises:
        ConfigError: `samples` below 1, or members with ranks of their own.
    """

    def __init__(self, ensemble: LoraEnsemble, *, samples: int = 10, seed: int = 0):
        if any(ranks != ensemble.stack.ranks[0] for ranks in ensemble.stack.ranks):
            raise ConfigError(
                f"{type(self).__name__} needs members of one rank; these have several: take one of them"
            )
        ensemble.stack.sharding.check_one_process(type(self).__name__)
        self.ensemble = ensemble
        self.samples = whole_number("samples", samples)
        self.seed = whole_seed(seed)
        self.num_modes = ensemble.num_members
        self._fitted = False

    @abstractmethod
    def fit(self, examples: Sequence[Example], config: TrainConfig | None = None) -> TrainResult | None:
        """Fit the distribution to labelled examples, and draw the samples."""

    @abstractmethod
    def sample(self, mode: int, generator: torch.Generator) -> MemberWeights:
        """One sample around a mode."""

    @property
    @abstractmethod
    def num_trained_parameters(self) -> int:
        """Parameters that were trained for one mode, those of its spread included."""

    def draw(self, samples: int | None = None, *, seed: int | None = None) -> list[MemberWeights]:
        """Samples around each mode, mode by mode; by default as many, and by the seed, as at first.

        Raises:
            ConfigError: nothing was fitted yet.
        """
        if not self._fitted:
            raise ConfigError(f"{type(self).__name__} has no samples before `fit`; call it first")
        count = self.samples if samples is None else whole_number("samples", samples)
        begin = self.seed if seed is None else whole_seed(seed)
        drawn = []
        for mode in range(self.num_modes):
            for number in range(count):
                generator = torch.Generator().manual_seed(stream_key(begin, "sample", mode, number))
                drawn.append(self.sample(mode, generator))
        return drawn

    def resample(self: Own, samples: int | None = None, *, seed: int | None = None) -> Own:
        """Give the ensemble other samples as its members; returns the posterior itself."""
        hold(self.ensemble, self.draw(samples, seed=seed))
        return self

    @torch.no_grad()
    def member_log_probs(self, examples: Sequence[Example], *, max_rows: int | None = None) -> Tensor:
        """log p of each label for each sample (M * S, N, C), float32; see `Predictor`.

        Raises:
            ConfigError: nothing was fitted yet, or memory ran out.
            DataError: a prompt or a label cannot be used.
        """
        if not self._fitted:
            raise ConfigError(f"{type(self).__name__} has no samples before `fit`; call it first")
        return self.ensemble.member_log_probs(examples, max_rows=max_rows)

    def save_pretrained(self, path: str | Path) -> None:
        """Write the samples as an ensemble: a PEFT adapter folder each.

        Raises:
            CheckpointError: `path` already holds an ensemble, or there is no space for it.
        """
        self.ensemble.save_pretrained(path)

    def _samples_drawn(self) -> None:
        self._fitted = True
        self.resample()


def hold(ensemble: LoraEnsemble, members: Sequence[MemberWeights]) -> None:
    """Give an ensemble other members, of any number."""
    ensemble.set_members(members)
    seed = ensemble.info.seed
    seeds = tuple(member_seeds(seed, index) for index in range(len(members)))
    ensemble.info = dataclasses.replace(ensemble.info, seeds=seeds, next_index=len(members))


def noise_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise of a CPU tensor's shape."""
    return torch.randn(tensor.shape, generator=generator)
