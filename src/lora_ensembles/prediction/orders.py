"""The order of a question's options: read in several seeded orders and averaged, since a model that answers
by letter favours places.

Shapes: M members, N examples, C options, K orders.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data.examples import Example
from ..data.prompts import LETTERS, render_prompt
from ..errors import ConfigError

if TYPE_CHECKING:
    from .predictor import Predictor


def is_listed(example: Example) -> bool:
    """Whether the prompt lists the options after letters, so that their order can be changed."""
    letters = tuple(LETTERS[: len(example.labels)])
    return (
        len(example.options) == len(example.labels)
        and example.labels == letters
        and example.prompt == render_prompt(example.question, example.options)
    )


def option_orders(example: Example, passes: int, *, seed: int = 0) -> list[tuple[int, ...]]:
    """K orders of an example's options: as they are, and others that follow from the seed and the example's
    id, no order twice as long as there are others.

    Example:
        >>> from lora_ensembles.data import load_task
        >>> orders = option_orders(load_task("world-obqa").train[0], 3)
        >>> orders[0], len(set(orders))
        ((0, 1, 2, 3), 3)
    """
    count = len(example.options)
    rng = random.Random(f"{seed}:{example.id}")
    orders = [tuple(range(count))]
    while len(orders) < passes:
        order = tuple(rng.sample(range(count), count))
        if order not in orders or len(orders) >= math.factorial(count):
            orders.append(order)
    return orders


def reordered(example: Example, order: Sequence[int]) -> Example:
    """The example with its options in another order: the one at place p is the old one at `order[p]`.

    Example:
        >>> from lora_ensembles.data import load_task
        >>> example = load_task("world-obqa").train[0]
        >>> other = reordered(example, (1, 0, 2, 3))
        >>> other.options[other.target] == example.options[example.target], other.prompt == example.prompt
        (True, False)
    """
    options = tuple(example.options[place] for place in order)
    soft = example.target_probs
    return dataclasses.replace(
        example,
        prompt=render_prompt(example.question, options),
        options=options,
        target=None if example.target is None else list(order).index(example.target),
        target_probs=None if soft is None else tuple(soft[place] for place in order),
    )


def restored(log_probs: Tensor, orders: Sequence[Sequence[int]]) -> Tensor:
    """Log-probabilities (M, N, C) of reordered examples, with the options of each back in its own order."""
    own = log_probs.clone()
    for row, order in enumerate(orders):
        own[:, row, list(order)] = log_probs[:, row, : len(order)]
    return own


def in_orders(examples: Sequence[Any], count: int, *, kind: str | None) -> Sequence[Any]:
    """`count` examples for each one, with its options in as many orders; those that list none as they are.

    Raises:
        ConfigError: several orders for members that do not answer by letter.
    """
    if count == 1:
        return examples
    listed = [isinstance(example, Example) and is_listed(example) for example in examples]
    if kind != "causal-lm" or not any(listed):
        raise ConfigError(
            f"option_orders={count}: no answer here depends on the order of listed options; leave it at 1"
        )
    return [
        reordered(example, order) if can else example
        for example, can in zip(examples, listed, strict=True)
        for order in (option_orders(example, count) if can else [()] * count)
    ]


def averaged_over_orders(
    predictor: Predictor, examples: Sequence[Example], *, passes: int, max_rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """Members' log-probabilities (M, N, C), float32, of the mean over K orders of the options, and the option
    (K, N) that the ensemble chooses in each order.

    With p_mk the probabilities of member m in order k, put back in the example's own order: log of 1/K sum_k
    p_mk. Examples that list no options are read once.

    Raises:
        ConfigError: fewer than one order, or no example lists its options.
    """
    if passes < 1:
        raise ConfigError(f"order_passes is {passes}; use at least 1, which keeps the order that is given")
    listed = [place for place, example in enumerate(examples) if is_listed(example)]
    if not listed:
        raise ConfigError(
            "order_passes: no prompt lists its options after letters, so their order changes nothing; "
            "leave it out"
        )
    first = predictor.member_log_probs(examples, max_rows=max_rows).double()
    parts, every_order = [first], [option_orders(examples[place], passes) for place in listed]
    for number in range(1, passes):
        orders = [own[number] for own in every_order]
        asked = [reordered(examples[place], order) for place, order in zip(listed, orders, strict=True)]
        found = predictor.member_log_probs(asked, max_rows=max_rows).double()
        part = first.clone()
        part[:, listed, : found.shape[2]] = restored(found, orders)
        parts.append(part)
    every = torch.stack(parts)  # (K, M, N, C)
    choices = every.logsumexp(dim=1).argmax(dim=-1)
    return (every.logsumexp(dim=0) - math.log(passes)).clamp_max(0.0).float(), choices


def order_flips(choices: Tensor) -> Tensor:
    """(N,) the share of pairs of orders whose answers differ, of the choices (K, N); 0 of a single order.

    Example:
        >>> order_flips(torch.tensor([[0, 1], [0, 2], [0, 1]])).tolist()
        [0.0, 0.6666666865348816]
    """
    count = len(choices)
    if count < 2:
        return torch.zeros(choices.shape[1])
    differ = (choices[:, None] != choices[None]).sum(dim=(0, 1))
    return differ.float() / (count * (count - 1))
