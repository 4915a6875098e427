from __future__ import annotations

import json
import math
import statistics

import pytest
import torch
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy, MulticlassCalibrationError

from lora_ensembles.errors import ConfigError, DataError
from lora_ensembles.prediction.evaluation import evaluate, evaluate_members
from lora_ensembles.prediction.metrics import (
    accuracy,
    accuracy_coverage,
    brier,
    coverage_area,
    ece,
    ece_floor,
    nll,
    ood_auroc,
    reliability_bins,
    single_member,
)
from lora_ensembles.prediction.prediction import Prediction
from lora_ensembles.prediction.uncertainty import total_entropy
from random_predictions import mean_probs, random_prediction

SEEDS = range(5)
LABELLED = [accuracy, nll, ece, brier, coverage_area]


def rows(prediction: Prediction) -> list[tuple[list[float], int]]:
    return list(zip(mean_probs(prediction), prediction.targets.tolist(), strict=True))


def top(row: list[float]) -> int:
    return row.index(max(row))


def plain_ece(pairs: list[tuple[list[float], int]], bins: int = 15) -> float:
    """ECE by its formula, with a loop over bins [k / bins, (k + 1) / bins)."""
    error = 0.0
    for k in range(bins + 1):
        inside = [
            (max(row), top(row) == target) for row, target in pairs if k / bins <= max(row) < (k + 1) / bins
        ]
        if inside:
            error += abs(
                sum(right for _, right in inside) - sum(confidence for confidence, _ in inside)
            ) / len(pairs)
    return error


def unlabelled() -> Prediction:
    return Prediction(torch.full((2, 3, 2), 0.5).log())


