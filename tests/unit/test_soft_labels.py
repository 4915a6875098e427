"""Soft labels: a distribution over an example's labels in training, metrics, calibration and files, held
against torch and scipy.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import scipy.optimize
import torch
from torch.nn import functional as F

import reference_heads
import tiny_heads
from lora_ensembles import (
    CheckpointError,
    Example,
    LastLayerEnsemble,
    LastLayerHeads,
    LoraEnsemble,
    Prediction,
    TrainConfig,
    calibrate,
    evaluate,
    load_file,
    predict,
    train,
)
from lora_ensembles.calibration.scaling import fit_calibration
from lora_ensembles.data import encode_examples
from lora_ensembles.data.prompts import rendered
from lora_ensembles.errors import ConfigError, DataError
from lora_ensembles.prediction.metrics import brier, kl_from_targets, nll
from reference_training import Recipe, assert_same_weights, config_of, train_by_peft
from tiny_models import adapter_config, build, build_ensemble, phrase_examples, tokenizer


def softened(examples: Sequence[Example], *, seed: int = 0, every: int = 1) -> list[Example]:
    """The examples with a distribution over their labels, drawn by `seed`, on each `every`-th of them."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number, example in enumerate(examples):
        probs = torch.rand(len(example.labels), generator=generator).softmax(dim=-1)
        soft = tuple(probs.tolist()) if number % every == 0 else None
        made.append(dataclasses.replace(example, target_probs=soft))
    return made


def random_prediction(*, count: int = 300, options: int = 4, members: int = 3) -> Prediction:
    """Overconfident members, and soft labels; every third row has one option fewer."""
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(members, count, options, generator=generator)
    soft = (logits.mean(dim=0) / 4 + torch.randn(count, options, generator=generator)).softmax(dim=-1)
    absent = torch.zeros(count, options, dtype=torch.bool)
    absent[::3, -1] = True
    soft = soft.masked_fill(absent, 0.0)
    log_probs = logits.masked_fill(absent, -math.inf).log_softmax(dim=-1)
    return Prediction(log_probs, target_probs=soft / soft.sum(dim=-1, keepdim=True))


@pytest.mark.parametrize("every", [1, 2], ids=["all", "half"])
@pytest.mark.parametrize(
    "recipe", [Recipe(loss="labels", epochs=2), Recipe(loss="labels", epochs=2, kl_weight=0.7)]
)
def test_member_trained_on_soft_labels_equals_member_trained_by_peft(recipe: Recipe, every: int) -> None:
    examples = softened(phrase_examples(), every=every)
    ensemble = build_ensemble(members=3)
    train(ensemble, examples, config_of(recipe), progress=False)
    expected = train_by_peft(
        build("llama"),
        adapter_config("llama"),
        build_ensemble(members=3).info.seeds[1],
        encode_examples(examples, tokenizer()),
        recipe,
    )
    assert_same_weights(ensemble.stack.member(1), expected)


@pytest.mark.parametrize("kind", ["sequence-classification", "multiple-choice"])
def test_heads_trained_on_soft_labels_equal_peft(kind: str) -> None:
    soft = softened(tiny_heads.examples_for(kind))
    reference_heads.check_training("bert", kind, Recipe(epochs=2, loss="labels"), soft)


def test_soft_labels_that_are_sure_train_as_right_answers_do() -> None:
    config = TrainConfig(loss="labels", epochs=2, batch_size=4, learning_rate=3e-3)
    weights = []
    for certain in (False, True):
        examples = sure(phrase_examples()) if certain else phrase_examples()
        ensemble = build_ensemble(members=2)
        train(ensemble, examples, config, progress=False)
        weights.append(ensemble.stack.b.clone())
    torch.testing.assert_close(*weights, atol=1e-6, rtol=1e-5)  # one sum in place of one number picked


def test_a_last_layer_ensemble_of_heads_takes_soft_labels() -> None:
    config = TrainConfig(epochs=2, batch_size=4, learning_rate=3e-2)
    hard = tiny_heads.class_examples()
    found = []
    for examples in (hard, sure(hard), softened(hard)):
        model = tiny_heads.build("bert", "sequence-classification"), tiny_heads.tokenizer()
        ensemble = LastLayerHeads(*model, num_members=2, head="sequence-classification")
        ensemble.fit(examples, config)
        found.append(ensemble.member_log_probs(hard))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[2], found[0], atol=1e-2)


def sure(examples: Sequence[Example]) -> list[Example]:
    """The examples with soft labels that are sure of the right answer."""
    return [
        dataclasses.replace(one, target_probs=tuple(float(c == one.target) for c in range(len(one.labels))))
        for one in examples
    ]


