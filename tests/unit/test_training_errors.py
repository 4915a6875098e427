"""Training runs that cannot start or cannot go on, what they leave behind, and what a run writes."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_ensembles.data import Example
from lora_ensembles.ensemble import LoraEnsemble
from lora_ensembles.errors import CheckpointError, ConfigError, DataError, TrainingError
from lora_ensembles.prediction.prediction import predict
from lora_ensembles.training.adapters import train
from lora_ensembles.training.config import TrainConfig
from lora_ensembles.training.trainee import TrainResult
from tiny_ensembles import (
    WINDOW,
    adapter,
    ensemble,
    files_below,
    largest_file,
    llama,
    no_memory_left,
    questions,
    tokenizer,
)

QUESTIONS = questions(8)
SHORT = TrainConfig(epochs=2, batch_size=4, learning_rate=1e-2)  # 2 steps an epoch


def run(
    made: LoraEnsemble, config: TrainConfig = SHORT, *, out: Path | None = None, resume: bool = False
) -> TrainResult:
    return train(made, QUESTIONS, config, out=out, resume=resume, progress=False)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]


def checkpoint_step(out: Path) -> int:
    return json.loads((out / "training" / "checkpoint" / "state.json").read_text())["step"]


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Make the run end, as by a signal, in the middle of step `steps` + 1."""
    from lora_ensembles.training import loop as training

    whole = training._step

    def step(running: Any, number: int) -> Any:
        if number == steps:
            raise Interrupted
        return whole(running, number)

    monkeypatch.setattr(training, "_step", step)


# Losses that are not finite


def test_loss_of_a_member_with_an_absurd_learning_rate_names_member_step_and_cause(tmp_path: Path) -> None:
    config = TrainConfig(
        epochs=3,
        batch_size=4,
        learning_rate=[1e-3, 1e38],
        weight_decay_a=0,
        weight_decay_b=0,
        checkpoint_every=1,
    )
    made = ensemble()

    with pytest.raises(
        TrainingError,
        match=r"the (loss|gradient) of member 1 is (nan|inf) at step 2: "
        r"its learning rate 1e\+38 is probably too high.*lower it",
    ):
        run(made, config, out=tmp_path / "out")

    assert checkpoint_step(tmp_path / "out") == 1
    assert not (tmp_path / "out" / "ensemble.json").exists()


def test_base_with_a_poisoned_weight_is_named_as_the_cause_at_the_first_step() -> None:
    base = llama()
    base.model.norm.weight.data[3] = math.nan

    with pytest.raises(
        TrainingError,
        match="the loss of member 0 is nan at step 1: before any update, so the base itself gives "
        "such values",
    ):
        run(ensemble(base=base))


def test_poisoned_member_is_named_and_no_other_one_is_updated() -> None:
    made = ensemble(members=3)
    made.stack.b[2] = math.inf
    before = made.stack.member(0)

    with pytest.raises(TrainingError, match=r"of member 2 is nan at step 1.*No update was made"):
        run(made)
    assert all(torch.equal(made.stack.member(0).b[name], before.b[name]) for name in before.b)


def test_base_in_float16_that_overflows_after_an_update_names_its_dtype() -> None:
    made = ensemble(base=llama().half())
    config = TrainConfig(epochs=3, batch_size=4, learning_rate=1e5, weight_decay_a=0, weight_decay_b=0)

    with pytest.raises(TrainingError, match="float16 overflows easily; load the base in bfloat16"):
        run(made, config)


# Memory


def test_a_step_of_which_not_one_row_fits_into_memory_ends_the_run() -> None:
    made = ensemble(members=2)
    with (
        pytest.raises(
            TrainingError,
            match=r"memory ran out at step 1 with a single row in flight, its activations computed twice; "
            r"free",
        ),
        no_memory_left(),
    ):
        train(made, questions(8), TrainConfig(epochs=1, batch_size=8), progress=False)


def test_a_prediction_of_which_not_one_row_fits_into_memory_is_refused() -> None:
    made = ensemble(members=2)
    with (
        pytest.raises(ConfigError, match="memory ran out with a single row in flight; free memory"),
        no_memory_left(),
    ):
        predict(made, questions(8), max_rows=16)


