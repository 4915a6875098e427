"""The layers below the first adapted one run once for all members, or once for all epochs, with the result of
running them each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

import tiny_heads
from lora_ensembles import HeadConfig, LoraEnsemble, TrainConfig, score_completions, train
from lora_ensembles.baselines import TFB, MCDropout, SingleMember
from lora_ensembles.passes import trunk_states
from lora_ensembles.passes.decoder import model_layers
from tiny_models import (
    ARCHITECTURES,
    LLAMA_LIKE,
    TRIED,
    adapter_config,
    build,
    build_ensemble,
    letter_examples,
    open_examples,
    tokenizer,
)

TOLERANCE = dict(
    atol=1e-5, rtol=1e-5
)  # fp32 sums; in the trunk a row meets other neighbours, so products have another size
every_architecture = pytest.mark.parametrize("name", TRIED)


def on_top(name: str = "llama", *, layers: Sequence[int] = (1,)) -> LoraEnsemble:
    """Three members with adapters on some of two layers."""
    described = ARCHITECTURES[name]
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=list(described.targets),
        layers_to_transform=list(layers),
        fan_in_fan_out=described.conv1d,
    )
    return build_ensemble(name, members=3, random_b=True, adapter=config)


def rows_of_first_layer(ensemble: LoraEnsemble, run: Callable[[], Any]) -> tuple[Any, list[int]]:
    """What a call returns, and how many rows the first layer's attention sees in each pass that
    reaches it.
    """
    seen: list[int] = []
    attention = next(
        child
        for child in model_layers(ensemble.base)[0].children()
        if type(child).__name__.endswith("Attention")
    )
    handle = attention.register_forward_hook(lambda _module, _arguments, result: seen.append(len(result[0])))
    result = run()
    handle.remove()
    return result, seen


def without_trunk(ensemble: LoraEnsemble) -> LoraEnsemble:
    ensemble.__dict__["trunk"] = None
    return ensemble


@every_architecture
def test_the_trunk_reads_rows_once_for_all_members_with_the_same_scores(name: str) -> None:
    scores = {}
    for kind, ensemble in (("once", on_top(name)), ("each", without_trunk(on_top(name)))):
        assert (ensemble.trunk is None) == (kind == "each")
        labels, rows = rows_of_first_layer(
            ensemble, lambda ensemble=ensemble: ensemble.member_log_probs(letter_examples())
        )
        scores[kind] = [labels, score_completions(ensemble, open_examples()).member_log_probs]
        assert rows == [10 if kind == "once" else 30]
    torch.testing.assert_close(scores["once"], scores["each"], **TOLERANCE)


def trained(ensemble: LoraEnsemble) -> Tensor:
    config = TrainConfig(
        epochs=3, batch_size=4, learning_rate=2e-3, dropout=0.2, kl_weight=0.1, length_window=2
    )
    train(ensemble, letter_examples(), config, progress=False)
    return torch.cat([ensemble.stack.a, ensemble.stack.b], dim=1)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "gemma2"])
def test_training_keeps_what_the_trunk_makes_of_each_row_with_the_same_weights(name: str) -> None:
    ensemble = on_top(name)
    before = torch.cat([ensemble.stack.a, ensemble.stack.b], dim=1)
    found, rows = rows_of_first_layer(ensemble, lambda: trained(ensemble))
    assert (
        sum(rows) == 3 + 10 + 10
    )  # three to try the trunk, each row for the trunk's states, and for the base's; none in a step
    assert float((found - before).abs().max()) > 1e-2
    torch.testing.assert_close(
        found, trained(without_trunk(on_top(name))), atol=2e-5, rtol=0
    )  # nine steps of Adam


@pytest.mark.parametrize("loss", ["vocabulary", "labels"])
def test_models_that_share_kept_states_train_on_what_one_of_them_has_read(
    loss: Literal["vocabulary", "labels"],
) -> None:
    def run(kept: dict[str, trunk_states.TrunkStates | None] | None) -> tuple[Tensor, int]:
        ensemble = on_top()
        ensemble.kept_states = kept
        assert ensemble.trunk is not None  # tried here, and not counted below
        config = TrainConfig(epochs=2, batch_size=4, learning_rate=2e-3, loss=loss)
        _, rows = rows_of_first_layer(
            ensemble, lambda: train(ensemble, letter_examples(), config, progress=False)
        )
        return torch.cat([ensemble.stack.a, ensemble.stack.b], dim=1), sum(rows)

    alone, each = run(None)
    kept: dict[str, trunk_states.TrunkStates | None] = {}
    first, read = run(kept)
    second, again = run(kept)
    assert each == read == len(letter_examples())
    assert again == 0
    assert torch.equal(first, alone)
    assert torch.equal(second, alone)


def test_models_that_share_kept_states_score_what_one_of_them_has_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def asked(ensemble: LoraEnsemble) -> list[Tensor]:
        one = SingleMember(ensemble, 1).member_log_probs(letter_examples())
        return [
            one,
            ensemble.member_log_probs(letter_examples()),
            score_completions(ensemble, open_examples()).member_log_probs,
        ]

    def run(kept: dict[str, trunk_states.TrunkStates | None] | None) -> tuple[list[Tensor], int]:
        ensemble = on_top()
        ensemble.kept_states = kept
        assert ensemble.trunk is not None  # tried here, and not counted below
        found, rows = rows_of_first_layer(ensemble, lambda: asked(ensemble))
        return found, sum(rows)

    expected, each = run(None)
    kept: dict[str, trunk_states.TrunkStates | None] = {}
    assert run(kept)[1] < each
    found, again = run(kept)
    assert again == 0
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    monkeypatch.setattr(trunk_states, "TRUNK_CACHE_BYTES", 0)
    assert run({})[1] == each


def test_the_search_of_tfb_reads_its_questions_once_with_the_same_spread() -> None:
    found = {}
    for way in ("once", "each"):
        ensemble = on_top() if way == "once" else without_trunk(on_top())
        assert (ensemble.trunk is None) == (way == "each")  # tried here, and not counted below
        tfb = TFB(ensemble, samples=2, tolerance=0.05, steps=4)
        _, rows = rows_of_first_layer(ensemble, lambda tfb=tfb: tfb.fit(letter_examples()))
        found[way] = tfb.betas
        assert ensemble.kept_states is None
        assert (sum(rows) == len(letter_examples())) == (way == "once")
    assert found["once"] == pytest.approx(found["each"])
    assert max(found["once"]) > 0


def test_one_row_is_enough_to_train_on() -> None:
    ensemble = on_top()
    train(ensemble, letter_examples()[:1], TrainConfig(epochs=1), progress=False)
    kept = trunk_states.TrunkStates.of(
        ensemble.trunk, torch.tensor([3]), rows=4, read=lambda _: ensemble.base(torch.tensor([[1, 2, 3]]))
    )
    assert kept is not None
    assert kept.kept.shape[:2] == (1, 3)


def test_states_that_take_more_memory_than_they_may_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = trained(on_top())
    monkeypatch.setattr(trunk_states, "TRUNK_CACHE_BYTES", 1000)
    found, rows = rows_of_first_layer(ensemble := on_top(), lambda: trained(ensemble))
    assert sum(rows) > 3 * 3 * 10
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_there_is_no_trunk_below_an_adapted_first_layer() -> None:
    assert on_top(layers=(0,)).trunk is None
    assert build_ensemble().trunk is None


def test_a_model_that_carries_something_past_its_layers_has_no_trunk() -> None:
    base = build("llama")
    lower, upper = model_layers(base)
    carried: list[Tensor] = []
    lower.mlp.register_forward_hook(lambda _module, _arguments, result: carried.append(result))
    upper.mlp.register_forward_hook(
        lambda _module, _arguments, result: result + carried[-1][:, : result.shape[1]]
    )
    config = adapter_config()
    config.layers_to_transform = [1]
    assert LoraEnsemble(base, tokenizer(), num_members=2, adapter=config).trunk is None


def test_layers_have_their_own_forward_back_after_a_pass_that_failed() -> None:
    ensemble = on_top()
    trunk = ensemble.trunk
    assert trunk is not None
    with (
        pytest.raises(RuntimeError, match="stop"),
        trunk.skipped(torch.zeros(1, 3, LLAMA_LIKE["hidden_size"])),
    ):
        raise RuntimeError("stop")
    assert not any(
        "forward" in vars(layer) or layer._forward_pre_hooks for layer in model_layers(ensemble.base)
    )


def heads_on_top(name: str, kind: str) -> LoraEnsemble:
    """Three members with heads of their own and adapters on the upper of two layers."""
    config = tiny_heads.adapter_config(name)
    config.layers_to_transform = [1]
    ensemble = LoraEnsemble(
        tiny_heads.build(name, kind),
        tiny_heads.tokenizer(),
        num_members=3,
        adapter=config,
        head=HeadConfig(kind),
    )
    ensemble.stack.b.copy_(
        0.2 * torch.randn(ensemble.stack.b.shape, generator=torch.Generator().manual_seed(5))
    )
    ensemble.stack.refresh()
    assert ensemble.token_read is not None  # what is tried, is tried here, and is not counted below
    assert not ensemble.padding_is_read
    return ensemble


TEXTS = {"sequence-classification": 10, "multiple-choice": 29, "reward": 20}  # of all examples of a kind
every_head = pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in tiny_heads.TRIED for kind in tiny_heads.KINDS]
)


@every_head
def test_the_trunk_of_a_classifier_reads_texts_once_for_all_members(name: str, kind: str) -> None:
    scores = {}
    for way, ensemble in (
        ("once", heads_on_top(name, kind)),
        ("each", without_trunk(heads_on_top(name, kind))),
    ):
        assert (ensemble.trunk is None) == (way == "each")
        scores[way], rows = rows_of_first_layer(
            ensemble, lambda ensemble=ensemble: ensemble.member_log_probs(tiny_heads.examples_for(kind))
        )
        assert sum(rows) == (TEXTS[kind] if way == "once" else 3 * TEXTS[kind])
    torch.testing.assert_close(scores["once"], scores["each"], **TOLERANCE)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("bert", "multiple-choice"), ("deberta", "sequence-classification"), ("llama", "reward")],
)
def test_training_heads_keeps_what_the_trunk_makes_of_each_text_with_the_same_weights(
    name: str, kind: str
) -> None:
    def run(ensemble: LoraEnsemble) -> Tensor:
        config = TrainConfig(epochs=3, batch_size=4, learning_rate=2e-3, dropout=0.2, length_window=2)
        train(ensemble, tiny_heads.examples_for(kind), config, progress=False)
        return torch.cat(list(ensemble.stack.buffers), dim=1)

    ensemble = heads_on_top(name, kind)
    before = torch.cat(list(ensemble.stack.buffers), dim=1)
    found, rows = rows_of_first_layer(ensemble, lambda: run(ensemble))
    assert sum(rows) == 3 + TEXTS[kind]  # to try the trunk, then each text once
    assert float((found - before).abs().max()) > 1e-2
    torch.testing.assert_close(
        found, run(without_trunk(heads_on_top(name, kind))), atol=2e-5, rtol=0
    )  # nine steps of Adam


def asked_every_way(ensemble: LoraEnsemble, kind: str) -> list[Tensor]:
    """What all members say, one alone, and one under dropout; each of it three times."""
    examples = tiny_heads.examples_for(kind)
    predictors = [ensemble, SingleMember(ensemble, 1), MCDropout(ensemble, member=2, passes=4, dropout=0.3)]
    return [predictor.member_log_probs(examples) for _ in range(3) for predictor in predictors]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("bert", "multiple-choice"), ("distilbert", "reward"), ("llama", "sequence-classification")],
)
def test_states_that_an_ensemble_keeps_are_read_once_for_all_that_asks_it(name: str, kind: str) -> None:
    found = {}
    for way in ("kept", "read anew", "no trunk"):
        ensemble = heads_on_top(name, kind)
        if way == "no trunk":
            ensemble = without_trunk(ensemble)
        ensemble.kept_states = {} if way == "kept" else None
        assert ensemble.token_read is not None
        assert (ensemble.trunk is None) == (way == "no trunk")
        found[way], rows = rows_of_first_layer(
            ensemble, lambda ensemble=ensemble: asked_every_way(ensemble, kind)
        )
        each = 3 * (3 + 1 + 4) if way == "no trunk" else 3 * 3
        assert sum(rows) == TEXTS[kind] * (1 if way == "kept" else each)
    for way in ("kept", "read anew"):
        for one, other in zip(found[way], found["no trunk"], strict=True):
            torch.testing.assert_close(one, other, **TOLERANCE)