def test_the_loss_that_suits_soft_labels_is_chosen_and_the_other_refused() -> None:
    soft = softened(phrase_examples())
    ensemble = build_ensemble(members=2)
    with pytest.raises(ConfigError, match=r"loss='vocabulary'.*soft labels"):
        train(ensemble, soft, TrainConfig(loss="vocabulary"), progress=False)
    chosen = build_ensemble(members=2)
    train(chosen, soft, TrainConfig(epochs=1), progress=False)
    named = build_ensemble(members=2)
    train(named, soft, TrainConfig(epochs=1, loss="labels"), progress=False)
    assert torch.equal(chosen.stack.b, named.stack.b)


def test_training_that_takes_one_right_answer_refuses_soft_labels() -> None:
    ensemble = LastLayerEnsemble(build("llama"), tokenizer(), num_members=2)
    with pytest.raises(DataError, match="soft labels"):
        ensemble.fit(softened(phrase_examples()), TrainConfig(epochs=1))


def test_a_fingerprint_of_a_run_tells_soft_labels_apart(tmp_path: Path) -> None:
    config = TrainConfig(epochs=1)
    train(
        build_ensemble(members=2), softened(phrase_examples()), config, out=tmp_path / "run", progress=False
    )
    with pytest.raises(CheckpointError, match="data was"):
        train(
            build_ensemble(members=2),
            softened(phrase_examples(), seed=1),
            config,
            out=tmp_path / "run",
            resume=True,
            progress=False,
        )


def test_metrics_of_soft_labels_equal_torch() -> None:
    prediction = random_prediction()
    soft, log_probs = prediction.target_probs, prediction.log_probs.double()
    assert soft is not None
    finite = log_probs.masked_fill(~prediction.present, 0.0)
    kl = F.kl_div(finite, soft, reduction="sum") / prediction.num_examples
    assert kl_from_targets(prediction) == pytest.approx(kl.item(), abs=1e-9)
    whole = prediction.present.all(dim=-1).nonzero()[:, 0]  # torch's own takes no absent labels
    expected = F.cross_entropy(log_probs[whole], soft[whole]).item()
    assert nll(prediction.take(whole)) == pytest.approx(expected, abs=1e-6)
    assert brier(prediction) == pytest.approx(
        (prediction.probs.double() - soft).square().sum(dim=-1).mean().item(), abs=1e-9
    )
    assert torch.equal(prediction.targets, soft.argmax(dim=-1))  # type: ignore[arg-type]
    rows = torch.tensor([5, 5, 0])
    assert torch.equal(prediction.take(rows).target_probs, soft[rows])  # type: ignore[arg-type]
    assert evaluate(prediction).kl_from_targets == kl_from_targets(prediction)
    assert prediction.member(0).target_probs is not None
    with pytest.raises(DataError, match="kl_from_targets needs soft labels"):
        kl_from_targets(Prediction(prediction.member_log_probs, prediction.targets))


def test_a_prediction_of_the_soft_labels_themselves_has_no_divergence() -> None:
    soft = random_prediction().target_probs
    assert soft is not None
    exact = Prediction(soft.log()[None].float(), target_probs=soft)
    assert kl_from_targets(exact) == pytest.approx(0.0, abs=1e-6)
    assert brier(exact) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("kind", ["temperature", "member-temperature"])
def test_the_temperature_for_soft_labels_equals_that_of_another_optimiser(kind: str) -> None:
    prediction = random_prediction()
    soft, absent = prediction.target_probs, ~prediction.present
    assert soft is not None

    def loss(log_temperature: float) -> float:
        t = math.exp(log_temperature)
        if kind == "temperature":
            scaled = (prediction.log_probs.double() / t).log_softmax(dim=-1)
        else:
            members = (prediction.member_log_probs.double() / t).softmax(dim=-1)
            scaled = members.mean(dim=0).log()
        return -(soft * scaled.masked_fill(absent, 0.0)).sum(dim=-1).mean().item()

    found = scipy.optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9})
    fitted = fit_calibration(prediction, kind=kind)  # type: ignore[arg-type]
    assert fitted.temperatures[0] == pytest.approx(math.exp(found.x), rel=1e-4)
    assert fitted.temperatures[0] > 1.5  # the members are far too sure for these labels


def test_vector_scaling_of_soft_labels_brings_them_closer() -> None:
    whole = random_prediction(count=600)
    prediction = whole.take((whole.present.all(dim=-1)).nonzero()[:, 0])
    fitted = fit_calibration(prediction, kind="vector")
    assert kl_from_targets(fitted(prediction)) < 0.7 * kl_from_targets(prediction)


