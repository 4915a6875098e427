"""A training run on disk: settings, log, and a checkpoint from which it goes on to the same weights, bit for
bit.

training/  config.json  environment.json  log.jsonl
           checkpoint/  state.safetensors (weights and moments)  state.json (step, history)
           snapshots/epoch_003/  an ensemble of its own
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..disk.atomic import (
    cannot_write,
    check_readable,
    file_written_aside,
    recover,
    status,
    written_aside,
)
from ..disk.claimed import Claim
from ..disk.layout import ENSEMBLE_FILE, RUN_FOLDER, WORKERS_FOLDER
from ..disk.provenance import environment
from ..disk.schema import anything, check, list_of, number, object_of, read_json, record, whole
from ..distributed.ranks import ALONE, Ranks
from ..errors import CheckpointError, LoraEnsemblesError
from .optim import Optimizer
from .signals import Interrupted
from .trainee import Trainee

CHECKPOINT = "checkpoint"
TENSORS_FILE, STATE_FILE = "state.safetensors", "state.json"
KEPT = ". The checkpoint of step"  # what begins the advice behind an error, for callers that have their own
BEFORE = {
    "loss": "vocabulary",
    "option_orders": 1,
    "cycles": 1,
    "data_share": None,
    "anchored": False,
    "shared_a": False,
    "max_steps": None,
}
"""What runs had before a setting existed, whose files do not name it."""
UNNAMED = ("base_precision", "sigma", "targets")
"""Settings that older files do not name either, and that may have been any."""


@dataclass
class Progress:
    """Progress of a run: optimiser steps done, what was measured after each epoch, and the sums of the epoch
    under way.
    """

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    partial: dict[str, Any] = field(default_factory=dict)


_STATE = record(
    {
        "step": whole(),
        "history": list_of(object_of(anything)),
        "partial": record({}, {"sums": list_of(list_of(number())), "count": whole()}, others=True),
    }
)


class RunFolder:
    """The `training` folder of one run below `out`, which no other process can enter before `close`.

    Several ranks that train together have one folder: all call its methods, and the first writes. What it
    writes is the state of all, as one process has it, so a run goes on with another number of ranks.

    Args:
        out: the folder of the ensemble to be.
        settings: what decides the result; a run goes on only with the settings it had.
        resume: go on with the run that is there, if there is one.
        overwrite: remove the run or the ensemble that is there, if it holds nothing else.
        ranks: the processes that train together.

    Raises:
        CheckpointError: as `claimed.check_free`; or there is no run to go on with, or one of other settings.
    """

    def __init__(
        self,
        out: Path,
        settings: dict[str, Any],
        *,
        resume: bool,
        overwrite: bool = False,
        ranks: Ranks = ALONE,
    ):
        self.out, self.folder, self.ranks = out, out / RUN_FOLDER, ranks
        self.saved_step: int | None = None  # of the checkpoint
        self._claim: Claim | None = None  # the first rank's
        ranks.on_first(lambda: self._enter(settings, resume=resume, overwrite=overwrite))

    def _enter(self, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
        self._claim = Claim(self.out, resume=resume, overwrite=overwrite)
        try:
            self._open(json.loads(json.dumps(settings)))
        except BaseException:
            self.close()
            raise

    def _open(self, settings: dict[str, Any]) -> None:
        if (self.out / WORKERS_FOLDER).is_dir():
            raise CheckpointError(f"{self.out} holds a run over workers; go on with it by on='ray'")
        if (self.out / ENSEMBLE_FILE).exists() and not (self.folder / "config.json").is_file():
            raise CheckpointError(
                f"{self.out} holds an ensemble but no run that could go on; choose another folder"
            )
        if (self.folder / "config.json").is_file():
            self._check_settings(settings)
            return
        with written_aside(self.folder) as aside:
            (aside / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
            (aside / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")

    def close(self) -> None:
        """Let other processes in; a folder that was made for this run and holds nothing goes."""
        if self._claim is not None:
            self._claim.release()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Context in which the run goes on: an error says from where it can go on, and without a checkpoint
        leaves nothing in the way.

        The folder is closed at the end.
        """
        try:
            yield
        except BaseException as error:
            self._leave(error)
            raise
        finally:
            self.close()

    def _leave(self, error: BaseException) -> None:
        if self.saved_step is not None:
            if isinstance(error, LoraEnsemblesError | Interrupted):
                error.args = (
                    f"{error}{KEPT} {self.saved_step} is kept in {self.out}: "
                    "go on from it by resume=True, or replace the run by overwrite=True",
                    *error.args[1:],
                )
        elif (
            self.ranks.first and status(self.folder / CHECKPOINT) is None
        ):  # a checkpoint that could not be read is not ours to remove
            shutil.rmtree(self.folder, ignore_errors=True)

    def _check_settings(self, settings: dict[str, Any]) -> None:
        file = self.folder / "config.json"
        try:
            before = read_json(file)
            check(before, object_of(anything), file=file, advice="it is no run's")
        except CheckpointError as error:
            raise CheckpointError(f"{file} is corrupt ({error}); remove {self.out} and train anew") from error
        unnamed = settings.keys() & {*BEFORE, *UNNAMED}
        before = {name: BEFORE.get(name, settings[name]) for name in unnamed} | before
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

    def save(self, trainee: Trainee, optimizer: Optimizer, progress: Progress) -> None:
        """Replace the checkpoint by the present state; the old one stays until the new one is complete."""
        state = _state(trainee, optimizer)
        tensors = {name: trainee.whole(_buffer_of(name), part).contiguous() for name, part in state.items()}

        def write() -> None:
            with written_aside(self.folder / CHECKPOINT, replace=True) as aside:
                save_file(tensors, aside / TENSORS_FILE)
                (aside / STATE_FILE).write_text(json.dumps(dataclasses.asdict(progress)) + "\n")

        self.ranks.on_first(write)
        self.saved_step = progress.step

    def restore(self, trainee: Trainee, optimizer: Optimizer) -> Progress:
        """Bring members and optimiser to the last checkpoint, if there is one, and cut the log back to it.

        Raises:
            CheckpointError: the checkpoint is corrupt, or of another ensemble.
        """
        shapes = {
            name: (*trainee.whole(_buffer_of(name), part).shape,)
            for name, part in _state(trainee, optimizer).items()
        }
        saved: dict[str, Tensor] = {}

        def read() -> dict[str, Any] | None:
            progress = self._read(shapes, trainee.members_in_all, into=saved)
            return None if progress is None else dataclasses.asdict(progress)

        content = self.ranks.on_first(read)
        if content is None:
            return Progress()
        for name, part in _state(trainee, optimizer).items():
            whole = saved.get(name, part.new_empty(shapes[name], device="cpu"))
            part.copy_(trainee.part(_buffer_of(name), self.ranks.from_first(whole)))
        trainee.refresh()
        optimizer.steps = self.saved_step = content["step"]
        return Progress(**content)

    def _read(
        self, shapes: dict[str, tuple[int, ...]], members: int, *, into: dict[str, Tensor]
    ) -> Progress | None:
        """The progress of the last checkpoint, whose tensors go `into` a dictionary; None without one."""
        folder = self.folder / CHECKPOINT
        recover(folder)
        if not folder.is_dir():
            self._cut_log(0)
            return None
        try:
            saved = load_file(folder / TENSORS_FILE)
            content = read_json(folder / STATE_FILE)
            check(content, _STATE, file=folder / STATE_FILE, advice="it is no run's")
            sums = content["partial"].get("sums")
            if sums is not None and [len(row) for row in sums] != [members] * 2:
                raise CheckpointError(f"partial.sums is not 2 by {members}")
        except (OSError, SafetensorError, CheckpointError) as error:
            raise CheckpointError(
                f"the checkpoint {folder} is corrupt or cut short ({error}); remove {self.out} and train anew"
            ) from error
        if {name: (*tensor.shape,) for name, tensor in saved.items()} != shapes:
            raise CheckpointError(
                f"the checkpoint {folder} is of an ensemble of another shape; train into another folder"
            )
        into.update(saved)
        self._cut_log(content["step"])
        return Progress(content["step"], content["history"], content["partial"])

    def _cut_log(self, step: int) -> None:
        path = self.folder / "log.jsonl"
        if status(path) is None:
            return
        check_readable(path)
        rows = []
        for place, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
            if not line.endswith(b"\n"):  # cut off while it was written
                break
            try:
                row = json.loads(line)
                kept = row["step"] <= step
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise CheckpointError(
                    f"{path}, line {place}: no row of a log ({error}); remove the line, "
                    f"or remove {self.out} and train anew"
                ) from error
            rows += [line.decode("utf-8")] if kept else []
        with file_written_aside(path, replace=True) as file:
            file.writelines(rows)

    def save_snapshot(self, trainee: Trainee, epoch: int) -> None:
        path = snapshot_folder(self.out, epoch)
        if not self.ranks.on_first(path.exists):  # a resumed run passes the same epoch with the same weights
            trainee.save(path)

    def snapshots(self, trainee: Trainee) -> dict[int, list[Any]]:
        """The snapshots that were saved so far, by epoch."""
        return {epoch: trainee.load(path) for epoch, path in snapshot_folders(self.out).items()}


def snapshot_folder(out: Path, epoch: int) -> Path:
    """The folder of the members after an epoch, in a run's output."""
    return out / RUN_FOLDER / "snapshots" / f"epoch_{epoch:03d}"


def snapshot_folders(out: Path) -> dict[int, Path]:
    """The folders of all snapshots in a run's output, by epoch."""
    paths = sorted((out / RUN_FOLDER / "snapshots").glob("epoch_*"))
    return {int(path.name.removeprefix("epoch_")): path for path in paths}


def _buffer_of(name: str) -> str:
    """The buffer whose weights, or moments, a tensor of the state holds."""
    return name.partition(".")[0]


def _state(trainee: Trainee, optimizer: Optimizer) -> dict[str, Any]:
    named = trainee.buffers
    for name, moments in zip(tuple(named), optimizer.states, strict=True):
        named |= {f"{name}.first_moment": moments.first, f"{name}.second_moment": moments.second}
    return named | trainee.kept
