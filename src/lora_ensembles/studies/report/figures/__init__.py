"""The figures of the studies, each drawn from records and nothing else; one file a figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import (
    correlation,
    figure_1a,
    figure_2,
    figure_3,
    figure_4,
    figure_5,
    figure_6,
    figure_7,
    figure_8,
    gain,
    initialisation,
    methods,
    rank,
    reliability,
    strength,
)
from .values import Records

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawing:
    """A figure: its file's name, what is drawn, what the paper shows there, and the kinds of records it is
    drawn from.
    """

    name: str
    title: str
    caption: str
    paper: str
    needs: tuple[str, ...]
    draw: Callable[[Records], Figure]


DRAWINGS = tuple(
    Drawing(name, module.TITLE, module.CAPTION, module.PAPER, module.NEEDS, module.draw)
    for name, module in {
        "figure_1a": figure_1a,
        "figure_2": figure_2,
        "figure_3": figure_3,
        "figure_4": figure_4,
        "figure_5": figure_5,
        "figure_6": figure_6,
        "figure_7": figure_7,
        "figure_8": figure_8,
        "gain": gain,
        "reliability": reliability,
        "correlation": correlation,
        "methods": methods,
        "initialisation": initialisation,
        "rank": rank,
        "strength": strength,
    }.items()
)

__all__ = ["DRAWINGS", "Drawing", "Records"]
