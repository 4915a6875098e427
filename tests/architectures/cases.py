"""An architecture as a case to try: its tiny model, the layers that carry adapters, and ensembles on it."""

from __future__ import annotations

import copy
import functools
import re
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

import tiny_heads
import tiny_models
from architectures.builds import build
from architectures.peft_side import Text
from lora_ensembles import HeadConfig, LoraEnsemble
from lora_ensembles.data import EncodedExample, Example, encode_examples

MEMBERS = 2
PROMPTS = tiny_models.random_rows([5, 9, 7], seed=3)
# Names of what makes queries and values; the first set that a model has whole is taken.
USUAL = [
    names.split()
    for names in (
        "q_proj v_proj, query value, query_proj value_proj, q_lin v_lin, q v, q_a_proj kv_b_proj, "
        "q_b_proj kv_b_proj, q_proj kv_b_proj, q_proj kv_a_proj_with_mqa, qkv_proj, query_key_value, Wqkv, "
        "c_attn, W_pack, qkv, att_proj, in_proj x_proj, in_proj, receptance value, query key, wq wv"
    ).split(", ")
]


class Case:
    """One architecture of one kind; see `builds.KINDS`."""

    def __init__(self, kind: str, name: str):
        self.kind, self.name = kind, name
        self.plain: PreTrainedModel = build(kind, name).float().eval().requires_grad_(False)

    @functools.cached_property
    def reached(self) -> list[str]:
        """The linear layers that a pass over text runs through, in the order in which it does."""
        met: dict[str, None] = {}
        handles = [
            module.register_forward_pre_hook(lambda *_, name=name: met.setdefault(name))
            for name, module in self.plain.named_modules()
            if isinstance(module, nn.Linear | Conv1D)
        ]
        ids = torch.tensor([PROMPTS[0]])
        try:
            with torch.no_grad():
                self.plain(input_ids=ids, attention_mask=torch.ones_like(ids))
        except Exception:  # noqa: BLE001 - a model that cannot be run is to be refused by the library
            return [name for name, module in self.plain.named_modules() if isinstance(module, nn.Linear)]
        finally:
            for handle in handles:
                handle.remove()
        return list(met)

    @functools.cached_property
    def targets(self) -> list[str]:
        """The endings of the names of the query and value projections, or of what stands for them."""
        in_layers = [name for name in self.reached if _layer(name) is not None] or self.reached
        endings = [name.rpartition(".")[2] for name in in_layers]
        for pair in USUAL:
            if set(pair) <= set(endings):
                return pair
        return list(dict.fromkeys(endings))[:2]

    @functools.cached_property
    def top_targets(self) -> list[str]:
        """The same in the highest layer alone, by their whole names."""
        named = [name for name in self.reached if name.rpartition(".")[2] in self.targets]
        numbered = [name for name in named if _layer(name) is not None]
        if not numbered:
            return named[-len(self.targets) :]
        last = max(_layer(name) or 0 for name in numbered)
        return [name for name in numbered if _layer(name) == last]

    def adapter(self, where: str) -> LoraConfig:
        """An adapter on the "usual" projections, in "all" linear layers, or in the "top" layer alone."""
        targets: Any = {"usual": self.targets, "all": "all-linear", "top": self.top_targets}[where]
        task = "SEQ_CLS" if self.kind == "classifier" else "CAUSAL_LM"
        return LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type=task)

    def ensemble(self, where: str, *, init: str = "fresh") -> LoraEnsemble:
        """Members whose B is random, on a copy of the model.

        Raises:
            LoraEnsemblesError: the library refuses the model, or the adapter on it.
        """
        base, adapter = copy.deepcopy(self.plain), self.adapter(where)
        if self.kind == "classifier":
            head = HeadConfig("sequence-classification", init=init)  # type: ignore[arg-type]
            tokenizer: Any = tiny_heads.tokenizer()
            ensemble = LoraEnsemble(base, tokenizer, num_members=MEMBERS, adapter=adapter, head=head)
        else:
            ensemble = LoraEnsemble(base, tiny_models.tokenizer(), num_members=MEMBERS, adapter=adapter)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            ensemble.stack.b.copy_(0.1 * torch.randn(ensemble.stack.b.shape, generator=generator))
        ensemble.stack.refresh()
        return ensemble

    def texts(self, ensemble: LoraEnsemble) -> list[Text]:
        """The texts of `classes` as the members' heads read them."""
        table = ensemble.head.table(ensemble, classes())  # type: ignore[union-attr]
        return [
            Text(
                table.ids[row, :length].tolist(),
                None if table.types is None else table.types[row, :length].tolist(),
                int(table.targets[row]),
            )
            for row, length in enumerate(table.text_lengths.tolist())
        ]


def letters() -> list[Example]:
    """Questions of different lengths whose labels are one token each."""
    return tiny_models.letter_examples()[:4]


def phrases() -> list[Example]:
    """Questions whose labels have one to three tokens."""
    return tiny_models.phrase_examples()[:5]


def classes() -> list[Example]:
    """Texts of 5 to 9 words, which is enough for a model that pools, with one of three classes."""
    return [example for example in tiny_heads.class_examples() if len(example.prompt.split()) >= 5]


def encoded(examples: list[Example]) -> list[EncodedExample]:
    """Their token ids."""
    return encode_examples(examples, tiny_models.tokenizer())


def padded_left(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids (B, T) padded on the left and their attention mask, as `generate` wants them."""
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def _layer(name: str) -> int | None:
    numbers = re.findall(r"\.(\d+)\.", name)
    return int(numbers[0]) if numbers else None