# Space


def test_no_space_for_a_checkpoint_keeps_the_old_one_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, config = tmp_path / "out", dataclasses.replace(SHORT, checkpoint_every=1)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(Interrupted):
            run(ensemble(base=llama(hidden=128)), config, out=out)
    checkpoint = out / "training" / "checkpoint"
    kept = {path.name: path.read_bytes() for path in checkpoint.iterdir()}

    with (
        pytest.raises(CheckpointError, match=r"no space left to write .*checkpoint"),
        largest_file(len(kept["state.safetensors"]) // 2),
    ):
        run(ensemble(base=llama(hidden=128)), config, out=out, resume=True)
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == kept
    assert not any(path.name.startswith(".") for path in out.rglob("*"))

    resumed, whole = ensemble(base=llama(hidden=128)), ensemble(base=llama(hidden=128))
    run(resumed, config, out=out, resume=True)
    run(whole, config)
    assert torch.equal(resumed.stack.b, whole.stack.b)


def test_run_that_finds_no_space_for_its_first_checkpoint_can_be_resumed_from_the_start(
    tmp_path: Path,
) -> None:
    out, made = tmp_path / "out", ensemble(base=llama(hidden=128))

    with pytest.raises(CheckpointError, match=r"no space left to write .*checkpoint"), largest_file(4000):
        run(ensemble(base=llama(hidden=128)), out=out)
    assert not (out / "training" / "checkpoint").exists()

    run(made, out=out, resume=True)
    assert checkpoint_step(out) == 4


def test_no_space_for_the_first_file_of_a_run_is_the_librarys_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no space left to write .*training"), largest_file(10):
        run(ensemble(), out=tmp_path / "out")


def test_no_space_for_the_log_or_the_curves_is_the_librarys_error_and_no_threads(tmp_path: Path) -> None:
    config = dataclasses.replace(SHORT, epochs=20, log_every=1, checkpoint_every=1000)
    before = threading.active_count()

    with (
        pytest.raises(CheckpointError, match=r"no space left to write .*(log\.jsonl|tensorboard)"),
        largest_file(1900),
    ):
        run(ensemble(members=5), config, out=tmp_path / "out")
    assert threading.active_count() == before


# Outputs and resuming


def test_existing_output_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(
        CheckpointError,
        match=r"exists already; choose another folder, go on with the run in it by resume=True, or replace",
    ):
        run(ensemble(), out=tmp_path)
    assert files_below(tmp_path) == {"notes.txt"}


def test_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")

    with pytest.raises(CheckpointError, match="out is a file; choose a folder"):
        run(ensemble(), out=tmp_path / "out")


def test_empty_folder_is_a_good_output(tmp_path: Path) -> None:
    run(ensemble(), out=tmp_path)

    assert LoraEnsemble.from_pretrained(tmp_path, base=llama(), tokenizer=tokenizer()).num_members == 2


def test_saved_ensemble_is_no_run_that_could_be_resumed(tmp_path: Path) -> None:
    ensemble().save_pretrained(tmp_path / "saved")

    with pytest.raises(CheckpointError, match="holds an ensemble but no run that could go on"):
        run(ensemble(), out=tmp_path / "saved", resume=True)


def test_resuming_needs_a_folder() -> None:
    with pytest.raises(ConfigError, match="resume=True without `out`"):
        run(ensemble(), resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 2e-2}, r"learning_rate was 0\.01, is 0\.02"),
        ({"epochs": 3, "batch_size": 2}, r"batch_size was 4, is 2; epochs was 2, is 3"),
    ],
)
def test_resuming_with_other_settings_names_them(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    run(ensemble(), out=tmp_path / "out")

    with pytest.raises(
        CheckpointError, match=rf"holds a run with other settings, so it cannot be resumed: {message}"
    ):
        run(ensemble(), dataclasses.replace(SHORT, **change), out=tmp_path / "out", resume=True)


def test_resuming_with_other_members_adapter_base_or_data_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(ensemble(), out=out)
    others = {
        "member_seeds": ensemble(seed=1),
        "member_seeds ": ensemble(members=3),
        "base": ensemble(base=llama(seed=1)),
        "adapter was .*'scalings': \\[4.0\\].* is .*'scalings': \\[8.0\\]": LoraEnsemble(
            llama(), tokenizer(), num_members=2, adapter=adapter(alpha=16)
        ),
        "adapter was .*'dropout': 0.0.* is .*'dropout': 0.5": LoraEnsemble(
            llama(), tokenizer(), num_members=2, adapter=adapter(dropout=0.5)
        ),
    }

    for name, other in others.items():
        with pytest.raises(
            CheckpointError, match=f"other settings, so it cannot be resumed: .*{name.strip()}"
        ):
            run(other, out=out, resume=True)
    with pytest.raises(CheckpointError, match="cannot be resumed: data was"):
        train(ensemble(), questions(8, start=1), SHORT, out=out, resume=True, progress=False)


def test_a_run_goes_on_only_on_a_base_of_the_same_precision(tmp_path: Path) -> None:
    """A base in bfloat16 or quantised in another way has the same fingerprint, and gives other weights."""
    run(ensemble(), out=tmp_path / "out")
    settings = tmp_path / "out" / "training" / "config.json"
    with pytest.raises(CheckpointError, match=r"base_precision was .*'float32'.*, is .*'bfloat16'"):
        run(ensemble(base=llama().to(torch.bfloat16)), out=tmp_path / "out", resume=True)
    four, eight = llama(), llama()
    four.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    eight.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    run(ensemble(base=four), out=tmp_path / "quantised")
    with pytest.raises(CheckpointError, match=r"base_precision was .*load_in_4bit.*, is .*load_in_8bit"):
        run(ensemble(base=eight), out=tmp_path / "quantised", resume=True)
    content = json.loads(settings.read_text())
    del content["base_precision"]  # as older runs, which go on as they did
    settings.write_text(json.dumps(content))
    run(ensemble(), out=tmp_path / "out", resume=True)


def test_settings_that_change_no_result_may_differ_when_a_run_is_resumed(tmp_path: Path) -> None:
    run(ensemble(), out=tmp_path / "out")

    run(
        ensemble(),
        dataclasses.replace(SHORT, max_rows=2, log_every=3, checkpoint_every=1),
        out=tmp_path / "out",
        resume=True,
    )


@pytest.mark.parametrize("interrupted", [1, 4])
def test_interrupted_run_goes_on_to_the_same_weights_history_and_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: int
) -> None:
    config = dataclasses.replace(SHORT, epochs=3, checkpoint_every=1, log_every=1, snapshot_epochs=[1, 3])
    whole = ensemble()
    expected = run(whole, config, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_after(patch, interrupted)
        with pytest.raises(Interrupted):
            run(ensemble(), config, out=tmp_path / "out")

    resumed = ensemble()
    result = run(resumed, config, out=tmp_path / "out", resume=True)

    assert torch.equal(resumed.stack.a, whole.stack.a)
    assert torch.equal(resumed.stack.b, whole.stack.b)
    assert result.history == expected.history
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")
    assert result.snapshots.keys() == expected.snapshots.keys() == {1, 3}
    for epoch, members in expected.snapshots.items():
        for one, other in zip(members, result.snapshots[epoch], strict=True):
            assert all(torch.equal(one.b[name], other.b[name]) for name in one.b)


@pytest.mark.parametrize("damage", ["cut", "no step", "gone", "config"])
def test_corrupt_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    out = tmp_path / "out"
    run(ensemble(), out=out)
    folder = out / "training" / "checkpoint"
    if damage == "cut":
        content = (folder / "state.safetensors").read_bytes()
        (folder / "state.safetensors").write_bytes(content[: len(content) // 2])
    elif damage == "no step":
        (folder / "state.json").write_text("{}")
    elif damage == "gone":
        (folder / "state.json").unlink()
    else:
        (out / "training" / "config.json").write_text('{"epochs"')

    with pytest.raises(
        CheckpointError, match=r"(checkpoint|config\.json) is corrupt.*remove .*out and train anew"
    ):
        run(ensemble(), out=out, resume=True)


# Examples


def test_training_without_examples_is_refused() -> None:
    with pytest.raises(DataError, match="no training examples were given"):
        train(ensemble(), [], SHORT, progress=False)


def test_example_without_an_answer_is_refused_in_training_and_in_validation_before_any_step(
    tmp_path: Path,
) -> None:
    unlabelled = [*QUESTIONS[:2], dataclasses.replace(QUESTIONS[2], target=None)]

    with pytest.raises(DataError, match="training example number 3 has no answer"):
        train(ensemble(), unlabelled, SHORT, out=tmp_path / "out", progress=False)
    with pytest.raises(DataError, match="validation example 'q2' has no answer"):
        train(ensemble(), QUESTIONS, SHORT, validation=unlabelled, out=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["examples", "validation"])
def test_overlong_prompt_is_refused_or_cut_by_choice_and_the_ensemble_remembers_it(
    tmp_path: Path, part: str
) -> None:
    long = [Example("long", "otter " * WINDOW + QUESTIONS[0].prompt, ("a", "b", "c", "d"), 0)]
    given = {"examples": QUESTIONS, "validation": QUESTIONS, part: long}
    made = ensemble()

    with pytest.raises(
        DataError,
        match=rf"example 'long': prompt and longest label are \d+ tokens, and the window is {WINDOW}",
    ):
        train(made, given["examples"], SHORT, validation=given["validation"], progress=False)
    cut = dataclasses.replace(SHORT, overlong="left")
    train(made, given["examples"], cut, validation=given["validation"], out=tmp_path / "out", progress=False)
    loaded = LoraEnsemble.from_pretrained(tmp_path / "out", base=llama(), tokenizer=tokenizer())
    assert predict(loaded, long).num_examples == 1


def test_settings_for_another_number_of_members_are_refused(tmp_path: Path) -> None:
    for name in ("learning_rate", "weight_decay_a", "weight_decay_b", "kl_weight", "dropout"):
        with pytest.raises(ConfigError, match=f"{name} has 3 values for 2 members"):
            run(ensemble(), TrainConfig(**{name: [1e-4, 1e-4, 1e-4]}), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# What a run leaves


def test_run_writes_settings_log_checkpoint_snapshots_and_an_ensemble(tmp_path: Path) -> None:
    config, out, made = (
        dataclasses.replace(SHORT, epochs=3, snapshot_epochs=[1, 3], log_every=2),
        tmp_path / "out",
        ensemble(),
    )
    result = train(made, QUESTIONS, config, validation=questions(4), out=out, progress=False)

    names = {"config.json", "environment.json", "log.jsonl", "checkpoint", "snapshots"}
    assert names <= {path.name for path in (out / "training").iterdir()} <= {*names, "tensorboard"}
    assert json.loads((out / "training" / "config.json").read_text())["learning_rate"] == config.learning_rate
    assert (
        json.loads((out / "training" / "environment.json").read_text())["versions"]["torch"]
        == torch.__version__
    )
    assert checkpoint_step(out) == 6
    assert not {path.suffix for path in out.rglob("*")} & {".bin", ".pt", ".pth", ".pkl", ".pickle", ".npz"}
    loaded = LoraEnsemble.from_pretrained(out, base=llama(), tokenizer=tokenizer())
    assert torch.equal(loaded.stack.b, made.stack.b)
    assert [row["epoch"] for row in result.history] == [1, 2, 3]


def test_snapshot_on_disk_is_an_ensemble_of_its_own(tmp_path: Path) -> None:
    config, out = dataclasses.replace(SHORT, snapshot_epochs=[1, 2]), tmp_path / "out"
    made = ensemble()
    result = run(made, config, out=out)

    for epoch in (1, 2):
        loaded = LoraEnsemble.from_pretrained(
            out / "training" / "snapshots" / f"epoch_{epoch:03d}", base=llama(), tokenizer=tokenizer()
        )
        for member, weights in enumerate(result.snapshots[epoch]):
            stored = loaded.stack.member(member)
            assert all(torch.equal(stored.b[name], weights.b[name]) for name in weights.b)
    made.stack.set_members(result.snapshots[1])
    first = LoraEnsemble.from_pretrained(
        out / "training" / "snapshots" / "epoch_001", base=llama(), tokenizer=tokenizer()
    )
    assert torch.equal(first.stack.b, made.stack.b)


def test_log_has_rows_of_steps_with_one_number_a_member_and_rows_of_epochs(tmp_path: Path) -> None:
    config, out = dataclasses.replace(SHORT, epochs=3, log_every=2, max_grad_norm=1.0), tmp_path / "out"
    train(ensemble(members=3), QUESTIONS, config, validation=questions(4), out=out, progress=False)
    steps, epochs = ([row for row in rows(out) if ("epoch" in row) == is_epoch] for is_epoch in (False, True))

    assert [row["step"] for row in steps] == [2, 4, 6]
    for row in steps:
        assert all(len(row[name]) == 3 for name in ("loss", "accuracy", "gradient_norm"))
        assert all(math.isfinite(value) for value in row["loss"])
    assert [(row["epoch"], row["step"]) for row in epochs] == [(1, 2), (2, 4), (3, 6)]
    for row in epochs:
        assert len(row["train_loss"]) == len(row["train_accuracy"]) == len(row["members"]["accuracy"]) == 3
        assert {"accuracy", "nll", "ece", "brier"} <= row["ensemble"].keys()


def test_history_holds_the_mean_loss_of_each_members_steps(tmp_path: Path) -> None:
    config, out = dataclasses.replace(SHORT, log_every=1), tmp_path / "out"
    result = run(ensemble(members=2), config, out=out)
    losses = [row["loss"] for row in rows(out) if "loss" in row]

    for epoch in range(2):
        for member in range(2):
            mean = (losses[2 * epoch][member] + losses[2 * epoch + 1][member]) / 2
            assert result.history[epoch]["train_loss"][member] == pytest.approx(
                mean, abs=1e-5
            )  # rows are rounded to six places


def test_history_holds_the_mean_over_rows_where_the_last_batch_is_short() -> None:
    examples, made = questions(7), ensemble(members=2, trained=True)
    config = dataclasses.replace(
        SHORT, epochs=1, batch_size=3, learning_rate=1e-12
    )  # weights stay as they are
    losses, right = [], []
    for example in examples:
        answer = tokenizer().convert_tokens_to_ids(example.labels[example.target].strip())
        with torch.no_grad():
            logits = made(torch.tensor([tokenizer()(example.prompt).input_ids]))[:, 0, -1].double()
        losses.append(-logits.log_softmax(-1)[:, answer])
        right.append((logits.argmax(-1) == answer).double())

    row = train(made, examples, config, progress=False).history[0]

    assert row["train_loss"] == pytest.approx(torch.stack(losses).mean(0).tolist(), abs=1e-5)  # float32 sums
    assert row["train_accuracy"] == pytest.approx(torch.stack(right).mean(0).tolist(), abs=1e-6)


def test_tensorboard_rows_are_written_where_it_is_installed(tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(
        ensemble(),
        QUESTIONS,
        dataclasses.replace(SHORT, log_every=2),
        validation=questions(4),
        out=tmp_path / "out",
        progress=False,
    )
    events = EventAccumulator(str(tmp_path / "out" / "training" / "tensorboard"))
    events.Reload()

    scalars = set(events.Tags()["scalars"])
    assert {"loss/member_000", "loss/member_001", "accuracy/member_000", "validation/nll"} <= scalars
    assert [event.step for event in events.Scalars("loss/member_001")] == [2, 4]


def test_run_without_a_folder_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(ensemble(), dataclasses.replace(SHORT, snapshot_epochs=[2]))

    assert files_below(tmp_path) == set()
    assert result.snapshots.keys() == {2}


def test_progress_bar_shows_loss_and_accuracy_unless_it_is_off(capsys: pytest.CaptureFixture[str]) -> None:
    run(ensemble())
    assert capsys.readouterr().err == ""

    train(ensemble(), QUESTIONS, dataclasses.replace(SHORT, log_every=1), progress=True)
    shown = capsys.readouterr().err
    assert "4 of 4 steps, loss " in shown  # a line now and then: this is no terminal
    assert ", accuracy " in shown
