"""The interface of distributions over adapters: fitted by the one training loop, sampled into members.

Shapes: M modes (the members that were trained), S samples of each, N examples, C options.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
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
from ...training.adapter_trainee import AdapterTrainee
from ...training.adapters import prepared, trained_info
from ...training.config import TrainConfig
from ...training.loop import Examples as Rows, check_options, run
from ...training.orders import rows_per_epoch
from ...training.trainee import Trainee, TrainResult
from .trainee import Family, PosteriorTrainee

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

    Attributes:
        trained_by: the attributes that decide, beside the `TrainConfig`, what training gives; a run is
            resumed with the same ones only.

    Raises:
        ConfigError: `samples` below 1, members with ranks of their own, or a base over several ranks.
    """

    trained_by: tuple[str, ...] = ()

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
        self._described = [ensemble.stack.described(mode) for mode in range(self.num_modes)]
        self.trained: dict[str, Tensor] = {}  # (M, P) by name, after training
        self._fitted = False

    def adapted(self, config: TrainConfig) -> TrainConfig:
        """Settings that suit the method, from those that suit members trained as they are: a preset's."""
        return config

    def settings(self, config: TrainConfig, count: int) -> TrainConfig:
        """The settings of training on `count` examples, checked, or changed where the method has its own."""
        return config

    def family(self, rows: int) -> Family | None:
        """The family that is trained, on so many rows in an epoch; None: members are trained as they are."""
        return None

    def trainee(self, examples: Rows, config: TrainConfig) -> Trainee | None:
        """The modes in training; None where nothing is trained."""
        inner = AdapterTrainee(self.ensemble, examples, config)
        family = self.family(rows_per_epoch(len(examples), config.data_share))
        return inner if family is None else PosteriorTrainee(inner, family, config)

    def take(self, result: TrainResult, examples: Rows) -> None:
        """Keep what samples are drawn from beside the trained buffers."""
        return

    @abstractmethod
    def sample(self, mode: int, generator: torch.Generator) -> MemberWeights:
        """One sample around a mode."""

    @property
    def num_trained_parameters(self) -> int:
        """Parameters that were trained for one mode, those of its spread included."""
        return sum(flat.shape[1] for flat in self.ensemble.stack.buffers)

    def fit(
        self,
        examples: Rows,
        config: TrainConfig | None = None,
        *,
        validation: Rows = (),
        out: str | Path | None = None,
        resume: bool = False,
        overwrite: bool = False,
        progress: bool = False,
    ) -> TrainResult:
        """Fit the distribution to labelled examples, and draw the samples.

        Args:
            examples: labelled ones to train on.
            config, validation, out, resume, overwrite, progress: as for `train`; with `out`, the last
                checkpoint is the result, and `resume` brings a finished run back.

        Returns:
            Losses and metrics of every epoch, those of the modes; nothing where nothing is trained.

        Raises:
            ConfigError: as `train`; or a setting that does not fit the method.
            DataError, CheckpointError, TrainingError: as `train`.
        """
        check_options(out=out, resume=resume, overwrite=overwrite)
        config = self.settings(config or TrainConfig(), len(examples))
        examples, validation = prepared(self.ensemble, examples, validation, config)
        trainee, result = self.trainee(examples, config), TrainResult([], {})
        if trainee is None and (out is not None or len(validation)):
            raise ConfigError(f"{type(self).__name__} trains nothing; leave `out` and `validation` out")
        self.ensemble.info = trained_info(self.ensemble, examples, config)
        if trainee is not None:
            result = run(
                trainee,
                config,
                validation=validation,
                out=out,
                resume=resume,
                overwrite=overwrite,
                progress=progress,
                own={"method": type(self).__name__} | {name: getattr(self, name) for name in self.trained_by},
            )
            self.trained = {name: flat.cpu().clone() for name, flat in trainee.buffers.items()}
        self._fitted = True
        self.take(result, examples)
        self.resample()
        return result

    def draw(self, samples: int | None = None, *, seed: int | None = None) -> list[MemberWeights]:
        """Samples around each mode, mode by mode; by default as many, and by the seed, as at first.

        Raises:
            ConfigError: nothing was fitted yet.
        """
        self._check_fitted()
        count = self.samples if samples is None else whole_number("samples", samples)
        begin = self.seed if seed is None else whole_seed(seed)
        return [
            self.sample(mode, torch.Generator().manual_seed(stream_key(begin, "sample", mode, number)))
            for mode in range(self.num_modes)
            for number in range(count)
        ]

    def resample(self: Own, samples: int | None = None, *, seed: int | None = None) -> Own:
        """Give the ensemble other samples as its members; returns the posterior itself.

        Raises:
            ConfigError: nothing was fitted yet.
        """
        hold(self.ensemble, self.draw(samples, seed=seed))
        return self

    @torch.no_grad()
    def member_log_probs(self, examples: Sequence[Example], *, max_rows: int | None = None) -> Tensor:
        """log p of each label for each sample (M * S, N, C), float32; see `Predictor`.

        Raises:
            ConfigError: nothing was fitted yet, or memory ran out.
            DataError: a prompt or a label cannot be used.
        """
        self._check_fitted()
        return self.ensemble.member_log_probs(examples, max_rows=max_rows)

    def save_pretrained(self, path: str | Path) -> None:
        """Write the samples as an ensemble: a PEFT adapter folder each.

        Raises:
            ConfigError: nothing was fitted yet.
            CheckpointError: `path` already holds an ensemble, or there is no space for it.
        """
        self._check_fitted()
        self.ensemble.save_pretrained(path)

    def member_of(self, mode: int, flats: Mapping[str, Tensor]) -> MemberWeights:
        """A member in the place of a mode, of flat weights "a", "b" and, where members have heads, "head"
        (P,).
        """
        head = flats.get("head", torch.zeros(0))
        return self.ensemble.stack.weights_of(flats["a"], flats["b"], head, self._described[mode])

    def _check_fitted(self) -> None:
        if not self._fitted:
            raise ConfigError(f"{type(self).__name__} has no samples before `fit`; call it first")


def hold(ensemble: LoraEnsemble, members: Sequence[MemberWeights]) -> None:
    """Give an ensemble other members, of any number."""
    ensemble.set_members(members)
    seeds = tuple(member_seeds(ensemble.info.seed, index) for index in range(len(members)))
    ensemble.info = dataclasses.replace(ensemble.info, seeds=seeds, next_index=len(members))
