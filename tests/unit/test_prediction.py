from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch

from lora_ensembles.errors import ConfigError, DataError
from lora_ensembles.prediction.prediction import Prediction, predict
from lora_ensembles.prediction.rows import prediction_records
from lora_ensembles.prediction.uncertainty import mutual_information, total_entropy
from random_predictions import mean_probs, member_probs, random_prediction

SEEDS = range(5)


class Fixed:
    """A predictor that says what it was given, and remembers how it was asked."""

    def __init__(self, log_probs: torch.Tensor) -> None:
        self.log_probs = log_probs
        self.asked_max_rows: int | None = -1

    def member_log_probs(self, examples, *, max_rows=None):
        self.asked_max_rows = max_rows
        return self.log_probs


def example(name: str, labels: tuple[str, ...] = ("a", "b"), target: int | None = None) -> SimpleNamespace:
    return SimpleNamespace(id=name, prompt="", labels=labels, target=target, question="", options=())


@pytest.mark.parametrize("seed", SEEDS)
def test_ensemble_probabilities_are_the_mean_of_member_probabilities(seed):
    prediction = random_prediction(seed)
    expected = torch.tensor(mean_probs(prediction))
    # 1e-6: float32 rounding of a probability
    torch.testing.assert_close(prediction.probs, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(prediction.log_probs, expected.log(), atol=1e-5, rtol=1e-5)


def test_mistake_averaging_logits_gives_another_distribution_than_ours():
    # Member 1 is sure of a, member 2 nearly sure of b. Averaged logits say 99.8 % a; the mean of the
    # probabilities says half.
    logits = torch.tensor([[[20.0, 0.0]], [[0.0, 7.0]]])
    prediction = Prediction(logits.log_softmax(-1))
    averaged_logits = logits.mean(dim=0).softmax(-1)[0, 0].item()
    expected = (1 / (1 + math.exp(-20)) + 1 / (1 + math.exp(7))) / 2
    assert prediction.probs[0, 0].item() == pytest.approx(expected, abs=1e-6)
    assert averaged_logits == pytest.approx(1 / (1 + math.exp(-6.5)), abs=1e-6)
    assert abs(averaged_logits - expected) > 0.4


def test_lone_member_is_its_own_ensemble_exactly():
    prediction = random_prediction(0, members=1)
    assert torch.equal(prediction.log_probs, prediction.member_log_probs[0].clamp_max(0))


def test_member_order_does_not_matter():
    prediction = random_prediction(1)
    # 1e-6: the sum over members is taken in another order
    torch.testing.assert_close(
        prediction.select([3, 1, 0, 2]).log_probs, prediction.log_probs, atol=1e-6, rtol=1e-6
    )


def test_copies_of_a_member_predict_what_it_predicts():
    one = random_prediction(2, members=1)
    copies = Prediction(one.member_log_probs.expand(7, -1, -1), one.targets, one.ids)
    torch.testing.assert_close(copies.log_probs, one.log_probs, atol=1e-6, rtol=1e-6)


def test_absent_options_have_probability_exactly_zero():
    prediction = random_prediction(3)
    assert not prediction.present.all()
    assert (prediction.probs[~prediction.present] == 0).all()
    assert torch.isfinite(prediction.log_probs[prediction.present]).all()


def test_tiny_doubt_of_near_certain_members_is_not_rounded_away():
    # Mean of 1 - 1e-10 and 1 - 3e-10; log(2) + 1e-10 in float32 would be log(2), and the doubt 0.
    doubts = torch.tensor([1e-10, 3e-10], dtype=torch.float64)
    members = torch.stack([torch.log1p(-doubts), doubts.log()], dim=-1)[:, None]
    prediction = Prediction(members)
    assert prediction.log_probs[0, 0].item() == pytest.approx(-2e-10, rel=1e-5)


def test_probabilities_never_exceed_one():
    # Rows may be off by 1e-4; a probability of 1.00005 would make torchmetrics apply a softmax to every row.
    prediction = Prediction(torch.tensor([[[5e-5, -30.0]]]))
    assert prediction.probs.max().item() == 1.0


def test_member_and_select_keep_targets_and_ids():
    prediction = random_prediction(4)
    chosen = prediction.select([2, 0])
    assert torch.equal(chosen.member_log_probs, prediction.member_log_probs[[2, 0]])
    assert torch.equal(chosen.targets, prediction.targets)
    assert chosen.ids == prediction.ids
    assert torch.equal(prediction.member(2).member_log_probs[0], prediction.member_log_probs[2])


@pytest.mark.parametrize("members", [[], [4], [-1], [1, 1]])
def test_select_refuses_members_that_are_missing_or_named_twice(members):
    with pytest.raises(ConfigError, match=r"cannot select members .*0 to 3, each once"):
        random_prediction(0).select(members)


def test_take_moves_log_probs_targets_and_ids_together():
    prediction = random_prediction(5)
    rows = torch.tensor([7, 3, 7])
    taken = prediction.take(rows)
    assert taken.ids == ("q7", "q3", "q7")
    assert torch.equal(taken.targets, prediction.targets[rows])
    again = Prediction(prediction.member_log_probs[:, rows], prediction.targets[rows], taken.ids)
    assert torch.equal(taken.member_log_probs, again.member_log_probs)
    assert torch.equal(taken.log_probs, again.log_probs)
    assert torch.equal(taken.probs, again.probs)
    assert torch.equal(taken.member(1).probs, again.member(1).probs)
    assert prediction.num_examples == 40


def test_ids_default_to_row_numbers():
    assert Prediction(torch.full((1, 3, 2), 0.5).log()).ids == ("0", "1", "2")


@pytest.mark.parametrize("shape", [(3, 2), (0, 3, 2), (1, 0, 2), (1, 3, 1)])
def test_log_probs_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(ConfigError, match=r"must be \(members, examples, options\)"):
        Prediction(torch.full(shape, 0.5).log())


def test_logits_given_as_log_probs_are_refused():
    with pytest.raises(ConfigError, match=r"member 0, row 1 sum to .* not logits"):
        Prediction(torch.tensor([[[0.5, 0.5], [2.0, 1.0]]]).log_softmax(-1) + torch.tensor([[0.0], [2.0]]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_that_are_not_finite_are_refused(bad):
    with pytest.raises(ConfigError, match=r"member 0, row 0 sum to (nan|inf)"):
        Prediction(torch.tensor([[[bad, math.log(0.5)]]]))


def test_half_precision_is_refused():
    with pytest.raises(ConfigError, match="bfloat16; cast the logits to float32 before the softmax"):
        Prediction(torch.full((1, 1, 2), 0.5).log().bfloat16())


def test_underflow_that_looks_like_an_absent_option_is_refused():
    members = torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]]]).log()
    with pytest.raises(ConfigError, match=r"option 1 of row 0 .* use log_softmax"):
        Prediction(members)


