"""Intervals: how often they hold the population's value, against formulas, and what is refused."""

from __future__ import annotations

import math

import numpy
import pytest
import torch

from breadth import LONG
from lora_ensembles.errors import ConfigError, DataError
from lora_ensembles.prediction.intervals import Interval, bootstrap_interval, paired_difference
from lora_ensembles.prediction.intervals.shares import t_quantile, wilson
from lora_ensembles.prediction.metrics import accuracy, ece, nll, ood_auroc
from lora_ensembles.prediction.prediction import Prediction
from lora_ensembles.prediction.selective import error_auroc
from random_predictions import random_prediction


def drawn(count: int, *, truth: float, seed: int, sharp: float = 1.5) -> Prediction:
    """Two members' predictions, and answers drawn from their mean at another temperature; at 1 they are
    calibrated. By numpy, whose draws of a seed are the same in all releases; those of torch are not.
    """
    rng = numpy.random.default_rng(seed)
    logits = sharp * rng.normal(size=(count, 4)) + 0.5 * rng.normal(size=(2, count, 4))
    log_probs = torch.tensor(logits).float().log_softmax(-1)
    answers = (truth * log_probs.exp().mean(0).log()).softmax(-1)
    chosen = torch.tensor(rng.random((count, 1))).float() > answers.cumsum(-1)
    return Prediction(log_probs, chosen.sum(-1).clamp_max(3))


def hotter(prediction: Prediction) -> Prediction:
    return Prediction((1.5 * prediction.log_probs).log_softmax(-1)[None], prediction.targets, prediction.ids)


def share_covered(intervals: list[Interval], value: float) -> float:
    return sum(one.low <= value <= one.high for one in intervals) / len(intervals)


@pytest.mark.parametrize(
    ("size", "truth"),
    [(100, 1.0), (500, 0.7), *(pytest.param(*other, marks=LONG) for other in ((100, 0.7), (500, 1.0)))],
)
def test_intervals_of_ece_hold_the_populations_in_the_share_they_claim(size: int, truth: float) -> None:
    # The population's ECE: 0 by construction, or that of a sample so large that chance adds 0.001 to it.
    value = 0.0 if truth == 1 else ece(drawn(200_000, truth=truth, seed=1))
    samples = [drawn(size, truth=truth, seed=2 + seed) for seed in range(40)]
    intervals = [bootstrap_interval(ece, sample, samples=300) for sample in samples]
    # Four standard errors of a share of 40 at 0.95: sqrt(0.95 * 0.05 / 40) = 0.0345. A percentile bootstrap
    # has 0.0 and 0.1 on 100 examples.
    assert share_covered(intervals, value) >= 0.95 - 4 * 0.0345
    # They are no wider than they have to be: most tell a population ECE of 0.15 from the calibrated one.
    if (size, truth) == (500, 0.7):
        assert sum(one.low > 0 for one in intervals) > 20


@pytest.mark.parametrize(("size", "truth"), [(100, 1.0), pytest.param(500, 0.5, marks=LONG)])
def test_paired_differences_of_ece_hold_the_populations(size: int, truth: float) -> None:
    whole = drawn(200_000, truth=truth, seed=1)
    value = (0.0 if truth == 1 else ece(whole)) - ece(hotter(whole))
    samples = [drawn(size, truth=truth, seed=2 + seed) for seed in range(16)]
    intervals = [paired_difference(ece, sample, hotter(sample), samples=200) for sample in samples]
    assert share_covered(intervals, value) >= 0.95 - 4 * 0.0545  # standard error of a share of 16


