"""Checks of numbers, lists of names and loaded objects, said by the name of the field that holds it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

from .errors import ConfigError


def whole_number(name: str, value: object, *, least: int = 1) -> int:
    """A whole number of at least `least` as a plain int; numpy's count as numbers, True and False do not.

    Raises:
        ConfigError: as it says.

    Example:
        >>> whole_number("epochs", 5)
        5
        >>> whole_number("epochs", 2.5)
        Traceback (most recent call last):
        ...
        lora_ensembles.errors.ConfigError: epochs=2.5; it is a whole number of at least 1
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ConfigError(f"{name}={value!r}; it is a whole number of at least {least}")
    return int(value)


def check_share(name: str, value: float) -> None:
    """Refuse a share that is not between 0 and 1.

    Raises:
        ConfigError: as it says.

    Example:
        >>> check_share("risk", 0.05)
    """
    if not 0 < value < 1:
        raise ConfigError(f"{name}={value}; it is a number between 0 and 1")


def real_number(name: str, value: object, *, needed: str = "it is a number") -> float:
    """A number as a plain int or float; a text is none, and neither is True.

    Raises:
        ConfigError: as it says, with what is `needed`.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigError(f"{name}={value!r}; {needed}")
    return int(value) if isinstance(value, Integral) else float(value)


def number_between(
    name: str,
    value: object,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float = math.inf,
    below: float = math.inf,
) -> float:
    """A finite number inside its range: `above` < or `least` <= number, number <= `most` and number <
    `below`.

    Raises:
        ConfigError: as it says, with the range.

    Example:
        >>> number_between("top_p", 2, above=0, most=1)
        Traceback (most recent call last):
        ...
        lora_ensembles.errors.ConfigError: top_p=2; it is a number above 0 and at most 1
    """
    low = f"above {above:g}" if above is not None else f"of at least {least or 0:g}"
    high = (
        f" and at most {most:g}" if most < math.inf else f" and below {below:g}" if below < math.inf else ""
    )
    needed = f"it is a {'' if high else 'finite '}number {low}{high}"
    number = real_number(name, value, needed=needed)
    high_enough = number > above if above is not None else number >= (least or 0)
    if not (math.isfinite(number) and high_enough and number <= most and number < below):
        raise ConfigError(f"{name}={number}; {needed}")
    return number


def names(name: str, value: object, *, example: str) -> tuple[str, ...]:
    """A list of names; a single text would be read letter by letter.

    Raises:
        ConfigError: as it says.
    """
    if isinstance(value, str) or not isinstance(value, Sequence | set | frozenset):
        raise ConfigError(f"{name}={value!r}; it is a list of names, such as {example}")
    return tuple(value)


def check_parts(base: object, tokenizer: object) -> None:
    """Refuse names and half-made things where a loaded base and its tokenizer are needed.

    Raises:
        ConfigError: as it says, with how to load them.
    """
    if isinstance(base, str):
        raise ConfigError(
            f"base is the name {base!r}; load it first: base, tokenizer = load_base({base!r}), "
            "or AutoModelForCausalLM.from_pretrained"
        )
    if not hasattr(base, "named_parameters") or not hasattr(base, "config"):
        raise ConfigError(
            f"base is of type {type(base).__name__}; it is a model of transformers, loaded by from_pretrained"
        )
    if isinstance(tokenizer, str) or not callable(tokenizer) or hasattr(tokenizer, "named_parameters"):
        description = (
            f"the name {tokenizer!r}" if isinstance(tokenizer, str) else f"of type {type(tokenizer).__name__}"
        )
        raise ConfigError(
            f"tokenizer is {description}; it is the base's own, loaded by AutoTokenizer.from_pretrained"
        )
