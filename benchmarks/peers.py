"""Members trained one by one, or in a mixed batch, by PEFT: the arms that the stacked engine is held against.

  A   Hugging Face's Trainer on a PEFT model, with logging, evaluation and saving switched off
  A'  the plain PEFT loop of someone who measures: rows tokenised and padded on the right beforehand, so that
      no mask is needed; no cache; the head at the answers alone; the base's dtype throughout, with fp32
      masters where that is not fp32; fused AdamW; on a CPU the library's own way to multiply by frozen
      weights, which needs no stacking
  B   PEFT's `adapter_names`: the rows of all members in one batch of one model. PEFT refuses it in training
      mode, so the model is in evaluation mode with gradients on; it adds to the base's products in place, so
      these stay torch's own; else as A'

All see the rows that a member of the stack sees, in its order, and leave its weights.

Shapes: M members, B rows of a member, N examples, T tokens.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from timing import StepClock, clocked
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from workloads import sharing

from lora_ensembles import LoraEnsemble, TrainConfig
from lora_ensembles.data import EncodedExample
from lora_ensembles.stack.onednn import frozen_products
from lora_ensembles.stack.sites import MemberWeights
from lora_ensembles.training.orders import epoch_order

PREFIX = "base_model.model."


@dataclass(frozen=True)
class Rows:
    """The training rows, ready: tokens (N, T) of prompts and of answers but for the last token of each,
    padded on the right, how many (N,), and the answers' tokens (N, K), padded with -100.

    Lengths and answers stay on the CPU: to cut a batch to its longest row must not wait for a device.
    """

    tokens: Tensor
    lengths: Tensor
    answers: Tensor

    @classmethod
    def of(cls, encoded: Sequence[EncodedExample], device: torch.device) -> Rows:
        answers = [answer_of(one) for one in encoded]
        rows = [[*one.prompt_ids, *answer[:-1]] for one, answer in zip(encoded, answers, strict=True)]
        longest, most = max(map(len, rows)), max(map(len, answers))
        tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
        padded = torch.tensor([[*answer, *[-100] * (most - len(answer))] for answer in answers])
        return cls(tokens, torch.tensor([len(row) for row in rows]), padded)

    def batch(self, indices: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """Ids (B, T) cut to the longest row, the rows and positions (n,) that say an answer's token each, and
        these tokens (n,).
        """
        lengths, answers, device = self.lengths[indices], self.answers[indices], self.tokens.device
        said = answers >= 0
        rows, nth = said.nonzero(as_tuple=True)
        places = (lengths - said.sum(dim=1))[rows] + nth
        ids = self.tokens[indices.to(device), : int(lengths.max())]
        return ids, (rows.to(device), places.to(device)), answers[said].to(device)


def answer_of(encoded: EncodedExample) -> list[int]:
    """The tokens of the right answer."""
    return list(encoded.label_ids[encoded.target or 0])


@dataclass(frozen=True)
class Work:
    """One window of training, the same for every arm: one epoch over N examples, each member in its own order
    from its own weights.
    """

    base: PreTrainedModel
    adapter: LoraConfig
    encoded: Sequence[EncodedExample]
    config: TrainConfig
    initial: list[MemberWeights]
    orders: list[Tensor]  # (N,) each

    @classmethod
    def of(
        cls,
        ensemble: LoraEnsemble,
        base: PreTrainedModel,
        encoded: Sequence[EncodedExample],
        config: TrainConfig,
    ) -> Work:
        orders = [epoch_order(seeds.order, 0, len(encoded)) for seeds in ensemble.info.seeds]
        initial = [ensemble.stack.member(index) for index in range(ensemble.num_members)]
        return cls(base, ensemble.adapter, encoded, config, initial, orders)

    @property
    def steps(self) -> int:
        return math.ceil(len(self.encoded) / self.config.batch_size)

    def indices(self, member: int, step: int) -> Tensor:
        size = self.config.batch_size
        return self.orders[member][step * size : (step + 1) * size]


def wrap(work: Work, names: Sequence[str], *, adapter_in_base_dtype: bool = True) -> Any:
    """A PEFT model around the base's weights with adapters of these names."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # on a base of the same name, and a deprecated property that PEFT reads
        model: Any = get_peft_model(
            sharing(work.base), work.adapter, names[0], autocast_adapter_dtype=not adapter_in_base_dtype
        )
        for name in names[1:]:
            model.add_adapter(name, work.adapter, autocast_adapter_dtype=not adapter_in_base_dtype)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    return model


