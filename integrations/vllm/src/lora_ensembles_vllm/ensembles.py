"""The saved ensembles that are served: read from their folders, without their base."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_ensembles.calibration.calibrated import HeldOut
from lora_ensembles.data.inputs import answer_of
from lora_ensembles.errors import AdapterError, ConfigError
from lora_ensembles.stack.info import EnsembleInfo
from lora_ensembles.storage.description import read_description
from lora_ensembles.storage.folder import SavedEnsemble, info_of, last_part, member_folder, read_ensemble
from lora_ensembles.storage.hub import ensemble_folder

from .settings import Settings


@dataclass(frozen=True)
class Adapter:
    """One member: its name, and the folder with its adapter."""

    name: str
    folder: Path


@dataclass(frozen=True, eq=False)
class ServedEnsemble:
    """An ensemble that requests can name.

    Attributes:
        name: as requests give it.
        info: its memory.
        calibrated: its calibration; None without one.
        adapters: its members.
        rank: the largest of its adapters.
    """

    name: str
    info: EnsembleInfo
    calibrated: HeldOut | None
    adapters: tuple[Adapter, ...]
    rank: int

    @property
    def calibration(self) -> str | None:
        """The saved calibration in words."""
        return None if self.calibrated is None else str(self.calibrated.calibration)


def read_ensembles(settings: Settings, *, models: Sequence[str]) -> list[ServedEnsemble]:
    """The ensembles of the settings, all for vLLM's model, which goes by these names.

    Raises:
        CheckpointError: a folder that holds no ensemble, or a corrupt one.
        ConfigError: an ensemble that is not asked by letters, or two of one name.
        AdapterError: an ensemble for another base.
    """
    made = [_read(folder, models if settings.check_base else None) for folder in settings.folders]
    names = [ensemble.name for ensemble in made]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two ensembles are called {twice!r}; rename one of their folders")
    return made


def _read(folder: Path, models: Sequence[str] | None) -> ServedEnsemble:
    home, name = Path(os.path.abspath(ensemble_folder(folder))), os.path.basename(os.path.abspath(folder))
    saved = read_ensemble(home)
    info = info_of(saved)
    _check_letters(folder, info)
    if models is not None:
        _check_base(folder, saved, models)
    adapters = tuple(
        Adapter(f"{name}/{member_folder(index)}", home / member["folder"])
        for index, member in enumerate(read_description(home)["members"])
    )
    rank = max(matrix.shape[0] for weights in saved.weights for matrix in weights.a.values())
    return ServedEnsemble(name, info, saved.calibrated, adapters, rank)


def _check_letters(folder: Path, info: EnsembleInfo) -> None:
    source = info.task.get("source") or {}
    wrong = None
    if info.head.kind != "causal-lm":
        wrong = f"has heads of the kind {info.head.kind!r}"
    elif source.get("open_ended"):
        wrong = "writes open answers"
    elif source.get("labels"):
        wrong = "answers with label words"
    elif answer_of(info) != "letter":
        wrong = "answers with the texts of the options"
    if wrong is not None:
        raise ConfigError(
            f"{folder} {wrong}; vLLM is asked for one token, the letter of an option: serve it with "
            "lora-ensembles serve"
        )


def _check_base(folder: Path, saved: SavedEnsemble, models: Sequence[str]) -> None:
    if saved.base_name and last_part(saved.base_name) not in map(last_part, models):
        raise AdapterError(
            f"{folder} was trained on base {saved.base_name!r}, and vLLM serves {models[0]!r}; serve that "
            'base, or set "check_base": false if it is the same model under another name'
        )


def named(ensembles: Sequence[ServedEnsemble]) -> dict[str, ServedEnsemble]:
    """The ensembles by name."""
    return {ensemble.name: ensemble for ensemble in ensembles}
