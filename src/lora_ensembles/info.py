"""What an ensemble remembers beside its weights, and how it introduces itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .heads import HeadConfig
from .scoring import LabelScore
from .seeds import MemberSeeds
from .storage import SavedEnsemble, base_name

if TYPE_CHECKING:
    from .ensemble import LoraEnsemble


@dataclass
class EnsembleInfo:
    """What an ensemble remembers beside its weights; saved in `ensemble.json`.

    `overlong` is what is done with a prompt longer than the window, as in training; `task` how prompts and labels were rendered, and what
    was measured; `head` what the members say about an example; `label_score` how labels of several tokens are compared, as in training.
    """

    seed: int = 0
    vary: tuple[str, ...] = ("init", "order")
    next_index: int = 0
    seeds: list[MemberSeeds] = field(default_factory=list)
    overlong: Literal["error", "left"] = "error"
    task: dict[str, Any] = field(default_factory=dict)
    head: HeadConfig = field(default_factory=lambda: HeadConfig("causal-lm"))
    label_score: LabelScore = "sum"


def info_of(saved: SavedEnsemble) -> EnsembleInfo:
    """What was saved of it."""
    seeds = [MemberSeeds(*pair) for pair in saved.seeds]
    head = HeadConfig(**saved.head)
    return EnsembleInfo(
        saved.seed,
        tuple(saved.vary),
        saved.next_index,
        seeds,
        saved.overlong,
        saved.task,
        head,
        saved.label_score,
    )


def described(ensemble: LoraEnsemble) -> str:
    """An ensemble in one line: base, members, targets, rank and head."""
    stack, head = ensemble.stack, ensemble.info.head
    ranks = sorted({rank for own in stack.ranks for rank in own.values()})
    targets = sorted({site.name.rpartition(".")[2] for site in stack.sites})
    base = base_name(ensemble.base) or type(ensemble.base).__name__
    classes = f" of {len(head.classes)} classes" if head.classes else ""
    return (
        f"LoraEnsemble({ensemble.num_members} members on {base!r}, rank {' to '.join(map(str, {ranks[0]: 0, ranks[-1]: 0}))} "
        f"on {', '.join(targets)}, head {head.kind}{classes}, {ensemble.device})"
    )
