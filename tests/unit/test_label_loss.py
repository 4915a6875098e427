"""The loss over the label set: its table of rows, who may ask for it, what is kept of the choice, and what is
said of labels.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_heads as heads
from lora_ensembles import (
    BatchEnsemble,
    Example,
    LoraEnsemble,
    SingleMember,
    TrainConfig,
    predict,
    train,
)
from lora_ensembles.data import EncodedExample
from lora_ensembles.errors import CheckpointError, ConfigError, DataError
from lora_ensembles.heads.lm.label_losses import LabelTable
from lora_ensembles.heads.remarks import warn_of_one_label
from lora_ensembles.prediction.prediction import Prediction
from lora_ensembles.training.adapters import AdapterTrainee
from tiny_models import build, build_ensemble, letter_examples, open_examples, phrase_examples, tokenizer

CONFIG = TrainConfig(epochs=1, batch_size=4)


def rows_of(*labels: tuple[int, ...], prompt: tuple[int, ...] = (1, 9)) -> list[list[int]]:
    """What is read to score labels given as token ids."""
    table = LabelTable.of([EncodedExample(prompt, labels, 0)], pad_id=0).rows
    return [row[:length] for row, length in zip(table.ids.tolist(), table.text_lengths.tolist(), strict=True)]


def loss_of(config: TrainConfig, examples: list[Any]) -> str:
    return AdapterTrainee(build_ensemble(), examples, config).rows.loss


# The table


def test_labels_of_one_token_are_scored_by_the_prompt_alone() -> None:
    assert rows_of((5,), (6,), (7,)) == [[1, 9]]


def test_labels_of_several_tokens_have_a_row_each_without_their_last_token() -> None:
    assert rows_of((5, 6, 2), (6, 7), (7, 8, 9)) == [[1, 9, 5, 6], [1, 9, 6], [1, 9, 7, 8]]


def test_a_row_serves_all_labels_that_it_begins_with() -> None:
    # 5 needs the prompt, (5, 6) needs 5, and both stand in the row that (5, 6, 7) needs; (5, 6, 8) needs the
    # same row.
    assert rows_of((5,), (5, 6), (5, 6, 7), (5, 6, 8)) == [[1, 9, 5, 6]]


def test_letters_take_no_more_rows_than_the_loss_over_the_vocabulary() -> None:
    rows = AdapterTrainee(
        build_ensemble(), letter_examples(), dataclasses.replace(CONFIG, loss="labels")
    ).rows
    assert (rows.loss, rows.passes) == ("labels", 1)


def test_logits_are_made_once_for_each_beginning_of_labels() -> None:
    labels = ((5,), (5, 6, 7), (5, 6, 8), (6, 7))
    table = LabelTable.of([EncodedExample((1, 9), labels, 0)] * 2, pad_id=0)
    batch = table.gather(torch.tensor([[0, 1]]))
    beginnings = {label[:step] for label in labels for step in range(len(label))}
    assert len(batch.places.rows) == 2 * len(beginnings)  # of two examples
    assert len(batch.tokens) == 2 * sum(map(len, labels))


def test_labels_in_one_row_stand_behind_their_prompt_and_see_no_other() -> None:
    labels = ((5, 6, 2), (6, 7), (7,), (5, 8))
    table = LabelTable.of([EncodedExample((1, 9, 4), labels, 0)] * 2, pad_id=0, branched=True)
    assert table.rows.ids.tolist() == [[1, 9, 4, 5, 6, 6]] * 2  # (5, 6) and (6,); 7 needs the prompt alone
    assert table.branches is not None
    assert table.branches.branch.tolist() == [[0, 0, 0, 1, 1, 2]] * 2
    assert table.branches.positions.tolist() == [[0, 1, 2, 3, 4, 3]] * 2
    tokens = table.tokens
    reads = {
        (label, step): position
        for row, position, label, step in zip(
            *(values.tolist() for values in (tokens.rows, tokens.positions, tokens.labels, tokens.steps)),
            strict=True,
        )
        if row == 0
    }
    prompt, after_5, after_56, after_6 = 2, 3, 4, 5
    assert reads == {
        **dict.fromkeys([(label, 0) for label in range(4)], prompt),
        (0, 1): after_5, (0, 2): after_56, (1, 1): after_6, (3, 1): after_5,
    }  # fmt: skip
    mask = table.branches.arguments(torch.float32)["attention_mask"][0, 0]
    assert (mask[5] == 0).tolist() == [True, True, True, False, False, True]


def test_data_with_another_label_or_target_is_other_data() -> None:
    one = EncodedExample((1, 9), ((5,), (6,)), 0)
    others = [one, dataclasses.replace(one, label_ids=((5,), (7,))), dataclasses.replace(one, target=1)]
    assert len({LabelTable.of([other], pad_id=0).fingerprint() for other in others}) == 3


def test_training_without_examples_or_answers_is_refused() -> None:
    config = dataclasses.replace(CONFIG, loss="labels")
    with pytest.raises(DataError, match="no training examples were given"):
        train(build_ensemble(), [], config, progress=False)
    unknown = [phrase_examples()[0], dataclasses.replace(phrase_examples()[1], target=None)]
    with pytest.raises(DataError, match="training example number 2 has no answer"):
        train(build_ensemble(), unknown, config, progress=False)


# Which loss


def test_auto_takes_labels_for_words_of_several_tokens_and_the_vocabulary_for_letters_and_options() -> None:
    assert loss_of(CONFIG, letter_examples()) == "vocabulary"
    assert loss_of(CONFIG, phrase_examples()) == "labels"
    own = [
        dataclasses.replace(example, labels=example.labels[n % 2 :], target=0)
        for n, example in enumerate(phrase_examples())
    ]
    assert loss_of(CONFIG, own) == "vocabulary"
    assert loss_of(CONFIG, open_examples()) == "vocabulary"
    assert loss_of(dataclasses.replace(CONFIG, loss="vocabulary"), phrase_examples()) == "vocabulary"


def test_the_papers_preset_keeps_equation_3_whatever_the_labels_are() -> None:
    config = dataclasses.replace(TrainConfig.preset("paper", task="obqa"), epochs=1)
    assert (loss_of(config, phrase_examples()), config.label_score) == ("vocabulary", "sum")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("loss", "letters", "unknown loss 'letters'; Known: auto, labels, vocabulary"),
        ("label_score", "median", "unknown label_score 'median'"),
    ],
)
def test_unknown_losses_and_scores_are_refused(field: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **{field: value})  # type: ignore[arg-type]


def test_open_answers_have_no_labels() -> None:
    with pytest.raises(
        ConfigError, match=r"loss='labels': open answers \(Completion\) have no set of labels"
    ):
        train(build_ensemble(), open_examples(), dataclasses.replace(CONFIG, loss="labels"), progress=False)


def test_heads_of_the_members_own_have_no_vocabulary() -> None:
    examples = heads.examples_for("multiple-choice")
    over_labels = dataclasses.replace(CONFIG, loss="labels")  # which is what such heads do
    train(heads.build_ensemble("bert", "multiple-choice"), examples, over_labels, progress=False)
    config = dataclasses.replace(CONFIG, loss="vocabulary")
    with pytest.raises(ConfigError, match="loss='vocabulary': members with multiple-choice heads give"):
        train(heads.build_ensemble("bert", "multiple-choice"), examples, config, progress=False)


def test_baselines_that_train_over_the_vocabulary_refuse_the_loss_over_labels() -> None:
    made = BatchEnsemble(build("llama"), tokenizer(), num_members=2)
    with pytest.raises(ConfigError, match="loss='labels': BatchEnsemble has no such setting"):
        made.fit(phrase_examples(), dataclasses.replace(CONFIG, loss="labels"))


# The score


def test_predictions_are_made_by_the_score_of_training_and_loading_keeps_it(tmp_path: Path) -> None:
    ensemble = build_ensemble()
    config = dataclasses.replace(CONFIG, label_score="mean")
    train(ensemble, phrase_examples(), config, out=tmp_path / "run", progress=False)
    by_mean = predict(ensemble, phrase_examples()).member_log_probs
    loaded = LoraEnsemble.from_pretrained(tmp_path / "run", base=build("llama"), tokenizer=tokenizer())
    torch.testing.assert_close(predict(loaded, phrase_examples()).member_log_probs, by_mean)
    alone = SingleMember(loaded, 1).member_log_probs(phrase_examples())[0]
    torch.testing.assert_close(alone, by_mean[1], atol=1e-5, rtol=1e-5)  # fp32, a batch of another size
    loaded.info = dataclasses.replace(loaded.info, label_score="sum")
    by_sum = predict(loaded, phrase_examples()).member_log_probs
    assert float((by_sum - by_mean).abs().max()) > 0.1


def change(path: Path, **fields: object) -> None:
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def test_an_ensemble_saved_without_a_score_is_scored_by_sums(tmp_path: Path) -> None:
    build_ensemble().save_pretrained(tmp_path / "old")
    change(tmp_path / "old" / "ensemble.json", label_score=None)
    loaded = LoraEnsemble.from_pretrained(tmp_path / "old", base=build("llama"), tokenizer=tokenizer())
    assert loaded.info.label_score == "sum"


def test_a_score_that_does_not_exist_is_refused_when_an_ensemble_is_read(tmp_path: Path) -> None:
    build_ensemble().save_pretrained(tmp_path / "wrong")
    change(tmp_path / "wrong" / "ensemble.json", label_score="median")
    with pytest.raises(CheckpointError, match="label_score"):
        LoraEnsemble.from_pretrained(tmp_path / "wrong", base=build("llama"), tokenizer=tokenizer())


def test_a_run_goes_on_with_its_own_loss_and_score_only(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, label_score="mean")
    train(build_ensemble(), phrase_examples(), config, out=tmp_path / "run", progress=False)
    for changed, message in (
        ({"loss": "vocabulary"}, "loss was 'labels', is 'vocabulary'"),
        ({"label_score": "sum"}, "label_score was 'mean', is 'sum'"),
    ):
        with pytest.raises(CheckpointError, match=message):
            train(
                build_ensemble(),
                phrase_examples(),
                dataclasses.replace(config, **changed),  # type: ignore[arg-type]
                out=tmp_path / "run",
                resume=True,
                progress=False,
            )


def test_a_run_whose_settings_name_no_loss_was_one_over_the_vocabulary_and_goes_on(tmp_path: Path) -> None:
    config = CONFIG
    train(build_ensemble(), letter_examples(), config, out=tmp_path / "run", progress=False)
    change(tmp_path / "run" / "training" / "config.json", loss=None)
    again = build_ensemble()
    train(again, letter_examples(), config, out=tmp_path / "run", resume=True, progress=False)
    with pytest.raises(CheckpointError, match="loss was 'vocabulary', is 'labels'"):
        train(
            build_ensemble(),
            letter_examples(),
            dataclasses.replace(config, loss="labels"),
            out=tmp_path / "run",
            resume=True,
            progress=False,
        )


# What is said


def remarks(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "lora_ensembles.heads.remarks"]


def test_labels_of_different_lengths_are_named_where_sums_over_the_vocabulary_are_learnt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = dataclasses.replace(CONFIG, loss="vocabulary", label_score="sum")
    loss_of(config, letter_examples())
    loss_of(dataclasses.replace(config, label_score="mean"), phrase_examples())
    loss_of(dataclasses.replace(config, loss="labels"), phrase_examples())
    assert remarks(caplog) == []
    loss_of(config, phrase_examples())
    assert len(remarks(caplog)) == 1
    assert "(tokens: 'yes' 1, 'no' 1, 'not at all' 3, 'maybe so' 2)" in remarks(caplog)[0]


def always(label: int, *, rows: int, targets: list[int]) -> tuple[Prediction, list[Example]]:
    """A prediction that gives each of so many examples the same label."""
    log_probs = torch.full((1, rows, 3), math.log(0.1))
    log_probs[..., label] = math.log(0.8)
    labels = (" yes", " no", " maybe so")
    examples = [Example(str(n), "Q", labels, targets[n % len(targets)]) for n in range(rows)]
    return Prediction(log_probs), examples


def test_one_label_for_all_rows_is_said_where_ten_or_more_have_different_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    warn_of_one_label(*always(1, rows=9, targets=[0, 1]))
    warn_of_one_label(*always(1, rows=12, targets=[2]))
    prediction, examples = always(1, rows=12, targets=[0, 1])
    mixed = Prediction(
        torch.cat([prediction.member_log_probs[:, :11], prediction.member_log_probs[:, 11:].roll(1, 2)], 1)
    )
    warn_of_one_label(mixed, examples)
    assert remarks(caplog) == []
    warn_of_one_label(*always(2, rows=12, targets=[0, 1]))
    assert len(remarks(caplog)) == 1
    assert (
        "all 12 validation rows are given the label 'maybe so', though their answers are of 2 kinds"
        in (remarks(caplog)[0])
    )


@pytest.mark.parametrize("told_apart", [False, True])
def test_a_run_that_ends_with_one_label_for_all_validation_rows_says_so_once(
    told_apart: bool, caplog: pytest.LogCaptureFixture
) -> None:
    first = letter_examples()[0]
    examples = [
        dataclasses.replace(example if told_apart else first, labels=("a", "b"), target=n % 2)
        for n, example in enumerate(letter_examples())
    ]
    config = TrainConfig(epochs=20 if told_apart else 2, batch_size=5, learning_rate=1e-2, loss="labels")
    train(build_ensemble(members=1), examples, config, validation=examples, progress=False)
    assert len(remarks(caplog)) == (0 if told_apart else 1)
