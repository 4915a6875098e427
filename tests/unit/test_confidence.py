"""Confidence by the definitions in use: against transformers' own, and against the whole vocabulary."""

from __future__ import annotations

import pytest
import torch

import tiny_heads
from lora_ensembles import ConfigError, Prediction, confidence, label_mass, predict
from random_predictions import random_prediction
from tiny_models import build_ensemble, letter_examples, phrase_examples, tokenizer


def typed(types: tuple[str | None, ...], probs: list[list[float]]) -> Prediction:
    return Prediction(torch.tensor([probs]).log(), types=types)


def test_the_usual_confidence_is_the_highest_probability() -> None:
    prediction = random_prediction(3)
    assert torch.equal(confidence(prediction), prediction.probs.amax(dim=-1))


@pytest.mark.parametrize("row", range(12))
def test_relative_confidence_is_that_of_transformers(row: int) -> None:
    decisions = pytest.importorskip(
        "transformers.decision.template_utils", reason="this transformers has no decision pipeline yet"
    )
    generator = torch.Generator().manual_seed(row)
    count = 2 + row % 4
    kind = ("choice", "score", "predicate")[row % 3]
    count = 2 if kind == "predicate" else count
    probs = torch.rand(count, generator=generator).softmax(dim=-1)
    options = [str(number) for number in range(count)]
    name = "noul" if kind == "predicate" else kind
    question = next(value for value in vars(decisions).values() if hasattr(value, "answer"))(
        "q", name, None, ["true", "false"] if kind == "predicate" else options, options, options
    )
    answer = question.answer(probs.double().tolist())
    expected = answer["noul"] if kind == "predicate" else answer["confidence"]
    found = confidence(Prediction(probs.log()[None, None], types=(kind,)), kind="relative")
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_relative_confidence_by_its_formula() -> None:
    rows = [[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.7, 0.2, 0.1]]
    found = confidence(typed((None, "score", "choice"), rows), kind="relative").tolist()
    assert found == pytest.approx([(0.7 - 1 / 3) / (2 / 3), 1 - (0.1 * 2 + 0.2) / (2 / 3), 0.55], abs=1e-6)
    absent = torch.tensor([[[0.6, 0.4, 0.0]]]).log()
    assert confidence(Prediction(absent), kind="relative").item() == pytest.approx(0.2, abs=1e-6)


@pytest.mark.parametrize("examples", [letter_examples(), phrase_examples()], ids=["letters", "words"])
def test_the_mass_of_labels_is_their_share_of_the_whole_vocabulary(
    examples: list,  # type: ignore[type-arg]
) -> None:
    ensemble = build_ensemble(members=2, random_b=True)
    found = label_mass(ensemble, examples)
    for row, example in enumerate(examples):
        expected = 0.0
        for label in example.labels:
            prompt = tokenizer()(example.prompt)["input_ids"]
            whole = tokenizer()(example.prompt + label)["input_ids"]
            log_probs = ensemble(torch.tensor([whole])).double().log_softmax(dim=-1)[:, 0]
            steps = range(len(prompt) - 1, len(whole) - 1)
            sums = torch.stack([log_probs[:, step, whole[step + 1]] for step in steps]).sum(dim=0)
            expected += sums.exp().mean().item()
        assert found[row].item() == pytest.approx(expected, rel=1e-4)
    prediction = predict(ensemble, examples)
    product = confidence(prediction, kind="mass", label_mass=found)
    torch.testing.assert_close(product, prediction.confidence * found)


def test_what_has_no_mass_of_labels_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple-choice heads have no vocabulary"):
        label_mass(tiny_heads.build_ensemble(), tiny_heads.choice_examples())
    with pytest.raises(ConfigError, match="kind='mass' needs label_mass"):
        confidence(random_prediction(1), kind="mass")
    with pytest.raises(ConfigError, match="kind='top' does not take label_mass"):
        confidence(random_prediction(1), label_mass=torch.ones(1))
    with pytest.raises(ConfigError, match="unknown kind 'sure'"):
        confidence(random_prediction(1), kind="sure")  # type: ignore[arg-type]
