"""Each baseline against a slow one by torch and PEFT alone: one model a member, full logits, an attention
mask, torch.optim.AdamW.

Tolerance 1e-5 on log-probabilities of size 1 to 5: fp32 sums of some dozen terms in another order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from breadth import crossed
from lora_ensembles import BatchEnsemble, LastLayerEnsemble, LoraEnsemble, MCDropout, TrainConfig
from lora_ensembles.data import EncodedExample, Example, encode_examples
from lora_ensembles.stack.dropout import dropout_factors, stream_key
from lora_ensembles.stack.seeds import MemberSeeds
from lora_ensembles.training.orders import epoch_order
from tiny_models import (
    ARCHITECTURES,
    TRIED,
    adapter_config,
    build,
    build_ensemble,
    letter_examples,
    pad,
    phrase_examples,
    tokenizer,
)

TOLERANCE = dict(atol=1e-5, rtol=1e-5)
MEMBERS = 3
RATES = [3e-3, 1e-3, 2e-3]
Logits = Callable[[Tensor, Tensor], Tensor]  # ids, mask -> (B, T, V), with gradients

PLAIN = TrainConfig(
    epochs=4,
    batch_size=4,
    learning_rate=RATES,
    weight_decay_a=0.0,
    weight_decay_b=0.0,
    label_score="sum",  # as the references below score labels of several tokens
)
RECIPES = {
    "plain": PLAIN,
    "decay": replace(PLAIN, weight_decay_a=20.0, weight_decay_b=[5.0, 50.0, 0.0]),
    "kl": replace(PLAIN, kl_weight=[0.7, 0.0, 0.3]),
    "clip": replace(PLAIN, max_grad_norm=0.3),
    "everything": replace(
        PLAIN,
        weight_decay_b=20.0,
        kl_weight=0.5,
        max_grad_norm=0.5,
        schedule="cosine",
        warmup_steps=2,
        max_rows=5,
        batch_size=3,
    ),
}
every_architecture = pytest.mark.parametrize("name", TRIED)


def losses_of(logits: Logits, batch: Sequence[EncodedExample], *, kl_weight: float, base: Logits) -> Tensor:
    """Mean over the batch of Eq. 3 plus `kl_weight` times Eq. 4, both summed over the answer's tokens."""
    answers = [example.label_ids[example.target or 0] for example in batch]
    ids, mask = pad([[*example.prompt_ids, *answer] for example, answer in zip(batch, answers, strict=True)])
    tuned, untouched = logits(ids, mask), base(ids, mask).detach()
    losses = []
    for row, (example, answer) in enumerate(zip(batch, answers, strict=True)):
        places = slice(len(example.prompt_ids) - 1, len(example.prompt_ids) - 1 + len(answer))
        loss = F.cross_entropy(tuned[row, places], torch.tensor(answer), reduction="sum")
        divergence = F.kl_div(
            untouched[row, places].log_softmax(-1),
            tuned[row, places].log_softmax(-1),
            reduction="sum",
            log_target=True,
        )
        losses.append(loss + kl_weight * divergence)
    return torch.stack(losses).mean()


