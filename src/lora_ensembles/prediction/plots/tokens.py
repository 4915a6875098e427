"""Figure of a written text: its tokens, shaded by what the members contradict each other about."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from ...errors import ConfigError, DataError
from .style import SMALL, TEXT, WIDTH, Theme, canvas, colour_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 78  # characters in a line
MARGIN = 0.15  # inches around the text
LINE = 0.27  # inches from line to line
BAR = 0.62  # inches for the colour bar, with its numbers and its name
FONT = 9.2  # points; a character of DejaVu Sans Mono is 0.602 of it wide, rounded up to whole
# pixels, and 78 of them fill the width
LEAST_SCALE = 0.1  # nats: below this members hardly contradict each other, and no shade should say so


class TokenSplit(Protocol):
    """The uncertainty of each token of a text."""

    @property
    def mutual_information(self) -> Tensor:
        """(K,) in nats."""
        ...


class ScoredText(Protocol):
    """A text with the uncertainty of its tokens, such as a `GeneratedText`."""

    @property
    def tokens(self) -> Sequence[str]:
        """The text of each of the K tokens."""
        ...

    @property
    def uncertainty(self) -> TokenSplit:
        """Of each token."""
        ...


def token_uncertainty(text: ScoredText, *, dark: bool = False) -> Figure:
    """The tokens of a written text, each shaded by the members' mutual information in its place: the parts of
    a text that the members contradict each other about.

    The scale goes from 0 to the largest value, and to 0.1 nats at least. A line break is shown as ↵ and a
    control character as ·. Mutual information (BALD) is that of Houlsby et al. 2011 (arXiv:1112.5745), for
    the tokens of a text as in Malinin & Gales 2021 (arXiv:2002.07650).

    Args:
        text: a `GeneratedText`, or anything with `tokens` and `uncertainty.mutual_information` of as many.
        dark: light letters on a dark background.

    Returns:
        A figure with the text above a colour bar in nats; it is higher for a longer text.

    Raises:
        DataError: a text without tokens.
        ConfigError: not as many values as tokens.
        MissingExtraError: matplotlib is not installed.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> split = SimpleNamespace(mutual_information=torch.tensor([0.02, 0.31]))
        >>> figure = token_uncertainty(SimpleNamespace(tokens=[" the", " lake"], uncertainty=split))
        >>> [shown.get_text() for shown in figure.axes[0].texts]
        [' the', ' lake']
    """
    values = text.uncertainty.mutual_information.flatten().tolist()
    if len(text.tokens) == 0:
        raise DataError("a text without tokens; write at least one")
    if len(values) != len(text.tokens):
        raise ConfigError(
            f"{len(values)} values of mutual information for {len(text.tokens)} tokens; give one for each"
        )
    places = list(wrapped(text.tokens, COLUMNS))
    lines = places[-1][1] + 1
    height = 2 * MARGIN + lines * LINE + BAR
    figure, theme = canvas(height, dark=dark)
    figure.set_layout_engine("none")  # the places of letters are known, and fixed
    axes = figure.axes[0]
    axes.set_position(
        (MARGIN / WIDTH, (MARGIN + BAR) / height, 1 - 2 * MARGIN / WIDTH, lines * LINE / height)
    )
    axes.set(xlim=(0, COLUMNS), ylim=(lines, 0))
    axes.axis("off")
    _draw(figure, axes, theme, places, values)
    return figure


def wrapped(tokens: Sequence[str], columns: int) -> Iterator[tuple[int, int, int, str]]:
    """The pieces of tokens as they stand in lines of so many characters: (token, line, column, piece). A line
    ends behind a line break, and before a token that no longer fits; one that is longer than a line is cut.

    Example:
        >>> list(wrapped(["one", " two", "\\n", "x"], 6))
        [(0, 0, 0, 'one'), (1, 1, 0, ' two'), (2, 1, 4, '↵'), (3, 2, 0, 'x')]
    """
    line = column = 0
    for token, text in enumerate(tokens):
        rest = text.replace("\r\n", "\n").replace("\t", "    ")
        rest = "".join(one if one.isprintable() or one == "\n" else "·" for one in rest)
        if column and column + columns_of(rest.partition("\n")[0]) > columns:
            line, column = line + 1, 0
        # a token without text is the beginning of a character, which the last of its tokens has
        for part in re.findall(r"[^\n]*\n|[^\n]+", rest) or [" "]:
            shown = part.replace("\n", "↵")
            while shown:
                room = columns - column
                fits = [width <= room for width in itertools.accumulate(map(columns_of, shown))].count(True)
                if fits or not column:
                    piece = shown[: max(1, fits)]
                    yield token, line, column, piece
                    column, shown = column + columns_of(piece), shown[len(piece) :]
                if shown:
                    line, column = line + 1, 0
            if part.endswith("\n"):
                line, column = line + 1, 0


def columns_of(text: str) -> int:
    """The width of a text in characters of a fixed-width font: two for those of East Asian writing, none for
    those that combine with the one before.

    Example:
        >>> columns_of("lake"), columns_of("湖")
        (4, 2)
    """
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1
        for one in text
    )


def _draw(
    figure: Figure,
    axes: Axes,
    theme: Theme,
    places: Sequence[tuple[int, int, int, str]],
    values: Sequence[float],
) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.patches import Rectangle

    shades = LinearSegmentedColormap.from_list("doubt", [theme.background, theme.shade])
    scale: Any = ScalarMappable(Normalize(0, max(LEAST_SCALE, *values)), shades)
    for token, line, column, piece in places:
        shade = scale.to_rgba(values[token])
        width = columns_of(piece)
        axes.add_patch(
            Rectangle(
                (column, line + 0.06),
                width,
                0.88,
                facecolor=shade,
                edgecolor=theme.grid,
                linewidth=0.5,
                clip_on=False,
            )
        )
        axes.text(
            column,
            line + 0.52,
            piece,
            family="monospace",
            fontsize=FONT,
            color=theme.text,
            va="center_baseline",
            parse_math=False,
        )
    bar_axes = figure.add_axes((0.25, 0.45 / figure.get_figheight(), 0.5, 0.1 / figure.get_figheight()))
    bar: Any = figure.colorbar(scale, cax=bar_axes, orientation="horizontal")
    bar.set_label("mutual information (nats)", fontsize=TEXT, color=theme.text)
    bar.outline.set_visible(False)
    colour_axes(bar_axes, theme)
    bar_axes.grid(visible=False)
    bar_axes.tick_params(labelsize=SMALL, length=2)
    bar_axes.locator_params(nbins=5)