@torch.no_grad()
def put(model: nn.Module, weights: MemberWeights, name: str = "default") -> None:
    """Give one adapter a member's weights."""
    parameters = dict(model.named_parameters())
    for matrices, letter in ((weights.a, "A"), (weights.b, "B")):
        for site, matrix in matrices.items():
            parameters[f"{PREFIX}{site}.lora_{letter}.{name}.weight"].copy_(matrix)


def take(model: nn.Module, like: MemberWeights, name: str = "default") -> MemberWeights:
    """One adapter's weights, in fp32 on the CPU."""
    parameters = dict(model.named_parameters())
    a, b = (
        {
            site: parameters[f"{PREFIX}{site}.lora_{letter}.{name}.weight"].detach().float().cpu().clone()
            for site in like.a
        }
        for letter in "AB"
    )
    return MemberWeights(a, b, like.scaling)


ODD = 500
"""One weight in so many may be off. Adam divides a gradient by its own size, so where it is as small as
rounding the step is chance."""


def difference(found: MemberWeights, expected: MemberWeights, initial: MemberWeights) -> float:
    """How far two runs' weights end apart, as a part of the way that training went: |found - expected| /
    |expected - initial|.

    The largest differences, of one weight in `ODD`, are left out.
    """
    flat = [
        torch.cat([part[site].flatten() for part in (one.a, one.b) for site in initial.a])
        for one in (found, expected, initial)
    ]
    apart = (flat[0] - flat[1]).abs()
    kept = apart.topk(len(apart) - len(apart) // ODD, largest=False).values
    return float(kept.norm() / (flat[1] - flat[2]).norm())


class Masters:
    """Fused AdamW on a model's adapters; where these are not fp32, on fp32 copies, with one cast each way a
    step.
    """

    def __init__(self, model: nn.Module, config: TrainConfig):
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        same = self.parameters[0].dtype == torch.float32
        self.masters = (
            self.parameters
            if same
            else [parameter.detach().float().requires_grad_() for parameter in self.parameters]
        )
        rate, decay = config.learning_rate, config.weight_decay_a
        self.optimizer = torch.optim.AdamW(
            self.masters,
            lr=rate,  # type: ignore[arg-type]
            weight_decay=decay,  # type: ignore[arg-type]
            fused=True,
        )

    def step(self) -> None:
        if self.masters is not self.parameters:
            for master, parameter in zip(self.masters, self.parameters, strict=True):
                master.grad = None if parameter.grad is None else parameter.grad.float()
        self.optimizer.step()
        if self.masters is not self.parameters:
            torch._foreach_copy_(
                [parameter.data for parameter in self.parameters], [master.data for master in self.masters]
            )
        for parameter in self.parameters:
            parameter.grad = None


class TunedPeft:
    """Arm A': one member after another."""

    def __init__(self, work: Work):
        self.work, self.rows = work, Rows.of(work.encoded, work.base.device)
        self.model = wrap(work, ["default"])
        self.inner = self.model.get_base_model()

    def train(self, member: int) -> float:
        """Seconds a step of that member's run."""
        work = self.work
        put(self.model, work.initial[member])
        optimizer = Masters(self.model, work.config)
        with clocked(self.inner, work.base.device) as clock, frozen_products():
            for step in range(work.steps):
                ids, places, answers = self.rows.batch(work.indices(member, step))
                hidden = self.inner.model(input_ids=ids, use_cache=False).last_hidden_state
                logits = self.inner.lm_head(hidden[places])
                (F.cross_entropy(logits.float(), answers, reduction="sum") / len(ids)).backward()
                optimizer.step()
        return clock.seconds_a_step(work.steps)

    def weights(self, member: int) -> MemberWeights:
        """What the last run left; `member` says whose it was."""
        return take(self.model, self.work.initial[member])


class MixedBatch:
    """Arm B: all members in one batch."""

    def __init__(self, work: Work):
        self.work, self.rows = work, Rows.of(work.encoded, work.base.device)
        self.names = [f"member{index}" for index in range(len(work.initial))]
        self.model = wrap(work, self.names).eval()
        self.inner = self.model.get_base_model()

    def train(self) -> float:
        """Seconds a step of all members."""
        work = self.work
        for name, weights in zip(self.names, work.initial, strict=True):
            put(self.model, weights, name)
        optimizer, members = Masters(self.model, work.config), len(self.names)
        with clocked(self.inner, work.base.device) as clock:
            for step in range(work.steps):
                indices = torch.cat([work.indices(member, step) for member in range(members)])
                ids, places, answers = self.rows.batch(indices)
                names = [name for name in self.names for _ in range(len(indices) // members)]
                logits = self._logits(ids, places, names)
                (F.cross_entropy(logits.float(), answers, reduction="sum") / (len(ids) / members)).backward()
                optimizer.step()
        return clock.seconds_a_step(work.steps)

    def _logits(self, ids: Tensor, places: tuple[Tensor, Tensor], names: list[str]) -> Tensor:
        def narrow(_head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (arguments[0][places],)

        handle = self.inner.lm_head.register_forward_pre_hook(narrow)
        try:
            logits: Tensor = self.model(input_ids=ids, use_cache=False, adapter_names=names).logits
        finally:
            handle.remove()
        return logits

    def weights(self, member: int) -> MemberWeights:
        """What the last run left of a member."""
        return take(self.model, self.work.initial[member], self.names[member])


class _Marks(TrainerCallback):
    def __init__(self, clock: StepClock):
        self.clock = clock

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.clock.mark()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.clock.mark()


class HuggingFaceTrainer:
    """Arm A: one member after another, by `transformers.Trainer` as a training script has it, on the usual
    batches with a mask.
    """

    def __init__(self, work: Work):
        self.work = work
        self.model = wrap(work, ["default"], adapter_in_base_dtype=False)
        rows = [(list(one.prompt_ids), answer_of(one)) for one in work.encoded]
        self.examples = [
            {"input_ids": [*ids, *answer], "labels": [-100] * len(ids) + list(answer)} for ids, answer in rows
        ]

    def train(self, member: int) -> float:
        """Seconds a step of that member's run."""
        work, clock = self.work, StepClock(self.work.base.device)
        put(self.model, work.initial[member])
        with tempfile.TemporaryDirectory() as folder:
            rows = [self.examples[n] for n in work.orders[member].tolist()]
            trainer = Trainer(
                self.model,
                self._arguments(folder),
                data_collator=_collate,
                compute_loss_func=_row_mean,
                train_dataset=rows,  # type: ignore[arg-type]
                callbacks=[_Marks(clock)],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return clock.seconds_a_step(work.steps)

    def _arguments(self, folder: str) -> TrainingArguments:
        config = self.work.config
        on_cpu = self.work.base.device.type == "cpu"
        return TrainingArguments(
            folder,
            num_train_epochs=1,
            per_device_train_batch_size=config.batch_size,
            learning_rate=config.learning_rate,  # type: ignore[arg-type]
            weight_decay=config.weight_decay_a,  # type: ignore[arg-type]
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            optim="adamw_torch_fused",
            bf16=self.work.base.dtype == torch.bfloat16,
            train_sampling_strategy="sequential",
            use_cpu=on_cpu,
            dataloader_pin_memory=not on_cpu,
            remove_unused_columns=False,
            logging_strategy="no",
            save_strategy="no",
            eval_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )

    def weights(self, member: int) -> MemberWeights:
        """What the last run left; `member` says whose it was."""
        return take(self.model, self.work.initial[member])


def _row_mean(outputs: Any, labels: Tensor, num_items_in_batch: object = None) -> Tensor:
    """The mean over rows of an answer's -log p: with answers of one token the Trainer's own, which is a mean
    over tokens.
    """
    logits = outputs["logits"][:, :-1].float().flatten(0, 1)
    return F.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum") / len(labels)


def _collate(examples: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    longest = max(len(one["input_ids"]) for one in examples)

    def padded(name: str, value: int) -> Tensor:
        return torch.tensor([[*one[name], *[value] * (longest - len(one[name]))] for one in examples])

    mask = torch.tensor(
        [[1] * len(one["input_ids"]) + [0] * (longest - len(one["input_ids"])) for one in examples]
    )
    return {"input_ids": padded("input_ids", 0), "attention_mask": mask, "labels": padded("labels", -100)}
