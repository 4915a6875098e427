"""The prompt of Appendix C of arXiv:2310.00035: question, lettered options, and an opened bracket that the
answer's letter closes.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import DataError

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def render_prompt(question: str, options: Sequence[str]) -> str:
    r"""The text that a model reads before it names the letter of its answer.

    Raises:
        DataError: there are more options than letters.

    Example:
        >>> print(render_prompt("The sun is a", ["star", "planet"]) + "a).")
        Q: The sun is a
        Answer Choices:
        (a) star
        (b) planet
        A: (a).
    """
    if len(options) > len(LETTERS):
        raise DataError(
            f"{len(options)} options for the question {question[:60]!r}; there are letters for at most {len(LETTERS)}"
        )
    lines = "".join(f"({letter}) {option}\n" for letter, option in zip(LETTERS, options, strict=False))
    return f"Q: {question}\nAnswer Choices:\n{lines}A: ("


def render_label_prompt(question: str) -> str:
    r"""The text that a model reads before it answers in words: no options are listed, and the label follows
    after a space.

    The prompt ends without that space, because most tokenizers begin a word with it: " yes" is one token,
    "yes" after a space is not.

    Example:
        >>> print(render_label_prompt("Is the sun a star?") + " yes")
        Q: Is the sun a star?
        A: yes
    """
    return f"Q: {question}\nA:"
