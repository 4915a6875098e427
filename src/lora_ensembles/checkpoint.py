"""A training run on disk: settings, log, and a checkpoint from which it goes on to the same weights, bit for bit.

training/  config.json  environment.json  log.jsonl
           checkpoint/  state.safetensors (weights and moments)  state.json (step, history)
           snapshots/epoch_003/  an ensemble of its own
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .errors import CheckpointError
from .files import added_to, cannot_write, recover, written_aside
from .layout import ENSEMBLE_FILE
from .lora import MemberWeights
from .provenance import environment
from .storage import read_ensemble, write_ensemble, write_members

if TYPE_CHECKING:
    from .ensemble import LoraEnsemble
    from .optim import StackedAdamW


@dataclass
class Progress:
    """How far a run is: optimiser steps done, what was measured after each epoch, and the sums of the epoch under way."""

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    partial: dict[str, Any] = field(default_factory=dict)


class RunFolder:
    """The `training` folder of one run below `out`."""

    def __init__(self, out: Path, settings: dict[str, Any], *, resume: bool):
        self.out, self.folder = out, out / "training"
        settings = json.loads(json.dumps(settings))
        if out.exists() and not out.is_dir():
            raise CheckpointError(f"{out} is a file; choose a folder")
        if out.exists() and any(out.iterdir()) and not resume:
            raise CheckpointError(
                f"{out} exists already; choose another folder, or go on with the run in it by resume=True (--resume)"
            )
        if (out / ENSEMBLE_FILE).exists() and not (self.folder / "config.json").is_file():
            raise CheckpointError(
                f"{out} holds an ensemble but no run that could go on; choose another folder"
            )
        if (self.folder / "config.json").is_file():
            self._check_settings(settings)
            return
        with written_aside(self.folder) as aside:
            (aside / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
            (aside / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")

    def _check_settings(self, settings: dict[str, Any]) -> None:
        try:
            before = json.loads((self.folder / "config.json").read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.folder / 'config.json'} is corrupt ({error}); remove {self.out} and train anew"
            ) from error
        different = sorted(
            name for name in settings.keys() | before.keys() if settings.get(name) != before.get(name)
        )
        if different:
            changes = "; ".join(
                f"{name} was {before.get(name)!r}, is {settings.get(name)!r}" for name in different
            )
            raise CheckpointError(
                f"{self.out} holds a run with other settings, so it cannot be resumed: {changes}"
            )

    def log(self, row: dict[str, Any]) -> None:
        path = self.folder / "log.jsonl"
        try:
            with open(path, "a") as log:
                log.write(json.dumps(row) + "\n")
        except OSError as error:
            raise cannot_write(path, error) from error

    def save(self, ensemble: LoraEnsemble, optimizer: StackedAdamW, progress: Progress) -> None:
        """Replace the checkpoint by the present state; the old one stays until the new one is complete."""
        tensors = {name: tensor.contiguous() for name, tensor in _state(ensemble, optimizer).items()}
        with written_aside(self.folder / "checkpoint", replace=True) as aside:
            save_file(tensors, aside / "state.safetensors")
            (aside / "state.json").write_text(json.dumps(dataclasses.asdict(progress)) + "\n")

    def restore(self, ensemble: LoraEnsemble, optimizer: StackedAdamW) -> Progress:
        """Bring ensemble and optimiser to the last checkpoint, if there is one, and cut the log back to it.

        Raises:
            CheckpointError: the checkpoint is corrupt, or of another ensemble.
        """
        folder = self.folder / "checkpoint"
        recover(folder)
        if not folder.is_dir():
            self._cut_log(0)
            return Progress()
        try:
            saved = load_file(folder / "state.safetensors")
            content = json.loads((folder / "state.json").read_text())
            progress = Progress(content["step"], content["history"], content["partial"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CheckpointError(
                f"the checkpoint {folder} is corrupt or cut short ({error}); remove {self.out} and train anew"
            ) from error
        state = _state(ensemble, optimizer)
        if {name: tensor.shape for name, tensor in saved.items()} != {
            name: tensor.shape for name, tensor in state.items()
        }:
            raise CheckpointError(
                f"the checkpoint {folder} is of an ensemble of another shape; train into another folder"
            )
        for name, tensor in state.items():
            tensor.copy_(saved[name])
        ensemble.stack.refresh()
        optimizer.steps = progress.step
        self._cut_log(progress.step)
        return progress

    def _cut_log(self, step: int) -> None:
        path = self.folder / "log.jsonl"
        if path.is_file():
            rows = [
                line
                for line in path.read_text().splitlines(keepends=True)
                if line.endswith("\n") and json.loads(line)["step"] <= step
            ]
            path.write_text("".join(rows))

    def save_snapshot(self, ensemble: LoraEnsemble, epoch: int) -> None:
        path = self.folder / "snapshots" / f"epoch_{epoch:03d}"
        if not path.exists():  # a resumed run passes the same epoch with the same weights again
            write_ensemble(ensemble, path)

    def snapshots(self) -> dict[int, list[MemberWeights]]:
        """The snapshots that were saved so far, by epoch."""
        paths = sorted((self.folder / "snapshots").glob("epoch_*"))
        return {int(path.name.removeprefix("epoch_")): read_ensemble(path).weights for path in paths}

    def finish(self, ensemble: LoraEnsemble) -> None:
        """Put the ensemble's files beside `training`; `ensemble.json` comes last, so a folder that has it is complete."""
        if not (self.out / ENSEMBLE_FILE).exists():
            with added_to(self.out, last=ENSEMBLE_FILE) as aside:
                write_members(ensemble, aside)


def _state(ensemble: LoraEnsemble, optimizer: StackedAdamW) -> dict[str, Any]:
    named = dict(
        zip(("a", "b", "head"), ensemble.stack.buffers, strict=False)
    )  # a causal language model's members have no head
    for name, moments in zip(tuple(named), optimizer.states, strict=True):
        named |= {f"{name}.first_moment": moments.first, f"{name}.second_moment": moments.second}
    return named