@pytest.mark.parametrize("seed", SEEDS)
def test_accuracy_is_the_share_of_right_choices(seed):
    prediction = random_prediction(seed)
    assert accuracy(prediction) == pytest.approx(
        sum(top(row) == target for row, target in rows(prediction)) / 40, abs=1e-6
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_nll_is_the_mean_of_minus_log_target_probability(seed):
    prediction = random_prediction(seed)
    assert nll(prediction) == pytest.approx(
        -sum(math.log(row[target]) for row, target in rows(prediction)) / 40, abs=1e-5
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_brier_is_the_squared_error_summed_over_options(seed):
    prediction = random_prediction(seed)
    expected = (
        sum(sum((p - (c == target)) ** 2 for c, p in enumerate(row)) for row, target in rows(prediction)) / 40
    )
    assert brier(prediction) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_ece_is_its_formula_and_torchmetrics_own(seed):
    prediction = random_prediction(seed, examples=300)
    reference = MulticlassCalibrationError(num_classes=5, n_bins=15, norm="l1")
    assert ece(prediction) == pytest.approx(plain_ece(rows(prediction)), abs=1e-5)
    assert ece(prediction) == pytest.approx(reference(prediction.probs, prediction.targets).item(), abs=1e-7)


def test_certain_and_wrong_is_the_worst_of_every_metric():
    prediction = Prediction(torch.tensor([[[0.0, -1000.0]]]), torch.tensor([1]))
    assert (accuracy(prediction), ece(prediction), brier(prediction), coverage_area(prediction)) == (
        0,
        1,
        2,
        0,
    )
    assert nll(prediction) == 1000.0


def test_certain_and_right_is_the_best_of_every_metric():
    prediction = Prediction(torch.tensor([[[0.0, -1000.0]]]), torch.tensor([0]))
    assert (
        accuracy(prediction),
        nll(prediction),
        ece(prediction),
        brier(prediction),
        coverage_area(prediction),
    ) == (1, 0, 0, 0, 1)


def test_mistake_averaging_logits_would_change_the_nll():
    logits = torch.tensor([[[20.0, 0.0]], [[0.0, 7.0]]])
    prediction = Prediction(logits.log_softmax(-1), torch.tensor([1]))
    expected = -math.log((1 / (1 + math.exp(20)) + 1 / (1 + math.exp(-7))) / 2)
    wrong = -logits.mean(dim=0).log_softmax(-1)[0, 1].item()
    assert nll(prediction) == pytest.approx(expected, abs=1e-6)
    assert wrong - expected > 5


def test_mistake_mean_of_batch_means_with_a_short_last_batch_is_not_made():
    # Batches of 4, 4 and 1, the last one right: the mean of batch means is 1/3, the accuracy 1/9.
    targets = torch.tensor([1] * 8 + [0])
    prediction = Prediction(torch.tensor([0.9, 0.1]).log().expand(1, 9, 2), targets)
    batches = [prediction.take(torch.arange(9)[start : start + 4]) for start in (0, 4, 8)]
    assert statistics.fmean(accuracy(batch) for batch in batches) == pytest.approx(1 / 3)
    assert accuracy(prediction) == pytest.approx(1 / 9)
    assert nll(prediction) == pytest.approx(-(8 * math.log(0.1) + math.log(0.9)) / 9, abs=1e-6)
    assert brier(prediction) == pytest.approx((8 * 2 * 0.9**2 + 2 * 0.1**2) / 9, abs=1e-6)


def test_accuracy_of_batches_gathered_by_torchmetrics_is_ours():
    prediction = random_prediction(7, examples=37)
    reference = MulticlassAccuracy(num_classes=5, average="micro")
    for start in range(0, 37, 8):
        reference.update(prediction.probs[start : start + 8], prediction.targets[start : start + 8])
    assert accuracy(prediction) == pytest.approx(reference.compute().item(), abs=1e-7)


def test_mistake_ece_per_batch_is_not_made():
    # Half right at confidence 1/2 is calibrated; in batches of one, each is off by 1/2.
    prediction = Prediction(torch.full((1, 10, 2), 0.5).log(), torch.arange(10) % 2)
    per_batch = [ece(prediction.take(torch.tensor([n]))) for n in range(10)]
    assert statistics.fmean(per_batch) == pytest.approx(0.5)
    assert ece(prediction) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("log_prob", [-90.0, -104.0, -1e4])
def test_mistake_log_of_zero_as_inf_is_not_made(log_prob):
    # exp(-104) is 0 in float32
    prediction = Prediction(torch.tensor([[[log_prob, 0.0]]]), torch.tensor([0]))
    assert nll(prediction) == pytest.approx(-log_prob)


def test_mistake_log_of_zero_target_on_an_absent_option_is_an_error():
    with pytest.raises(DataError, match="none of its 2 options"):
        Prediction(torch.tensor([[[0.5, 0.5, 0.0]]]).log(), torch.tensor([2]))


def test_mistake_score_of_another_predictor_in_the_same_table_is_refused():
    # An ensemble's accuracy beside the AUROC of one member is two predictors in one row.
    with pytest.raises(ConfigError, match="4 members in distribution and 1 out of it"):
        evaluate(random_prediction(0), ood=random_prediction(1).member(0))
    with pytest.raises(ConfigError, match="4 members in distribution and 1 out of it"):
        evaluate_members(random_prediction(0), ood=random_prediction(1).member(0))


def test_every_number_of_evaluate_comes_from_the_one_prediction():
    prediction, ood = random_prediction(2), random_prediction(3)
    metrics = evaluate(prediction, ood=ood)
    for metric in LABELLED:
        assert getattr(metrics, metric.__name__) == metric(prediction)
    assert metrics.ood_auroc == ood_auroc(prediction, ood)
    assert metrics.total_entropy == total_entropy(prediction).mean().item()
    assert metrics.total_entropy == pytest.approx(
        metrics.expected_entropy + metrics.mutual_information, abs=1e-6
    )
    assert (metrics.num_members, metrics.num_examples) == (4, 40)


@pytest.mark.parametrize("metric", [*LABELLED, reliability_bins, evaluate])
def test_metric_of_an_unlabelled_prediction_is_refused(metric):
    with pytest.raises(DataError, match="needs targets, and these 3 examples have none"):
        metric(unlabelled())


@pytest.mark.parametrize("metric", LABELLED)
def test_order_of_examples_and_of_members_does_not_matter(metric):
    prediction = random_prediction(8)
    shuffled = prediction.select([2, 3, 1, 0]).take(
        torch.randperm(40, generator=torch.Generator().manual_seed(0))
    )
    # 1e-6: the same sums in another order
    assert metric(shuffled) == pytest.approx(metric(prediction), abs=1e-6)


@pytest.mark.parametrize("metric", LABELLED)
def test_absent_options_do_not_change_a_metric(metric):
    prediction = random_prediction(9, absent=False)
    padded = torch.nn.functional.pad(prediction.member_log_probs, (0, 3), value=-math.inf)
    assert metric(Prediction(padded, prediction.targets)) == pytest.approx(metric(prediction), abs=1e-7)


@pytest.mark.parametrize("metric", [nll, brier])
@pytest.mark.parametrize("seed", SEEDS)
def test_ensemble_is_never_worse_than_its_members_on_average_by_a_convex_score(metric, seed):
    prediction = random_prediction(seed)
    assert metric(prediction) <= single_member(metric, prediction).mean + 1e-6


@pytest.mark.parametrize("seed", SEEDS)
def test_ood_auroc_is_the_share_of_pairs_where_the_stranger_is_less_confident(seed):
    known, strange = random_prediction(seed), random_prediction(seed + 50, examples=25, options=3, scale=1.5)
    confidence = [max(row) for row in mean_probs(known)]
    other = [max(row) for row in mean_probs(strange)]
    wins = sum((o < c) + 0.5 * (o == c) for c in confidence for o in other)
    assert ood_auroc(known, strange) == pytest.approx(wins / (len(confidence) * len(other)), abs=1e-5)
    scores = -torch.tensor(confidence + other, dtype=torch.float64)
    labels = torch.tensor([0] * len(confidence) + [1] * len(other))
    assert ood_auroc(known, strange) == pytest.approx(BinaryAUROC()(scores + 1, labels).item(), abs=1e-6)


def test_ood_auroc_of_a_prediction_against_itself_is_a_half():
    prediction = random_prediction(10)
    assert ood_auroc(prediction, prediction) == pytest.approx(0.5, abs=1e-6)


def test_ood_auroc_needs_no_targets():
    assert ood_auroc(unlabelled(), unlabelled()) == 0.5


def test_ood_auroc_tells_confidences_apart_that_round_to_one():
    known = Prediction(torch.tensor([[[0.0, -25.0]]]).log_softmax(-1))
    strange = Prediction(torch.tensor([[[0.0, -20.0]]]).log_softmax(-1))
    assert known.confidence.item() == strange.confidence.item() == 1.0
    assert ood_auroc(known, strange) == 1.0


@pytest.mark.parametrize("seed", SEEDS)
def test_accuracy_coverage_is_the_accuracy_of_the_most_confident(seed):
    prediction = random_prediction(seed)
    ranked = sorted(rows(prediction), key=lambda pair: -max(pair[0]))
    right = [top(row) == target for row, target in ranked]
    curve = accuracy_coverage(prediction)
    assert curve.accuracies.tolist() == pytest.approx([sum(right[:k]) / k for k in range(1, 41)], abs=1e-9)
    assert curve.coverages.tolist() == pytest.approx([k / 40 for k in range(1, 41)], abs=1e-12)
    assert curve.accuracies[-1].item() == pytest.approx(accuracy(prediction), abs=1e-6)
    assert (
        curve.area == coverage_area(prediction) == pytest.approx(statistics.fmean(curve.accuracies.tolist()))
    )


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
def test_equal_confidences_count_as_their_mean_in_any_order(order):
    # One sure and right; two tied, one of them right: 1, then (1 + 1/2) / 2, then 2/3.
    prediction = Prediction(
        torch.tensor([[[0.9, 0.1], [0.6, 0.4], [0.6, 0.4]]]).log(), torch.tensor([0, 0, 1])
    )
    assert accuracy_coverage(prediction.take(torch.tensor(order))).accuracies.tolist() == pytest.approx(
        [1, 0.75, 2 / 3]
    )


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_reliability_bins_add_up_to_the_ece(bins):
    prediction = random_prediction(11, examples=300)
    points = reliability_bins(prediction, bins=bins)
    error = ((points.accuracies - points.confidences).abs() * points.counts).sum().item() / 300
    assert error == pytest.approx(plain_ece(rows(prediction), bins), abs=1e-5)
    assert points.counts.sum().item() == 300


def test_reliability_bins_refuse_no_bins():
    with pytest.raises(ConfigError, match="0 bins"):
        reliability_bins(random_prediction(0), bins=0)


@pytest.mark.parametrize("metric", LABELLED)
def test_single_member_is_the_mean_of_members_own_metrics(metric):
    prediction = random_prediction(24)
    values = [
        metric(Prediction(prediction.member_log_probs[m : m + 1], prediction.targets)) for m in range(4)
    ]
    spread = single_member(metric, prediction)
    assert spread.mean == pytest.approx(sum(values) / 4)
    assert spread.std == pytest.approx(math.sqrt(sum((value - sum(values) / 4) ** 2 for value in values) / 3))
    assert spread.mean != pytest.approx(metric(prediction), abs=1e-4)
    assert evaluate_members(prediction)[metric.__name__] == spread


def test_evaluate_members_pairs_each_member_with_its_own_out_of_distribution_scores():
    prediction, ood = random_prediction(13), random_prediction(14)
    expected = tuple(ood_auroc(prediction.member(m), ood.member(m)) for m in range(4))
    assert evaluate_members(prediction, ood=ood)["ood_auroc"].values == expected
    assert "ood_auroc" not in evaluate_members(prediction)


def test_spread_of_a_lone_member_is_zero():
    spread = single_member(nll, random_prediction(15, members=1))
    assert spread.std == 0.0
    assert spread.to_dict() == {"mean": spread.mean, "std": 0.0}


def test_metrics_are_json_and_print_one_line_each():
    metrics = evaluate(random_prediction(16), ood=random_prediction(17))
    assert json.loads(json.dumps(metrics.to_dict())) == metrics.to_dict()
    assert len(str(metrics).splitlines()) == sum(value is not None for value in metrics.to_dict().values())
    assert f"{metrics.accuracy:.4f}" in str(metrics)


def test_the_ece_of_a_calibrated_predictor_is_that_of_answers_drawn_by_its_confidences() -> None:
    generator = torch.Generator().manual_seed(0)
    confidences, counts = [0.3, 0.5, 0.8, 0.97, 1.0], [20, 37, 100, 93, 5]
    off = torch.zeros(20_000)
    for p, n in zip(confidences, counts, strict=True):
        right = (torch.rand(20_000, n, generator=generator) < p).float().mean(dim=1)
        off += n * (right - p).abs()
    assert ece_floor(confidences, counts) == pytest.approx(off.mean().item() / sum(counts), rel=0.02)
    assert ece_floor([1.0], [7]) == 0.0
