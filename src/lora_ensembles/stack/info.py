"""The memory of an ensemble beside its weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from .head_config import HeadConfig, LabelScore
from .seeds import MemberSeeds


@dataclass
class EnsembleInfo:
    """The memory of an ensemble beside its weights; saved in `ensemble.json`.

    `overlong` is what is done with a prompt longer than the window, as in training; `task` how prompts and
    labels were rendered, and what was measured; `head` what the members say about an example; `label_score`
    how labels of several tokens are compared, as in training.
    """

    seed: int = 0
    vary: tuple[str, ...] = ("init", "order")
    next_index: int = 0
    seeds: list[MemberSeeds] = field(default_factory=list)
    overlong: Literal["error", "left"] = "error"
    task: dict[str, Any] = field(default_factory=dict)
    head: HeadConfig = field(default_factory=lambda: HeadConfig("causal-lm"))
    label_score: LabelScore = "sum"
