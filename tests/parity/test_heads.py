"""Members with heads of their own against PEFT: the same scores, and the same weights after training with torch.optim.AdamW.

`assert_same_weights` says how equal weights have to be, and why.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from lora_ensembles import LoraEnsemble, predict, train
from lora_ensembles.batches import epoch_order
from lora_ensembles.dropout import dropout_factors, stream_key
from lora_ensembles.seeds import MemberSeeds
from lora_ensembles.sites import MemberWeights
from lora_ensembles.tasks import Example
from reference_training import (
    Recipe,
    assert_different_weights,
    assert_identical_weights,
    assert_same_weights,
    config_of,
)
from tiny_heads import ARCHITECTURES, build, build_ensemble, class_examples, examples_for, tokenizer

SHORT = Recipe(epochs=2, loss="auto")  # 10 examples in batches of 4, 4 and 2: 3 steps an epoch
LONG = Recipe(loss="auto")  # 21 steps
MATRIX = [
    (name, kind)
    for name in ARCHITECTURES
    for kind in ("sequence-classification", "multiple-choice", "reward")
]
KINDS = ("sequence-classification", "multiple-choice", "reward")


def peft_member(ensemble: LoraEnsemble, base: PreTrainedModel, seeds: MemberSeeds) -> PeftModel:
    """The member with these seeds as PEFT and transformers make it: adapters after the init seed, then a head of the base's own drawing."""
    torch.manual_seed(seeds.init)
    model = get_peft_model(base, copy.deepcopy(ensemble.adapter)).eval()
    if ensemble.info.head.init == "fresh":
        torch.manual_seed(stream_key(seeds.init, "head"))
        for module in model.modules():
            if isinstance(module, ModulesToSaveWrapper):
                for part in module.modules_to_save["default"].modules():
                    base._init_weights(part)
    return model


def scores_of(
    model: torch.nn.Module,
    kind: str,
    example: Example,
    *,
    before: Callable[[int], None] = lambda option: None,
) -> Tensor:
    """The scores of one example's classes or options, in the way that transformers documents: no padding, no folding of ours.

    `before` is told the number of the option whose text comes next.
    """
    question = example.question or example.prompt
    if kind == "sequence-classification":
        before(0)
        return model(**_typed(model, tokenizer()(question, example.pair, return_tensors="pt"))).logits[0]
    if kind == "reward":
        texts = [(example.prompt + option, None) for option in example.options]
    else:
        texts = [(question, option) for option in example.options]
    scores = []
    for option, (text, pair) in enumerate(texts):
        before(option)
        inputs = _typed(model, tokenizer()(text, pair, return_tensors="pt"))
        if "MultipleChoice" in type(_plain(model)).__name__:
            inputs = {name: value[:, None] for name, value in inputs.items()}
        scores.append(model(**inputs).logits[0, 0])
    return torch.stack(scores)


