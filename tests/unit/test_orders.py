"""Averages over the order of a question's options, held against questions that are reordered by hand."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_ensembles
import tiny_heads
from command_line import base_folder, call
from lora_ensembles import LastLayerEnsemble, LoraEnsemble, TrainConfig, calibrate, evaluate, predict, train
from lora_ensembles.data import Example, encode_examples, render_prompt
from lora_ensembles.errors import ConfigError
from lora_ensembles.prediction.orders import option_orders, order_flips, reordered
from lora_ensembles.training import loop
from reference_training import Recipe, assert_same_weights, config_of, train_by_peft


def other_questions(count: int) -> list[Example]:
    """Questions that `tiny_ensembles.questions` does not have."""
    return tiny_ensembles.questions(count, start=8)


def test_the_average_is_that_of_questions_reordered_by_hand() -> None:
    ensemble = tiny_ensembles.ensemble(members=2, trained=True)
    questions = [*tiny_ensembles.questions(3), *tiny_ensembles.questions(2, options=3, start=3)]
    prediction = predict(ensemble, questions, order_passes=3)
    for row, question in enumerate(questions):
        expected = torch.zeros(2, len(question.options))
        choices = []
        for order in option_orders(question, 3):
            options = tuple(question.options[place] for place in order)
            asked = dataclasses.replace(
                question, prompt=render_prompt(question.question, options), options=options
            )
            alone = predict(ensemble, [asked]).member_log_probs.exp()[:, 0]
            for place, option in enumerate(order):
                expected[:, option] += alone[:, place] / 3
            choices.append(order[int(alone.mean(dim=0).argmax())])
        found = prediction.member_log_probs.exp()[:, row, : len(question.options)]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert prediction.order_choices is not None
        assert prediction.order_choices[:, row].tolist() == choices
    assert prediction.targets is not None
    assert prediction.targets.tolist() == [question.target for question in questions]


class LikesTheFirst:
    """A predictor that gives the first option of a list 0.7, whatever it is."""

    def member_log_probs(self, examples: Sequence[Example], *, max_rows: int | None = None) -> Tensor:
        return torch.tensor([0.7, 0.1, 0.1, 0.1]).log().expand(1, len(examples), 4).clone()


def test_a_bias_for_a_place_averages_out_over_all_orders() -> None:
    questions = tiny_ensembles.questions(4)
    prediction = predict(LikesTheFirst(), questions, order_passes=24)
    torch.testing.assert_close(prediction.probs, torch.full((4, 4), 0.25), atol=1e-6, rtol=0)
    flips = evaluate(prediction).order_flips
    assert flips == pytest.approx(24 * 18 / (24 * 23))  # of 24 orders each option is first in six
    assert evaluate(predict(LikesTheFirst(), questions)).order_flips is None


def test_orders_follow_from_the_seed_and_the_id_and_come_once() -> None:
    first, second = tiny_ensembles.questions(2)
    assert option_orders(first, 24) == option_orders(first, 24)
    assert set(option_orders(first, 24)) == set(itertools.permutations(range(4)))
    assert len(option_orders(first, 30)) == 30
    assert option_orders(first, 8) != option_orders(second, 8)
    assert option_orders(first, 8, seed=1) != option_orders(first, 8)


def test_a_reordered_question_keeps_its_answer() -> None:
    question = dataclasses.replace(tiny_ensembles.questions(1)[0], target_probs=(0.1, 0.2, 0.3, 0.4))
    other = reordered(question, (3, 1, 0, 2))
    assert other.options[other.target or 0] == question.options[question.target or 0]
    assert other.target_probs == (0.4, 0.2, 0.1, 0.3)


def test_flips_are_the_share_of_pairs_that_differ() -> None:
    choices = torch.tensor([[0, 1], [0, 2], [1, 1]])
    assert order_flips(choices).tolist() == pytest.approx([2 / 3, 2 / 3])
    assert order_flips(choices[:1]).tolist() == [0.0, 0.0]


def test_prompts_that_list_no_options_are_refused() -> None:
    texts = [
        Example(str(n), f"Q: is {n} late?\nA:", (" yes", " no"), 0, f"is {n} late?", ("yes", "no"))
        for n in range(3)
    ]
    with pytest.raises(ConfigError, match="order_passes: no prompt lists its options"):
        predict(tiny_ensembles.ensemble(), texts, order_passes=2)
    with pytest.raises(ConfigError, match="order_passes is 0"):
        predict(tiny_ensembles.ensemble(), tiny_ensembles.questions(2), order_passes=0)


def test_a_calibration_remembers_over_how_many_orders_it_averages(tmp_path: Path) -> None:
    ensemble = tiny_ensembles.ensemble(trained=True)
    calibrate(ensemble, other_questions(12), kind="temperature", order_passes=2)
    ensemble.save_pretrained(tmp_path / "saved")
    loaded = LoraEnsemble.from_pretrained(
        tmp_path / "saved", base=tiny_ensembles.llama(), tokenizer=tiny_ensembles.tokenizer()
    )
    questions = tiny_ensembles.questions(4)
    prediction = predict(loaded, questions)
    assert prediction.order_choices is not None
    assert prediction.order_choices.shape == (2, 4)
    torch.testing.assert_close(prediction.probs, predict(ensemble, questions, order_passes=2).probs)
    with pytest.raises(ConfigError, match=r"order_passes=3: the ensemble was calibrated with 2"):
        predict(loaded, questions, order_passes=3)


def test_the_command_line_reports_how_often_the_order_changes_an_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    given = (
        "--base",
        base_folder(),
        "--members",
        "2",
        "--epochs",
        "1",
        "--limit",
        "20",
        "--limit-validation",
        "20",
    )
    assert call(capsys, "train", "--task", "world-obqa", *given, "--out", out).code == 0
    plain = call(capsys, "evaluate", out, "--json").summary
    assert plain["ensemble"]["order_flips"] is None
    made = call(capsys, "evaluate", out, "--order-passes", "4", "--json")
    assert made.code == 0, made.err
    assert 0 <= made.summary["ensemble"]["order_flips"] <= 1
    assert "order of the options:" in made.err


@pytest.mark.parametrize("loss", ["labels", "vocabulary"])
def test_a_member_that_trains_on_several_orders_equals_one_trained_by_peft(loss: str) -> None:
    questions, recipe = tiny_ensembles.questions(8), Recipe(epochs=3, loss=loss)
    ensemble = tiny_ensembles.ensemble(members=2)
    config = dataclasses.replace(config_of(recipe), option_orders=3)
    train(ensemble, questions, config, progress=False)
    every = [reordered(question, order) for question in questions for order in option_orders(question, 3)]
    expected = train_by_peft(
        tiny_ensembles.llama(),
        tiny_ensembles.adapter(),
        ensemble.info.seeds[1],
        encode_examples(every, tiny_ensembles.tokenizer()),
        recipe,
        variants=3,
    )
    assert_same_weights(ensemble.stack.member(1), expected)
    plain = tiny_ensembles.ensemble(members=2)
    train(plain, questions, config_of(recipe), progress=False)
    assert not torch.allclose(plain.stack.b, ensemble.stack.b, atol=1e-3)


def test_a_run_on_several_orders_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(epochs=2, batch_size=4, learning_rate=1e-2, option_orders=4)
    whole, halved = tiny_ensembles.ensemble(), tiny_ensembles.ensemble()
    train(whole, tiny_ensembles.questions(8), config, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_epoch_row", _stop_after_the_first(loop._epoch_row))
        with pytest.raises(KeyboardInterrupt):
            train(halved, tiny_ensembles.questions(8), config, out=tmp_path / "run", progress=False)
    again = tiny_ensembles.ensemble()
    train(again, tiny_ensembles.questions(8), config, out=tmp_path / "run", resume=True, progress=False)
    assert torch.equal(again.stack.b, whole.stack.b)


def _stop_after_the_first(row: Any) -> Any:
    calls: list[int] = []

    def stopped(*arguments: Any, **settings: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return row(*arguments, **settings)

    return stopped


def test_orders_in_training_are_refused_where_no_answer_depends_on_them() -> None:
    config = TrainConfig(epochs=1, option_orders=2)
    with pytest.raises(ConfigError, match="option_orders=2: no answer here depends on the order"):
        train(tiny_heads.build_ensemble(), tiny_heads.choice_examples(), config, progress=False)
    baseline = LastLayerEnsemble(tiny_ensembles.llama(), tiny_ensembles.tokenizer(), num_members=2)
    with pytest.raises(ConfigError, match="option_orders=2: a last-layer ensemble has no such setting"):
        baseline.fit(tiny_ensembles.questions(8), config)
    with pytest.raises(ConfigError, match="option_orders"):
        TrainConfig(option_orders=0)
