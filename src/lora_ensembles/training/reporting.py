"""Reports of a training run while it goes on: a progress bar, `log.jsonl`, and TensorBoard where it is
installed.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..disk.atomic import cannot_write
from .board import Board
from .progress import Progress

if TYPE_CHECKING:
    from .checkpoint import RunFolder


@dataclass
class StepOutcome:
    """Loss (nats), answer accuracy and gradient norm of each member in one step, (M,) each, and how many rows
    of a member it had.
    """

    loss: Tensor
    accuracy: Tensor
    gradient_norm: Tensor
    rows: int


class Reporter:
    """Loss, accuracy (by the name it is `shown_as`) and time left of a run; keeps the sums from which an
    epoch's means are taken.
    """

    def __init__(
        self, folder: RunFolder | None, *, total: int, first: int, members: int, show: bool, shown_as: str
    ):
        self._folder = folder
        self._bar = Progress(total=total, first=first, unit="step", show=show)
        self._shown_as = shown_as
        self._board = None if folder is None else _tensorboard(folder.folder)
        self._sums = torch.zeros(2, members, dtype=torch.float64)
        self._count = 0  # rows of a member

    def step(self, step: int, outcome: StepOutcome, *, every: int) -> None:
        """Take in one step; every so many, show and log it."""
        self._sums += outcome.rows * torch.stack([outcome.loss, outcome.accuracy]).double()
        self._count += outcome.rows
        due = step % every == 0 or step == self._bar.total
        if due:
            self._bar.note(
                {"loss": f"{outcome.loss.mean():.3f}", self._shown_as: f"{outcome.accuracy.mean():.3f}"}
            )
        self._bar.update()
        if not due:
            return
        norms = outcome.gradient_norm.cpu()
        self._write(
            {
                "step": step,
                "loss": _listed(outcome.loss),
                "accuracy": _listed(outcome.accuracy),
                "gradient_norm": _listed(norms),
            }
        )

    def partial(self) -> dict[str, Any]:
        """The sums of the epoch that is under way, as JSON-able values."""
        return {"sums": self._sums.tolist(), "count": self._count}

    def go_on(self, partial: dict[str, Any]) -> None:
        """Take up the sums that an interrupted run left, if any."""
        if partial:
            self._sums = torch.tensor(partial["sums"], dtype=torch.float64)
            self._count = partial["count"]

    def epoch_means(self) -> dict[str, list[float]]:
        """Each member's mean loss (nats) and answer accuracy over the rows since the last call; a short batch
        weighs as its rows do.
        """
        loss, accuracy = self._sums / max(1, self._count)
        self._sums, self._count = torch.zeros_like(self._sums), 0
        return {"train_loss": _listed(loss), "train_accuracy": _listed(accuracy)}

    def epoch(self, row: dict[str, Any]) -> None:
        """Log what was measured after an epoch."""
        self._write(row)

    def close(self) -> None:
        self._bar.close()
        if self._board is not None:
            self._board.close()

    def _write(self, row: dict[str, Any]) -> None:
        if self._folder is None:
            return
        self._folder.log(row)
        if self._board is not None:
            try:
                _draw(self._board, row)
            except OSError as error:
                raise cannot_write(_board_folder(self._folder.folder), error) from error


def redrawn(folder: Path) -> None:
    """Draw the log of a run's folder for TensorBoard, where that is installed.

    Raises:
        CheckpointError: it cannot be written.
    """
    board = _tensorboard(folder)
    if board is None:
        return
    try:
        for line in (folder / "log.jsonl").read_text().splitlines():
            _draw(board, json.loads(line))
    except OSError as error:
        raise cannot_write(_board_folder(folder), error) from error
    finally:
        board.close()


def _draw(board: Board, row: dict[str, Any]) -> None:
    for name in ("loss", "accuracy"):
        for member, value in enumerate(row.get(name, [])):
            board.add_scalar(f"{name}/member_{member:03d}", value, row["step"])
    for name, value in row.get("ensemble", {}).items():
        if isinstance(value, int | float):
            board.add_scalar(f"validation/{name}", value, row["step"])


def _listed(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]


def _tensorboard(folder: Path) -> Board | None:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    try:
        return Board(_board_folder(folder))
    except OSError as error:
        raise cannot_write(_board_folder(folder), error) from error


def _board_folder(folder: Path) -> Path:
    return folder / "tensorboard"
