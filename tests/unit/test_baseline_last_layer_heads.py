"""A last-layer ensemble of heads against transformers: the same scores, and the same weights after training
with torch.optim.AdamW.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from lora_ensembles import (
    HeadConfig,
    LastLayerHeads,
    LoraEnsemble,
    TrainConfig,
    evaluate,
    load_base,
    predict,
    train,
)
from lora_ensembles.errors import ConfigError
from lora_ensembles.heads.task.encoding import encode_texts
from lora_ensembles.passes.texts import text_scores
from lora_ensembles.training.orders import MemberOrders, epoch_order
from tiny_heads import TRIED, build, build_ensemble, examples_for, tokenizer
from tiny_models import build as build_causal, tokenizer as words

KINDS = ("sequence-classification", "multiple-choice", "reward")
CONFIG = TrainConfig(epochs=3, batch_size=4, learning_rate=3e-3, weight_decay_head=0.5)


def made(name: str, kind: str, *, init: str = "fresh") -> LastLayerHeads:
    head = HeadConfig(kind, init=init)  # type: ignore[arg-type]
    return LastLayerHeads(build(name, kind), tokenizer(), num_members=3, head=head)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TRIED)
def test_before_training_heads_of_the_base_give_its_own_scores(name: str, kind: str) -> None:
    examples, base = examples_for(kind), build(name, kind)
    table = encode_texts(examples, base, tokenizer(), head=HeadConfig(kind))  # type: ignore[arg-type]
    with torch.no_grad():
        expected = table.per_example(
            text_scores(base, table.texts(torch.arange(len(table.ids))))[None]
        ).log_softmax(-1)
    found = predict(made(name, kind, init="base"), examples).member_log_probs
    for m in range(3):
        torch.testing.assert_close(found[m], expected[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["bert", "roberta", "deberta", "llama"])
def test_heads_train_as_the_models_own_head_does_alone(name: str, kind: str) -> None:
    examples, ensemble = examples_for(kind), made(name, kind)
    start = ensemble.heads.member(1)
    ensemble.fit(examples, CONFIG)
    model = build(name, kind).requires_grad_(False)
    head = [model.get_parameter(one) for one in start]
    for parameter, value in zip(head, start.values(), strict=True):
        parameter.data.copy_(value)
        parameter.requires_grad_(
            parameter.shape != (1,)
        )  # of one score a text only differences count, so its bias learns nothing
    optimizer = torch.optim.AdamW([one for one in head if one.requires_grad], lr=3e-3, weight_decay=0.5)
    table = encode_texts(examples, model, tokenizer(), head=HeadConfig(kind))  # type: ignore[arg-type]
    for step in range(3 * math.ceil(len(examples) / 4)):
        epoch, place = divmod(step, math.ceil(len(examples) / 4))
        order = epoch_order(ensemble.seeds[1].order, epoch, len(examples))[place * 4 : place * 4 + 4]
        scores = table.per_example(text_scores(model, table.texts(torch.arange(len(table.ids))))[None])[0]
        F.cross_entropy(scores[order], table.targets[order]).backward()
        optimizer.step()
        optimizer.zero_grad()
    for one, parameter in zip(start, head, strict=True):
        torch.testing.assert_close(ensemble.heads.member(1)[one], parameter.detach(), atol=2e-5, rtol=1e-4)
    assert not torch.allclose(
        ensemble.heads.member(1)[next(iter(start))], start[next(iter(start))], atol=1e-3
    )


def test_it_begins_as_the_members_of_a_lora_ensemble_do_and_leaves_the_base_alone() -> None:
    ensemble = made("bert", "multiple-choice")
    assert torch.equal(ensemble.heads.flat, build_ensemble(members=3).stack.heads.flat)
    before = {name: tensor.clone() for name, tensor in ensemble.base.state_dict().items()}
    ensemble.fit(examples_for("multiple-choice"), CONFIG)
    after = ensemble.base.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_divergence_from_a_trained_head_keeps_members_near_it() -> None:
    examples = examples_for("sequence-classification")
    free, near = (made("bert", "sequence-classification", init="base") for _ in range(2))
    start = predict(free, examples)
    free.fit(examples, replace(CONFIG, epochs=20))
    near.fit(examples, replace(CONFIG, epochs=20, kl_weight=20.0))
    moved = [(predict(one, examples).probs - start.probs).abs().max() for one in (free, near)]
    assert moved[1] < 0.3 * moved[0]
    with pytest.raises(ConfigError, match="heads were newly initialised"):
        made("bert", "sequence-classification").fit(examples, replace(CONFIG, kl_weight=1.0))


def test_it_learns_what_a_head_can_learn() -> None:
    examples, ensemble = examples_for("sequence-classification"), made("bert", "sequence-classification")
    ensemble.fit(examples, replace(CONFIG, epochs=200, weight_decay_head=0.0, learning_rate=2e-2))
    assert evaluate(predict(ensemble, examples, max_rows=3)).accuracy == 1.0


def test_a_causal_language_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="LastLayerEnsemble is for causal language models"):
        LastLayerHeads(build_causal("llama"), words())


def test_the_orders_are_those_of_adapters_with_a_length_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members of both ensembles read the same examples in the same steps."""
    ensemble, adapters, examples = (
        made("bert", "sequence-classification"),
        build_ensemble("bert", "sequence-classification"),
        examples_for("sequence-classification"),
    )
    read: list[list[torch.Tensor]] = []
    batch = MemberOrders.batch
    monkeypatch.setattr(
        MemberOrders, "batch", lambda orders, step: read[-1].append(found := batch(orders, step)) or found
    )
    for learn in (
        lambda config: ensemble.fit(examples, config),
        lambda config: train(adapters, examples, config, progress=False),
    ):
        read.append([])
        learn(replace(CONFIG, length_window=2, weight_decay_head=0.0))
    assert len(read[0]) == 9
    assert all(map(torch.equal, *read))
    plain = torch.stack([epoch_order(one.order, 0, len(examples))[:4] for one in ensemble.seeds])
    assert not torch.equal(read[0][0], plain)


def test_a_pooler_that_the_checkpoint_lacks_is_the_members_own(tmp_path: Path) -> None:
    """Each load newly initialises it, and the members' predictions stay the same."""
    body = build("roberta", "multiple-choice").roberta
    body.pooler = None  # as in a checkpoint of a masked language model
    body.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        base, words_of_it = load_base(str(tmp_path), head="multiple-choice")
        ensemble = LastLayerHeads(base, words_of_it, num_members=2)
        assert "roberta.pooler.dense" in {layer.name for layer in ensemble.heads.layers}
        adapters = LoraEnsemble(base, words_of_it, num_members=2)
        assert torch.equal(ensemble.heads.flat, adapters.stack.heads.flat)
        adapters.unload()
        ensemble.fit(examples_for("multiple-choice"), CONFIG)
        found.append(predict(ensemble, examples_for("multiple-choice")).member_log_probs)
    torch.testing.assert_close(*found)