def rate_factor(config: TrainConfig, steps: int, step: int) -> float:
    if step < config.warmup_steps:
        return step / config.warmup_steps
    done = (step - config.warmup_steps) / (steps - config.warmup_steps)
    return {"constant": 1.0, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[config.schedule]


def train_alone(
    groups: tuple[list[nn.Parameter], list[nn.Parameter]],
    loss_of: Callable[[Sequence[EncodedExample], float], Tensor],
    *,
    encoded: Sequence[EncodedExample],
    seeds: MemberSeeds,
    config: TrainConfig,
    member: int,
) -> None:
    """Train one member's parameters, of which the first group decays as A and the second as B."""
    rate, decay_a, decay_b, kl = (
        float(config.per_member(name, MEMBERS)[member])
        for name in ("learning_rate", "weight_decay_a", "weight_decay_b", "kl_weight")
    )
    described = [
        {"params": group, "weight_decay": decay}
        for group, decay in zip(groups, (decay_a, decay_b), strict=True)
        if group
    ]
    optimizer = torch.optim.AdamW(described, lr=rate)
    steps = -(-len(encoded) // config.batch_size) * config.epochs
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(rate_factor, config, steps))
    for epoch in range(config.epochs):
        for numbers in epoch_order(seeds.order, epoch, len(encoded)).split(config.batch_size):
            optimizer.zero_grad()
            loss_of([encoded[n] for n in numbers.tolist()], kl).backward()
            if config.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(
                    [one for group in groups for one in group], config.max_grad_norm
                )
            optimizer.step()
            scheduler.step()


@torch.no_grad()
def label_log_probs(logits: Logits, examples: Sequence[Example]) -> Tensor:
    """(N, C) by one pass a prompt and label, unpadded."""
    options = max(len(example.labels) for example in examples)
    found = torch.full((len(examples), options), -torch.inf)
    for row, example in enumerate(encode_examples(examples, tokenizer())):
        for option, label in enumerate(example.label_ids):
            ids, mask = pad([[*example.prompt_ids, *label]])
            start = len(example.prompt_ids) - 1
            log_probs = logits(ids, mask)[0, start : start + len(label)].log_softmax(dim=-1)
            found[row, option] = log_probs.gather(1, torch.tensor(label)[:, None]).sum()
    return found.log_softmax(dim=-1)


def assert_close_parameters(found: Tensor, expected: Tensor, start: Tensor) -> None:
    """Equal but for Adam's division of gradients as small as rounding: one element in 500 may be off by part
    of a step; and both moved.
    """
    assert float((expected - start).abs().max()) > 1e-3
    torch.testing.assert_close(found, expected, atol=max(RATES), rtol=0)
    off = (~torch.isclose(found, expected, atol=1e-5, rtol=1e-5)).sum().item()
    assert off <= found.numel() / 500, f"{off} of {found.numel()} parameters differ by more than 1e-5"


# Last-layer ensemble


def plain_logits(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def logits_with_rows(
    model: PreTrainedModel, labels: Tensor, rows: Tensor, ids: Tensor, mask: Tensor
) -> Tensor:
    """The whole model with some rows of its head replaced; the input embeddings stay, tied or not."""
    head = model.get_output_embeddings()
    (name,) = [name for name, module in model.named_modules() if module is head]
    weight = head.weight.detach().index_copy(0, labels, rows)
    arguments = dict(input_ids=ids, attention_mask=mask, use_cache=False)
    return functional_call(model, {f"{name}.weight": weight}, (), arguments, tie_weights=False).logits


def check_last_layer(name: str, config: TrainConfig, examples: Sequence[Example]) -> None:
    ensemble = LastLayerEnsemble(build(name), tokenizer(), num_members=MEMBERS, seed=4)
    result = ensemble.fit(examples, config)
    found = ensemble.member_log_probs(examples)
    encoded = encode_examples(examples, tokenizer())
    labels = torch.tensor(
        sorted({token for example in encoded for label in example.label_ids for token in label})
    )
    assert (
        ensemble.num_trained_parameters == len(labels) * build(name).get_output_embeddings().weight.shape[1]
    )
    for m in range(MEMBERS):
        model = build(name).requires_grad_(False)
        start = model.get_output_embeddings().weight.detach()[labels]
        rows = nn.Parameter(start.clone())
        own, base = partial(logits_with_rows, model, labels, rows), partial(plain_logits, model)
        train_alone(
            ([], [rows]),
            lambda batch, kl, own=own, base=base: losses_of(own, batch, kl_weight=kl, base=base),
            encoded=encoded,
            seeds=ensemble.seeds[m],
            config=config,
            member=m,
        )
        assert_close_parameters(ensemble.rows[m], rows.detach(), start)
        torch.testing.assert_close(
            found[m], label_log_probs(own, examples), atol=1e-4, rtol=1e-4
        )  # of rows that are equal to 1e-5
    assert len(result.history) == config.epochs


@pytest.mark.parametrize(("name", "recipe"), crossed(["llama", "gemma2"], RECIPES, usual="everything"))
def test_last_layer_ensemble_equals_adamw_on_a_copy_of_the_head_s_rows(name: str, recipe: str) -> None:
    check_last_layer(name, RECIPES[recipe], letter_examples())


@every_architecture
def test_last_layer_ensemble_follows_what_each_architecture_does_behind_its_head(name: str) -> None:
    check_last_layer(name, replace(PLAIN, epochs=2, kl_weight=0.5), letter_examples()[:7])


def test_last_layer_ensemble_trains_labels_of_several_tokens() -> None:
    check_last_layer("llama", replace(PLAIN, kl_weight=0.5), phrase_examples())


@every_architecture
def test_last_layer_ensemble_is_the_base_before_training(name: str) -> None:
    ensemble = LastLayerEnsemble(build(name), tokenizer(), num_members=2)
    expected = label_log_probs(partial(plain_logits, build(name)), letter_examples()).expand(2, -1, -1)
    torch.testing.assert_close(ensemble.member_log_probs(letter_examples()), expected, **TOLERANCE)
    ensemble.fit(letter_examples(), TrainConfig(epochs=1, learning_rate=0.0))
    torch.testing.assert_close(ensemble.member_log_probs(letter_examples()), expected, **TOLERANCE)


# MC dropout


class GivenDropout(nn.Module):
    """Stands where PEFT drops features, and drops those that the stack's hash names for one row."""

    def __init__(self, key: int, probability: float):
        super().__init__()
        self.key, self.probability = key, probability

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, x.numel() // x.shape[-1], x.shape[-1])
        factors = dropout_factors(torch.tensor([self.key]), torch.tensor([self.probability]), shape=shape)
        return x * factors.float().view(x.shape)


def peft_member(ensemble: LoraEnsemble, name: str, member: int, *, adapter: LoraConfig) -> PeftModel:
    model = get_peft_model(build(name), adapter).eval()
    weights = ensemble.stack.member(member)
    state = {f"base_model.model.{site}.lora_A.default.weight": a for site, a in weights.a.items()}
    state |= {f"base_model.model.{site}.lora_B.default.weight": b for site, b in weights.b.items()}
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    return model


@pytest.mark.parametrize("examples", [letter_examples(), phrase_examples()], ids=["letters", "phrases"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "qwen3", "qwen2_moe_shared_expert"])
def test_passes_of_mc_dropout_equal_a_peft_model_with_the_same_masks(
    name: str, examples: list[Example]
) -> None:
    ensemble = build_ensemble(name, members=3, random_b=True)
    found = MCDropout(ensemble, member=1, passes=3, dropout=0.3, seed=7).member_log_probs(examples)
    model = peft_member(ensemble, name, 1, adapter=adapter_config(name))
    layers = [module for module in model.modules() if hasattr(module, "lora_dropout")]
    assert len(layers) == len(ensemble.stack.sites)
    encoded = encode_examples(examples, tokenizer())
    for index in range(3):
        for row, example in enumerate(examples):
            key = stream_key(7, "pass", index, *encoded[row].prompt_ids)
            for number, layer in enumerate(layers):
                layer.lora_dropout["default"] = GivenDropout(stream_key(key, number), 0.3)
            expected = label_log_probs(partial(plain_logits, model), [example])[0]
            torch.testing.assert_close(found[index, row, : len(expected)], expected, **TOLERANCE)
    assert float((found[0] - found[1]).nan_to_num().abs().max()) > 1e-2


def test_mean_of_many_passes_is_that_of_pefts_own_dropout() -> None:
    ensemble = build_ensemble(members=1, random_b=True)
    examples, passes = letter_examples()[:3], 1000
    found = MCDropout(ensemble, passes=passes, dropout=0.3).member_log_probs(examples).exp()
    model = peft_member(ensemble, "llama", 0, adapter=adapter_config(dropout=0.3))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    expected = []
    for example in encode_examples(examples, tokenizer()):
        ids = torch.tensor([example.prompt_ids]).expand(passes, -1)  # every row has a mask of its own
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[:, -1]
        expected.append(logits[:, [label for (label,) in example.label_ids]].softmax(dim=-1))
    for row, probabilities in enumerate(expected):
        own = found[:, row, : probabilities.shape[1]]
        bound = (
            5 * ((own.var(dim=0) + probabilities.var(dim=0)) / passes).sqrt()
        )  # five deviations of the difference of two means
        assert bool(((own.mean(dim=0) - probabilities.mean(dim=0)).abs() < bound).all())
        torch.testing.assert_close(
            own.std(dim=0), probabilities.std(dim=0), rtol=0.15, atol=1e-3
        )  # 1000 draws: 2 % to 5 % each


# BatchEnsemble


class DenseRankOne(nn.Module):
    """The dense W o (s r^T) of one member."""

    def __init__(self, layer: nn.Module, input_offsets: Tensor, output_offsets: Tensor):
        super().__init__()
        weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
        self.weight, self.bias = (
            weight.detach().clone(),
            None if layer.bias is None else layer.bias.detach().clone(),
        )
        self.u, self.v = nn.Parameter(input_offsets.clone()), nn.Parameter(output_offsets.clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * torch.outer(1 + self.v, 1 + self.u), self.bias)


def dense_member(
    name: str, ensemble: BatchEnsemble, member: int
) -> tuple[PreTrainedModel, list[DenseRankOne]]:
    """A model of its own with the member's weights, and its changed layers."""
    model = build(name).requires_grad_(False)
    ends = tuple(f".{target}" for target in ARCHITECTURES[name].targets)
    places = [place for place, _ in model.named_modules() if place.endswith(ends)]
    inputs, outputs, changed = ensemble.inputs[member], ensemble.outputs[member], []
    for place in places:
        layer = model.get_submodule(place)
        wide, high = (
            (layer.nx, layer.nf) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)
        )
        changed.append(DenseRankOne(layer, inputs[:wide], outputs[:high]))
        inputs, outputs = inputs[wide:], outputs[high:]
        parent, _, child = place.rpartition(".")
        setattr(model.get_submodule(parent), child, changed[-1])
    assert len(inputs) == len(outputs) == 0
    return model, changed


def batch_ensemble(name: str, *, sigma: float = 0.2) -> BatchEnsemble:
    return BatchEnsemble(
        build(name), tokenizer(), num_members=MEMBERS, adapter=adapter_config(name), sigma=sigma, seed=4
    )


@every_architecture
def test_batch_ensemble_equals_separate_models_with_dense_weights(name: str) -> None:
    ensemble = batch_ensemble(name)
    found = ensemble.member_log_probs(letter_examples())
    for m in range(MEMBERS):
        expected = label_log_probs(
            partial(plain_logits, dense_member(name, ensemble, m)[0]), letter_examples()
        )
        torch.testing.assert_close(found[m], expected, **TOLERANCE)
    assert float((found[0] - found[1]).nan_to_num().abs().max()) > 1e-2


def test_batch_ensemble_scores_labels_of_several_tokens() -> None:
    ensemble = batch_ensemble("llama")
    found = ensemble.member_log_probs(phrase_examples())
    for m in range(MEMBERS):
        expected = label_log_probs(
            partial(plain_logits, dense_member("llama", ensemble, m)[0]), phrase_examples()
        )
        torch.testing.assert_close(found[m], expected, **TOLERANCE)


@every_architecture
def test_batch_ensemble_is_exactly_the_base_before_training_if_it_starts_there(name: str) -> None:
    ensemble = batch_ensemble(name, sigma=0.0)
    found = ensemble.member_log_probs(letter_examples())
    base = LoraEnsemble(build(name), tokenizer(), num_members=MEMBERS, adapter=adapter_config(name))  # B = 0
    assert torch.equal(found, base.member_log_probs(letter_examples()))


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        *(("llama", recipe) for recipe in RECIPES),
        ("gpt2", "everything"),
        ("qwen2", "everything"),
        ("qwen2_moe_shared_expert", "plain"),
    ],
)
def test_batch_ensemble_trains_as_separate_models_by_adamw(name: str, recipe: str) -> None:
    config, ensemble = RECIPES[recipe], batch_ensemble(name, sigma=0.1)
    start = [torch.cat([ensemble.inputs[m], ensemble.outputs[m]]) for m in range(MEMBERS)]
    separate = [dense_member(name, ensemble, m) for m in range(MEMBERS)]
    ensemble.fit(letter_examples(), config)
    for m, (model, changed) in enumerate(separate):
        own, base = partial(plain_logits, model), partial(plain_logits, build(name).requires_grad_(False))
        train_alone(
            ([layer.u for layer in changed], [layer.v for layer in changed]),
            lambda batch, kl, own=own, base=base: losses_of(own, batch, kl_weight=kl, base=base),
            encoded=encode_examples(letter_examples(), tokenizer()),
            seeds=ensemble.seeds[m],
            config=config,
            member=m,
        )
        expected = torch.cat(
            [*(layer.u.detach() for layer in changed), *(layer.v.detach() for layer in changed)]
        )
        assert_close_parameters(torch.cat([ensemble.inputs[m], ensemble.outputs[m]]), expected, start[m])
