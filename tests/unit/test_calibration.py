"""Calibration of an ensemble: numbers are those of independent optimisers, the kind with the least NLL on
other examples is chosen, and the calibration travels with the ensemble, on disk too, and ends with its
members.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy
import pytest
import torch
from scipy import optimize, special

from lora_ensembles import (
    CheckpointError,
    ConfigError,
    DataError,
    LoraEnsemble,
    Prediction,
    TrainConfig,
    calibrate,
    predict,
    train,
)
from lora_ensembles.calibration.scaling import Calibration, fit_calibration, member_scaled
from lora_ensembles.disk.layout import foreign_files
from lora_ensembles.storage.calibration import write_calibration
from tiny_models import build_ensemble, letter_examples


def made_up(
    count: int = 600, *, members: int = 3, options: int = 4, sharpness: float = 3.0, seed: int = 0
) -> Prediction:
    """Members that are `sharpness` times as sure as they should be."""
    rng = numpy.random.default_rng(seed)
    logits = rng.normal(size=(1, count, options)) + 0.3 * rng.normal(size=(members, count, options))
    probs = special.softmax(logits.mean(axis=0), axis=-1)
    targets = (rng.random((count, 1)) > probs.cumsum(axis=-1)).sum(axis=-1).clip(max=options - 1)
    log_probs = special.log_softmax(sharpness * logits, axis=-1)
    return Prediction(torch.tensor(log_probs), torch.tensor(targets))


def nll(log_probs: numpy.ndarray, targets: torch.Tensor | None) -> float:
    assert targets is not None
    return float(-numpy.take_along_axis(log_probs, targets.numpy()[:, None], axis=1).mean())


def test_temperature_is_that_of_scipy() -> None:
    prediction = made_up()
    log_probs = prediction.log_probs.double().numpy()
    found = optimize.minimize_scalar(
        lambda t: nll(special.log_softmax(log_probs / t, axis=-1), prediction.targets),
        bounds=(0.05, 20),
        method="bounded",
        options={"xatol": 1e-8},
    ).x
    assert fit_calibration(prediction, kind="temperature").temperatures[0] == pytest.approx(found, abs=1e-4)
    assert 2 < found < 4


def test_temperature_of_members_is_that_of_scipy() -> None:
    prediction = made_up()
    members = prediction.member_log_probs.double().numpy()

    def loss(t: float) -> float:
        scaled = special.log_softmax(members / t, axis=-1)
        return nll(special.logsumexp(scaled, axis=0) - math.log(len(members)), prediction.targets)

    found = optimize.minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-8}).x
    fitted = fit_calibration(prediction, kind="member-temperature")
    assert fitted.temperatures[0] == pytest.approx(found, abs=1e-4)
    expected = special.logsumexp(special.log_softmax(members / found, axis=-1), axis=0) - math.log(3)
    torch.testing.assert_close(
        fitted(prediction).log_probs, torch.tensor(expected).float(), atol=1e-3, rtol=0
    )


def test_vector_scaling_is_that_of_scipy() -> None:
    prediction = made_up(300)
    log_probs = prediction.log_probs.double().numpy()
    start = numpy.concatenate([numpy.ones(4), numpy.zeros(4)])

    def loss(numbers: numpy.ndarray) -> float:
        scaled = special.log_softmax(log_probs * numbers[:4] + numbers[4:], axis=-1)
        return nll(scaled, prediction.targets) + 1e-3 * float(((numbers - start) ** 2).sum())

    found = optimize.minimize(loss, start, method="BFGS", options={"gtol": 1e-8}).x
    fitted = fit_calibration(prediction, kind="vector")
    assert numpy.array([*fitted.weights, *fitted.biases]) == pytest.approx(found, abs=1e-3)


@pytest.mark.parametrize("kind", ["temperature", "member-temperature", "vector"])
def test_calibrated_probabilities_have_a_lower_nll_and_the_members_stay(kind: str) -> None:
    held_out, new = made_up(seed=1), made_up(seed=2)
    calibrated = fit_calibration(held_out, kind=kind)(new)  # type: ignore[arg-type]
    before, after = (nll(one.log_probs.double().numpy(), new.targets) for one in (new, calibrated))
    assert after < before - 0.1
    assert torch.equal(calibrated.member_log_probs, new.member_log_probs)
    assert torch.equal(calibrated.member(1).log_probs, new.member(1).log_probs)
    assert torch.equal(calibrated.uncalibrated.log_probs, new.log_probs)
    rows = torch.tensor([5, 3, 5])
    assert torch.equal(calibrated.take(rows).probs, calibrated.probs[rows])


def test_the_kind_of_least_nll_on_other_examples_is_chosen() -> None:
    assert fit_calibration(made_up(2_000, sharpness=1.0)).kind in (
        "none",
        "temperature",
        "member-temperature",
    )
    sharp = fit_calibration(made_up(sharpness=4.0))
    assert sharp.kind == min(sharp.nll, key=lambda name: sharp.nll[name])
    assert sharp.nll[sharp.kind] < sharp.nll["none"] - 0.1
    skewed = made_up(2_000, sharpness=1.0, seed=3)
    moved = (skewed.member_log_probs + torch.tensor([2.0, 0.0, 0.0, 0.0])).log_softmax(-1)
    assert fit_calibration(Prediction(moved, skewed.targets)).kind == "vector"
    few = fit_calibration(made_up(30))
    assert set(few.nll) == {"none", "temperature", "member-temperature"}


def test_each_number_of_options_with_examples_enough_has_its_own_temperature() -> None:
    two, four = made_up(300, options=2, sharpness=1.0), made_up(300, options=4, sharpness=4.0)
    wide = torch.nn.functional.pad(two.member_log_probs, (0, 2), value=-math.inf)
    assert two.targets is not None
    assert four.targets is not None
    both = Prediction(torch.cat([wide, four.member_log_probs], dim=1), torch.cat([two.targets, four.targets]))
    fitted = fit_calibration(both, kind="temperature")
    alone = [fit_calibration(one, kind="temperature").temperatures[0] for one in (two, four)]
    assert [fitted.temperatures[2], fitted.temperatures[4]] == pytest.approx(alone)
    assert fitted.temperatures[2] < fitted.temperatures[0] < fitted.temperatures[4]
    assert torch.equal(fitted(both).present, both.present)
    with pytest.raises(DataError, match="vector scaling needs examples with the same options"):
        fit_calibration(both, kind="vector")


def test_each_type_of_decision_with_examples_enough_has_its_own_temperature() -> None:
    parts = {"choice": made_up(300, sharpness=4.0), "score": made_up(300, sharpness=1.5, seed=1)}
    few = made_up(40, seed=2)
    whole = Prediction(
        torch.cat([part.member_log_probs for part in (*parts.values(), few)], dim=1),
        torch.cat([part.targets for part in (*parts.values(), few) if part.targets is not None]),
        types=("choice",) * 300 + ("score",) * 300 + ("predicate",) * 40,
    )
    fitted = fit_calibration(whole, kind="temperature")
    assert set(fitted.of_types) == {"choice of 4", "score of 4"}
    for name, part in parts.items():
        alone = fit_calibration(part, kind="temperature").temperatures[0]
        assert fitted.of_types[f"{name} of 4"] == pytest.approx(alone, abs=1e-9)
    own = {"choice": "choice of 4", "score": "score of 4"}
    for row, kind in ((5, "choice"), (305, "score"), (610, "predicate")):
        temperature = fitted.of_types[own[kind]] if kind in own else fitted.temperatures[0]
        expected = (whole.log_probs[row].double() / temperature).log_softmax(-1)
        torch.testing.assert_close(fitted(whole).log_probs[row].double(), expected, atol=1e-6, rtol=0)
    again = Calibration.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert again == fitted
    assert "for score of 4 options" in str(fitted)


def test_numbers_survive_json() -> None:
    for kind in ("none", "temperature", "member-temperature", "vector", "auto"):
        made = fit_calibration(made_up(), kind=kind)  # type: ignore[arg-type]
        assert Calibration.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize(
    ("prediction", "kind", "error", "message"),
    [
        (made_up(9), "auto", DataError, "9 held-out examples are too few to choose a calibration by"),
        (made_up(9), "platt", ConfigError, "unknown kind 'platt'"),
        (Prediction(made_up(20).member_log_probs), "auto", DataError, "calibration needs targets"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    prediction: Prediction, kind: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fit_calibration(prediction, kind=kind)  # type: ignore[arg-type]


def test_vector_scaling_refuses_other_options() -> None:
    fitted = fit_calibration(made_up(), kind="vector")
    with pytest.raises(DataError, match="vector scaling was fitted on 4 options"):
        fitted(made_up(options=3))


def test_a_temperature_that_the_examples_do_not_decide_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    right = Prediction(torch.tensor([[[0.9, 0.1]]]).log().expand(2, 20, 2), torch.zeros(20, dtype=torch.long))
    for kind in ("temperature", "member-temperature"):
        caplog.clear()
        torch.testing.assert_close(member_scaled(right, 1.0).log_probs, right.log_probs)
        fit_calibration(right, kind=kind)  # type: ignore[arg-type]
        assert "is the lowest that is searched" in caplog.text


@pytest.fixture
def ensemble() -> LoraEnsemble:
    made: LoraEnsemble = build_ensemble(members=2)
    calibrate(made, letter_examples(), kind="temperature")
    return made


def others() -> list:
    return [
        dataclasses.replace(one, id=f"new {one.id}", prompt=f"New. {one.prompt}") for one in letter_examples()
    ]


def test_a_calibrated_ensemble_predicts_so_and_scores_no_example_that_it_was_calibrated_on(
    ensemble: LoraEnsemble,
) -> None:
    kept = ensemble.calibrated
    assert kept is not None
    prediction = predict(ensemble, others())
    expected = kept.calibration(Prediction(ensemble.member_log_probs(others()))).log_probs
    torch.testing.assert_close(prediction.log_probs, expected)
    assert not torch.allclose(prediction.log_probs, prediction.uncalibrated.log_probs)
    with pytest.raises(DataError, match=r"was used to calibrate the ensemble .* score other examples"):
        predict(ensemble, letter_examples())
    unlabelled = [dataclasses.replace(one, target=None) for one in letter_examples()]
    assert predict(ensemble, unlabelled).calibrated is not None
    with pytest.raises(DataError, match=r"was trained on .* calibrate on examples that were not"):
        calibrate(ensemble, letter_examples(), trained_on=letter_examples()[:1])


def test_a_calibration_is_saved_loaded_and_replaced(ensemble: LoraEnsemble, tmp_path: Path) -> None:
    path = tmp_path / "run"
    ensemble.save_pretrained(path)
    assert foreign_files(path) == []
    loaded = LoraEnsemble.from_pretrained(
        path, base=build_ensemble(members=1).unload(), tokenizer=ensemble.tokenizer
    )
    torch.testing.assert_close(predict(loaded, others()).log_probs, predict(ensemble, others()).log_probs)
    assert loaded.calibrated is not None
    assert ensemble.calibrated is not None
    assert loaded.calibrated.marks == ensemble.calibrated.marks
    (before,) = path.glob("held_out_*.safetensors")
    calibrate(loaded, others(), kind="member-temperature")
    write_calibration(path, loaded.calibrated)
    (after,) = path.glob("held_out_*.safetensors")
    assert after != before
    assert json.loads((path / "ensemble.json").read_text())["calibration"]["kind"] == "member-temperature"


@pytest.mark.parametrize("damage", ["missing", "cut short", "other"])
def test_a_damaged_calibration_is_refused(ensemble: LoraEnsemble, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "run"
    ensemble.save_pretrained(path)
    (file,) = path.glob("held_out_*.safetensors")
    if damage == "missing":
        file.unlink()
    elif damage == "cut short":
        file.write_bytes(file.read_bytes()[:-8])
    else:
        content = json.loads((path / "ensemble.json").read_text())
        content["calibration"]["held_out"] = "../held_out_000000000000.safetensors"
        (path / "ensemble.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="held_out"):
        LoraEnsemble.from_pretrained(
            path, base=build_ensemble(members=1).unload(), tokenizer=ensemble.tokenizer
        )


def test_other_members_or_other_weights_end_a_calibration(ensemble: LoraEnsemble, tmp_path: Path) -> None:
    path = tmp_path / "run"
    ensemble.save_pretrained(path)
    kept = ensemble.calibrated
    assert kept is not None
    changes = [
        lambda: ensemble.add_members(1),
        lambda: ensemble.keep_members([0]),
        lambda: ensemble.load_members([path / "member_001"], check_base=False),
        lambda: train(ensemble, letter_examples(), TrainConfig(epochs=1), progress=False),
    ]
    for change in changes:
        ensemble.calibrated = kept
        change()
        assert ensemble.calibrated is None
    some = LoraEnsemble.from_pretrained(
        path, base=build_ensemble(members=1).unload(), tokenizer=ensemble.tokenizer, members=[0]
    )
    assert some.calibrated is None
    with pytest.raises(CheckpointError, match="holds 2 members, and 1 were calibrated"):
        write_calibration(path, dataclasses.replace(kept, prediction=kept.prediction.member(0)))


def test_a_kind_that_can_change_an_answer_leaves_the_other_half_for_guarantees() -> None:
    skewed = made_up(2_000, sharpness=1.0, seed=3)
    moved = (skewed.member_log_probs + torch.tensor([2.0, 0.0, 0.0, 0.0])).log_softmax(-1)
    examples = [
        dataclasses.replace(
            letter_examples()[0], id=str(n), prompt=f"{n}", labels=tuple("abcd"), options=(), target=t
        )
        for n, t in enumerate(skewed.targets.tolist())  # type: ignore[union-attr]
    ]

    class Made:
        """A predictor that says what was made up."""

        calibrated = None

        def member_log_probs(self, asked: list, *, max_rows: int | None = None) -> torch.Tensor:
            return moved[:, [int(example.id) for example in asked]]

    made = Made()
    chosen = calibrate(made, examples)  # type: ignore[arg-type]
    kept = made.calibrated
    assert kept is not None
    assert (chosen.kind, chosen.num_examples, kept.prediction.num_examples) == ("vector", 1_000, 1_000)
    ruled = kept.ruled(kept.prediction)
    assert torch.equal(ruled.choices, chosen(kept.prediction).choices)
    assert not torch.equal(ruled.choices, kept.prediction.choices)
    rule = kept.risk_threshold(risk=0.55)
    wrong = ruled.choices != ruled.targets
    assert int((rule.answered(ruled) & wrong).sum()) == rule.num_wrong
    temperature = calibrate(made, examples, kind="temperature")  # type: ignore[arg-type]
    assert temperature.num_examples == 2_000
    assert made.calibrated.prediction.num_examples == 2_000  # type: ignore[attr-defined]
    assert torch.equal(
        made.calibrated.ruled(kept.prediction).choices,  # type: ignore[attr-defined]
        kept.prediction.choices,
    )
