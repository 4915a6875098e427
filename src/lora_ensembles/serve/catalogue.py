"""The models of a server by name: each ensemble, and each of its members as `name/member_000`."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..ensemble import LoraEnsemble
from ..errors import ConfigError, unknown_name
from ..heads.lm.head import LMHead
from ..storage.folder import member_folder

ROUTES = {
    "decisions": "/v1/decisions and /v1/systemone",
    "classes": "/classify",
    "rewards": "/score and /rerank",
    "completions": "/v1/completions and /v1/chat/completions",
}


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model that requests can name: an ensemble, or one of its members.

    Attributes:
        name: as requests give it.
        ensemble: that computes it.
        member: its index where it is one member; None: the whole ensemble.
        tasks: the names of what it answers, keys of `ROUTES`.
        lock: held by whoever computes with the ensemble; one for it and its members.
    """

    name: str
    ensemble: LoraEnsemble
    member: int | None
    tasks: tuple[str, ...]
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def routes(self) -> str:
        """The routes that it answers, in words."""
        return ", ".join(ROUTES[task] for task in self.tasks)

    @property
    def calibration(self) -> str | None:
        """The saved calibration in words; None without one, and for a member, since it is that of all."""
        kept = self.ensemble.calibrated
        return None if kept is None or self.member is not None else str(kept.calibration)


class Catalogue:
    """The models of a server.

    Args:
        ensembles: by the name that requests give.

    Raises:
        ConfigError: no ensemble, or a name that stands for two models.
    """

    def __init__(self, ensembles: Mapping[str, LoraEnsemble]):
        self._models: dict[str, ServedModel] = {}
        if not ensembles:
            raise ConfigError("no ensemble to serve; give at least one folder")
        for name, ensemble in ensembles.items():
            tasks, lock = tasks_of(ensemble), threading.Lock()
            members = [f"{name}/{member_folder(index)}" for index in range(ensemble.num_members)]
            for index, own in enumerate([name, *members]):
                if own in self._models:
                    raise ConfigError(f"two models are called {own!r}; rename one of their folders")
                self._models[own] = ServedModel(own, ensemble, index - 1 if index else None, tasks, lock)

    def __iter__(self) -> Any:
        return iter(self._models.values())

    def become(self, other: Catalogue) -> None:
        """Take another's models in place of these."""
        self._models = other._models

    @property
    def names(self) -> list[str]:
        """The names in their order: each ensemble before its members."""
        return list(self._models)

    def __getitem__(self, name: str) -> ServedModel:
        """The model of a name.

        Raises:
            KeyError: there is none; the message names the nearest.
        """
        if name not in self._models:
            raise KeyError(unknown_name("model", name[:200], self.names))
        return self._models[name]


def tasks_of(ensemble: LoraEnsemble) -> tuple[str, ...]:
    """The names of what an ensemble answers, keys of `ROUTES`: what it was trained on, and text if it is a
    language model.
    """
    source: Mapping[str, Any] = ensemble.info.task.get("source") or {}
    kind, writes = ensemble.info.head.kind, isinstance(ensemble.head, LMHead)
    text = ("completions",) if writes else ()
    if source.get("open_ended"):
        return text
    if kind == "reward":
        return ("rewards",)
    return ("classes" if kind == "sequence-classification" or source.get("labels") else "decisions", *text)
