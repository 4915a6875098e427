"""The settings of a run: what is refused, how a setting spreads over members, and the
learning-rate schedule.
"""

from __future__ import annotations

import math

import pytest
import torch
from transformers import get_scheduler

from lora_ensembles.errors import ConfigError
from lora_ensembles.training.config import PER_MEMBER_FIELDS, SCHEDULES, TrainConfig, schedule_factor

COUNTS = ("epochs", "batch_size", "log_every", "max_rows", "checkpoint_every", "length_window")


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -3, 1.5, True, "4"])
def test_count_that_is_no_positive_whole_number_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"{name}={value!r}; it is a whole number of at least 1"):
        TrainConfig(**{name: value})


@pytest.mark.parametrize("name", ["epochs", "batch_size", "log_every"])
def test_count_that_every_run_needs_cannot_be_left_out(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=None"):
        TrainConfig(**{name: None})


def test_limits_can_be_left_out() -> None:
    config = TrainConfig(max_rows=None, checkpoint_every=None, max_grad_norm=None, dropout=None)

    assert (config.max_rows, config.checkpoint_every, config.max_grad_norm, config.dropout) == (
        None,
        None,
        None,
        None,
    )


@pytest.mark.parametrize("name", PER_MEMBER_FIELDS)
@pytest.mark.parametrize("value", [-1e-4, math.nan, math.inf, [0.0, -1.0]])
def test_setting_of_members_that_is_negative_or_not_finite_is_refused_by_name(
    name: str, value: float | list[float]
) -> None:
    with pytest.raises(ConfigError, match=rf"{name}=(-|nan|inf).*finite number of at least 0"):
        TrainConfig(**{name: value})


@pytest.mark.parametrize("name", PER_MEMBER_FIELDS)
@pytest.mark.parametrize("value", ["1e-3", True, [0.1, "0.2"], [0.1, None]])
def test_setting_of_members_that_is_no_number_is_refused_by_name(name: str, value: object) -> None:
    """A number such as 1e-3 arrives from a YAML file as text."""
    with pytest.raises(ConfigError, match=f"{name}=.*it is a number, or a list with one for each member"):
        TrainConfig(**{name: value})


@pytest.mark.parametrize("dropout", [1.0, 1.5, [0.1, 1.0]])
def test_dropout_of_one_or_more_is_refused(dropout: float | list[float]) -> None:
    with pytest.raises(ConfigError, match="it is a probability below 1"):
        TrainConfig(dropout=dropout)


@pytest.mark.parametrize("name", ["weight_decay_a", "weight_decay_b"])
def test_learning_rate_times_decay_must_stay_below_one(name: str) -> None:
    TrainConfig(learning_rate=1e-3, **{name: 999.0})
    with pytest.raises(
        ConfigError,
        match=rf"learning_rate \* {name} = 0\.001 \* 1000\.0 = 1; it must be below 1.*lower one of them",
    ):
        TrainConfig(learning_rate=1e-3, **{name: 1000.0})


def test_learning_rates_and_decays_of_members_are_compared_member_by_member() -> None:
    TrainConfig(learning_rate=[1e-3, 1e-5], weight_decay_b=[10.0, 5e4])
    with pytest.raises(ConfigError, match=r"= 0\.001 \* 50000\.0 = 50;"):
        TrainConfig(learning_rate=[1e-5, 1e-3], weight_decay_b=[10.0, 5e4])


def test_one_learning_rate_is_compared_with_every_members_decay() -> None:
    with pytest.raises(ConfigError, match=r"= 0\.001 \* 2000\.0 = 2;"):
        TrainConfig(learning_rate=1e-3, weight_decay_b=[10.0, 2e3])


@pytest.mark.parametrize(
    ("name", "given", "nearest"), [("schedule", "linaer", "linear"), ("overlong", "lef", "left")]
)
def test_unknown_choice_offers_the_nearest(name: str, given: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown {name} '{given}'; did you mean '{nearest}'"):
        TrainConfig(**{name: given})


@pytest.mark.parametrize("steps", [-1, 2.0, True])
def test_warm_up_is_a_number_of_steps(steps: object) -> None:
    with pytest.raises(ConfigError, match=r"warmup_steps=.*whole number of at least 0"):
        TrainConfig(warmup_steps=steps)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", [0.0, -1.0, math.nan])
def test_largest_gradient_norm_is_above_zero(norm: float) -> None:
    with pytest.raises(ConfigError, match=r"max_grad_norm=.*number above 0, or None"):
        TrainConfig(max_grad_norm=norm)


@pytest.mark.parametrize("epochs", [[0], [1, 4], 2])
def test_snapshot_epochs_are_a_list_of_epochs_of_the_run(epochs: object) -> None:
    with pytest.raises(ConfigError, match=r"snapshot_epochs=.*the run has epochs 1 to 3"):
        TrainConfig(epochs=3, snapshot_epochs=epochs)  # type: ignore[arg-type]


def test_one_number_is_every_members_value_and_a_list_gives_each_its_own() -> None:
    config = TrainConfig(learning_rate=0.5, kl_weight=[0.25, 0.0, 1.0])

    assert config.per_member("learning_rate", 3).tolist() == [0.5, 0.5, 0.5]
    assert config.per_member("kl_weight", 3).tolist() == [0.25, 0.0, 1.0]
    assert config.per_member("dropout", 2, default=0.125).tolist() == [0.125, 0.125]


@pytest.mark.parametrize("values", [[0.1, 0.2], []])
def test_list_of_another_length_than_the_members_is_refused_with_both_numbers(values: list[float]) -> None:
    with pytest.raises(
        ConfigError,
        match=f"kl_weight has {len(values)} values for 3 members; give one number, or one for each member",
    ):
        TrainConfig(kl_weight=values).per_member("kl_weight", 3)


def test_settings_survive_the_way_through_json() -> None:
    import json

    config = TrainConfig(learning_rate=(1e-3, 2e-3), snapshot_epochs=(1, 2))

    assert TrainConfig(**json.loads(json.dumps(config.to_dict()))).to_dict() == config.to_dict()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 4, 20])
def test_schedule_is_that_of_transformers_at_every_step(schedule: str, warmup: int) -> None:
    total = 12  # fewer than the longest warm-up
    config = TrainConfig(schedule=schedule, warmup_steps=warmup)  # type: ignore[arg-type]
    name = "constant_with_warmup" if schedule == "constant" else schedule
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)

    for step in range(total):
        assert schedule_factor(config, step, total) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_warm_up_longer_than_the_run_never_exceeds_the_learning_rate() -> None:
    config = TrainConfig(schedule="linear", warmup_steps=10)

    assert [schedule_factor(config, step, 5) for step in range(5)] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
