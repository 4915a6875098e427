"""Style of all figures: sizes for a printed column, colours, light and dark, and the legend at the right.

A single member (M = 1) is a solid line and an ensemble is dashed, as in Fig. 1a of arXiv:2310.00035, so that
the two stay apart in print. Colours are Okabe and Ito's, which colour-blind readers tell apart.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..prediction import Prediction

WIDTH = 6.5  # inches: the text of a printed page, so that the sizes below are those on paper
SMALL, TEXT = 7, 8  # points
DPI = 180
# Okabe and Ito's palette for white paper: their yellow is left out, too pale for a line on it.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# The same for a dark screen, on which their blue and black would be lost.
DARK_COLOURS = ("#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#F0E442", "#FFFFFF")
MARKERS = "osD^vPX"
NAME_WIDTH = 24  # characters in a line of the legend
Place = Literal["outside right upper", "outside upper center"]  # of a legend


@dataclass(frozen=True)
class Theme:
    """Colours of a figure, as matplotlib takes them.

    Attributes:
        background: of the whole figure.
        text: of words, numbers and the frame.
        muted: of lines that are there to compare with.
        grid: of the grid.
        noise: of what chance alone would give.
        shade: the strongest behind words, which stay legible on it.
        colours: one for each arm.
    """

    background: str
    text: str
    muted: str
    grid: str
    noise: str
    shade: str
    colours: tuple[str, ...]


LIGHT = Theme("#ffffff", "#000000", "#8c8c8c", "#e6e6e6", "#d4d4d4", "#d55e00", COLOURS)
DARK = Theme("#1e2129", "#e8e8e8", "#8f949e", "#343944", "#474d5a", "#a84600", DARK_COLOURS)


def new_figure(
    size: tuple[float, float], *, rows: int = 1, columns: int = 1, dpi: int = 150, sharex: bool = False
) -> Figure:
    """An empty figure of `size` (width, height) in inches with rows * columns axes, in reading order in its
    `axes`.

    Raises:
        MissingExtraError: matplotlib is not installed.

    Example:
        >>> len(new_figure((6.0, 4.0), rows=2, columns=3).axes)
        6
    """
    figure = _figure_class()(figsize=size, dpi=dpi, layout="constrained")
    figure.subplots(nrows=rows, ncols=columns, sharex=sharex)
    for axes in figure.axes:
        axes.grid(color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure


def _figure_class() -> type[Figure]:
    """A Figure of its own and not pyplot's: nothing stays registered, no window system is looked for, and a
    notebook shows it all the same.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            'figures need matplotlib, which is not installed; run: pip install "lora-ensembles[plots]"'
        ) from error

    class ShownFigure(Figure):
        def _repr_png_(self) -> bytes:
            drawn = io.BytesIO()
            self.savefig(drawn, format="png", bbox_inches="tight")
            return drawn.getvalue()

    return ShownFigure


def small_print(axes: Axes) -> None:
    """Set the words of axes in the sizes of a printed column, and leave out the frame's upper and right
    side.
    """
    axes.tick_params(labelsize=SMALL, length=2)
    axes.xaxis.label.set_fontsize(TEXT)
    axes.yaxis.label.set_fontsize(TEXT)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def canvas(height: float, *, dark: bool, rows: int = 1, columns: int = 1) -> tuple[Figure, Theme]:
    """An empty figure as wide as a printed column and `height` inches high, in the colours of its theme.

    Raises:
        MissingExtraError: matplotlib is not installed.

    Example:
        >>> figure, theme = canvas(3.0, dark=True)
        >>> figure.get_facecolor()[:3] == figure.axes[0].get_facecolor()[:3]
        True
    """
    theme = DARK if dark else LIGHT
    figure = new_figure((WIDTH, height), rows=rows, columns=columns, dpi=DPI, sharex=rows > 1)
    figure.set_facecolor(theme.background)
    for axes in figure.axes:
        small_print(axes)
        colour_axes(axes, theme)
    return figure, theme


def colour_axes(axes: Axes, theme: Theme) -> None:
    """Set a theme's colours for the frame, ticks and grid of axes."""
    axes.set_facecolor(theme.background)
    axes.tick_params(colors=theme.text)
    axes.grid(color=theme.grid)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(theme.text)
    for spine in axes.spines.values():
        spine.set_edgecolor(theme.text)


def legend(figure: Figure, theme: Theme, *, place: Place = "outside right upper", columns: int = 1) -> None:
    """Add a legend of all that has a label, outside of the axes, where it hides nothing; a figure that is
    too low for it grows.
    """
    shown = figure.legend(
        handles=[handle for axes in figure.axes for handle in axes.get_legend_handles_labels()[0]],
        loc=place,
        ncols=columns,
        frameon=False,
        fontsize=TEXT,
        labelcolor=theme.text,
        handlelength=2.6,
        labelspacing=0.9,
    )
    lines = [text.get_text().count("\n") + 1 for text in shown.get_texts()]
    points = TEXT * (1.25 * sum(lines) + 0.9 * len(lines) + 1)
    if columns == 1:
        figure.set_figheight(max(figure.get_figheight(), points / 72))


def entry(name: str, *lines: str) -> str:
    """The text of a legend's entry: a name, wrapped where it is long, and lines below it.

    Example:
        >>> entry("ensemble of five members, decay of B", "ECE 0.031")
        'ensemble of five members,\\ndecay of B\\nECE 0.031'
    """
    return "\n".join([*(textwrap.wrap(name, NAME_WIDTH + 1) or [""]), *lines])


def line_of(prediction: Prediction) -> str:
    """Solid for a single member, dashed for an ensemble."""
    return "-" if prediction.num_members == 1 else "--"


def check_arms(predictions: Mapping[str, object]) -> None:
    """Refuse no arms, and more than there are colours.

    Raises:
        ConfigError: no arms, or more than seven.
    """
    if not 1 <= len(predictions) <= len(COLOURS):
        raise ConfigError(
            f"{len(predictions)} arms to draw; give 1 to {len(COLOURS)}, more cannot be told apart "
            "in one figure"
        )


def save_figure(figure: Figure, path: Path) -> None:
    """The figure as `path`.png, the same bytes on every run; of 64 colours, which is a third of the size."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})
    palette = Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    palette.save(path.with_suffix(".png"), optimize=True)