def test_the_interval_of_a_calibrated_ece_begins_at_zero_and_that_of_a_sure_liar_does_not() -> None:
    calibrated = bootstrap_interval(ece, drawn(300, truth=1.0, seed=0))
    assert calibrated.low == 0.0
    assert not calibrated.excludes_zero
    sure = Prediction(torch.tensor([0.98, 0.02]).log().expand(1, 50, 2), (torch.arange(50) % 2).long())
    interval = bootstrap_interval(ece, sure)
    # All confidences are 0.98, so the population's ECE is |accuracy - 0.98|, and accuracy 0.5 has an exact 95
    # % interval of 0.36 to 0.64.
    assert interval.low == pytest.approx(0.98 - 0.64, abs=0.02)
    assert interval.high == pytest.approx(0.98 - 0.36, abs=0.02)


def test_answers_that_are_all_right_may_still_be_less_sure_than_they_should() -> None:
    sure = Prediction(torch.tensor([0.99, 0.01]).log().expand(1, 100, 2), torch.zeros(100, dtype=torch.int64))
    interval = bootstrap_interval(ece, sure)
    assert interval.estimate == pytest.approx(0.01, abs=1e-6)
    # All answers lie in one bin, so samples are binomial: the highest kept value is the last at which more
    # than 5 % of them are as far off as 0.01, by ((x - mean) / std)^2 less how far x lies below what
    # calibration gives.
    counts = torch.arange(101, dtype=torch.float64)
    eces = (counts / 100 - 0.99).abs()

    def moments(value: float) -> tuple[torch.Tensor, float, float]:
        chances = torch.distributions.Binomial(100, torch.tensor(0.99 - value)).log_prob(counts).exp()
        mean = float((chances * eces).sum())
        return chances, mean, math.sqrt(float((chances * (eces - mean).square()).sum()))

    def share(value: float) -> float:
        (chances, mean, std), (_, calibrated, spread) = moments(value), moments(0.0)
        off = ((eces - mean) / std).square() - ((eces - calibrated) / spread).clamp_max(0).square()
        return float(chances[off >= off[100] - 1e-9].sum())

    kept = [value / 2000 for value in range(300) if share(value / 2000) > 0.05]
    assert interval.low == 0.0
    assert interval.high == pytest.approx(max(kept), abs=0.01)  # steps of 0.0065, and shares of 1,000 samples


def test_a_sample_without_any_gap_says_no_more_of_calibration_than_its_size_allows() -> None:
    even = Prediction(torch.full((1, 100, 2), 0.5).log(), torch.arange(100) % 2)
    interval = bootstrap_interval(ece, even)
    assert interval.estimate == pytest.approx(0.0, abs=1e-7)
    # A share of 100 answers is known to within 1.96 * sqrt(0.25 / 100) = 0.098; a fifth of that for the grid.
    assert interval.low == 0.0
    assert interval.high == pytest.approx(0.098, abs=0.02)


def test_the_ece_of_a_prediction_does_not_differ_from_its_own() -> None:
    prediction = random_prediction(3)
    assert paired_difference(ece, prediction, prediction) == Interval(0.0, 0.0, 0.0, 0.95)


@pytest.mark.parametrize(("share", "count"), [(0.5, 400), (0.98, 100), (1.0, 30), (0.0, 5)])
def test_the_interval_of_accuracy_has_the_shares_that_a_test_does_not_tell_from_it(
    share: float, count: int
) -> None:
    low, high = wilson(share, count)
    for end in (low, high):
        if (
            1e-9 < end < 1 - 1e-9
        ):  # |share - end| is 1.96 standard errors of a share whose true value is the end
            assert abs(share - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / count), rel=1e-5)
    targets = (torch.arange(count) >= round(share * count)).long()
    prediction = Prediction(torch.tensor([0.7, 0.3]).log().expand(1, count, 2), targets)
    assert bootstrap_interval(accuracy, prediction) == Interval(share, low, high, 0.95)


