"""What docs/baselines.md shows runs as it stands there, and its numbers are those of the formula."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM

from breadth import LONG
from lora_ensembles import BatchEnsemble, LoraEnsemble, SingleMember
from tiny_ensembles import tokenizer

TEXT = (Path(__file__).parents[2] / "docs" / "baselines.md").read_text(encoding="utf-8")


@LONG
def test_the_examples_run_and_the_first_prints_every_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    first, *others = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    exec(compile(first, "docs/baselines.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    for code in others:
        exec(compile(code, "docs/baselines.md", "exec"), {})
        assert re.search(r"nll +\d\.\d{4}", capsys.readouterr().out)
    assert len(lines) == 6
    assert all(re.search(r"accuracy 0\.\d{3}  NLL \d\.\d{3}  ECE 0\.\d{3}$", line) for line in lines)


def one_layer_of_llama_2_7b() -> LlamaForCausalLM:
    """One of its 32 layers, narrow where nothing is counted."""
    config = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=4096,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=32,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    return model.to_empty(device="cpu")


def test_parameters_of_llama_2_7b_are_those_of_the_table() -> None:
    adapter = LoraConfig(r=8, target_modules=["q_proj", "v_proj"])
    lora = SingleMember(LoraEnsemble(one_layer_of_llama_2_7b(), tokenizer(), num_members=1, adapter=adapter))
    factors = BatchEnsemble(one_layer_of_llama_2_7b(), tokenizer(), num_members=1, adapter=adapter)
    assert f"= {32 * lora.num_trained_parameters:,} at rank 8" in TEXT
    assert f"= {32 * factors.num_trained_parameters:,} |" in TEXT
    assert f"= {5 * 4096:,} for 5 letters" in TEXT
