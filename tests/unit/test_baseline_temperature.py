"""Temperature scaling: the right temperature, nothing but the temperature, and never scored on what it was
fitted on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lora_ensembles import (
    ConfigError,
    DataError,
    FewShot,
    TemperatureScaled,
    accuracy,
    load_task,
    nll,
    predict,
)
from lora_ensembles.baselines import held_out_split
from lora_ensembles.calibration.temperature import BOUNDS, best_temperature, scaled_log_probs
from lora_ensembles.data import Example, preference
from lora_ensembles.prediction.prediction import Prediction
from tiny_ensembles import ensemble, llama, questions, tokenizer


class Told:
    """A predictor that says what it was told about each example, whatever list it stands in."""

    num_trained_parameters = 7

    def __init__(self, examples: Sequence[Example], log_probs: Tensor):
        self.numbers = {example.id: number for number, example in enumerate(examples)}
        self.log_probs = log_probs

    def member_log_probs(self, examples: Sequence[Example], *, max_rows: int | None = None) -> Tensor:
        return self.log_probs[:, [self.numbers[example.id] for example in examples]]


def drawn(count: int, *, sharpness: float, seed: int = 0) -> tuple[list[Example], Tensor]:
    """Examples whose answers are drawn from softmax(z), and the log-probabilities (1, N, 4) of
    softmax(sharpness * z).
    """
    generator = torch.Generator().manual_seed(seed)
    z = 1.5 * torch.randn(count, 4, generator=generator)
    answers = torch.multinomial(z.softmax(-1), 1, generator=generator)[:, 0].tolist()
    examples = [
        Example(f"e{n}", f"Question {n}: (", ("a", "b", "c", "d"), answer) for n, answer in enumerate(answers)
    ]
    return examples, (sharpness * z).log_softmax(-1)[None]


def nll_by_hand(prediction: Prediction, temperature: float) -> float:
    """-log of p_target^(1/T) / sum_c p_c^(1/T), in plain Python."""
    total = 0.0
    assert prediction.targets is not None
    for row, target in zip(prediction.probs.tolist(), prediction.targets.tolist(), strict=True):
        powers = [p ** (1 / temperature) if p else 0.0 for p in row]
        total -= math.log(powers[target] / sum(powers))
    return total / prediction.num_examples


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_the_temperature_that_made_a_predictor_too_sure_is_found(sharpness: float) -> None:
    examples, log_probs = drawn(20_000, sharpness=sharpness)
    found = TemperatureScaled.fit(Told(examples, log_probs), examples).temperature
    # The NLL per example has curvature Var_p(z) in b = 1 / T at its minimum, here about 1 for z of deviation
    # 1.5: log T has deviation 1 / sqrt(20000) = 0.7 %. Five of these.
    assert found == pytest.approx(sharpness, rel=0.035)


@pytest.mark.parametrize("seed", range(4))
def test_no_temperature_of_a_grid_has_a_lower_nll(seed: int) -> None:
    examples, log_probs = drawn(40, sharpness=2.0, seed=seed)
    prediction = predict(Told(examples, log_probs), examples)
    best = best_temperature(prediction)
    lowest = nll_by_hand(prediction, best)
    assert BOUNDS[0] < best < BOUNDS[1]
    assert all(lowest <= nll_by_hand(prediction, 1.02**step) + 1e-9 for step in range(-150, 151))
    assert lowest <= nll(prediction) + 1e-9
    assert best_temperature(prediction) == best


def test_scaling_is_of_the_mean_of_the_members_and_by_powers() -> None:
    members = torch.tensor([[[0.9, 0.1], [0.5, 0.5]], [[0.5, 0.5], [0.1, 0.9]]]).log()
    found = scaled_log_probs(Prediction(members), 2.0).exp()
    for row, p in enumerate([0.7, 0.3]):
        expected = math.sqrt(p) / (math.sqrt(p) + math.sqrt(1 - p))
        assert found[row, 0].item() == pytest.approx(expected, rel=1e-6)


def test_absent_options_stay_absent_and_do_not_count() -> None:
    probs = torch.tensor([[[0.7, 0.2, 0.1], [0.8, 0.2, 0.0], [0.6, 0.4, 0.0], [0.5, 0.2, 0.3]]])
    prediction = Prediction(probs.log(), torch.tensor([0, 1, 0, 2]))
    best = best_temperature(prediction)
    assert nll_by_hand(prediction, best) <= min(
        nll_by_hand(prediction, best * factor) for factor in (0.99, 1.01)
    )
    scaled = scaled_log_probs(prediction, best)
    assert torch.equal(scaled == -math.inf, probs[0] == 0)


def test_temperature_changes_confidence_and_no_choice() -> None:
    held_out, scored = questions(24), questions(24, start=24)
    made = ensemble(members=3, trained=True)
    scaled = TemperatureScaled.fit(made, held_out)
    before, after = predict(made, scored), predict(scaled, scored)
    assert after.num_members == 1
    assert torch.equal(after.choices, before.choices)
    assert accuracy(after) == accuracy(before)
    assert float((after.confidence - before.confidence).abs().max()) > 0.01
    torch.testing.assert_close(after.log_probs, scaled_log_probs(before, scaled.temperature))
    fitted = predict(made, held_out)
    at_t = Prediction(scaled_log_probs(fitted, scaled.temperature)[None], fitted.targets)
    assert nll(at_t) < nll(fitted)


def test_a_fitting_set_without_errors_goes_to_the_bound() -> None:
    sure = torch.tensor([[[0.6, 0.4], [0.9, 0.1]]]).log()
    assert best_temperature(Prediction(sure, torch.tensor([0, 0]))) == BOUNDS[0]
    assert best_temperature(Prediction(sure, torch.tensor([1, 1]))) == BOUNDS[1]


def test_predictions_without_information_keep_their_temperature() -> None:
    options = torch.tensor([3, 7, 5, 2])  # some are absent: those present are equally probable
    uniform = torch.where(torch.arange(7) < options[:, None], -options[:, None].float().log(), -torch.inf)
    assert best_temperature(Prediction(uniform.expand(3, -1, -1), torch.tensor([0, 6, 2, 1]))) == 1.0


@pytest.mark.parametrize(("answer", "word", "bound"), [(0, "lowest", 0), (1, "highest", 1)])
def test_a_fit_that_ends_at_its_bound_is_said(
    answer: int, word: str, bound: int, caplog: pytest.LogCaptureFixture
) -> None:
    examples = [Example(f"e{n}", f"Question {n}: (", ("a", "b"), answer) for n in range(3)]
    sure = torch.tensor([0.8, 0.2]).log().expand(1, 3, 2)

    scaled = TemperatureScaled.fit(Told(examples, sure), examples)

    assert (scaled.temperature, scaled.at_bound) == (BOUNDS[bound], True)
    assert f"temperature {BOUNDS[bound]:g} is the {word} that is searched" in caplog.text
    caplog.clear()
    examples, log_probs = drawn(200, sharpness=2.0)
    assert not TemperatureScaled.fit(Told(examples, log_probs), examples).at_bound
    assert not caplog.text


def test_what_was_fitted_on_cannot_be_scored() -> None:
    held_out = questions(8)
    scaled = TemperatureScaled.fit(ensemble(members=2), held_out)
    scaled.member_log_probs(questions(4, start=8))
    with pytest.raises(
        DataError,
        match=r"example 'q3' was used to fit the temperature \(as 'q3'\), and 1 of the 3 given were; "
        r"score other",
    ):
        predict(scaled, [*questions(2, start=8), held_out[3]])


@pytest.mark.parametrize(
    "changed",
    [
        dict(id="other"),
        dict(id="other", target=None),
        dict(id="other", prompt="Q: other words\nA: ("),
        dict(id="other", prompt="Q: other words\nA: (", options=("coast", "moor", "forest", "lake")),
        dict(prompt="Q: other words\nA: (", options=("no", "yes", "sure", "not")),
    ],
)
def test_a_fitted_example_is_known_again_under_another_name_prompt_or_order_of_options(
    changed: dict[str, object],
) -> None:
    held_out = questions(8)
    scaled = TemperatureScaled.fit(ensemble(members=2), held_out)
    disguised = dataclasses.replace(held_out[3], **changed)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"was used to fit the temperature \(as 'q3'\)"):
        predict(scaled, [disguised])


def test_another_question_that_shares_an_id_is_scored() -> None:
    scaled = TemperatureScaled.fit(ensemble(members=2), questions(8))
    (other,) = questions(1, start=8)
    assert predict(scaled, [dataclasses.replace(other, id="q3")]).num_examples == 1


def test_a_second_text_and_the_texts_of_a_preference_make_another_example() -> None:
    pairs = [
        Example(str(n), "the same premise", (" yes", " no"), 0, pair=f"hypothesis {n}") for n in range(10)
    ]
    preferences = [preference(str(n), "", f"good {n}", f"bad {n}") for n in range(10)]
    for examples in (pairs, preferences):
        held_out, scored = held_out_split(
            examples, share=0.3, trained_on=[dataclasses.replace(examples[0], id="other")]
        )
        assert len(held_out) == 3
        assert examples[0] in scored
    with pytest.raises(DataError, match="0 are different and were not trained on"):
        held_out_split(preferences, trained_on=preferences)


def test_fitting_on_what_was_trained_on_is_refused() -> None:
    train, held_out = questions(8), questions(8, start=8)
    made = ensemble(members=2)
    assert TemperatureScaled.fit(made, held_out, trained_on=train).temperature > 0
    with pytest.raises(
        DataError,
        match=r"example 'q5' was trained on .* 1 of the 9 given were; "
        r"fit the temperature on examples that were",
    ):
        TemperatureScaled.fit(made, [*held_out, train[5]], trained_on=train)


def test_unlabelled_or_no_examples_are_refused() -> None:
    unlabelled = [dataclasses.replace(example, target=None) for example in questions(4)]
    with pytest.raises(DataError, match="fitting a temperature needs targets"):
        TemperatureScaled.fit(ensemble(members=1), unlabelled)
    with pytest.raises(DataError, match="no examples to predict"):
        TemperatureScaled.fit(ensemble(members=1), [])
    with pytest.raises(ConfigError, match=r"temperature=0.0; it is a finite number above 0"):
        TemperatureScaled(ensemble(members=1), 0.0, {})


def test_any_predictor_can_be_scaled_and_costs_one_parameter_more() -> None:
    few_shot = FewShot(llama(window=256), tokenizer(), questions(8), draws=2)
    scaled = TemperatureScaled.fit(few_shot, questions(8, start=8))
    assert predict(scaled, questions(3, start=16)).num_members == 1
    examples, log_probs = drawn(30, sharpness=2.0)
    assert TemperatureScaled.fit(Told(examples, log_probs), examples).num_trained_parameters == 8


def twins(count: int) -> list[Example]:
    """Every question twice, under two ids, its options in another order the second time."""
    once = questions(count)
    turned = [
        dataclasses.replace(one, id=f"{one.id}/again", prompt=f"{one.prompt} ", options=one.options[::-1])
        for one in once
    ]
    return [*once, *turned]


@pytest.mark.parametrize("seed", range(5))
def test_a_split_keeps_equal_questions_together_and_what_was_trained_on_out(seed: int) -> None:
    examples, trained = twins(20), questions(5, start=3)
    held_out, scored = held_out_split(examples, share=0.3, seed=seed, trained_on=trained)
    assert sorted([*held_out, *scored], key=examples.index) == examples
    assert len(held_out) == 12
    assert [*held_out] == sorted(held_out, key=examples.index)
    assert not {one.question for one in held_out} & {one.question for one in [*scored, *trained]}
    made = ensemble(members=2)
    assert predict(TemperatureScaled.fit(made, held_out, trained_on=trained), scored).num_examples == 28


def test_a_split_repeats_with_its_seed() -> None:
    examples = questions(20)
    assert (
        held_out_split(examples, seed=1)
        == held_out_split(examples, seed=1)
        != held_out_split(examples, seed=2)
    )
    assert len(held_out_split(examples)[0]) == 4
    assert len(held_out_split(examples[:2])[0]) == 1


def test_a_split_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"share=1.0; it is a number between 0 and 1"):
        held_out_split(questions(4), share=1.0)
    with pytest.raises(DataError, match="4 examples, of which 0 are different and were not trained on"):
        held_out_split(questions(4), trained_on=questions(4))
    with pytest.raises(DataError, match="the 2 examples are one question; another is needed to score"):
        held_out_split(twins(1))
    with pytest.raises(DataError, match="1 examples, of which 1 are different"):
        held_out_split(questions(1))


@pytest.mark.parametrize("name", ["obqa", "arce", "mmlu-ss", "mmlu-stem"])
def test_the_papers_data_split_although_they_hold_questions_twice(real_data: Path, name: str) -> None:
    task = load_task(name, data=real_data)
    held_out, scored = held_out_split(task.validation, trained_on=task.train)
    assert len(held_out) == round(0.2 * len(task.validation))
    for seen in (task.train, scored):
        assert not {(one.question, frozenset(one.options)) for one in held_out} & {
            (one.question, frozenset(one.options)) for one in seen
        }
