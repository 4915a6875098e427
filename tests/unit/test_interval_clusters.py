"""Intervals over groups of examples: questions about one case are drawn together."""

from __future__ import annotations

import math

import pytest
import torch

from lora_ensembles import (
    Prediction,
    accuracy,
    bootstrap_interval,
    brier,
    ece,
    nll,
    ood_auroc,
    paired_difference,
)
from random_predictions import random_prediction

COPIES = 5


def repeated(prediction: Prediction, *, grouped: bool) -> Prediction:
    """Every example five times, as one case or as if they had nothing to do with each other."""
    rows = torch.arange(prediction.num_examples).repeat_interleave(COPIES)
    taken = prediction.take(rows)
    groups = tuple(f"case {row}" for row in rows.tolist()) if grouped else ()
    return Prediction(taken.member_log_probs, taken.targets, groups=groups)


@pytest.mark.parametrize("metric", [nll, brier])
def test_copies_of_an_example_say_no_more_than_the_example(metric) -> None:  # type: ignore[no-untyped-def]
    once = random_prediction(4, examples=60)
    alone = bootstrap_interval(metric, once)
    grouped = bootstrap_interval(metric, repeated(once, grouped=True))
    assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high), abs=1e-6)
    loose = bootstrap_interval(metric, repeated(once, grouped=False))
    assert (grouped.high - grouped.low) / (loose.high - loose.low) == pytest.approx(
        math.sqrt(COPIES), rel=0.15
    )


@pytest.mark.parametrize("metric", [accuracy, ece])
def test_intervals_of_cases_are_wider_than_those_of_as_many_single_questions(  # type: ignore[no-untyped-def]
    metric,
) -> None:
    once = random_prediction(5, examples=80)
    grouped = bootstrap_interval(metric, repeated(once, grouped=True), samples=300)
    loose = bootstrap_interval(metric, repeated(once, grouped=False), samples=300)
    assert grouped.estimate == loose.estimate
    assert grouped.high - grouped.low > 1.5 * (loose.high - loose.low)


def test_differences_draw_cases_too() -> None:
    first, second = (random_prediction(seed, examples=60, absent=False) for seed in (6, 7))
    second = Prediction(second.member_log_probs, first.targets)
    for metric in (nll, accuracy, ece):
        pair = (repeated(one, grouped=True) for one in (first, second))
        loose = (repeated(one, grouped=False) for one in (first, second))
        wide = paired_difference(metric, *pair, samples=200)
        narrow = paired_difference(metric, *loose, samples=200)
        assert wide.estimate == pytest.approx(narrow.estimate)
        assert wide.high - wide.low > 1.3 * (narrow.high - narrow.low)
    same = repeated(first, grouped=True)
    assert paired_difference(nll, same, same).to_dict()["high"] == 0.0


def test_two_sets_are_drawn_by_their_own_groups() -> None:
    known, strange = random_prediction(8, examples=40), random_prediction(9, examples=40)
    grouped = bootstrap_interval(ood_auroc, repeated(known, grouped=True), ood=strange, samples=200)
    loose = bootstrap_interval(ood_auroc, repeated(known, grouped=False), ood=strange, samples=200)
    assert grouped.high - grouped.low > loose.high - loose.low


def test_the_interval_of_cases_holds_the_populations_accuracy_as_often_as_it_says() -> None:
    """Cases whose questions are all easy or all hard: 0.95 or 0.45 are right, 0.7 in the population."""
    generator, held, wrong, draws = torch.Generator().manual_seed(0), 0, 0, 200
    for draw in range(draws):
        rates = torch.where(torch.rand(40, generator=generator) < 0.5, 0.95, 0.45).repeat_interleave(COPIES)
        right = torch.rand(len(rates), generator=generator) < rates
        log_probs = torch.tensor([0.8, 0.2]).log().expand(1, len(rates), 2)
        groups = tuple(str(row // COPIES) for row in range(len(rates)))
        targets = (~right).long()
        for cases in (True, False):
            prediction = Prediction(log_probs, targets, groups=groups if cases else ())
            interval = bootstrap_interval(accuracy, prediction, samples=200, seed=draw)
            inside = interval.low <= 0.7 <= interval.high
            held, wrong = held + (cases and inside), wrong + (not cases and inside)
    assert 0.91 <= held / draws <= 0.99  # three standard errors of a share of 200 about 0.95
    assert wrong / draws < 0.9
