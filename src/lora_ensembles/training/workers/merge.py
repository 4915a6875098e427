"""The slices' runs as one run: settings, log, history, checkpoint and snapshots of all members.

Shapes: M members, P parameters of a member.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...data import Completion, Example
from ...disk.atomic import written_aside
from ...disk.layout import RUN_FOLDER
from ...disk.provenance import environment
from ...disk.schema import read_json
from ...stack.sites import MemberWeights
from ...storage.folder import read_ensemble
from ..checkpoint import CHECKPOINT, STATE_FILE, TENSORS_FILE, snapshot_folders
from ..config import PER_MEMBER_FIELDS, TrainConfig
from ..validation import joined_answers, measured
from .job import SliceJob

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class MergedRun:
    """The run of all members, as the slices' runs tell it.

    Attributes:
        jobs: the slices, in the order of their members.
        config: the settings of all members.
        states: of the slices' last checkpoints.
        history: one row per epoch, as `TrainResult.history`.
    """

    jobs: Sequence[SliceJob]
    config: TrainConfig
    states: Rows
    history: Rows

    @classmethod
    def of(
        cls,
        jobs: Sequence[SliceJob],
        config: TrainConfig,
        validation: Sequence[Example] | Sequence[Completion],
    ) -> MergedRun:
        """The run of trained slices; metrics are taken of all members together.

        Raises:
            CheckpointError: a slice's files cannot be read.
        """
        states = [read_json(job.folder / RUN_FOLDER / CHECKPOINT / STATE_FILE) for job in jobs]
        rows = _joined([state["history"] for state in states])
        if validation:
            rows = [row | _metrics(jobs, validation, row["epoch"], last=row is rows[-1]) for row in rows]
        return cls(jobs, config, states, rows)

    def members(self) -> list[MemberWeights]:
        """Every member as it was trained."""
        return _members([job.folder for job in self.jobs])

    def snapshots(self) -> dict[int, list[MemberWeights]]:
        """Every member after the epochs of `config.snapshot_epochs`."""
        folders = [snapshot_folders(job.folder) for job in self.jobs]
        return {epoch: _members([each[epoch] for each in folders]) for epoch in folders[0]}

    def write(self, folder: Path) -> None:
        """The run's own folder, whole or not at all, without its snapshots.

        Raises:
            CheckpointError: it cannot be written.
        """
        with written_aside(folder, replace=True) as aside:
            (aside / "config.json").write_text(json.dumps(self._settings(), indent=2) + "\n")
            (aside / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
            logs = [_lines(job.folder / RUN_FOLDER / "log.jsonl") for job in self.jobs]
            epochs = {row["epoch"]: row for row in self.history}
            rows = [epochs[row["epoch"]] if "epoch" in row else row for row in _joined(logs)]
            (aside / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (aside / CHECKPOINT).mkdir()
            save_file(self._tensors(), aside / CHECKPOINT / TENSORS_FILE)
            sums = [_flat([state["partial"]["sums"][row] for state in self.states]) for row in range(2)]
            first = self.states[0]
            state = {**first, "history": self.history, "partial": {**first["partial"], "sums": sums}}
            (aside / CHECKPOINT / STATE_FILE).write_text(json.dumps(state) + "\n")

    def _settings(self) -> dict[str, Any]:
        parts = [read_json(job.folder / RUN_FOLDER / "config.json") for job in self.jobs]
        whole = self.config.to_dict()
        settings = parts[0] | {name: whole[name] for name in PER_MEMBER_FIELDS if name in parts[0]}
        settings["member_seeds"] = [seeds for part in parts for seeds in part["member_seeds"]]
        adapters = [part["adapter"] for part in parts]
        settings["adapter"] = {
            name: sorted({value for adapter in adapters for value in adapter[name]})
            if isinstance(first, list)
            else first
            for name, first in adapters[0].items()
        }
        return settings

    def _tensors(self) -> dict[str, Tensor]:
        """Weights and moments (M, P) by name."""
        parts = [load_file(job.folder / RUN_FOLDER / CHECKPOINT / TENSORS_FILE) for job in self.jobs]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _joined(parts: Sequence[Rows]) -> Rows:
    """Rows of all members: what is a list in a slice's row has a value for each of its members."""
    return [
        {
            name: _flat([row[name] for row in rows]) if isinstance(value, list) else value
            for name, value in rows[0].items()
        }
        for rows in zip(*parts, strict=True)
    ]


def _flat(lists: Sequence[list[Any]]) -> list[Any]:
    return [value for values in lists for value in values]


def _metrics(
    jobs: Sequence[SliceJob],
    validation: Sequence[Example] | Sequence[Completion],
    epoch: int,
    *,
    last: bool,
) -> dict[str, Any]:
    result = joined_answers([job.answers for job in jobs], validation, epoch=epoch)
    return measured(result, validation, last=last)


def _members(folders: Sequence[Path]) -> list[MemberWeights]:
    return [member for folder in folders for member in read_ensemble(folder).weights]


def _lines(log: Path) -> Rows:
    return [json.loads(line) for line in log.read_text().splitlines()]
