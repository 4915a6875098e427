"""Operators that one decoder layer launches: `python benchmarks/operators.py --json`.

Counts the ATen operators that are no views, forward and backward, of a Llama-shaped layer whose query and
value projections carry stacked adapters, for M = 1 and M = 16, beside the frozen base and M PEFT adapters. A
layer's share is the difference between a model of four and of two layers, halved. No clock is involved, so
the numbers are the same on every machine with the same versions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lora_ensembles import LoraEnsemble
from lora_ensembles.embedded import load_base

MUST = {"forward": 45, "backward": 80}


@dataclass
class Counter(TorchDispatchMode):
    """Counts the operators that run inside it and return something of their own."""

    count: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = func._schema.returns
        is_view = bool(returns) and all(
            one.alias_info is not None and not one.alias_info.is_write for one in returns
        )
        # `detach` and `_unsafe_view` move no data either, though their schemas do not say so.
        self.count += not (
            is_view or func._schema.name in ("aten::detach", "aten::_unsafe_view", "aten::alias")
        )
        return func(*args, **(kwargs or {}))


def build(layers: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    return LlamaForCausalLM(config).eval()


def count(run: Callable[[], Tensor], backward: Callable[[Tensor], None] | None = None) -> dict[str, int]:
    """Operators of a forward pass, and of the backward pass from its sum."""
    with Counter() as forward:
        loss = run()
    with Counter() as behind:
        if backward is not None:
            backward(loss)
    return {"forward": forward.count, "backward": behind.count}


def stacked(layers: int, members: int, tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    adapter = LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"])
    ensemble = LoraEnsemble(build(layers), tokenizer, num_members=members, adapter=adapter)
    totals = ensemble.stack.zero_gradients()
    ids = torch.ones(members, 2, 12, dtype=torch.long)
    return count(lambda: ensemble(ids).sum(), lambda loss: ensemble.stack.add_gradients(loss, totals))


def frozen(layers: int) -> dict[str, int]:
    base = build(layers).requires_grad_(False)
    return count(lambda: base(input_ids=torch.ones(2, 12, dtype=torch.long), use_cache=False).logits.sum())


def per_layer(measure: Callable[[int], dict[str, int]]) -> dict[str, float]:
    few, many = measure(2), measure(4)
    return {name: (many[name] - few[name]) / 2 for name in few}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    _, tokenizer = load_base()
    base = per_layer(frozen)
    result = {
        f"m{members}": per_layer(lambda layers, m=members: stacked(layers, m, tokenizer))
        for members in (1, 16)
    }
    print(
        "operators per layer      forward  backward\n"
        f"frozen base              {base['forward']:7g}  {base['backward']:8g}"
    )
    for name, row in result.items():
        print(f"stacked, {name:<15} {row['forward']:7g}  {row['backward']:8g}")
    print(f"at most                  {MUST['forward']:7d}  {MUST['backward']:8d}")
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