def test_a_difference_of_accuracies_counts_one_answer_more_on_either_side() -> None:
    # Of 50 answers the first alone has 6 right, the second alone 1: (7 - 2) / 52 -+ 1.96 sqrt((9/52 -
    # (5/52)^2) / 52).
    targets = torch.zeros(50, dtype=torch.int64)
    right, wrong = torch.tensor([0.8, 0.2]), torch.tensor([0.3, 0.7])
    first = torch.stack([right] * 49 + [wrong])
    second = torch.stack([wrong] * 6 + [right] * 44)
    interval = paired_difference(
        accuracy, Prediction(first.log()[None], targets), Prediction(second.log()[None], targets)
    )
    half = 1.959964 * math.sqrt((9 / 52 - (5 / 52) ** 2) / 52)
    assert interval.estimate == pytest.approx(0.1)
    assert (interval.low, interval.high) == pytest.approx((5 / 52 - half, 5 / 52 + half))


def test_intervals_of_a_mean_are_near_students_and_lean_where_the_data_do() -> None:
    prediction = drawn(200, truth=0.5, seed=5)
    assert prediction.targets is not None
    losses = -prediction.log_probs.gather(1, prediction.targets[:, None]).double()
    half = t_quantile(0.95, 199) * losses.std().item() / 200**0.5
    interval = bootstrap_interval(nll, prediction, samples=4000)
    # Skewness s moves both ends of a BCa interval of a mean by (2 z^2 + 1) s / (6 sqrt(N)) standard errors
    # (Efron 1987, to first order).
    skewness = ((losses - losses.mean()) / losses.std()).pow(3).mean().item()
    shift = (2 * 1.96**2 + 1) * skewness / (6 * 200**0.5) * losses.std().item() / 200**0.5
    assert skewness > 0.5
    # What is of second order in the skewness, and 4,000 draws, move an end by a few percent more.
    assert interval.high - interval.estimate == pytest.approx(half + shift, rel=0.08)
    assert interval.estimate - interval.low == pytest.approx(half - shift, rel=0.08)


def test_an_interval_of_ood_auroc_draws_both_sets() -> None:
    inside, outside = drawn(400, truth=1.0, seed=1, sharp=3.0), drawn(150, truth=1.0, seed=2, sharp=1.0)
    interval = bootstrap_interval(ood_auroc, inside, ood=outside, samples=2000)
    # DeLong's variance: that of the placements of either set in the other, each over its own size.
    scores = [-one.confidence.double() for one in (inside, outside)]
    above = (scores[1][:, None] > scores[0][None]).double() + 0.5 * (
        scores[1][:, None] == scores[0][None]
    ).double()
    error = math.sqrt(above.mean(0).var().item() / 400 + above.mean(1).var().item() / 150)
    assert interval.estimate == pytest.approx(above.mean().item(), abs=1e-6)
    assert interval.high - interval.low == pytest.approx(
        2 * 1.96 * error, rel=0.08
    )  # of a bootstrap of 2,000


def test_draws_without_a_wrong_answer_are_left_out_of_an_error_auroc() -> None:
    prediction = drawn(60, truth=1.0, seed=3)
    targets = prediction.choices.clone()
    targets[:2] = (targets[:2] + 1) % 4  # two wrong of sixty: an eighth of all draws have neither
    few = Prediction(prediction.member_log_probs, targets)

    def doubt(one: Prediction) -> float:
        return error_auroc(-one.confidence, one.choices == one.targets)

    interval = bootstrap_interval(doubt, few)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1
    with pytest.raises(DataError, match="all 60 answers are right; AUROC needs some of both"):
        bootstrap_interval(doubt, Prediction(few.member_log_probs, few.choices))


def test_a_metric_without_a_value_in_most_draws_has_no_interval() -> None:
    def of_all_examples(one: Prediction) -> float:
        if len(set(one.ids)) < one.num_examples:
            raise DataError("an example is missing")
        return nll(one)

    with pytest.raises(
        DataError, match=r"a value in 0 of 50 draws of the 40 examples.*measure more examples"
    ):
        bootstrap_interval(of_all_examples, random_prediction(1), samples=50)


