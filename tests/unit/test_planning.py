"""Planned memory against what a training run really allocates, and planned numbers against formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig
from torch.profiler import ProfilerActivity, profile

from breadth import LONG
from lora_ensembles.data import Example
from lora_ensembles.embedded.quantised import QUANTIZE
from lora_ensembles.ensemble import LoraEnsemble
from lora_ensembles.errors import AdapterError, ConfigError
from lora_ensembles.planning.memory import plan_training
from lora_ensembles.training.adapters import train
from lora_ensembles.training.config import TrainConfig
from tiny_models import tokenizer

WORDS = 40
MODELS: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "llama": (
        "LlamaConfig",
        ["q_proj", "v_proj"],
        dict(
            hidden_size=256,
            intermediate_size=640,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=4,
        ),
    ),
    "gpt2": (
        "GPT2Config",
        ["c_attn"],
        dict(n_embd=192, n_layer=3, n_head=4, n_positions=128, resid_pdrop=0, attn_pdrop=0, embd_pdrop=0),
    ),
    "qwen3": (
        "Qwen3Config",
        ["q_proj", "v_proj", "down_proj"],
        dict(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
        ),
    ),
}


def config_of(name: str) -> transformers.PretrainedConfig:
    kind, _, settings = MODELS[name]
    tokens = dict(
        vocab_size=len(tokenizer()),
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        max_position_embeddings=128,
    )
    if "n_positions" in settings:
        del tokens["max_position_embeddings"]
    return getattr(transformers, kind)(**tokens, **settings)


def adapter_of(name: str) -> LoraConfig:
    return LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=MODELS[name][1],
        fan_in_fan_out=name == "gpt2",
        task_type="CAUSAL_LM",
    )


def allocated_at_most(run: Any) -> int:
    """The most bytes that torch's allocator held at once, beyond what it held before, while `run` ran."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize(
    ("name", "members", "batch_size"), [("llama", 2, 8), ("gpt2", 5, 4), ("qwen3", 8, 2)]
)
def test_planned_memory_is_within_15_percent_of_what_training_allocates(
    name: str, members: int, batch_size: int
) -> None:
    config = config_of(name)
    base = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    ensemble = LoraEnsemble(base, tokenizer(), num_members=members, adapter=adapter_of(name))
    examples = [Example(str(n), "the " * WORDS, (" red", " fox"), 0) for n in range(batch_size * 2)]
    rows = len(tokenizer()("the " * WORDS)["input_ids"])
    plan = plan_training(
        config,
        adapter=adapter_of(name),
        members=members,
        batch_size=batch_size,
        tokens=rows,
        dtype=torch.float32,
    )
    weights = (
        4 * members * plan.adapter_parameters
    )  # fp32 master weights are there before training; in fp32 they are the working copies

    measured = allocated_at_most(
        lambda: train(ensemble, examples, TrainConfig(epochs=1, batch_size=batch_size), progress=False)
    )

    planned = plan.members - weights + plan.activations
    assert planned == pytest.approx(measured, rel=0.15)


def test_base_and_members_are_those_of_the_formulas() -> None:
    config = config_of("llama")
    base = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plan = plan_training(config, members=3, batch_size=2, tokens=8)
    per_layer = 8 * (256 + 256) + 8 * (256 + 128)
    assert plan.adapter_parameters == 4 * per_layer
    assert plan.members == 3 * plan.adapter_parameters * (
        16 + 2
    )  # weight, gradient, two moments in fp32; a working copy in bf16
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in base.buffers())
    assert plan.base == sum(p.numel() * 2 for p in base.parameters()) + buffers


def stored_bytes(model: torch.nn.Module) -> int:
    """Bytes of all that a model keeps, with the scales that bitsandbytes keeps beside its weights."""
    tensors: list[Any] = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        weight = getattr(module, "weight", None)
        four_bit = getattr(weight, "quant_state", None)
        if four_bit is not None:
            tensors += [four_bit.absmax, four_bit.code, four_bit.offset]
            nested = four_bit.state2
            tensors += [] if nested is None else [nested.absmax, nested.code]
        tensors += [getattr(part, "SCB", None) for part in (weight, getattr(module, "state", None))]
    storages = {tensor.untyped_storage() for tensor in tensors if tensor is not None}
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


SINGLE = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "quant_method": "bitsandbytes"}


@pytest.mark.filterwarnings("ignore:.*(MatMul8bitLt|float16 during quantization).*")
@pytest.mark.parametrize(
    ("name", "fields"),
    [("llama", QUANTIZE["nf4"]), ("llama", QUANTIZE["int8"]), ("llama", SINGLE), ("gpt2", QUANTIZE["nf4"])],
    ids=["nf4", "int8", "nf4-single", "nf4-conv1d"],
)
def test_a_quantised_base_is_planned_within_2_percent_of_what_bitsandbytes_keeps(
    name: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is part of the development extra on Linux only")
    config = config_of(name)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    base = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=dict(fields), dtype=torch.bfloat16
    )
    sizes = dict(adapter=adapter_of(name), members=2, batch_size=2, tokens=8)
    whole = plan_training(config, **sizes)
    config.quantization_config = dict(fields)
    plan = plan_training(config, **sizes)
    assert plan.base == pytest.approx(stored_bytes(base), rel=0.02)
    assert plan.base < 0.6 * whole.base
    assert plan.members == whole.members
    wide = 256 * 640 if name == "llama" else 192 * 768
    assert plan.activations - whole.activations == 2 * wide  # a weight is unpacked to bf16 to be multiplied


def test_operations_of_a_step_are_those_of_the_formula() -> None:
    config = config_of("llama")
    plan = plan_training(config, members=2, batch_size=3, tokens=16)
    body = 4 * (256 * 256 * 2 + 256 * 128 * 2 + 3 * 256 * 640)
    tokens, answers = 2 * 3 * 16, 2 * 3
    expected = (
        4 * (body * tokens + 256 * len(tokenizer()) * answers)
        + 12 * 4 * 256 * 8 * tokens
        + 6 * plan.adapter_parameters * tokens
    )
    assert plan.flops == pytest.approx(expected)
    assert plan.seconds(1e12) == pytest.approx(expected / 1e12)


@LONG
def test_a_step_that_does_not_fit_is_split_until_it_does() -> None:
    config = config_of("llama")
    whole = plan_training(config, members=4, batch_size=16, tokens=64)
    room = int((whole.base + whole.members + whole.activations / 3) / 0.9)
    split = plan_training(config, members=4, batch_size=16, tokens=64, memory=room)
    assert split.fits
    assert 1 < split.parts < 16
    assert split.rows * split.parts >= 64
    assert split.flops == whole.flops
    assert plan_training(config, members=4, batch_size=16, tokens=64, memory=2 * whole.total).parts == 1
    assert plan_training(config, members=4, batch_size=16, tokens=64, memory=whole.base).fits is False


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (dict(members=0), ConfigError, "members=0; it is a whole number"),
        (dict(tokens=4, answer_tokens=5), ConfigError, "an answer is part of a row's tokens"),
        (
            dict(adapter=LoraConfig(target_modules=["none_such"])),
            AdapterError,
            "PEFT cannot place the adapter",
        ),
        (dict(adapter=LoraConfig(use_dora=True)), AdapterError, "cannot be stacked"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan_training(config_of("llama"), **settings)


def test_a_config_without_a_causal_language_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="no causal language model"):
        plan_training(transformers.CLIPConfig())
