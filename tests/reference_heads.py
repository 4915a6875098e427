"""Members with heads of their own as PEFT and transformers make, score and train them: text by text, without
padding.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence

import torch
from peft import PeftModel, get_peft_model
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from lora_ensembles import LoraEnsemble, predict, train
from lora_ensembles.data import Example
from lora_ensembles.stack.dropout import dropout_factors, stream_key
from lora_ensembles.stack.seeds import MemberSeeds
from lora_ensembles.stack.sites import MemberWeights
from lora_ensembles.training.orders import epoch_order
from reference_training import Recipe, assert_different_weights, assert_same_weights, config_of
from tiny_heads import build, build_ensemble, examples_for, tokenizer


def peft_member(ensemble: LoraEnsemble, base: PreTrainedModel, seeds: MemberSeeds) -> PeftModel:
    """The member with these seeds as PEFT and transformers make it: adapters after the init seed, then a head
    of the base's own drawing.
    """
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
    """The scores of one example's classes or options, in the way that transformers documents: no padding, no
    folding of ours.

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
        """Drop the features that the member's own stream names for a question's place in its batch and an
        option.
        """
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
            soft = examples[n].target_probs
            loss = F.cross_entropy(scores, torch.tensor(examples[n].target if soft is None else soft))
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
            torch.tensor([self.key]),
            torch.tensor([self.probability]),
            shape=shape,
            row_numbers=torch.tensor([[self.row]]),
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
        # Where a unit of DistilBERT's first head layer is on for every option, its bias shifts all scores
        # alike: the gradient is rounding, of which Adam makes whole steps.
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
    alone.keep_members([1])
    for one in (ensemble, alone):
        train(one, examples, config_of(recipe), progress=False)
    found = ensemble.stack.member(1)
    assert_different_weights(found, start)
    for other in (alone.stack.member(0), train_by_peft(ensemble, build(name, kind), 1, examples, recipe)):
        assert_same_weights(found, other)
        assert_same_head(found, other, steps=3 * recipe.epochs)
    return ensemble


def check_scores(name: str, kind: str) -> None:
    """Hold every member's log-probabilities of all examples of a kind against PEFT's."""
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
