"""A worker's part of a training run: a slice of the members, in a run folder of its own.

Shapes: M members, N examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data import Completion, Example
from ...disk.claimed import lock_waited_for
from ...disk.layout import ENSEMBLE_FILE
from ...distributed.cluster import LOST
from ...embedded import device_named, move
from ...ensemble import LoraEnsemble
from ...errors import CheckpointError
from ..adapter_trainee import AdapterTrainee
from ..config import PER_MEMBER_FIELDS, TrainConfig
from ..loop import run

ANSWERS = "validation"  # of a slice: what its members answer after each epoch


@dataclass(frozen=True)
class SliceJob:
    """A slice of an ensemble's members to train.

    Attributes:
        members: their indices.
        start: folder of the ensemble before training.
        folder: of the slice's run, on a disk that driver and workers share.
        config: the settings of all members.
        device: to compute on.
    """

    members: range
    start: Path
    folder: Path
    config: TrainConfig
    device: str

    @property
    def done(self) -> bool:
        """Whether the slice is trained."""
        return (self.folder / ENSEMBLE_FILE).exists()

    @property
    def answers(self) -> Path:
        """The folder of the members' answers to the validation examples."""
        return self.folder / ANSWERS


def train_slice(
    job: SliceJob,
    examples: Sequence[Example] | Sequence[Completion],
    validation: Sequence[Example] | Sequence[Completion],
) -> None:
    """Train the members of a job, from where an earlier attempt left them.

    Raises:
        CheckpointError: the folders of the job are not seen from here.
        LoraEnsemblesError: as `train`.
    """
    if not job.start.is_dir():
        raise CheckpointError(
            f"a worker does not see {job.start}; the output must lie on a disk that all nodes share"
        )
    if job.done:
        return
    ensemble = LoraEnsemble.from_pretrained(job.start, members=list(job.members))
    move(ensemble, device_named(job.device))
    config = config_of(job.config, job.members)
    trainee = AdapterTrainee(ensemble, examples, config, kept_answers=job.answers)
    lock_waited_for(job.folder, patience=LOST).release()
    run(trainee, config, validation=validation, out=job.folder, resume=True, progress=False)


def config_of(config: TrainConfig, members: range) -> TrainConfig:
    """The settings for some of the members.

    Example:
        >>> config_of(TrainConfig(learning_rate=[1e-3, 2e-3, 3e-3]), range(1, 3)).learning_rate
        [0.002, 0.003]
    """
    changed: dict[str, Any] = {}
    for name in PER_MEMBER_FIELDS:
        value = getattr(config, name)
        if isinstance(value, list | tuple):
            changed[name] = type(value)(value[index] for index in members)
    return dataclasses.replace(config, **changed)