def test_a_calibration_on_soft_labels_is_saved_with_the_ensemble(tmp_path: Path) -> None:
    ensemble = build_ensemble(members=2, random_b=True)
    held_out = softened([dataclasses.replace(one, id=f"h{one.id}") for one in phrase_examples()])
    calibrate(ensemble, held_out, kind="temperature")
    ensemble.save_pretrained(tmp_path / "saved")
    loaded = LoraEnsemble.from_pretrained(tmp_path / "saved", base=build("llama"), tokenizer=tokenizer())
    assert loaded.calibrated is not None
    before, after = ensemble.calibrated.prediction, loaded.calibrated.prediction  # type: ignore[union-attr]
    assert torch.equal(before.target_probs, after.target_probs)  # type: ignore[arg-type]


def written(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


OPTIONS = {"question": "Where does the otter live", "options": ["lake", "forest", "moor"]}


@pytest.mark.parametrize(
    "answer",
    [
        {"lake": 0.7, "moor": 0.3},
        {"A": 0.7, "c": 0.3},
        {"0": 0.7, "2": 0.3},
        [0.7, 0.0, 0.3],
        {"lake": 0.7, "forest": 0, "moor": 0.298},  # rounded when it was published
    ],
)
def test_a_file_may_hold_soft_labels_by_name_or_in_order(tmp_path: Path, answer: object) -> None:
    (example,) = load_file(written(tmp_path / "soft.jsonl", [OPTIONS | {"answer": answer}]))
    assert example.target_probs == pytest.approx((0.7, 0.0, 0.3), abs=2e-3)
    assert math.fsum(example.target_probs) == pytest.approx(1.0, abs=1e-12)
    assert example.target == 0
    (text,) = rendered([example], "text")
    assert text.target_probs == example.target_probs


def test_a_csv_cell_holds_soft_labels_as_json(tmp_path: Path) -> None:
    path = tmp_path / "soft.csv"
    path.write_text('text,label\nIt crashes.,"{""bug"": 0.75, ""praise"": 0.25}"\nSplendid.,praise\n')
    soft, hard = load_file(path, labels=["bug", "praise"])
    assert (soft.target_probs, soft.target) == ((0.75, 0.25), 0)
    assert (hard.target_probs, hard.target) == (None, 1)


def test_options_that_come_twice_share_their_soft_labels() -> None:
    example = Example(
        "1", "x", ("a", "b", "c"), None, "x", ("lake", "moor", "lake"), target_probs=(0.2, 0.5, 0.3)
    )
    (text,) = rendered([example], "text")
    assert text.labels == (" lake", " moor")
    assert text.target_probs == (0.5, 0.5)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"lake": 0.7, "sea": 0.3}, "answer 'sea' is not among the options"),
        ({"lake": 0.7, "moor": 0.4}, "soft labels sum to 1.1, not 1"),
        ({"lake": 1.2, "moor": -0.2}, "soft label -0.2; a probability is 0 or more"),
        ({"lake": "much"}, "no number"),
        ([0.5, 0.5], "2 soft labels for 3 labels"),
    ],
)
def test_soft_labels_that_are_none_are_refused_with_their_line(
    tmp_path: Path, answer: object, message: str
) -> None:
    path = written(
        tmp_path / "soft.jsonl", [OPTIONS | {"answer": {"lake": 1.0}}, OPTIONS | {"answer": answer}]
    )
    with pytest.raises(DataError, match=f"line 2.*{message}"):
        load_file(path)
    (first, second) = load_file(path, labelled=False)
    assert (first.target, second.target, second.target_probs) == (0, None, None)


@pytest.mark.parametrize(
    "build_soft", [lambda: torch.tensor([[0.5, 0.6]]), lambda: torch.tensor([[1.5, -0.5]])]
)
def test_a_prediction_refuses_soft_labels_that_are_no_probabilities(
    build_soft: Callable[[], torch.Tensor],
) -> None:
    with pytest.raises(DataError, match="soft labels of row 0"):
        Prediction(torch.tensor([[[0.5, 0.5]]]).log(), target_probs=build_soft())


def test_an_ensemble_predicts_with_the_soft_labels_of_its_examples() -> None:
    soft = softened(phrase_examples(), every=2)
    prediction = predict(build_ensemble(members=2, random_b=True), soft)
    assert prediction.target_probs is not None
    row = prediction.target_probs[1, : len(soft[1].labels)]
    assert row.tolist() == [float(c == soft[1].target) for c in range(len(soft[1].labels))]
    assert prediction.target_probs[0].sum() == pytest.approx(1.0)
