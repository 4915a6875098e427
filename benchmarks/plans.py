"""Memory plans of four large models on three sizes of GPU:
`python benchmarks/plans.py --out results/plans.json`.

From the models' shapes alone, written out here, so that no hub is needed: five members, batch size 16, 100
tokens, bf16, the paper's adapter.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from timing import write_record
from transformers import LlamaConfig, MistralConfig, PretrainedConfig, Qwen3Config

from lora_ensembles.planning.memory import plan_training


def shape(vocabulary: int, hidden: int, mlp: int, layers: int, heads: tuple[int, int]) -> dict[str, int]:
    """The sizes of a Llama-like model; heads of queries, and of keys and values, 128 wide."""
    names = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
        "num_key_value_heads head_dim"
    ).split()
    return dict(zip(names, (vocabulary, hidden, mlp, layers, *heads, 128), strict=True))


SHAPES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "LLaMA-13B": (LlamaConfig, shape(32000, 5120, 13824, 40, (40, 40))),
    "Llama-2-7B": (LlamaConfig, shape(32000, 4096, 11008, 32, (32, 32))),
    "Qwen3-8B": (Qwen3Config, shape(151936, 4096, 12288, 36, (32, 8))),
    "Mistral-7B": (MistralConfig, shape(32768, 4096, 14336, 32, (32, 8))),
}
MEMORY = (24, 80, 141)  # GB
PEAK_FLOPS = 788e12  # a second: an H200 multiplying large bf16 matrices
RUN = dict(members=5, batch_size=16, tokens=100)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="write the record there")
    arguments = parser.parse_args()
    rows = []
    print(
        "| model | GPU | base | members | activations | rows in flight | parts | a step at the limit |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for name, (kind, shape) in SHAPES.items():
        for memory in MEMORY:
            plan = plan_training(kind(**shape), **RUN, memory=int(memory * 1e9))
            rows.append(
                {
                    "model": name,
                    "memory_gb": memory,
                    **plan.to_dict(),
                    "seconds_at_the_limit": plan.seconds(PEAK_FLOPS),
                }
            )
            sizes = " | ".join(
                f"{value / 1e9:.1f} GB" for value in (plan.base, plan.members, plan.activations)
            )
            split = f"{plan.rows} | {plan.parts}" if plan.fits else "does not fit | -"
            print(
                f"| {name} | {memory} GB | {sizes} | {split} | {plan.seconds(PEAK_FLOPS):.2f} s |", flush=True
            )
    write_record(arguments.out, {"run": RUN, "peak_flops": PEAK_FLOPS, "rows": rows})


if __name__ == "__main__":
    main()
