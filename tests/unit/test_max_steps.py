"""Runs that end after so many steps, within an epoch or not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from lora_ensembles.baselines import SWAG
from lora_ensembles.ensemble import LoraEnsemble
from lora_ensembles.errors import ConfigError
from lora_ensembles.training.adapters import train
from lora_ensembles.training.config import TrainConfig, schedule_factor
from lora_ensembles.training.trainee import TrainResult
from tiny_ensembles import adapter, llama, questions, tokenizer

CONFIG = TrainConfig(epochs=3, batch_size=4, learning_rate=1e-2, log_every=1)  # two steps in an epoch


def trained(config: TrainConfig, out: Path | None = None) -> tuple[LoraEnsemble, TrainResult]:
    made = LoraEnsemble(llama(), tokenizer(), num_members=2, adapter=adapter())
    return made, train(made, questions(8), config, out=out, progress=False)


def test_a_run_that_ends_with_an_epoch_is_that_of_fewer_epochs() -> None:
    cut, result = trained(dataclasses.replace(CONFIG, max_steps=4))
    whole, expected = trained(dataclasses.replace(CONFIG, epochs=2))
    assert torch.equal(cut.stack.b, whole.stack.b)
    assert result.history == expected.history


def test_the_epoch_in_which_a_run_ends_is_in_the_history() -> None:
    cut, result = trained(dataclasses.replace(CONFIG, max_steps=3, snapshot_epochs=[1, 2]))
    assert [(row["step"], row["epoch"]) for row in result.history] == [(2, 1), (3, 2)]
    assert torch.equal(result.snapshots[2][0].b.popitem()[1], cut.stack.member(0).b.popitem()[1])


def test_a_run_that_was_cut_short_on_disk_is_finished(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, max_steps=3)
    made, _ = trained(config, tmp_path / "run")
    again = LoraEnsemble(llama(), tokenizer(), num_members=2, adapter=adapter())
    train(again, questions(8), config, out=tmp_path / "run", resume=True, progress=False)
    assert torch.equal(made.stack.b, again.stack.b)


def test_schedules_fall_to_zero_by_the_last_step() -> None:
    """The last of 3 steps of a linear schedule has 1 / 3 of the step size, whatever the epochs."""
    config = dataclasses.replace(CONFIG, max_steps=3, schedule="linear")
    made, _ = trained(config)
    other, _ = trained(dataclasses.replace(config, epochs=100))
    assert torch.equal(made.stack.b, other.stack.b)
    assert schedule_factor(config, 2, 3) == pytest.approx(1 / 3)


def test_weights_of_the_last_part_of_a_run_are_those_of_its_steps() -> None:
    ensemble = LoraEnsemble(llama(), tokenizer(), num_members=1, adapter=adapter())
    swag = SWAG(ensemble, samples=2)
    with pytest.raises(ConfigError, match=r"share=0\.5 of 2 steps"):
        swag.fit(questions(8), dataclasses.replace(CONFIG, max_steps=2))


def test_no_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_steps=0"):
        TrainConfig(max_steps=0)
