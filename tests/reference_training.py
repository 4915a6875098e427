"""One member trained by PEFT and torch.optim alone, in plain lines: what a stack is held against, and how
equal the two must be.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from lora_ensembles import TrainConfig
from lora_ensembles.data import EncodedExample
from lora_ensembles.stack.dropout import dropout_factors, stream_key
from lora_ensembles.stack.seeds import MemberSeeds
from lora_ensembles.stack.sites import MemberWeights
from lora_ensembles.training.orders import epoch_order
from tiny_models import pad


@dataclass(frozen=True)
class Recipe:
    """The settings of one member's run, under the names of `TrainConfig`."""

    epochs: int = 7
    batch_size: int = 4
    learning_rate: float = 3e-3
    weight_decay_a: float = 0.0
    weight_decay_b: float = 0.0
    kl_weight: float = 0.0
    dropout: float = 0.0
    schedule: str = "constant"
    warmup_steps: int = 0
    max_grad_norm: float | None = None
    loss: str = "vocabulary"
    label_score: str = "sum"


def train_by_peft(
    base: PreTrainedModel,
    adapter: LoraConfig,
    seeds: MemberSeeds,
    encoded: Sequence[EncodedExample],
    recipe: Recipe,
    *,
    variants: int = 1,
) -> MemberWeights:
    """The weights of the member with these seeds, after PEFT's own adapter met the same batches; of
    `variants` rows of an example that follow each other, one in an epoch.
    """
    torch.manual_seed(seeds.init)
    model = get_peft_model(
        base, adapter
    ).eval()  # evaluation mode: the base's dropout stays off, as in a stack
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [p for name, p in model.named_parameters() if ".lora_A." in name],
                "weight_decay": recipe.weight_decay_a,
            },
            {
                "params": [p for name, p in model.named_parameters() if ".lora_B." in name],
                "weight_decay": recipe.weight_decay_b,
            },
        ],
        lr=recipe.learning_rate,
    )
    count = len(encoded) // variants
    per_epoch = math.ceil(count / recipe.batch_size)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _factor(recipe, step, per_epoch * recipe.epochs)
    )
    for step in range(per_epoch * recipe.epochs):
        epoch, place = divmod(step, per_epoch)
        order = epoch_order(seeds.order, epoch, count).tolist()
        generator = torch.Generator().manual_seed(stream_key(seeds.order, "variants", epoch))
        drawn = torch.randint(variants, (count,), generator=generator).tolist()
        numbers = order[place * recipe.batch_size : (place + 1) * recipe.batch_size]
        batch = [encoded[n * variants + drawn[n]] for n in numbers]
        if recipe.dropout:
            _place_dropout(model, recipe.dropout, seeds, step)
        if recipe.loss == "labels" and recipe.dropout:
            _letters_loss(model, batch).backward()
        elif recipe.loss == "labels":
            torch.stack([_label_loss(model, example, recipe) for example in batch]).mean().backward()
        else:
            _loss(model, batch, recipe.kl_weight).backward()
        if recipe.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return _weights(model)


def _loss(model: PeftModel, batch: Sequence[EncodedExample], kl_weight: float) -> Tensor:
    """Mean over the batch of the summed loss of each answer's tokens: an attention mask, full logits, the
    base asked live.
    """
    answers = [example.label_ids[example.target or 0] for example in batch]
    ids, mask = pad([[*example.prompt_ids, *answer] for example, answer in zip(batch, answers, strict=True)])
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    with model.disable_adapter(), torch.no_grad():
        base = model(input_ids=ids, attention_mask=mask, use_cache=False).logits if kl_weight else logits
    losses = []
    for row, (example, answer) in enumerate(zip(batch, answers, strict=True)):
        start = len(example.prompt_ids) - 1
        tuned, untouched = logits[row, start : start + len(answer)], base[row, start : start + len(answer)]
        loss = F.cross_entropy(tuned, torch.tensor(answer), reduction="sum")
        if kl_weight:  # torch's kl_div(input, target) is D(target || input)
            loss = loss + kl_weight * F.kl_div(
                untouched.log_softmax(-1), tuned.log_softmax(-1), reduction="sum", log_target=True
            )
        losses.append(loss)
    return torch.stack(losses).mean()


