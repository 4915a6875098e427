"""The memory of an ensemble beside its weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from .head_config import HeadConfig, LabelScore
from .seeds import MemberSeeds


@dataclass(frozen=True)
class EnsembleInfo:
    """The memory of an ensemble beside its weights; saved in `ensemble.json`.

    It is never changed: whoever trains or names an ensemble gives it another one (`dataclasses.replace`).

    Attributes:
        seed: of the ensemble.
        vary: what differs between members: "init", "order".
        next_index: the index of the next member to be added.
        seeds: of each member.
        overlong: what is done with a prompt longer than the window, as in training.
        task: how prompts and labels were rendered, and what was measured.
        head: what the members say about an example.
        label_score: how labels of several tokens are compared, as in training.
    """

    seed: int = 0
    vary: tuple[str, ...] = ("init", "order")
    next_index: int = 0
    seeds: tuple[MemberSeeds, ...] = ()
    overlong: Literal["error", "left"] = "error"
    task: dict[str, Any] = field(default_factory=dict)
    head: HeadConfig = field(default_factory=lambda: HeadConfig("causal-lm"))
    label_score: LabelScore = "sum"
