"""When memory runs out, work goes on in smaller parts, with the result that it would have had whole."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lora_ensembles import FewShot, LoraEnsemble, TrainConfig, score_completions, train
from lora_ensembles.data import encode_examples
from lora_ensembles.heads.lm.losses import row_losses
from lora_ensembles.heads.lm.table import TokenTable
from lora_ensembles.passes.memory import with_fewer_rows
from lora_ensembles.training import adapter_trainee, loop as training_module
from tiny_ensembles import check_recomputed, no_memory_left
from tiny_models import TRIED, build, build_ensemble, letter_examples, open_examples, tokenizer

CONFIG = TrainConfig(epochs=2, batch_size=5, learning_rate=2e-3, dropout=0.2, kl_weight=0.1)
# fp32 sums of gradients in another order, through 4 steps of Adam.
TOLERANCE = dict(atol=2e-5, rtol=0)


def trained(config: TrainConfig = CONFIG, ensemble: LoraEnsemble | None = None) -> Tensor:
    ensemble = ensemble or build_ensemble(members=3)
    train(ensemble, letter_examples(), config, progress=False)
    return torch.cat([ensemble.stack.a, ensemble.stack.b], dim=1)


@pytest.mark.parametrize(("beyond", "parts"), [(14, [7]), (3, [7, 3]), (1, [7, 3, 1])])
def test_training_goes_on_in_parts_that_fit_with_the_same_weights(
    beyond: int, parts: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(CONFIG, kl_weight=0.0)
    expected, ensemble = trained(config), build_ensemble(members=3)
    with no_memory_left(beyond=beyond) as failed, caplog.at_level(logging.WARNING):
        found = trained(config, ensemble)
    torch.testing.assert_close(found, expected, **TOLERANCE)
    text = "memory ran out with {} rows in flight; going on with {} at a time, with the same result"
    said = [text.format(before, rows) for before, rows in zip([15, *parts], parts, strict=False)]
    assert caplog.messages == said  # once each: what fitted in one step is where the next one begins
    assert len(failed) == len(said)


def test_the_base_is_asked_in_parts_that_fit_as_well() -> None:
    expected, ensemble = trained(), build_ensemble(members=3)
    with no_memory_left(beyond=4):
        torch.testing.assert_close(trained(ensemble=ensemble), expected, **TOLERANCE)


@pytest.mark.parametrize("beyond", [2, 1])
def test_scores_are_taken_in_parts_that_fit(beyond: int) -> None:
    ensemble, base = build_ensemble(members=3, random_b=True), build("llama")
    few_shot = FewShot(base, tokenizer(), letter_examples()[:4], shots=1, draws=2)
    runs = {
        "labels": lambda: ensemble.member_log_probs(letter_examples()),
        "completions": lambda: score_completions(ensemble, open_examples()).member_log_probs,
        "few-shot": lambda: few_shot.member_log_probs(letter_examples()),
    }
    for name, run in runs.items():
        expected = run()
        with no_memory_left(beyond=beyond) as failed:
            torch.testing.assert_close(
                run(), expected, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )
        assert failed
        assert failed == sorted(failed, reverse=True)


@pytest.mark.parametrize("name", TRIED)
def test_layers_that_compute_again_give_the_same_gradients_for_less_memory(name: str) -> None:
    ensemble = build_ensemble(name, members=2, random_b=True)
    table = TokenTable.from_encoded(encode_examples(letter_examples(), tokenizer()), 0)
    batch = table.gather(torch.arange(8).view(2, 4))
    check_recomputed(ensemble, lambda: row_losses(ensemble, batch).loss.sum())


def test_training_computes_activations_twice_where_not_even_one_row_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected, uses, real = trained(), [], adapter_trainee.recomputed

    def noted(*arguments):  # type: ignore[no-untyped-def]
        uses.append(1)
        return real(*arguments)

    monkeypatch.setattr(adapter_trainee, "recomputed", noted)
    step = training_module._step

    def without_room(run, number):  # type: ignore[no-untyped-def]
        if not run.recompute:
            torch.empty(1 << 50, dtype=torch.uint8)
        return step(run, number)

    monkeypatch.setattr(training_module, "_step", without_room)
    torch.testing.assert_close(trained(), expected, **TOLERANCE)
    assert len(uses) == 4 * 15  # four steps of 15 single rows


def test_an_error_that_is_no_lack_of_memory_is_not_tried_again() -> None:
    tries: list[int] = []

    def run(rows: int) -> None:
        tries.append(rows)
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        with_fewer_rows(run, 8)
    assert tries == [8]