@pytest.mark.parametrize("target", [2, 3, -1])
def test_target_that_is_no_option_of_its_row_is_refused(target):
    log_probs = torch.tensor([[[0.5, 0.5, 0.0]]]).log()
    with pytest.raises(
        DataError, match=f"target of example 'q1' .* is {target}, which is none of its 2 options"
    ):
        Prediction(log_probs, torch.tensor([target]), ("q1",))


@pytest.mark.parametrize("targets", [torch.tensor([0, 1]), torch.tensor([0.0]), torch.tensor([True])])
def test_targets_of_a_wrong_shape_or_type_are_refused(targets):
    with pytest.raises(ConfigError, match="must be integers of shape"):
        Prediction(torch.full((1, 1, 2), 0.5).log(), targets)


def test_wrong_number_of_ids_is_refused():
    with pytest.raises(ConfigError, match="2 ids for 1 examples"):
        Prediction(torch.full((1, 1, 2), 0.5).log(), ids=("a", "b"))


def test_predict_keeps_order_targets_and_ids_and_hands_on_max_rows():
    log_probs = torch.tensor([[[0.2, 0.3, 0.5], [0.4, 0.6, 0.0]]]).log()
    predictor = Fixed(log_probs)
    prediction = predict(
        predictor, [example("x", ("a", "b", "c"), 2), example("y", ("a", "b"), 0)], max_rows=7
    )
    assert prediction.ids == ("x", "y")
    assert prediction.targets.tolist() == [2, 0]
    assert torch.equal(prediction.member_log_probs, log_probs)
    assert predictor.asked_max_rows == 7


@pytest.mark.parametrize("targets", [(None, None), (0, None)])
def test_predict_without_a_target_for_every_example_is_unlabelled(targets):
    examples = [example(str(n), target=target) for n, target in enumerate(targets)]
    assert predict(Fixed(torch.full((1, 2, 2), 0.5).log()), examples).targets is None


def test_predict_refuses_an_empty_list():
    with pytest.raises(DataError, match="no examples"):
        predict(Fixed(torch.empty(0)), [])


def test_predict_refuses_max_rows_below_one():
    with pytest.raises(ConfigError, match="max_rows is 0"):
        predict(Fixed(torch.empty(0)), [example("x")], max_rows=0)


def test_predict_refuses_probability_on_an_option_that_the_example_lacks():
    predictor = Fixed(torch.full((1, 1, 3), 1 / 3).log())
    with pytest.raises(ConfigError, match=r"3 options of example 'x' .* 2 labels"):
        predict(predictor, [example("x")])


def test_mistake_members_rows_misaligned_is_refused_when_a_row_is_lost():
    predictor = Fixed(torch.full((2, 2, 2), 0.5).log())  # two rows for three examples
    with pytest.raises(ConfigError, match="3 ids for 2 examples"):
        predict(predictor, [example(name, target=None) for name in "xyz"])


def test_records_say_what_the_prediction_says():
    prediction = random_prediction(6, members=3, examples=8, options=4)
    letters = (" a", " b", " c", " d")
    counts = prediction.present.sum(dim=-1).tolist()
    examples = [
        example(f"q{n}", letters[: counts[n]], int(prediction.targets[n]) if n % 2 else None)
        for n in range(8)
    ]
    records = list(prediction_records(prediction, examples))
    members, means = member_probs(prediction), mean_probs(prediction)
    for n, record in enumerate(records):
        assert record["id"] == f"q{n}"
        assert list(record["probs"]) == ["a", "b", "c", "d"][: counts[n]]
        assert list(record["probs"].values()) == pytest.approx(means[n][: counts[n]], abs=1e-6)
        assert record["prediction"] == "abcd"[means[n].index(max(means[n]))]
        assert record["confidence"] == pytest.approx(max(means[n]), abs=1e-6)
        assert record["votes"] == ["abcd"[member[n].index(max(member[n]))] for member in members]
        assert record["target"] == ("abcd"[int(prediction.targets[n])] if n % 2 else None)
        assert record["total_entropy"] == total_entropy(prediction)[n].item()
        assert record["mutual_information"] == mutual_information(prediction)[n].item()
    assert json.loads(json.dumps(records)) == records


def test_records_of_other_examples_are_refused_at_the_call():
    with pytest.raises(ConfigError, match="are not the 1 of the prediction"):
        prediction_records(Prediction(torch.full((1, 1, 2), 0.5).log(), ids=("x",)), [example("y")])