def _plain(model: torch.nn.Module) -> torch.nn.Module:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _typed(model: torch.nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    typed = getattr(_plain(model).config, "type_vocab_size", 0) > 1  # type: ignore[arg-type]
    return {name: value for name, value in inputs.items() if typed or name != "token_type_ids"}


def train_by_peft(
    ensemble: LoraEnsemble, base: PreTrainedModel, m: int, examples: Sequence[Example], recipe: Recipe
) -> MemberWeights:
    """Member m after PEFT's own adapter and head met the same batches, with torch's AdamW."""
    seeds, kind = ensemble.info.seeds[m], ensemble.head.kind
    model = peft_member(ensemble, base, seeds)
    for parameter in model.parameters():
        if parameter.shape == (
            1,
        ):  # the bias of one score a text: only differences of scores count, so its gradient is rounding
            parameter.requires_grad_(False)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    decays = {".lora_A.": recipe.weight_decay_a, ".lora_B.": recipe.weight_decay_b}
    groups = [
        {"params": [p for name, p in trained.items() if part in name], "weight_decay": decay}
        for part, decay in decays.items()
    ]
    head = [p for name, p in trained.items() if "modules_to_save" in name]
    optimizer = torch.optim.AdamW([*groups, {"params": head, "weight_decay": 0.01}], lr=recipe.learning_rate)
    per_epoch = math.ceil(len(examples) / recipe.batch_size)
    width = 1 if kind == "sequence-classification" else max(len(example.options) for example in examples)

    def drop(step: int, place: int, option: int) -> None:
        """Drop the features that the member's own stream names for a question's place in its batch and an option."""
        if recipe.dropout:
            layers = [module for module in model.modules() if hasattr(module, "lora_dropout")]
            for index, layer in enumerate(layers):
                key = stream_key(stream_key(seeds.order, "dropout", step), index)
                layer.lora_dropout["default"] = _GivenDropout(key, recipe.dropout, row=place * width + option)

    for step in range(per_epoch * recipe.epochs):
        epoch, place = divmod(step, per_epoch)
        order = epoch_order(seeds.order, epoch, len(examples)).tolist()
        losses = []
        for n in order[place * recipe.batch_size : (place + 1) * recipe.batch_size]:
            scores = scores_of(model, kind, examples[n], before=functools.partial(drop, step, len(losses)))
            loss = F.cross_entropy(scores, torch.tensor(examples[n].target))
            if kind == "reward":  # as Bradley and Terry have it
                loss = -F.logsigmoid(scores[0] - scores[1])
            if recipe.kl_weight:
                with torch.no_grad(), model.disable_adapter():
                    untouched = scores_of(model, kind, examples[n]).log_softmax(-1)
                loss = loss + recipe.kl_weight * F.kl_div(
                    untouched, scores.log_softmax(-1), reduction="sum", log_target=True
                )
            losses.append(loss)
        torch.stack(losses).mean().backward()
        if recipe.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(list(trained.values()), recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return weights_of(model)


class _GivenDropout(torch.nn.Module):
    """Stands where PEFT drops features, for the one row of a batch that is read."""

    def __init__(self, key: int, probability: float, *, row: int):
        super().__init__()
        self.key, self.probability, self.row = key, probability, row

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, x.shape[-2], x.shape[-1])
        factors = dropout_factors(
            torch.tensor([self.key]), torch.tensor([self.probability]), shape=shape, first_row=self.row
        )
        return x * factors.float().view(x.shape)


def weights_of(model: PeftModel) -> MemberWeights:
    a, b, head = {}, {}, {}
    for full, parameter in model.named_parameters():
        name = full.removeprefix("base_model.model.")
        site, found, matrix = name.rpartition(".lora_")
        if found:
            (a if matrix.startswith("A") else b)[site] = parameter.detach().clone()
        elif ".modules_to_save.default." in name:
            head[name.replace(".modules_to_save.default.", ".")] = parameter.detach().clone()
    return MemberWeights(a, b, {}, head)


def assert_same_head(found: MemberWeights, expected: MemberWeights, *, steps: int) -> None:
    assert found.head
    assert found.head.keys() == expected.head.keys()
    for name, tensor in expected.head.items():
        # Where a unit of DistilBERT's first head layer is on for every option, its bias shifts all scores alike: the gradient is rounding,
        # of which Adam makes whole steps.
        unlearnt = name == "pre_classifier.bias" and expected.head["classifier.weight"].shape[0] == 1
        torch.testing.assert_close(
            found.head[name], tensor, atol=steps * Recipe.learning_rate if unlearnt else 1e-5, rtol=1e-4
        )


def check_training(
    name: str, kind: str, recipe: Recipe, examples: list[Example] | None = None, *, init: str = "fresh"
) -> LoraEnsemble:
    """Hold a stack of three against the ensemble of one and against PEFT."""
    examples = examples_for(kind) if examples is None else examples
    ensemble = build_ensemble(name, kind, init=init)
    start = ensemble.stack.member(1)
    alone = build_ensemble(name, kind, init=init)
    alone.select([1])
    for one in (ensemble, alone):
        train(one, examples, config_of(recipe), progress=False)
    found = ensemble.stack.member(1)
    assert_different_weights(found, start)
    for other in (alone.stack.member(0), train_by_peft(ensemble, build(name, kind), 1, examples, recipe)):
        assert_same_weights(found, other)
        assert_same_head(found, other, steps=3 * recipe.epochs)
    return ensemble


@pytest.mark.parametrize(("name", "kind"), MATRIX)
def test_every_member_scores_as_peft_does(name: str, kind: str) -> None:
    ensemble = build_ensemble(name, kind, random_b=True)
    examples = examples_for(kind)
    found = predict(ensemble, examples).member_log_probs
    for m, seeds in enumerate(ensemble.info.seeds):
        model = peft_member(ensemble, build(name, kind), seeds)
        weights = ensemble.stack.member(m)
        for full, parameter in model.named_parameters():
            if ".lora_B." in full:
                parameter.data.copy_(
                    weights.b[full.removeprefix("base_model.model.").rpartition(".lora_")[0]]
                )
        with torch.no_grad():
            for n, example in enumerate(examples):
                expected = scores_of(model, kind, example).log_softmax(-1)
                torch.testing.assert_close(found[m, n, : len(expected)], expected, atol=2e-5, rtol=1e-4)


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
    alone.select([2])
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
    grown.select([2])
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
