"""The prompts: that of Appendix C of arXiv:2310.00035 (question, lettered options, and an opened bracket that
the answer's letter closes), and the bare question, which an option's text or a label word answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from ..errors import ConfigError, DataError, unknown_name
from .examples import Example

Answer = Literal["letter", "text"]
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
            f"{len(options)} options for the question {question[:60]!r}; "
            f"there are letters for at most {len(LETTERS)}"
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


def rendered(examples: Iterable[Example], answer: Answer) -> tuple[Example, ...]:
    """The examples with answers of this kind, where their options are lettered; others are as they were.

    With "text" the prompt is the bare question, `Q: ...` and `A:`, and the labels are the options' texts. An
    option that comes twice is one answer.

    Raises:
        ConfigError: another kind of answer.

    Example:
        >>> from lora_ensembles.data import load_task
        >>> letters = load_task("world-cqa").train[0]
        >>> (text,) = rendered([letters], "text")
        >>> letters.labels[:2], text.labels[text.target] == " " + letters.options[letters.target]
        (('a', 'b'), True)
    """
    if answer not in get_args(Answer):
        raise ConfigError(unknown_name("answer", answer, get_args(Answer)))
    if answer == "letter":
        return tuple(examples)
    return tuple(_by_text(example) if _is_lettered(example) else example for example in examples)


def _is_lettered(example: Example) -> bool:
    return bool(example.options) and example.labels == tuple(LETTERS[: len(example.labels)])


def _by_text(example: Example) -> Example:
    options = tuple(dict.fromkeys(example.options))
    if len(options) < 2:
        return example
    return dataclasses.replace(
        example,
        prompt=render_label_prompt(example.question),
        labels=tuple(f" {option}" for option in options),
        options=options,
        target=None if example.target is None else options.index(example.options[example.target]),
        target_probs=_summed(example, options),
    )


def _summed(example: Example, options: Sequence[str]) -> tuple[float, ...] | None:
    """The soft labels of options that are there once: those of the same option are added."""
    if example.target_probs is None:
        return None
    weights = list(zip(example.options, example.target_probs, strict=True))
    return tuple(sum(weight for other, weight in weights if other == option) for option in options)