def _label_loss(model: PeftModel, example: EncodedExample, recipe: Recipe) -> Tensor:
    """-log p of the right label among the example's own, plus the divergence from the base over them; one
    label in a pass.
    """

    def distribution() -> Tensor:
        scores = []
        for label in example.label_ids:
            logits = model(input_ids=torch.tensor([[*example.prompt_ids, *label]]), use_cache=False).logits[0]
            start = len(example.prompt_ids) - 1
            tokens = logits[start : start + len(label)].log_softmax(-1)[range(len(label)), list(label)]
            scores.append(tokens.sum() if recipe.label_score == "sum" else tokens.mean())
        return torch.stack(scores).log_softmax(-1)

    tuned = distribution()
    loss = -tuned[example.target or 0]
    if example.target_probs is not None:  # torch's own loss takes scores and a distribution
        loss = F.cross_entropy(tuned, torch.tensor(example.target_probs))
    if recipe.kl_weight:
        with model.disable_adapter(), torch.no_grad():
            base = distribution()
        loss = loss + recipe.kl_weight * F.kl_div(base, tuned, reduction="sum", log_target=True)
    return loss


def _letters_loss(model: PeftModel, batch: Sequence[EncodedExample]) -> Tensor:
    """The mean of -log p of the right label over labels of one token each: the prompts in one pass, where
    each has dropout of its own.
    """
    ids, mask = pad([example.prompt_ids for example in batch])
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    losses = []
    for row, example in enumerate(batch):
        letters = torch.tensor([token for (token,) in example.label_ids])
        target = torch.tensor(example.target)
        losses.append(F.cross_entropy(logits[row, len(example.prompt_ids) - 1, letters], target))
    return torch.stack(losses).mean()


def _factor(recipe: Recipe, step: int, total: int) -> float:
    if step < recipe.warmup_steps:
        return step / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / (total - recipe.warmup_steps)
    return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[
        recipe.schedule
    ]


class _GivenDropout(nn.Module):
    """Stands where PEFT drops features, and drops those that the member's own stream names."""

    def __init__(self, key: int, probability: float):
        super().__init__()
        self.key, self.probability = key, probability

    def forward(self, x: Tensor) -> Tensor:
        shape = (x.shape[0], x.shape[1], x.shape[2])
        factors = dropout_factors(torch.tensor([self.key]), torch.tensor([self.probability]), shape=shape)
        return x * factors.float().view(shape)


def _place_dropout(model: PeftModel, probability: float, seeds: MemberSeeds, step: int) -> None:
    layers = [module for module in model.modules() if hasattr(module, "lora_dropout")]
    for index, layer in enumerate(layers):
        key = stream_key(stream_key(seeds.order, "dropout", step), index)
        layer.lora_dropout["default"] = _GivenDropout(key, probability)


def _weights(model: PeftModel) -> MemberWeights:
    a, b = {}, {}
    for name, parameter in model.named_parameters():
        site, found, matrix = name.removeprefix("base_model.model.").rpartition(".lora_")
        if found:
            (a if matrix.startswith("A") else b)[site] = parameter.detach().clone()
    return MemberWeights(a, b, {})


def config_of(recipe: Recipe) -> TrainConfig:
    """The same settings for the library's own loop."""
    return TrainConfig(**dataclasses.asdict(recipe))  # type: ignore[arg-type]


def assert_same_weights(found: MemberWeights, expected: MemberWeights) -> None:
    """Within 1e-5, for weights of size 0.01 to 0.5 after up to 30 steps: fp32, the same numbers summed in
    another order.

    Adam divides a gradient by its own size, so where a gradient is as small as rounding itself (1e-8 beside a
    typical 1e-3) the step keeps few right digits. Such an element of thousands may be off by a part of one
    step; one in 500 may be, by less than one learning rate.
    """
    assert found.a.keys() == expected.a.keys()
    for matrices, others in ((found.a, expected.a), (found.b, expected.b)):
        one, other = (torch.cat([part[site].flatten() for site in expected.a]) for part in (matrices, others))
        torch.testing.assert_close(one, other, atol=Recipe.learning_rate, rtol=0)
        off = (~torch.isclose(one, other, atol=1e-5, rtol=1e-5)).sum().item()
        assert off <= len(one) / 500, f"{off} of {len(one)} weights differ by more than 1e-5"


def assert_identical_weights(found: MemberWeights, expected: MemberWeights) -> None:
    """Bit for bit."""
    assert all(
        torch.equal(found.a[site], expected.a[site]) and torch.equal(found.b[site], expected.b[site])
        for site in expected.a
    )


def assert_different_weights(found: MemberWeights, expected: MemberWeights) -> None:
    """By far more than the tolerance: what is said to matter does."""
    assert max(float((found.b[site] - expected.b[site]).abs().max()) for site in expected.b) > 1e-3
