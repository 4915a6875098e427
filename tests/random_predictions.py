"""Predictions drawn at random, for tests whose expected values are re-derived from the same tensors."""

from __future__ import annotations

import math

import torch

from lora_ensembles.prediction.prediction import Prediction


def random_prediction(
    seed: int,
    *,
    members: int = 4,
    examples: int = 40,
    options: int = 5,
    absent: bool = True,
    scale: float = 3.0,
) -> Prediction:
    """A labelled prediction; with `absent`, row n has 2 to `options` options and the rest are absent."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(1, examples, options, generator=generator)  # what members agree about
    logits = scale * (shared + 0.7 * torch.randn(members, examples, options, generator=generator))
    counts = (
        torch.randint(2, options + 1, (examples,), generator=generator)
        if absent
        else torch.full((examples,), options)
    )
    logits = logits.masked_fill(torch.arange(options) >= counts[:, None], -math.inf)
    targets = (torch.rand(examples, generator=generator) * counts).long()
    return Prediction(logits.log_softmax(dim=-1), targets, tuple(f"q{n}" for n in range(examples)))


def member_probs(prediction: Prediction) -> list[list[list[float]]]:
    """[member][example][option] probabilities as plain Python floats, for loops that share no code with the
    library.
    """
    return [
        [[math.exp(value) for value in row] for row in member]
        for member in prediction.member_log_probs.double().tolist()
    ]


def mean_probs(prediction: Prediction) -> list[list[float]]:
    """[example][option] mean of the members' probabilities, as plain Python floats."""
    members = member_probs(prediction)
    return [
        [sum(member[n][c] for member in members) / len(members) for c in range(len(row))]
        for n, row in enumerate(members[0])
    ]
