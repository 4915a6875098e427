"""The flat loop of the examples and the library's stacked one are the same method."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lora_ensembles import LoraEnsemble, TrainConfig, load_base, load_task, predict, train

REPOSITORY = Path(__file__).parents[2]


def load_script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, REPOSITORY / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_flat_loop_gives_the_weights_and_predictions_of_the_stacked_loop(beta, monkeypatch):
    flat = load_script("examples/flat_loop.py")
    monkeypatch.setattr(flat, "BETA", beta)
    task = load_task("world-cqa")
    examples = task.train[:40]
    models = [flat.train_member(index, flat.encode(examples), epochs=1) for index in range(2)]

    ensemble = LoraEnsemble(*load_base(), num_members=2, adapter=flat.adapter_config())
    config = TrainConfig(
        epochs=1,
        batch_size=flat.BATCH,
        learning_rate=flat.RATE,
        weight_decay_a=flat.DECAY_A,
        weight_decay_b=flat.DECAY_B,
        kl_weight=beta,
    )
    train(ensemble, examples, config, progress=False)

    prediction = predict(ensemble, task.validation[:20])
    for index, model in enumerate(models):
        weights, plain = ensemble.stack.member(index), dict(model.named_parameters())
        pairs = [
            (ours[name], plain[f"base_model.model.{name}.lora_{letter}.default.weight"])
            for letter, ours in (("A", weights.a), ("B", weights.b))
            for name in ours
        ]
        difference = torch.cat([(ours - other.data).abs().flatten() for ours, other in pairs])
        # Where a gradient is of rounding size Adam divides it by its own size, so a few elements differ by a
        # part of a step.
        assert (difference > 1e-5).float().mean() < 1 / 500
        assert difference.max() < flat.RATE / 2
        log_probs = flat.label_log_probs(model, flat.encode(task.validation[:20]))
        torch.testing.assert_close(prediction.member_log_probs[index], log_probs, atol=1e-4, rtol=1e-4)
