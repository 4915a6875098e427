"""The bootstrap-t: its standard errors against formulas, its ends against draws one by one, and where it
gives way.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lora_ensembles.prediction.completions import METRICS, CompletionScores
from lora_ensembles.prediction.intervals import bootstrap_interval, paired_difference
from lora_ensembles.prediction.intervals.studentised import coverage_area_of, ratio
from lora_ensembles.prediction.metrics import brier, coverage_area, nll
from lora_ensembles.prediction.prediction import Prediction
from random_predictions import random_prediction


def drawn(size: int, samples: int, seed: int) -> list[Tensor]:
    return list(torch.randint(size, (samples, size), generator=torch.Generator().manual_seed(seed)))


def area(right: list[float]) -> float:
    return sum(sum(right[: k + 1]) / (k + 1) for k in range(len(right))) / len(right)


@pytest.mark.parametrize("metric", [nll, brier])
def test_the_interval_of_a_mean_divides_each_draw_by_its_own_standard_error(metric) -> None:
    prediction = random_prediction(3, examples=60)
    interval = bootstrap_interval(metric, prediction, samples=300, seed=4)
    each = torch.tensor([metric(prediction.take(torch.tensor([n]))) for n in range(60)]).double()
    error = each.std().item() / math.sqrt(60)
    ratios = torch.stack(
        [(each[rows].mean() - each.mean()) / (each[rows].std() / math.sqrt(60)) for rows in drawn(60, 300, 4)]
    )
    high, low = ratios.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert interval.estimate == pytest.approx(metric(prediction))
    assert (interval.low, interval.high) == pytest.approx(
        (each.mean().item() - low * error, each.mean().item() - high * error), rel=1e-6
    )


def test_the_standard_error_of_a_ratio_is_that_of_its_residuals() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(4000, generator=generator, dtype=torch.float64)
    counts = torch.randint(1, 5, (4000,), generator=generator).double()
    estimate, error = ratio(values * counts, counts).estimator(torch.arange(4000)[None])
    assert estimate.item() == pytest.approx(((values * counts).sum() / counts.sum()).item())
    # Means of c values of variance 1/12: the variance of sum(c v) / sum(c) is sum(c^2) / 12 / sum(c)^2.
    assert error.item() == pytest.approx(
        math.sqrt(counts.square().sum().item() / 12) / counts.sum().item(), rel=0.03
    )


def test_the_standard_error_of_a_coverage_area_is_the_jackknifes() -> None:
    generator = torch.Generator().manual_seed(2)
    doubt = torch.rand(25, generator=generator)
    correct = torch.rand(25, generator=generator) > doubt
    studentised = coverage_area_of(doubt, correct)
    assert studentised is not None
    odds, error = studentised.estimator(torch.arange(25)[None])
    right = correct[doubt.argsort()].double().tolist()
    without = torch.tensor([area(right[:n] + right[n + 1 :]) for n in range(25)], dtype=torch.float64)
    jackknife = math.sqrt(24 / 25 * (without - without.mean()).square().sum().item())
    assert studentised.back(odds.item()) == pytest.approx(area(right))
    assert error.item() == pytest.approx(jackknife / (area(right) * (1 - area(right))))


def test_ends_stay_where_the_metric_can_be() -> None:
    few = random_prediction(5, examples=4)
    assert bootstrap_interval(nll, few).low >= 0
    assert 0 <= bootstrap_interval(brier, few).low <= bootstrap_interval(brier, few).high <= 2
    interval = bootstrap_interval(coverage_area, few)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1


def test_predictions_without_any_spread_have_a_point() -> None:
    even = Prediction(torch.full((2, 30, 2), 0.5).log(), torch.zeros(30, dtype=torch.int64))
    interval = bootstrap_interval(nll, even)
    assert interval.low == interval.high == pytest.approx(math.log(2))
    assert paired_difference(nll, even, even).to_dict() == {
        "estimate": 0.0,
        "low": 0.0,
        "high": 0.0,
        "level": 0.95,
    }


def test_one_example_and_answers_of_equal_doubt_fall_back_to_the_draws() -> None:
    single = bootstrap_interval(nll, random_prediction(6, examples=1))
    assert single.low == single.high == pytest.approx(single.estimate)
    even = Prediction(torch.full((1, 40, 2), 0.5).log(), torch.arange(40) % 2)
    assert coverage_area_of(torch.zeros(40), torch.arange(40) % 2 == 0) is None
    interval = bootstrap_interval(coverage_area, even)  # the accuracy, since no order tells the answers apart
    assert interval.estimate == pytest.approx(0.5)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 40), rel=0.15)


@pytest.mark.parametrize("name", list(METRICS))
def test_intervals_of_open_answers_are_around_their_metrics(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    counted = torch.arange(6) < torch.randint(1, 7, (80, 1), generator=generator)
    scores = CompletionScores(-torch.rand(3, 80, 6, generator=generator).masked_fill(~counted, 0.0), counted)
    interval = bootstrap_interval(METRICS[name], scores)
    plain = bootstrap_interval(
        lambda taken: METRICS[name](taken), scores
    )  # BCa, where the function is not known
    assert interval.low < interval.estimate < interval.high
    assert (interval.low, interval.high) == pytest.approx((plain.low, plain.high), rel=0.03)
