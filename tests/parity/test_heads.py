"""Members with heads of their own against PEFT: the same scores, and the same weights after training with
torch.optim.AdamW.

`assert_same_weights` says how equal weights have to be, and why.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from lora_ensembles import LoraEnsemble, predict, train
from reference_heads import assert_same_head, check_scores, check_training, scores_of
from reference_training import (
    Recipe,
    assert_different_weights,
    assert_identical_weights,
    assert_same_weights,
    config_of,
)
from tiny_heads import TRIED, build, build_ensemble, class_examples, examples_for, tokenizer

SHORT = Recipe(epochs=2, loss="auto")  # 10 examples in batches of 4, 4 and 2: 3 steps an epoch
LONG = Recipe(loss="auto")  # 21 steps
MATRIX = [(name, kind) for name in TRIED for kind in ("sequence-classification", "multiple-choice", "reward")]
KINDS = ("sequence-classification", "multiple-choice", "reward")


@pytest.mark.parametrize(("name", "kind"), MATRIX)
def test_every_member_scores_as_peft_does(name: str, kind: str) -> None:
    check_scores(name, kind)


@pytest.mark.parametrize(("name", "kind"), MATRIX)
def test_a_saved_member_opens_in_peft_on_a_base_with_another_head(
    name: str, kind: str, tmp_path: Path
) -> None:
    ensemble = build_ensemble(name, kind, random_b=True)
    examples = examples_for(kind)
    expected = predict(ensemble, examples).member_log_probs
    ensemble.save_pretrained(tmp_path / "saved")
    base = build(name, kind)
    for site in ensemble.stack.heads.sites:
        base.get_parameter(site.name).data.normal_()
    model = PeftModel.from_pretrained(base, str(tmp_path / "saved" / "member_001")).eval()
    with torch.no_grad():
        for n, example in enumerate(examples):
            scores = scores_of(model, kind, example).log_softmax(-1)
            torch.testing.assert_close(expected[1, n, : len(scores)], scores, atol=2e-5, rtol=1e-4)
    base = build(name, kind)
    for site in ensemble.stack.heads.sites:  # and the ensemble on such a base
        base.get_parameter(site.name).data.normal_()
    again = LoraEnsemble.from_pretrained(tmp_path / "saved", base=base, tokenizer=tokenizer())
    torch.testing.assert_close(predict(again, examples).member_log_probs, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_with_heads_that_peft_trained_are_members(kind: str, tmp_path: Path) -> None:
    examples, expected = examples_for(kind), []
    task = None if kind == "multiple-choice" else "SEQ_CLS"
    for m in range(2):
        torch.manual_seed(m)
        config = LoraConfig(
            r=2 + m,
            target_modules=["query", "value"],
            init_lora_weights=False,
            modules_to_save=["classifier"],
            task_type=task,
        )
        model = get_peft_model(build("bert", kind), config).eval()
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.data.normal_()
        with torch.no_grad():
            expected.append([scores_of(model, kind, example).log_softmax(-1) for example in examples])
        model.save_pretrained(str(tmp_path / str(m)))
    ensemble = LoraEnsemble.from_adapters(build("bert", kind), tokenizer(), [tmp_path / "0", tmp_path / "1"])
    found = predict(ensemble, examples).member_log_probs
    for m in range(2):
        for n, scores in enumerate(expected[m]):
            torch.testing.assert_close(found[m, n, : len(scores)], scores, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "kind"), MATRIX)
def test_member_trained_in_stack_equals_member_trained_alone_and_by_peft(name: str, kind: str) -> None:
    check_training(name, kind, LONG if name == "bert" else SHORT)


@pytest.mark.parametrize("kind", ["sequence-classification", "multiple-choice"])
def test_with_decay_clip_and_divergence_from_a_trained_base_members_train_as_by_peft(kind: str) -> None:
    recipe = replace(SHORT, weight_decay_a=10.0, weight_decay_b=50.0, max_grad_norm=0.5, kl_weight=0.7)
    regularised = check_training("bert", kind, recipe, init="base")
    assert_different_weights(
        regularised.stack.member(1), check_training("bert", kind, SHORT, init="base").stack.member(1)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_with_dropout_members_train_as_by_peft_with_the_same_features_dropped(kind: str) -> None:
    check_training("bert", kind, replace(SHORT, dropout=0.3))


def test_pairs_of_texts_train_as_by_peft() -> None:
    check_training("bert", "sequence-classification", SHORT, class_examples(pairs=True))


@pytest.mark.parametrize("max_rows", [16, 5, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_over_members_and_questions_equals_the_whole_batch(kind: str, max_rows: int) -> None:
    config = config_of(replace(SHORT, dropout=0.2, max_grad_norm=0.7))
    whole, split = build_ensemble("bert", kind), build_ensemble("bert", kind)
    train(whole, examples_for(kind), config, progress=False)
    train(split, examples_for(kind), replace(config, max_rows=max_rows), progress=False)
    for m in range(3):
        assert_same_weights(split.stack.member(m), whole.stack.member(m))
        assert_same_head(split.stack.member(m), whole.stack.member(m), steps=6)


@pytest.mark.parametrize("kind", KINDS)
def test_with_dropout_a_member_of_a_stack_equals_the_member_alone(kind: str) -> None:
    config = config_of(replace(SHORT, dropout=0.3))
    stacked, alone = build_ensemble("bert", kind), build_ensemble("bert", kind)
    alone.keep_members([2])
    dry = build_ensemble("bert", kind)
    for ensemble in (stacked, alone):
        train(ensemble, examples_for(kind), config, progress=False)
    train(dry, examples_for(kind), config_of(SHORT), progress=False)
    assert_same_weights(stacked.stack.member(2), alone.stack.member(0))
    assert_same_head(stacked.stack.member(2), alone.stack.member(0), steps=6)
    assert_different_weights(stacked.stack.member(2), dry.stack.member(2))


def test_a_member_added_later_has_the_adapter_and_the_head_that_it_would_have_had() -> None:
    grown, whole = build_ensemble(members=2), build_ensemble(members=3)
    grown.add_members(1)
    assert_identical_weights(grown.stack.member(2), whole.stack.member(2))
    for name, tensor in whole.stack.member(2).head.items():
        assert torch.equal(grown.stack.member(2).head[name], tensor)
    grown.keep_members([2])
    train(grown, examples_for("multiple-choice"), config_of(SHORT), progress=False)
    train(whole, examples_for("multiple-choice"), config_of(SHORT), progress=False)
    assert_same_weights(grown.stack.member(0), whole.stack.member(2))
    assert_same_head(grown.stack.member(0), whole.stack.member(2), steps=6)


def test_in_bf16_the_masters_of_heads_stay_fp32_and_the_loss_stays_close() -> None:
    config = config_of(replace(LONG, learning_rate=1e-3))
    kind = "sequence-classification"
    exact, half = build_ensemble("bert", kind), build_ensemble("bert", kind, dtype=torch.bfloat16)
    heads = half.stack.heads
    assert torch.equal(heads.flat, exact.stack.heads.flat)  # drawn in fp32 whatever the base's dtype
    histories = [train(one, examples_for(kind), config, progress=False).history for one in (exact, half)]
    assert (heads.flat.dtype, heads.working.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(heads.working, heads.flat.bfloat16())
    assert not torch.equal(heads.flat, heads.flat.bfloat16().float())
    for row, row_half in zip(*histories, strict=True):
        # bf16 keeps 8 bits: about 0.4 % an operation, some dozen operations deep, on losses of size 1.
        torch.testing.assert_close(
            torch.tensor(row_half["train_loss"]), torch.tensor(row["train_loss"]), atol=0.1, rtol=0.05
        )
