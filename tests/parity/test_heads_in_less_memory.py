"""Members with heads of their own, when memory runs out: smaller parts, then activations that are computed
twice, with the same result.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lora_ensembles import TrainConfig, predict, train
from lora_ensembles.training.adapters import AdapterTrainee
from tiny_ensembles import check_recomputed, no_memory_left
from tiny_heads import TRIED, build_ensemble, examples_for

KINDS = ("sequence-classification", "multiple-choice", "reward")
CONFIG = TrainConfig(epochs=2, batch_size=5, learning_rate=2e-3, dropout=0.2)


def trained(kind: str) -> Tensor:
    ensemble = build_ensemble("bert", kind)
    train(ensemble, examples_for(kind), CONFIG, progress=False)
    return torch.cat(ensemble.stack.buffers, dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_in_parts_that_fit_with_the_same_weights(kind: str) -> None:
    expected = trained(kind)
    with no_memory_left(beyond=12) as failed:
        found = trained(kind)
    assert failed
    torch.testing.assert_close(
        found, expected, atol=2e-5, rtol=0
    )  # fp32 sums in another order, through 4 steps of Adam


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_scored_in_parts_that_fit(kind: str) -> None:
    ensemble = build_ensemble("bert", kind, random_b=True)
    expected = predict(ensemble, examples_for(kind)).member_log_probs
    with no_memory_left(beyond=2) as failed:  # fewer rows than members
        found = predict(ensemble, examples_for(kind)).member_log_probs
    assert failed
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TRIED)
def test_activations_computed_twice_give_the_same_gradients_and_take_less_memory(name: str) -> None:
    ensemble = build_ensemble(name, "sequence-classification", members=2, random_b=True)
    rows = AdapterTrainee(ensemble, examples_for("sequence-classification"), CONFIG).rows
    indices = torch.tensor([[0, 1, 2], [3, 4, 5]])
    check_recomputed(ensemble, lambda: rows.losses(indices, members=slice(None)).loss.sum())
