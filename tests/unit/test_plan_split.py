"""Splits over GPUs against numbers computed by hand from the shapes of Llama 2, in bf16."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from peft import LoraConfig
from transformers import (
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    PretrainedConfig,
    Qwen3Config,
)

from breadth import LONG
from lora_ensembles.errors import ConfigError
from lora_ensembles.planning.advice import reason_of
from lora_ensembles.planning.communication import (
    Links,
    fsdp_gathers,
    gathered_bytes,
    tensor_parallel_sums,
)
from lora_ensembles.planning.frozen import FrozenWeights
from lora_ensembles.planning.memory import plan_training
from lora_ensembles.planning.split import Gpus, SplitChoice, plan_split
from lora_ensembles.planning.work import Work, needs

WORK = Work(members=16, batch_size=16, tokens=100)
FEW = Work(members=4, batch_size=4, tokens=32)
# Weights of a decoder layer: queries, keys, values, output; gate, up, down; two norms.
LAYER_7B = 4 * 4096 * 4096 + 3 * 4096 * 11008 + 2 * 4096
LAYER_70B = 2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 2 * 8192
BUFFERS = 2 * 64 * 4  # rotary frequencies of heads of 128, twice, in fp32


def llama_7b() -> PretrainedConfig:
    return LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
    )


def llama_70b() -> PretrainedConfig:
    return LlamaConfig(
        vocab_size=32000,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    )


def small(layers: int = 1) -> PretrainedConfig:
    return LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
    )


@pytest.fixture(scope="module")
def of_7b() -> SplitChoice:
    return plan_split(llama_7b(), WORK, Gpus(Links(8), memory=80e9))


@pytest.fixture(scope="module")
def of_70b() -> SplitChoice:
    return plan_split(llama_70b(), WORK, Gpus(Links(8), memory=80e9))


def test_base_that_fits_is_put_on_each_gpu(of_7b: SplitChoice) -> None:
    chosen = of_7b.chosen
    assert chosen is not None
    assert chosen.kind == "replicate"
    assert chosen.base == 2 * (32 * LAYER_7B + 2 * 32000 * 4096 + 4096) + BUFFERS
    # Two members a GPU, of rank 8 on q and v: fp32 weight, gradient and two moments, and a copy in bf16.
    assert chosen.members == 2 * 32 * 2 * 8 * (4096 + 4096) * (16 + 2)
    assert (chosen.received, chosen.exchange) == (0, 0)
    assert (chosen.busy, chosen.ranks) == (8, 1)


def test_base_that_is_too_large_is_cut_and_gathered_once_for_all_members(of_70b: SplitChoice) -> None:
    whole, cut, _ = of_70b.plans
    assert of_70b.chosen is cut
    assert not whole.fits
    assert cut.kind == "fsdp"
    layers, head, table = 80 * LAYER_70B, 32000 * 8192 + 8192, 32000 * 8192
    # Every first axis is a multiple of 8, so each rank has an eighth.
    assert cut.base == 2 * (layers + head + table) // 8 + BUFFERS
    assert cut.gathered == 3 * 2 * LAYER_70B
    gathers = cut.parts * 2 * (2 * layers + head + table)
    assert cut.received == pytest.approx(gathers * 7 / 8)
    assert cut.exchange == pytest.approx(gathers * 7 / 8 / 450e9)
    assert cut.members_a_gather == 16 / cut.parts
    assert cut.seconds(788e12) == pytest.approx(max(cut.flops / 788e12, cut.exchange))
    assert f"{cut.members_a_gather:.3g} times less traffic a member" in reason_of(
        of_70b, WORK, Gpus(Links(8), memory=80e9)
    )


def test_operations_are_those_of_the_formula_and_split_over_the_gpus(of_70b: SplitChoice) -> None:
    tokens, body = 2 * 16 * 100, 80 * (LAYER_70B - 2 * 8192)
    adapter = 80 * 8 * ((8192 + 8192) + (8192 + 1024))
    flops = 4 * (body * tokens + 32000 * 8192 * 2 * 16) + 12 * 80 * 8192 * 50 * tokens
    flops += 6 * adapter * tokens
    assert of_70b.plans[1].flops == pytest.approx(flops)
    # Each of 8 ranks computes an eighth of the base for 8 times the members. A of queries and values is whole
    # on each, so its operations are not divided.
    tensor = of_70b.plans[2]
    whole_a = 6 * 80 * 8 * (8192 + 8192) * 7 / 8 * 8 * tokens
    assert tensor.flops == pytest.approx(flops + whole_a, rel=1e-6)


def test_tensor_parallelism_sums_activations_of_every_token(of_70b: SplitChoice) -> None:
    tensor = of_70b.plans[2]
    tokens = 16 * 16 * 100
    # By the vocabulary; not in every release of transformers.
    cut = "model.embed_tokens" in LlamaForCausalLM(small(1)).tp_plan
    sums = 2 * tokens * ((4 * 80 + cut) * 8192 + 80 * 2 * 8)
    logits = 2 * 16 * 16 * 32000
    assert tensor.received == pytest.approx((2 * sums + logits) * 7 / 8)
    assert tensor.seconds(788e12) == pytest.approx(tensor.flops / 788e12 + tensor.received / 450e9)
    # The norms are whole on each rank.
    words = 2 if cut else 1 + 8  # embeddings and head
    assert tensor.base == pytest.approx(2 * (80 * LAYER_70B + words * 32000 * 8192) / 8, rel=1e-3)
    # A whole, B an eighth, for all 16 members: fp32 weight, gradient, moments; a copy in bf16.
    assert tensor.members == 16 * 80 * 8 * (8192 + 8192 // 8 + 8192 + 1024 // 8) * 18


@LONG
def test_deep_bases_planned_from_shallow_ones_are_those_planned_whole() -> None:
    qwen = Qwen3Config(**small(8).to_dict() | {"model_type": "qwen3", "head_dim": 16})
    for config, work in (
        (small(9), Work(2, 1, 32)),
        (qwen, Work(3, 8, 16, answer_tokens=4, dtype=torch.float32)),
    ):
        found = needs(config, work, FrozenWeights.of(config, work.dtype))
        plan = plan_training(
            config,
            members=work.members,
            batch_size=work.batch_size,
            tokens=work.tokens,
            answer_tokens=work.answer_tokens,
            dtype=work.dtype,
        )
        assert found.activations(work.rows) == pytest.approx(plan.activations, rel=0.02)
        assert (found.base, found.members) == (plan.base, plan.members)
        assert found.flops == pytest.approx(plan.flops)


def test_more_gpus_need_less_memory_each_and_less_time() -> None:
    sizes = [plan_split(small(), FEW, Gpus(Links(gpus), memory=80e9)) for gpus in (2, 4)]
    for few, many in zip(sizes[0].plans, sizes[1].plans, strict=True):
        assert many.total < few.total
        assert many.flops < few.flops
    assert sizes[1].plans[1].received > sizes[0].plans[1].received


def test_less_memory_splits_a_step_and_gathers_more_often() -> None:
    whole = plan_split(small(), FEW, Gpus(Links(2), memory=80e9)).plans[1]
    room = (whole.base + whole.gathered + whole.members + whole.activations / 3) / 0.9
    cut = plan_split(small(), FEW, Gpus(Links(2), memory=room)).plans[1]
    assert cut.fits
    assert cut.parts > 1
    assert cut.received == pytest.approx(cut.parts * whole.received)
    assert cut.flops == whole.flops


def test_workers_beyond_the_gpus_share_them_and_fewer_leave_some_without_work() -> None:
    one, two, half = (
        plan_split(small(), FEW, Gpus(Links(2), memory=80e9, workers=workers)).plans[0]
        for workers in (2, 4, 1)
    )
    assert two.base == 2 * one.base
    assert two.members == one.members
    assert two.flops == pytest.approx(one.flops)
    assert (one.busy, half.busy) == (2, 1)
    assert half.flops == pytest.approx(2 * one.flops)


def test_embeddings_that_are_the_head_stay_gathered() -> None:
    config = small()
    config.tie_word_embeddings = True
    frozen = FrozenWeights.of(config, torch.bfloat16)
    assert frozen.embeddings == 0
    assert frozen.kept == 2 * (320 * 64 + 64)
    assert frozen.gathered() == 3 * max(frozen.layers) + frozen.kept
    assert frozen.whole == sum(frozen.layers) + frozen.kept + frozen.buffers


def test_bytes_of_the_collectives() -> None:
    assert gathered_bytes(1000, 4) == 750
    assert fsdp_gathers(layers=100, kept=7, others=3, passes=3) == 3 * (200 + 7 + 3)
    assert tensor_parallel_sums(layers=3, tokens=5, features=7, low_rank=11, width=2) == 5 * 2 * (84 + 11)
    # Two nodes of four: a node receives half through four cards of 50 GB/s, a GPU 7/8 at 450 GB/s.
    assert Links(8, nodes=2).seconds(4e9, 8) == pytest.approx(max(2e9 / 200e9, 3.5e9 / 450e9))
    assert Links(8, nodes=2).seconds(4e9, 4) == pytest.approx(3e9 / 450e9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Links(0), "gpus=0; it is a whole number of at least 1"),
        (lambda: Links(8, nodes=3), "gpus=8 on nodes=3; each node has as many.*multiple of 3, 9 for example"),
        (lambda: Links(8, within=0), "within=0; it is a finite number above 0"),
        (lambda: Gpus(Links(8), memory=-1), "memory=-1"),
        (lambda: Gpus(Links(8), memory=80e9, workers=0), "workers=0"),
        (lambda: plan_split(small(), Work(0), Gpus(Links(2), memory=80e9)), "members=0"),
    ],
)
def test_numbers_out_of_their_range_are_refused(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_splits_that_a_base_does_not_allow_are_named_with_the_reason() -> None:
    eight = Gpus(Links(8), memory=80e9)
    assert "num_key_value_heads=4, which 8 GPUs" in plan_split(small(), FEW, eight).refused["tp"]
    gpt2 = GPT2Config(n_embd=64, n_layer=2, n_head=8, vocab_size=320)
    work = dataclasses.replace(FEW, adapter=LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    assert "no plan of tensor parallelism for 'gpt2'" in plan_split(gpt2, work, eight).refused["tp"]
    one = plan_split(small(), FEW, Gpus(Links(1), memory=80e9))
    assert set(one.refused) == {"fsdp", "tp"}
    experts = MixtralConfig(**small().to_dict() | {"model_type": "mixtral", "num_local_experts": 2})
    try:
        refused = plan_split(experts, FEW, Gpus(Links(2), memory=80e9)).refused["tp"]
    except ConfigError as error:  # of torch 2.6
        refused = str(error)
    assert "routed experts" in refused or "cannot be planned with torch 2.6" in refused
    quantised = small()
    quantised.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    assert "quantised base lies whole" in plan_split(quantised, FEW, eight).refused["fsdp"]


def test_where_nothing_fits_it_is_said_what_would() -> None:
    gpus = Gpus(Links(2), memory=1e5)
    choice = plan_split(small(), FEW, gpus)
    assert choice.chosen is None
    text = reason_of(choice, FEW, gpus)
    assert "no split fits 90% of 0.0001 GB: take GPUs of 1 GB (" in text
    assert "a base in 4 bits, or shorter rows" in text


def test_members_that_do_not_split_evenly_are_named(of_70b: SplitChoice) -> None:
    five = dataclasses.replace(WORK, members=5)
    assert "5 members do not split evenly over 8 ranks, which is needed: take 8" in reason_of(
        of_70b, five, Gpus(Links(8), memory=80e9)
    )
