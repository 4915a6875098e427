from __future__ import annotations

import itertools
import math

import pytest
import torch

from lora_ensembles.prediction.prediction import Prediction
from lora_ensembles.prediction.uncertainty import (
    disagreement,
    expected_entropy,
    mutual_information,
    total_entropy,
    variation_ratio,
)
from random_predictions import mean_probs, member_probs, random_prediction

SEEDS = range(5)
ALL = [total_entropy, expected_entropy, mutual_information, disagreement, variation_ratio]


def entropy(row: list[float]) -> float:
    return -sum(p * math.log(p) for p in row if p > 0)


def top(row: list[float]) -> int:
    return row.index(max(row))


@pytest.mark.parametrize("seed", SEEDS)
def test_total_entropy_is_the_entropy_of_the_mean_distribution(seed):
    prediction = random_prediction(seed)
    assert total_entropy(prediction).tolist() == pytest.approx(
        [entropy(row) for row in mean_probs(prediction)], abs=1e-6
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_expected_entropy_is_the_mean_of_member_entropies(seed):
    prediction = random_prediction(seed)
    members = member_probs(prediction)
    expected = [
        sum(entropy(member[n]) for member in members) / len(members) for n in range(prediction.num_examples)
    ]
    assert expected_entropy(prediction).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_mutual_information_is_the_mean_divergence_of_members_from_the_mean(seed):
    # mean_m KL(p_m || mean p), which equals H[mean p] - mean_m H[p_m] and shares no subtraction with it
    prediction = random_prediction(seed)
    members, means = member_probs(prediction), mean_probs(prediction)
    expected = [
        sum(p * math.log(p / q) for member in members for p, q in zip(member[n], row, strict=True) if p > 0)
        / len(members)
        for n, row in enumerate(means)
    ]
    assert mutual_information(prediction).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_disagreement_is_the_share_of_pairs_with_different_choices(seed):
    prediction = random_prediction(seed, members=5)
    members = member_probs(prediction)
    pairs = list(itertools.combinations(members, 2))
    expected = [
        sum(top(a[n]) != top(b[n]) for a, b in pairs) / len(pairs) for n in range(prediction.num_examples)
    ]
    assert max(expected) > 0
    assert disagreement(prediction).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_variation_ratio_is_the_share_of_votes_against_the_winner(seed):
    prediction = random_prediction(seed, members=5)
    votes = [[top(member[n]) for member in member_probs(prediction)] for n in range(prediction.num_examples)]
    expected = [1 - max(row.count(option) for option in row) / len(row) for row in votes]
    assert variation_ratio(prediction).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("function", ALL)
def test_each_is_one_finite_float32_number_an_example_despite_absent_options(function):
    prediction = random_prediction(0)
    assert not prediction.present.all()
    values = function(prediction)
    assert values.shape == (prediction.num_examples,)
    assert values.dtype == torch.float32
    assert torch.isfinite(values).all()
    assert (values >= 0).all()


@pytest.mark.parametrize("function", ALL)
def test_an_absent_option_adds_exactly_nothing(function):
    prediction = random_prediction(1, absent=False)
    padded = torch.nn.functional.pad(prediction.member_log_probs, (0, 2), value=-math.inf)
    assert torch.equal(function(Prediction(padded)), function(prediction))


@pytest.mark.parametrize("function", [mutual_information, disagreement, variation_ratio])
def test_lone_member_does_not_disagree_with_itself(function):
    assert torch.equal(function(random_prediction(2, members=1)), torch.zeros(40))


def test_copies_of_a_member_share_no_information():
    one = random_prediction(3, members=1)
    copies = Prediction(one.member_log_probs.expand(6, -1, -1))
    # 1e-12: the two entropies are equal but for the rounding of a float64 sum
    assert mutual_information(copies).max().item() < 1e-12


def test_certain_and_opposed_members_reach_the_bounds():
    sure = torch.tensor([[[40.0, 0.0]], [[0.0, 40.0]]]).log_softmax(-1)
    prediction = Prediction(sure)
    assert total_entropy(prediction).item() == pytest.approx(math.log(2), abs=1e-6)
    assert mutual_information(prediction).item() == pytest.approx(math.log(2), abs=1e-6)
    assert expected_entropy(prediction).item() == pytest.approx(0, abs=1e-6)
    assert disagreement(prediction).item() == 1.0
    assert variation_ratio(prediction).item() == 0.5


def test_uniform_members_are_unsure_and_agree():
    prediction = Prediction(torch.full((3, 1, 4), 0.25).log())
    assert total_entropy(prediction).item() == pytest.approx(math.log(4), abs=1e-6)
    assert mutual_information(prediction).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("function", ALL)
def test_order_of_members_and_of_options_does_not_matter(function):
    prediction = random_prediction(4, absent=False)
    shuffled = prediction.member_log_probs[[2, 0, 3, 1]][:, :, [4, 2, 0, 1, 3]]
    # 1e-6: the same sums in another order, rounded to float32
    torch.testing.assert_close(function(Prediction(shuffled)), function(prediction), atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", SEEDS)
def test_total_is_expected_plus_mutual(seed):
    prediction = random_prediction(seed)
    total = expected_entropy(prediction) + mutual_information(prediction)
    torch.testing.assert_close(total, total_entropy(prediction), atol=1e-6, rtol=0)
