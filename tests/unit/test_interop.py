"""The way in and out: the hub, members that AutoPeft opens, dtypes, class names, arrays, and what `repr`
says.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import peft
import pytest
import torch
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError
from peft import LoraConfig, get_peft_model

import tiny_heads as heads
from lora_ensembles import Prediction, predict, train
from lora_ensembles.data import Completion, CompletionTask, Task, found_classes
from lora_ensembles.ensemble import LoraEnsemble
from lora_ensembles.errors import AdapterError, CheckpointError, ConfigError, DataError
from lora_ensembles.storage.hub import ensemble_folder
from lora_ensembles.training.config import TrainConfig
from tiny_ensembles import adapter, ensemble, llama, questions, tokenizer

UNTYPED = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"])
LOG_PROBS = torch.tensor([[[0.9, 0.1], [0.2, 0.8]], [[0.5, 0.5], [0.6, 0.4]]]).log()


def on_disk(folder: Path, model: Any, words: Any) -> str:
    model.config._name_or_path = ""
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


# The hub


def test_ensemble_of_the_hub_is_the_folder_that_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ensemble(trained=True)
    own.save_pretrained(tmp_path / "copy")
    asked: list[str] = []

    def snapshot_download(name: str, **_settings: object) -> str:
        asked.append(name)
        return str(tmp_path / "copy")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    again = LoraEnsemble.from_pretrained("me/animals", base=llama(), tokenizer=tokenizer())

    assert asked == ["me/animals"]
    assert torch.equal(predict(again, questions(2)).probs, predict(own, questions(2)).probs)


@pytest.mark.parametrize("name", ["runs/mine", "./runs/mine", "mine", "a/b/c", "/tmp/none", "../up", "a b/c"])
def test_folder_that_is_here_and_what_is_no_repository_never_ask_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("the hub was asked")
    )

    assert ensemble_folder(name) == Path(name)


@pytest.mark.parametrize(
    "error", [LocalEntryNotFoundError("no copy is kept"), ConnectionError("unreachable"), OSError("")]
)
def test_hub_that_cannot_be_reached_is_said_beside_the_folder_that_is_not_here(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot_download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)

    with pytest.raises(
        CheckpointError,
        match=r"^me/animals is no folder here, and no ensemble of the Hugging Face hub .* \(.+\); correct",
    ):
        LoraEnsemble.from_pretrained("me/animals")


# Members elsewhere


def test_member_of_a_config_without_a_task_opens_as_auto_peft_model(tmp_path: Path) -> None:
    name = on_disk(tmp_path / "base", llama(), tokenizer())
    base = type(llama()).from_pretrained(name)
    own = LoraEnsemble(base, tokenizer(), num_members=2, adapter=UNTYPED)
    own.stack.b.normal_(generator=torch.Generator().manual_seed(0))
    own.save_pretrained(tmp_path / "saved")
    ids = torch.tensor([[1, 4, 6, 5]])

    member = peft.AutoPeftModelForCausalLM.from_pretrained(
        tmp_path / "saved" / "member_001", dtype=torch.float32
    ).eval()

    assert UNTYPED.task_type is None
    with torch.no_grad():
        expected = own(ids)[1]
    # Two orders of float32 sums over 16 features.
    torch.testing.assert_close(member(ids).logits, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "task_type"), [("sequence-classification", "SEQ_CLS"), ("multiple-choice", None)]
)
def test_member_with_a_head_is_written_with_the_task_that_peft_knows(
    kind: str, task_type: str | None, tmp_path: Path
) -> None:
    heads.build_ensemble("bert", kind, members=1).save_pretrained(tmp_path / "saved")

    config = json.loads((tmp_path / "saved" / "member_000" / "adapter_config.json").read_text())

    assert config["task_type"] == task_type


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_ensemble_is_loaded_in_the_dtype_it_was_saved_with(dtype: torch.dtype, tmp_path: Path) -> None:
    name = on_disk(tmp_path / "base", llama(), tokenizer())
    base = type(llama()).from_pretrained(name, dtype=dtype)
    own = LoraEnsemble(base, tokenizer(), num_members=1, adapter=adapter())
    own.save_pretrained(tmp_path / "saved")

    again = LoraEnsemble.from_pretrained(tmp_path / "saved")

    assert again.base.dtype == dtype
    assert torch.equal(predict(again, questions(2)).probs, predict(own, questions(2)).probs)


@pytest.mark.parametrize("several", [False, True])
def test_one_path_is_a_list_of_one(several: bool, tmp_path: Path) -> None:
    ensemble(trained=True).save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "member_001"

    own = LoraEnsemble.from_adapters(llama(), tokenizer(), [path] if several else str(path), check_base=False)
    own.load_members(tmp_path / "saved" / "member_000", check_base=False)

    assert own.num_members == 2


def peft_classifier(folder: Path, names: dict[int, str] | None) -> Any:
    base = heads.build("bert", "sequence-classification")
    if names is not None:
        base.config.id2label = names
    config = LoraConfig(
        r=4, target_modules=["query", "value"], modules_to_save=["classifier"], task_type="SEQ_CLS"
    )
    wrapped = get_peft_model(heads.build("bert", "sequence-classification"), config)
    wrapped.save_pretrained(folder)
    return base


def test_classes_of_an_adapter_from_elsewhere_are_those_that_its_base_names(tmp_path: Path) -> None:
    base = peft_classifier(tmp_path / "one", {0: "bad", 1: "good", 2: "old"})

    own = LoraEnsemble.from_adapters(base, heads.tokenizer(), tmp_path / "one")

    assert own.info.head.classes == ("bad", "good", "old")
    assert predict(own, "the red fox").num_options == 3


def test_numbered_classes_of_a_base_are_no_names(tmp_path: Path) -> None:
    own = LoraEnsemble.from_adapters(
        peft_classifier(tmp_path / "one", None), heads.tokenizer(), tmp_path / "one"
    )

    assert own.info.head.classes == ()


@pytest.mark.parametrize("check_base", [True, False])
def test_language_model_for_classifiers_is_refused_by_its_class(check_base: bool, tmp_path: Path) -> None:
    heads.build_ensemble("llama", "sequence-classification", members=1).save_pretrained(tmp_path / "saved")

    with pytest.raises(
        AdapterError,
        match=r"the base given is a LlamaForCausalLM, .* AutoModelForSequenceClassification \(num_labels=3\)",
    ):
        LoraEnsemble.from_pretrained(
            tmp_path / "saved", base=llama(), tokenizer=tokenizer(), check_base=check_base
        )


# transformers' own tools


def test_pipeline_takes_the_view_of_an_ensemble_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    model = ensemble(trained=True).as_causal_lm()
    transformers.logging.enable_propagation()
    try:
        with caplog.at_level("WARNING"):
            pipe = transformers.pipeline("text-generation", model=model, tokenizer=copy.deepcopy(tokenizer()))
    finally:
        transformers.logging.disable_propagation()

    assert "is not supported" not in caplog.text
    assert type(pipe.model).__name__ == "LlamaForCausalLM"
    assert pipe("otter", max_new_tokens=2, do_sample=False)[0]["generated_text"].startswith("otter")


def test_trainer_that_would_save_the_view_is_told_what_to_do(tmp_path: Path) -> None:
    ids = torch.tensor([1, 4, 6, 5])
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        max_steps=1,
        save_steps=1,
        save_strategy="steps",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        model=ensemble().as_causal_lm(), args=arguments, train_dataset=[{"input_ids": ids, "labels": ids}] * 8
    )

    with pytest.raises(
        ConfigError,
        match=r"set its save_strategy to 'no', or train each by its own loss with lora_ensembles\.train",
    ):
        trainer.train()


# Arrays


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_and_lists_make_the_prediction_that_tensors_make(dtype: str) -> None:
    expected = Prediction(LOG_PROBS, torch.tensor([0, 1]))

    for given in (LOG_PROBS.numpy().astype(dtype), LOG_PROBS.tolist()):
        prediction = Prediction(given, np.array([0, 1]))  # type: ignore[arg-type]
        assert torch.equal(prediction.member_log_probs, expected.member_log_probs)
        assert torch.equal(prediction.targets, expected.targets)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (LOG_PROBS.exp(), r"holds probabilities; give their logarithms"),
        (LOG_PROBS.exp().numpy(), r"holds probabilities; give their logarithms"),
        (3 * LOG_PROBS + 5, r"give log-probabilities .*, not logits"),
        (LOG_PROBS.half(), r"is torch\.float16; cast the logits to float32"),
        (np.zeros((2, 2, 2), dtype=int), r"is torch\.int64; cast the logits to float32"),
        (None, "is of type NoneType; it is a tensor, or an array of numbers"),
        ("log_probs", "is of type str; it is a tensor, or an array of numbers"),
        ([[["a", "b"]]], "is of type list and no array of numbers"),
        ([[[0.0], [0.0, 0.0]]], "is of type list and no array of numbers"),
    ],
    ids=str,
)
def test_what_are_no_log_probabilities_is_refused_by_what_it_is(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"(member_log_probs|the probabilities of).*{message}"):
        Prediction(given)


# How things introduce themselves


def test_things_say_in_a_line_what_they_are() -> None:
    own = ensemble(members=3)
    prediction = Prediction(LOG_PROBS, torch.tensor([0, 1]))
    task = Task("animals", tuple(questions(5)), tuple(questions(2)))
    talk = Completion("1", "otter", " lake")

    assert (
        repr(own) == "LoraEnsemble(3 members on 'tiny/llama', rank 2 on q_proj, v_proj, head causal-lm, cpu)"
    )
    assert repr(prediction) == "Prediction(2 members, 2 examples, 2 options, accuracy 1.0000)"
    assert repr(Prediction(LOG_PROBS)) == "Prediction(2 members, 2 examples, 2 options, without targets)"
    assert repr(task) == "Task('animals', 5 to train on, 2 to evaluate on)"
    assert (
        repr(CompletionTask("talk", (talk,), (talk,)))
        == "CompletionTask('talk', 1 to train on, 1 to evaluate on)"
    )


def test_result_of_training_says_its_epochs_and_last_losses() -> None:
    own = ensemble()

    result = train(
        own, questions(4), TrainConfig(epochs=2, snapshot_epochs=[1]), validation=questions(4), progress=False
    )

    losses = ", ".join(f"{loss:.4f}" for loss in result.history[-1]["train_loss"])
    measured = result.history[-1]["ensemble"]
    assert repr(result) == (
        f"TrainResult(2 epochs, last training loss of members {losses}; accuracy {measured['accuracy']:.4f}, "
        f"nll {measured['nll']:.4f}, snapshots of epochs 1)"
    )


def test_classifier_says_how_many_classes_it_has_and_mixed_ranks_their_range(tmp_path: Path) -> None:
    own = heads.build_ensemble("bert", "sequence-classification", members=1)
    own.info = dataclasses.replace(
        own.info, head=heads.HeadConfig("sequence-classification", classes=("a", "b", "c"))
    )
    assert "head sequence-classification of 3 classes" in repr(own)

    for rank in (2, 4):
        LoraEnsemble(llama(), tokenizer(), num_members=1, adapter=adapter(rank=rank)).save_pretrained(
            tmp_path / str(rank)
        )
    paths = [tmp_path / str(rank) / "member_000" for rank in (2, 4)]
    assert "rank 2 to 4 on" in repr(LoraEnsemble.from_adapters(llama(), tokenizer(), paths))


def test_found_classes_is_a_public_name(tmp_path: Path) -> None:
    path = tmp_path / "reviews.csv"
    path.write_text("text,label\nSplendid.,good\nA bore.,bad\n")

    assert found_classes(path)[1] == ("bad", "good")
    path.write_text("text,label\n")
    with pytest.raises(DataError, match="no rows"):
        found_classes(path)
