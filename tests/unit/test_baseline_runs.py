"""Baselines train by the loop of LoRA ensembles: they resume, keep snapshots, are validated, and go on with
fewer rows.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_ensembles import (
    BatchEnsemble,
    CheckpointError,
    DataError,
    LastLayerEnsemble,
    LastLayerHeads,
    TrainConfig,
    evaluate,
    predict,
)
from lora_ensembles.errors import ConfigError
from lora_ensembles.training import loop
from tiny_ensembles import adapter, llama, no_memory_left, questions, tokenizer
from tiny_heads import build, examples_for, tokenizer as words

CONFIG = TrainConfig(epochs=4, batch_size=4, learning_rate=1e-2, log_every=1)


def batch_ensemble() -> tuple[Any, list]:
    return BatchEnsemble(llama(), tokenizer(), num_members=3, adapter=adapter()), questions(12)


def last_layer() -> tuple[Any, list]:
    return LastLayerEnsemble(llama(), tokenizer(), num_members=3), questions(12)


def last_layer_heads() -> tuple[Any, list]:
    kind = "multiple-choice"
    return LastLayerHeads(build("bert", kind), words(), num_members=3, head=kind), examples_for(kind)


BASELINES = [batch_ensemble, last_layer, last_layer_heads]
Build = Callable[[], tuple[Any, list]]


def probabilities(baseline: Any, examples: list) -> Tensor:
    return predict(baseline, examples).member_log_probs


@pytest.mark.parametrize("build_one", BASELINES)
def test_a_run_that_was_stopped_goes_on_to_the_same_members(
    build_one: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, checkpoint_every=2)
    whole, examples = build_one()
    history = whole.fit(examples, config).history
    real, calls = loop._step, []

    def step(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*args)

    stopped, _ = build_one()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", step)
        with pytest.raises(KeyboardInterrupt):
            stopped.fit(examples, config, out=tmp_path / "run")
    resumed, _ = build_one()
    assert resumed.fit(examples, config, out=tmp_path / "run", resume=True).history == history
    assert torch.equal(probabilities(resumed, examples), probabilities(whole, examples))
    # A finished run is brought back by the same call, without a step.
    again, _ = build_one()
    monkeypatch.setattr(loop, "_step", step)
    assert again.fit(examples, config, out=tmp_path / "run", resume=True).history == history
    assert torch.equal(probabilities(again, examples), probabilities(whole, examples))
    other, _ = build_one()
    changed = dataclasses.replace(config, learning_rate=2e-2)
    with pytest.raises(CheckpointError, match=r"learning_rate was 0\.01, is 0\.02"):
        other.fit(examples, changed, out=tmp_path / "run", resume=True)
    with pytest.raises(CheckpointError, match="exists"):
        other.fit(examples, config, out=tmp_path / "run")


def test_a_batch_ensemble_goes_on_only_with_its_own_spread_and_layers(tmp_path: Path) -> None:
    one, examples = batch_ensemble()
    one.fit(examples, CONFIG, out=tmp_path)
    wider = BatchEnsemble(llama(), tokenizer(), num_members=3, adapter=adapter(), sigma=0.5)
    with pytest.raises(CheckpointError, match=r"sigma was 0\.05, is 0\.5"):
        wider.fit(examples, CONFIG, out=tmp_path, resume=True)
    # Of the same shapes as the first one's layers, q_proj and v_proj.
    elsewhere = BatchEnsemble(
        llama(), tokenizer(), num_members=3, adapter=adapter(targets=("o_proj", "k_proj"))
    )
    with pytest.raises(CheckpointError, match=r"targets was \[.*q_proj.*\], is \[.*k_proj"):
        elsewhere.fit(examples, CONFIG, out=tmp_path, resume=True)
    settings = tmp_path / "training" / "config.json"
    content = json.loads(settings.read_text())
    del content["sigma"], content["targets"]  # as older runs, which go on as they did
    settings.write_text(json.dumps(content))
    batch_ensemble()[0].fit(examples, CONFIG, out=tmp_path, resume=True)


@pytest.mark.parametrize("build_one", BASELINES)
def test_snapshots_put_members_back_where_they_were(build_one: Build, tmp_path: Path) -> None:
    baseline, examples = build_one()
    config = dataclasses.replace(CONFIG, snapshot_epochs=(2,))
    result = baseline.fit(examples, config, out=tmp_path / "run")
    end = probabilities(baseline, examples)
    result.restore(baseline, epoch=2)
    early = probabilities(baseline, examples)
    assert not torch.allclose(early, end, atol=1e-4)
    shorter, _ = build_one()
    shorter.fit(examples, dataclasses.replace(CONFIG, epochs=2, schedule=config.schedule))
    torch.testing.assert_close(early, probabilities(shorter, examples), atol=1e-5, rtol=1e-4)
    other, _ = build_one()  # what is on disk is the same
    read = other.fit(examples, config, out=tmp_path / "run", resume=True)
    read.restore(other, epoch=2)
    assert torch.equal(probabilities(other, examples), early)
    with pytest.raises(ConfigError, match=r"no snapshot of epoch 3 \(there: 2\)"):
        result.restore(baseline, epoch=3)


@pytest.mark.parametrize("build_one", BASELINES)
def test_validation_is_measured_after_each_epoch(build_one: Build) -> None:
    baseline, examples = build_one()
    history = baseline.fit(examples, CONFIG, validation=examples[:5]).history
    prediction = predict(baseline, examples[:5])
    assert history[-1]["ensemble"] == evaluate(prediction).to_dict()
    assert len(history[0]["members"]["nll"]) == 3
    unanswered = dataclasses.replace(examples[0], target=None)
    with pytest.raises(DataError, match="has no answer; every validation example needs one"):
        baseline.fit(examples, CONFIG, validation=[unanswered])


def test_memory_that_holds_few_rows_gives_the_same_members(caplog: pytest.LogCaptureFixture) -> None:
    whole, examples = batch_ensemble()
    whole.fit(examples, CONFIG)
    split, _ = batch_ensemble()
    with no_memory_left(beyond=4) as failed:
        split.fit(examples, CONFIG)
    assert failed
    assert "going on with" in caplog.text
    torch.testing.assert_close(
        probabilities(split, examples), probabilities(whole, examples), atol=1e-5, rtol=1e-4
    )
