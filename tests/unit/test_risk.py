"""Thresholds with a promise: the error among answered examples, over many draws of the held-out ones, stays
within it as often as it says; the numbers are those of scipy, and what cannot be promised is refused.
"""

from __future__ import annotations

import itertools
import math

import numpy
import pytest
import torch
from scipy import stats

from breadth import LONG
from lora_ensembles import ConfigError, DataError, Prediction
from lora_ensembles.calibration.kinds import Score
from lora_ensembles.calibration.risk import RiskThreshold, fewest_examples, most_errors, risk_threshold
from lora_ensembles.calibration.scores import SCORES, rank, uncertainty_score
from random_predictions import random_prediction

DRAWS = 500


def population(size: int, generator: torch.Generator) -> Prediction:
    """Answers of doubt 0 to 0.5, of which a share of 0.8 times the doubt is wrong."""
    doubt = 0.5 * torch.rand(size, generator=generator)
    wrong = torch.rand(size, generator=generator) < 0.8 * doubt
    return Prediction(torch.stack([1 - doubt, doubt], dim=1).log()[None], wrong.long())


def error_below(threshold: float) -> float:
    """The population's share of wrong answers among those of less doubt."""
    return 0.4 * min(threshold, 0.5)


@pytest.mark.parametrize(("risk", "delta"), [(0.1, 0.1), pytest.param(0.15, 0.05, marks=LONG)])
def test_the_error_of_the_answers_stays_within_the_risk_as_often_as_promised(
    risk: float, delta: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    found = [risk_threshold(population(20_000, generator), risk=risk, delta=delta) for _ in range(DRAWS)]
    slack = 2 * math.sqrt(delta * (1 - delta) / DRAWS)
    assert sum(error_below(rule.threshold) > risk for rule in found) / DRAWS <= delta + slack
    # A threshold that is 5 % further from the surest answers breaks the promise; what is answered is nearly
    # all that could be.
    assert sum(error_below(1.05 * rule.threshold) > risk for rule in found) / DRAWS > delta + slack
    possible = risk / 0.4 / 0.5
    assert sum(rule.coverage for rule in found) / DRAWS == pytest.approx(possible, rel=0.1)


def test_few_held_out_examples_keep_the_promise_and_answer_less() -> None:
    generator, above, answered = torch.Generator().manual_seed(1), 0, 0.0
    for _ in range(DRAWS):
        try:
            rule = risk_threshold(population(300, generator), risk=0.1, delta=0.1)
        except DataError:
            continue  # nothing is answered, so nothing is wrong
        above += error_below(rule.threshold) > 0.1
        answered += rule.coverage
    assert above / DRAWS <= 0.1 + 2 * math.sqrt(0.09 / DRAWS)
    assert 0.1 < answered / DRAWS < 0.5


def test_the_last_threshold_that_passes_is_taken() -> None:
    held_out = population(2_000, torch.Generator().manual_seed(1))
    rule = risk_threshold(held_out, risk=0.1)
    answered = rule.answered(held_out)
    assert int(answered.sum()) == rule.num_answered
    wrong = held_out.choices != held_out.labelled_targets("")
    assert int((answered & wrong).sum()) == rule.num_wrong
    level = 0.05 / 5
    assert stats.binom.cdf(rule.num_wrong, rule.num_answered, 0.1) <= level
    # One answer more, if it is wrong, would be too many.
    assert stats.binom.cdf(rule.num_wrong + 1, rule.num_answered + 1, 0.1) > level


@pytest.mark.parametrize("score", SCORES)
def test_every_score_orders_answers_and_keeps_the_promise_on_what_it_has_seen(score: str) -> None:
    generator = torch.Generator().manual_seed(2)
    mean = 3 * torch.rand(800, 1, generator=generator)
    logits = torch.stack([mean + torch.randn(800, 1, generator=generator) for _ in range(5)])
    members = torch.cat([logits, torch.zeros_like(logits)], dim=-1).log_softmax(-1)
    targets = (torch.rand(800, generator=generator) > members.exp().mean(0)[:, 0]).long()
    rule = risk_threshold(Prediction(members, targets), risk=0.25, delta=0.1, score=score)
    assert rule.num_wrong / rule.num_answered < 0.25
    assert rule.score == score
    assert 0 < rule.coverage <= 1


def test_a_model_without_errors_answers_everything() -> None:
    members = torch.tensor([[[0.9, 0.1]]]).log().expand(1, 200, 2)
    rule = risk_threshold(Prediction(members, torch.zeros(200, dtype=torch.long)), risk=0.05)
    assert (rule.threshold, rule.coverage, rule.num_wrong) == (math.inf, 1.0, 0)
    assert "at most 0.05 of the answers wrong with probability 0.95" in str(rule)


def test_equal_doubts_are_answered_together_or_not_at_all() -> None:
    confidence = torch.cat([torch.full((100,), 0.99), torch.full((100,), 0.6)])
    targets = torch.cat([torch.zeros(100), torch.arange(100) % 2]).long()
    members = torch.stack([confidence, 1 - confidence], dim=1).log()[None]
    rule = risk_threshold(Prediction(members, targets), risk=0.1)
    assert (rule.num_answered, rule.num_wrong) == (100, 0)


@pytest.mark.parametrize(("risk", "level"), [(0.01, 0.05), (0.1, 0.02), (0.5, 0.1), (0.9, 0.01)])
def test_the_most_errors_are_those_of_exact_binomial_tests(risk: float, level: float) -> None:
    trials = numpy.arange(6_001)
    most = most_errors(6_000, risk, level).numpy()
    assert (stats.binom.cdf(most, trials, risk) <= level * (1 + 1e-9)).all()
    assert (stats.binom.cdf(most + 1, trials, risk) > level * (1 - 1e-9)).all()


@pytest.mark.parametrize(
    ("count", "settings", "kind", "message"),
    [
        (80, {"risk": 0.05}, DataError, "80 held-out examples cannot show .* that takes 90 at least"),
        (300, {"risk": 0.02, "delta": 0.3}, DataError, "no threshold of confidence keeps the share of wrong"),
        (300, {"risk": 0.0}, ConfigError, "risk=0.0; it is a number between 0 and 1"),
        (300, {"risk": 5e-324}, ConfigError, "no number of held-out examples shows an error that low"),
        (300, {"risk": 0.1, "delta": 1.0}, ConfigError, "delta=1.0; it is a number between 0 and 1"),
        (300, {"risk": 0.1, "score": "entropy"}, ConfigError, "unknown score 'entropy'"),
    ],
)
def test_what_cannot_be_promised_is_refused(
    count: int, settings: dict[str, float], kind: type[Exception], message: str
) -> None:
    held_out = population(count, torch.Generator().manual_seed(3))
    with pytest.raises(kind, match=message):
        risk_threshold(held_out, **settings)  # type: ignore[arg-type]


def test_unlabelled_examples_are_refused() -> None:
    held_out = population(300, torch.Generator().manual_seed(4))
    with pytest.raises(DataError, match="a risk threshold needs targets"):
        risk_threshold(Prediction(held_out.member_log_probs), risk=0.1)


def test_the_fewest_examples_are_those_of_an_exact_test() -> None:
    for risk, delta in ((0.05, 0.05), (0.2, 0.1)):
        least = fewest_examples(risk, delta)
        assert (1 - risk) ** least <= delta / 5 < (1 - risk) ** (least - 1)
    assert RiskThreshold("confidence", 0.1, 0.05, 0.05, 100, 50, 1).coverage == 0.5


@pytest.mark.parametrize("score", SCORES)
def test_rows_worth_labelling_are_those_of_the_highest_score(score: Score) -> None:
    pool = random_prediction(5)
    values = uncertainty_score(pool, score)
    order = rank(pool, by=score)
    assert sorted(order) == list(range(pool.num_examples))
    assert all(values[first] >= values[second] for first, second in itertools.pairwise(order))
    assert rank(pool, by=score, top=3) == order[:3]


def test_a_rank_of_no_rows_or_by_an_unknown_score_is_refused() -> None:
    pool = random_prediction(5)
    with pytest.raises(ConfigError, match="top=0"):
        rank(pool, top=0)
    with pytest.raises(ConfigError, match="unknown score 'doubt'"):
        rank(pool, by="doubt")  # type: ignore[arg-type]