def test_bootstrap_is_seeded_and_leaves_the_global_random_state_alone():
    prediction = random_prediction(18)
    state = torch.get_rng_state()
    first = bootstrap_interval(nll, prediction, samples=50, seed=1)
    assert first == bootstrap_interval(nll, prediction, samples=50, seed=1)
    assert first != bootstrap_interval(nll, prediction, samples=50, seed=2)
    assert torch.equal(state, torch.get_rng_state())


def test_wider_level_gives_a_wider_interval_around_the_estimate():
    prediction = random_prediction(19)
    narrow = bootstrap_interval(nll, prediction, samples=200, level=0.5)
    wide = bootstrap_interval(nll, prediction, samples=200, level=0.99)
    assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high


def test_paired_difference_sees_what_separate_intervals_hide():
    # The second is the first with every log-probability of the target a little lower: always worse, by
    # little.
    first = random_prediction(20, examples=100)
    colder = Prediction((first.member_log_probs * 1.1).log_softmax(-1), first.targets, first.ids)
    separate = bootstrap_interval(nll, first, samples=200), bootstrap_interval(nll, colder, samples=200)
    difference = paired_difference(nll, first, colder, samples=200)
    assert difference.estimate == pytest.approx(nll(first) - nll(colder))
    assert separate[0].high > separate[1].low  # they overlap
    assert difference.high < 0
    assert difference.excludes_zero


def test_paired_difference_changes_sign_when_the_two_are_exchanged():
    first, second = random_prediction(21), random_prediction(21).select([0, 1])
    forward, backward = (
        paired_difference(nll, first, second, samples=50),
        paired_difference(nll, second, first, samples=50),
    )
    assert (forward.estimate, forward.low, forward.high) == pytest.approx(
        (-backward.estimate, -backward.high, -backward.low)
    )


def test_paired_difference_of_other_examples_is_refused():
    prediction = random_prediction(22)
    with pytest.raises(ConfigError, match="different examples"):
        paired_difference(nll, prediction, prediction.take(torch.arange(40).flip(0)))
    other = Prediction(prediction.member_log_probs, torch.zeros(40, dtype=torch.int64), prediction.ids)
    with pytest.raises(ConfigError, match="same ids and different targets"):
        paired_difference(nll, prediction, other)


@pytest.mark.parametrize(
    ("samples", "level", "message"),
    [(1, 0.95, "1 bootstrap samples"), (10, 95.0, r"\(0\.95, not 95\)"), (10, 0.0, "level")],
)
def test_bootstrap_refuses_settings_that_give_no_interval(samples, level, message):
    with pytest.raises(ConfigError, match=message):
        bootstrap_interval(accuracy, random_prediction(0), samples=samples, level=level)


def test_interval_prints_estimate_and_ends():
    interval = Interval(estimate=0.5, low=0.25, high=0.75, level=0.95)
    assert str(interval) == "0.5000 [0.2500, 0.7500]"
    assert interval.excludes_zero
    assert interval.to_dict() == {"estimate": 0.5, "low": 0.25, "high": 0.75, "level": 0.95}


@pytest.mark.parametrize("level", [0.5, 0.95, 1 - 0.05 / 9])
def test_t_quantiles_are_those_of_the_distribution(level: float) -> None:
    # P(|T| <= t) of torch's density, summed over a fine grid: trapezoids of 1e-3 are right to 1e-7.
    for degrees in (1, 2, 3, 4, 5, 17):
        quantile = t_quantile(level, degrees)
        grid = torch.linspace(-quantile, quantile, 2 * int(1000 * quantile) + 1, dtype=torch.float64)
        density = torch.distributions.StudentT(torch.tensor(float(degrees), dtype=torch.float64)).log_prob(
            grid
        )
        assert torch.trapezoid(density.exp(), grid).item() == pytest.approx(level, abs=1e-6)
