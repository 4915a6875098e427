"""Distillation: one adapter that learns the probabilities of a whole ensemble, without answers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import tiny_heads
from command_line import base_folder, call
from lora_ensembles import (
    Example,
    LoraEnsemble,
    Prediction,
    TrainConfig,
    calibrate,
    distill,
    evaluate,
    kl_from_targets,
    predict,
)
from lora_ensembles.errors import ConfigError, DataError
from lora_ensembles.training.distill import soft_labelled
from tiny_models import adapter_config, build, build_ensemble, phrase_examples, tokenizer

LONG = TrainConfig(epochs=60, batch_size=6, learning_rate=2e-2, label_score="sum")


def unlabelled(examples: list[Example]) -> list[Example]:
    return [dataclasses.replace(example, target=None) for example in examples]


def divergence(teacher: torch.Tensor, student: torch.Tensor) -> float:
    """D(teacher || student), by torch."""
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True).item()


def test_a_student_comes_close_to_its_teacher_and_away_from_the_base() -> None:
    examples = phrase_examples()
    ensemble = build_ensemble(members=3, random_b=True)
    teacher = predict(ensemble, examples).log_probs
    base = predict(build_ensemble(members=1), examples).log_probs  # B = 0: the base itself
    made = distill(ensemble, unlabelled(examples), LONG, validation=examples, progress=False)
    student = predict(made.student, examples).log_probs
    assert made.student.num_members == 1
    assert divergence(teacher, student) < 0.02 * divergence(teacher, base)
    # what training minimised is that divergence and the teacher's entropy
    soft = Prediction(student[None], target_probs=teacher.exp())
    assert kl_from_targets(soft) == pytest.approx(divergence(teacher, student), abs=1e-5)


@pytest.mark.parametrize("kind", ["sequence-classification", "multiple-choice"])
def test_students_of_members_with_heads_learn_too(kind: str) -> None:
    examples = tiny_heads.examples_for(kind)
    ensemble = tiny_heads.build_ensemble("bert", kind, random_b=True)
    teacher = predict(ensemble, examples)
    before = build_student_divergence(kind, teacher)
    made = distill(ensemble, unlabelled(examples), LONG, progress=False)
    probs = predict(made.student, examples)
    assert kl_from_targets(Prediction(probs.member_log_probs, target_probs=teacher.probs)) < 0.1 * before


def build_student_divergence(kind: str, teacher: Prediction) -> float:
    fresh = tiny_heads.build_ensemble("bert", kind, members=1)
    start = predict(fresh, tiny_heads.examples_for(kind))
    return kl_from_targets(Prediction(start.member_log_probs, target_probs=teacher.probs))


def test_the_soft_labels_are_the_calibrated_probabilities() -> None:
    ensemble = build_ensemble(members=2, random_b=True)
    plain = soft_labelled(ensemble, phrase_examples())
    held_out = [
        dataclasses.replace(one, id=f"h{n}", prompt=f"again {one.prompt}")
        for n, one in enumerate(phrase_examples())
    ]
    calibration = calibrate(ensemble, held_out, kind="temperature")
    scaled = soft_labelled(ensemble, phrase_examples())
    prediction = predict(ensemble, unlabelled(phrase_examples()))
    for row, example in enumerate(scaled):
        assert example.target_probs == pytest.approx(prediction.probs[row].tolist(), abs=1e-6)
        raised = torch.tensor(plain[row].target_probs) ** (1 / calibration.temperatures[0])
        assert example.target_probs == pytest.approx((raised / raised.sum()).tolist(), abs=1e-5)


def test_the_table_compares_single_members_student_and_ensemble() -> None:
    examples = phrase_examples()
    ensemble = build_ensemble(members=3, random_b=True)
    before = predict(ensemble, examples)
    made = distill(ensemble, examples, TrainConfig(epochs=1), validation=examples, progress=False)
    table = made.table()
    assert list(table) == ["single member", "student", "ensemble"]
    assert table["ensemble"]["nll"] == evaluate(before).nll
    singles = [evaluate(before.member(m)).brier for m in range(3)]
    assert table["single member"]["brier"] == pytest.approx(sum(singles) / 3)
    assert table["student"]["accuracy"] == evaluate(predict(made.student, examples)).accuracy
    assert all(row["milliseconds"] > 0 for row in table.values())


def test_without_validation_examples_there_is_nothing_to_compare() -> None:
    made = distill(build_ensemble(members=2), phrase_examples(), TrainConfig(epochs=1), progress=False)
    with pytest.raises(ConfigError, match="no validation examples"):
        made.table()


def test_a_student_is_saved_as_any_ensemble_and_may_be_calibrated(tmp_path: Path) -> None:
    examples = phrase_examples()
    held_out = [
        dataclasses.replace(one, id=f"{word}{n}", prompt=f"{word} {one.prompt}")
        for word in ("again", "more")
        for n, one in enumerate(examples)
    ]
    wide = adapter_config("llama")
    wide.r = 6
    made = distill(
        build_ensemble(members=2, random_b=True),
        unlabelled(examples),
        TrainConfig(epochs=1),
        adapter=wide,
        held_out=held_out,
        progress=False,
    )
    assert made.student.calibrated is not None
    made.student.save_pretrained(tmp_path / "one")
    loaded = LoraEnsemble.from_pretrained(tmp_path / "one", base=build("llama"), tokenizer=tokenizer())
    assert {rank for ranks in loaded.stack.ranks for rank in ranks.values()} == {6}
    found, expected = predict(loaded, unlabelled(examples)), predict(made.student, unlabelled(examples))
    assert torch.equal(found.probs, expected.probs)


def test_what_cannot_be_distilled_is_refused_before_the_ensemble_is_taken_apart() -> None:
    with pytest.raises(ConfigError, match="reward heads give scores"):
        distill(tiny_heads.build_ensemble("bert", "reward"), tiny_heads.reward_examples())
    ensemble = build_ensemble(members=2)
    with pytest.raises(DataError, match=r"6 held-out examples.*10 or more"):
        distill(ensemble, phrase_examples(), held_out=phrase_examples(), progress=False)
    assert predict(ensemble, phrase_examples()).num_members == 2


def test_the_command_line_distils_a_saved_ensemble(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"question": f"Is {n} even?", "options": ["yes", "no"], "answer": "yes" if n % 2 == 0 else "no"}
        for n in range(20)
    ]
    train, new = tmp_path / "train.jsonl", tmp_path / "new.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    new.write_text(
        "".join(json.dumps({"question": row["question"], "options": row["options"]}) + "\n" for row in rows)
    )
    out, one = tmp_path / "run", tmp_path / "one"
    given = ("--train", train, "--base", base_folder(), "--members", "3", "--epochs", "1", "--out", out)
    assert call(capsys, "train", *given).code == 0
    made = call(capsys, "distill", out, "--in", new, "--out", one, "--epochs", "2", "--rank", "2", "--json")
    assert made.code == 0, made.err
    summary = made.summary
    assert (summary["rows"], summary["members_of_teacher"]) == (20, 3)
    assert set(summary["student"]) == {"accuracy", "nll", "ece", "brier", "milliseconds"}
    evaluated = call(
        capsys, "evaluate", one, "--json"
    ).summary  # on the rows that the teacher was measured on
    assert evaluated["ensemble"]["nll"] == pytest.approx(summary["student"]["nll"], abs=1e-5)
    again = call(capsys, "distill", out, "--in", new, "--out", one)
    assert again.code == 2
    assert "exists already" in again.err
    only = call(capsys, "distill", out, "--in", new, "--out", tmp_path / "x", "--only", "0")
    assert only.code == 2
    assert "whole ensemble" in only.err
