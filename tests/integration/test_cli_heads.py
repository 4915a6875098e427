"""Heads on the command line: a multiple choice, a classification of a csv file, and a reward model, trained,
measured and asked.
"""

from __future__ import annotations

import atexit
import csv
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from command_line import base_folder, call
from lora_ensembles import (
    LoraEnsemble,
    TrainConfig,
    load_base,
    load_file,
    load_preferences,
    predict,
    predict_rewards,
    train,
)
from tiny_heads import build, tokenizer

FEW: list[Any] = ["--members", 2, "--epochs", 2, "--no-progress", "--json"]
CLASSES = ["good", "bad", "old"]


@functools.cache
def encoder_folder() -> str:
    """A tiny BERT in a folder, as a hub would hold it."""
    folder = tempfile.mkdtemp(prefix="tiny-bert-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    build("bert", "reward").bert.save_pretrained(folder)  # its body alone: no head is in the checkpoint
    tokenizer().save_pretrained(folder)
    return folder


def classes_file(folder: Path, *, rows: int = 24, pairs: bool = False) -> Path:
    path = folder / "texts.csv"
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", *(["second"] if pairs else []), "label"])
        for n in range(rows):
            text = f"the {['red', 'small', 'old'][n % 3]} fox went home"
            writer.writerow([text, *(["why does it"] if pairs else []), CLASSES[n % 3]])
    return path


def pairs_file(folder: Path, *, rows: int = 12) -> Path:
    path = folder / "pairs.jsonl"
    words = "red small old near bird river".split()
    lines = [
        {"prompt": f"the {words[n % 6]} fox", "chosen": " is good", "rejected": " is bad"}
        for n in range(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def choices_file(folder: Path) -> Path:
    path = folder / "choices.jsonl"
    rows = [
        {"question": f"the fox {n}", "options": ["home", "river", "bird"][: 2 + n % 2], "answer": "home"}
        for n in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_multiple_choice_is_trained_measured_and_asked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--head", "multiple-choice", "--train", choices_file(tmp_path), "--base", encoder_folder(), *FEW]
    done = call(capsys, "train", *words, "--out", tmp_path / "run", "--max-length", 20)
    assert done.code == 0, done.err
    content = json.loads((tmp_path / "run" / "ensemble.json").read_text())
    assert (content["head"]["kind"], content["head"]["max_length"]) == ("multiple-choice", 20)
    again = call(capsys, "evaluate", tmp_path / "run", "--json")
    assert again.code == 0, again.err
    assert again.summary["ensemble"] == done.summary["ensemble"]
    asked = call(capsys, "predict", tmp_path / "run", "--in", tmp_path / "choices.jsonl")
    assert asked.code == 0, asked.err
    records = [json.loads(line) for line in asked.out.splitlines()]
    assert len(records) == 12
    assert [len(record["probs"]) for record in records] == [2 + n % 2 for n in range(12)]


def test_a_multiple_choice_on_a_named_task_and_on_a_decoder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [
        "--head",
        "multiple-choice",
        "--task",
        "world-cqa",
        "--base",
        base_folder(),
        "--limit",
        16,
        "--limit-validation",
        8,
        *FEW,
    ]
    done = call(capsys, "train", *words, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    again = call(capsys, "evaluate", tmp_path / "run", "--limit", 8, "--ood", "none", "--json")
    assert again.code == 0, again.err
    assert again.summary["ensemble"]["nll"] == pytest.approx(done.summary["ensemble"]["nll"], rel=1e-5)


@pytest.mark.parametrize("pairs", [False, True])
def test_a_csv_of_three_classes_is_classified(
    pairs: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = classes_file(tmp_path, pairs=pairs)
    columns = ["--pair-column", "second"] if pairs else []
    words = ["--head", "sequence-classification", "--train", path, *columns, "--base", encoder_folder(), *FEW]
    done = call(capsys, "train", *words, "--out", tmp_path / "run", "--learning-rate", "5e-3", "--epochs", 20)
    assert done.code == 0, done.err
    assert done.summary["ensemble"]["accuracy"] == 1.0  # one word tells the class
    loaded = LoraEnsemble.from_pretrained(tmp_path / "run")
    assert loaded.info.head.classes == ("bad", "good", "old")  # as found in the file, by name
    again = call(capsys, "evaluate", tmp_path / "run", "--json")
    assert again.summary["ensemble"] == done.summary["ensemble"]
    unlabelled = tmp_path / "new.jsonl"
    unlabelled.write_text(json.dumps({"text": "the red fox went home", "second": "why does it"}) + "\n")
    asked = call(capsys, "predict", tmp_path / "run", "--in", unlabelled)
    assert asked.code == 0, asked.err
    assert json.loads(asked.out)["prediction"] == "good"


def test_numbered_classes_mean_themselves(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "stars.csv"
    path.write_text("text,label\n" + "".join(f"the fox {n % 3},{[10, 2, 1][n % 3]}\n" for n in range(12)))
    words = ["--head", "sequence-classification", "--train", path, "--base", encoder_folder(), *FEW]
    assert call(capsys, "train", *words, "--out", tmp_path / "run").code == 0
    assert LoraEnsemble.from_pretrained(tmp_path / "run").info.head.classes == ("1", "2", "10")


def test_a_reward_model_is_trained_measured_and_asked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = pairs_file(tmp_path)
    words = ["--head", "reward", "--train", path, "--validation", path, "--base", encoder_folder(), *FEW]
    done = call(capsys, "train", *words, "--out", tmp_path / "run", "--learning-rate", "5e-3", "--epochs", 30)
    assert done.code == 0, done.err
    assert done.summary["ensemble"]["accuracy"] == 1.0  # of pairs
    assert "12 training and 12 validation pairs" in done.err
    again = call(capsys, "evaluate", tmp_path / "run", "--file", path, "--json")
    assert again.summary["ensemble"] == done.summary["ensemble"]
    texts = tmp_path / "new.jsonl"
    texts.write_text(
        json.dumps({"id": "x", "prompt": "the red fox", "completion": " is good"})
        + "\n"
        + '{"text": "the fox is bad"}\n'
    )
    asked = call(capsys, "predict", tmp_path / "run", "--in", texts, "--k", 2)
    assert asked.code == 0, asked.err
    first, second = (json.loads(line) for line in asked.out.splitlines())
    expected = predict_rewards(
        LoraEnsemble.from_pretrained(tmp_path / "run"), ["the red fox is good", "the fox is bad"]
    )
    assert first["member_rewards"] == pytest.approx(expected.member_scores[:, 0].tolist(), abs=1e-5)
    assert first["lower_bound"] == pytest.approx(first["reward"] - 2 * first["std"], abs=1e-5)
    assert (first["id"], first["reward"] > second["reward"]) == ("x", True)
    table = call(
        capsys, "predict", tmp_path / "run", "--in", texts, "--out", tmp_path / "rewards.csv", "--json"
    )
    assert table.summary["questions"] == 2
    with open(tmp_path / "rewards.csv") as stream:
        assert list(csv.DictReader(stream).fieldnames or []) == [
            "row",
            "id",
            "reward",
            "std",
            "lower_bound",
            "reward_0",
            "reward_1",
        ]
    chosen = call(capsys, "predict", tmp_path / "run", "--in", path)
    assert {json.loads(line)["prediction"] for line in chosen.out.splitlines()} == {"chosen"}


def test_ensembles_of_python_are_measured_and_asked_as_those_of_the_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    base, words = load_base(encoder_folder(), head="sequence-classification", num_labels=3)
    classifier = LoraEnsemble(base, words, num_members=2)
    train(
        classifier, load_file(classes_file(tmp_path), labels=CLASSES), TrainConfig(epochs=1), progress=False
    )
    classifier.save_pretrained(tmp_path / "classifier")
    classifier.unload()
    reward = LoraEnsemble(
        load_base(encoder_folder(), head="sequence-classification", num_labels=1)[0], words, num_members=2
    )
    reward.save_pretrained(tmp_path / "reward")
    for name, path, rows in (
        ("classifier", classes_file(tmp_path), 24),
        ("reward", pairs_file(tmp_path), 12),
    ):
        measured = call(capsys, "evaluate", tmp_path / name, "--file", path, "--json")
        assert measured.code == 0, measured.err
        asked = call(
            capsys, "predict", tmp_path / name, "--in", path, "--json", "--out", tmp_path / f"{name}.jsonl"
        )
        assert (asked.code, asked.summary["questions"]) == (0, rows), asked.err
    texts = tmp_path / "numbered.jsonl"
    texts.write_text('{"id": 0, "text": "the red fox"}\n')
    assert json.loads(call(capsys, "predict", tmp_path / "reward", "--in", texts).out)["id"] == "0"


def test_a_member_of_the_command_line_opens_in_peft(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = pairs_file(tmp_path)
    words = ["--head", "reward", "--train", path, "--base", base_folder(), *FEW, "--out", tmp_path / "run"]
    assert call(capsys, "train", *words).code == 0
    ensemble = LoraEnsemble.from_pretrained(tmp_path / "run")
    pair = load_preferences(path)[:1]
    expected = predict(ensemble, pair).member_log_probs[1, 0]
    base = AutoModelForSequenceClassification.from_pretrained(
        base_folder(), num_labels=1, pad_token_id=ensemble.tokenizer.pad_token_id
    )
    model = PeftModel.from_pretrained(base, str(tmp_path / "run" / "member_001")).eval()
    with torch.no_grad():
        texts = [pair[0].prompt + option for option in pair[0].options]
        scores = torch.stack(
            [
                model(**ensemble.tokenizer(text, return_tensors="pt", return_token_type_ids=False)).logits[
                    0, 0
                ]
                for text in texts
            ]
        )
    torch.testing.assert_close(expected, scores.log_softmax(-1), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--head", "reward", "--task", "world-cqa"],
            "--head reward: --task world-cqa has questions with options",
        ),
        (
            ["--head", "sequence-classification", "--task", "world-cqa"],
            "give your own texts and their classes by --train FILE",
        ),
        (["--task", "world-cqa", "--max-length", 9], "--max-length: for members with heads of their own"),
        (
            ["--head", "multiple-choice", "--task", "world-cqa", "--head-init", "base"],
            "head was not in its checkpoint, so it was newly initialised",
        ),
        (
            ["--head", "multiple-choice", "--task", "world-cqa", "--kl-weight", 1],
            "heads were newly initialised, so the base has no distribution",
        ),
    ],
)
def test_what_does_not_fit_a_head_is_said(
    words: list[Any], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    done = call(capsys, "train", *words, "--base", encoder_folder(), *FEW, "--out", tmp_path / "run")
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_generation_by_a_classifier_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [
        "--head",
        "sequence-classification",
        "--train",
        classes_file(tmp_path, rows=6),
        "--base",
        encoder_folder(),
        *FEW,
    ]
    assert call(capsys, "train", *words, "--out", tmp_path / "run").code == 0
    done = call(capsys, "generate", tmp_path / "run", "--prompt", "the fox")
    assert done.code == 2
    assert "needs a causal language model, and these members have sequence-classification heads" in done.err
