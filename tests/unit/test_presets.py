"""The presets: the paper's settings exactly, and defaults that are what their text says."""

from __future__ import annotations

import pytest

from lora_ensembles.data import PAPER_TASKS
from lora_ensembles.errors import ConfigError
from lora_ensembles.stack.adapters import default_adapter_config
from lora_ensembles.training.config import PRESETS, TrainConfig

# Sec. 5.1 of arXiv:2310.00035: batch size 32 for cqa, 16 for obqa, arce and arcc, 8 for mmlu; 20 epochs, step
# size 5e-5, decay 0.01.
BATCH_SIZES = {"cqa": 32, "obqa": 16, "arce": 16, "arcc": 16, "mmlu-ss": 8, "mmlu-stem": 8}


@pytest.mark.parametrize("task", PAPER_TASKS)
def test_paper_preset_has_the_papers_settings(task: str) -> None:
    config = TrainConfig.preset("paper", task=task)

    assert config.batch_size == BATCH_SIZES[task]
    assert (config.epochs, config.learning_rate, config.schedule, config.warmup_steps) == (
        20,
        5e-5,
        "constant",
        0,
    )
    assert (config.weight_decay_a, config.weight_decay_b, config.kl_weight) == (0.01, 0.01, 0.0)
    assert config.dropout is None
    assert config.max_grad_norm is None
    assert config.snapshot_epochs == ()


def test_papers_adapter_is_rank_8_and_alpha_32_on_query_and_value() -> None:
    config = default_adapter_config()

    assert (config.r, config.lora_alpha, config.lora_dropout) == (8, 32, 0.0)
    assert set(config.target_modules) == {"q_proj", "v_proj"}


@pytest.mark.parametrize("task", ["world-cqa", "my-task", None])
def test_paper_has_no_settings_for_other_tasks(task: str | None) -> None:
    with pytest.raises(
        ConfigError,
        match=f"the paper has no settings for {task!r}, only for cqa, obqa.*use the preset 'default'",
    ):
        TrainConfig.preset("paper", task=task)


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "paper"])
def test_other_presets_need_no_task_and_hold_for_any_number_of_members(name: str) -> None:
    assert TrainConfig.preset(name, task="my-task") == TrainConfig.preset(name)
    assert TrainConfig.preset(name).per_member("learning_rate", 7).shape == (7,)


def test_default_preset_decays_b_in_a_step_as_the_papers_mildest_setting() -> None:
    config = TrainConfig.preset("default")

    assert config.learning_rate * config.weight_decay_b == pytest.approx(5e-5 * 1e2)
    assert config.schedule == "linear"


def test_unknown_preset_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'papers'; did you mean 'paper'"):
        TrainConfig.preset("papers")
