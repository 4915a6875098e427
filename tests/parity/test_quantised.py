"""Adapters on bitsandbytes 4-bit and 8-bit layers: stacked = PEFT on the same quantised base, and the base
stays as it is.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from command_line import call
from lora_ensembles import LoraEnsemble, TrainConfig, evaluate, load_base, load_task, predict, train
from lora_ensembles.data import Example, render_prompt
from lora_ensembles.errors import DataError
from tiny_models import tokenizer

bnb: Any = pytest.importorskip(
    "bitsandbytes", reason="bitsandbytes is part of the development extra on Linux only"
)
TARGETS = ["q_proj", "v_proj"]

# Not ours: the library's notes on its own CPU kernels.
pytestmark = pytest.mark.filterwarnings("ignore:.*(float16 during quantization|MatMul8bitLt|Some matrices).*")


def quantised(kind: str) -> LlamaForCausalLM:
    """A tiny Llama whose query and value projections hold 4-bit or 8-bit weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    model = LlamaForCausalLM(config).eval()
    for name, layer in list(model.named_modules()):
        if name.rpartition(".")[2] in TARGETS:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, quantised_layer(layer.weight.data, kind))
    return model.to("cpu")  # quantises


def quantised_layer(weight: torch.Tensor, kind: str) -> nn.Module:
    rows, columns = weight.shape
    if kind == "4-bit":
        layer = bnb.nn.Linear4bit(columns, rows, bias=False, compute_dtype=torch.float32, quant_type="nf4")
        layer.weight = bnb.nn.Params4bit(weight.clone(), requires_grad=False, quant_type="nf4")
        return layer
    layer = bnb.nn.Linear8bitLt(columns, rows, bias=False, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    return layer


@pytest.mark.parametrize("kind", ["4-bit", "8-bit"])
def test_stacked_forward_on_a_quantised_base_equals_peft(kind: str) -> None:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS)
    ensemble = LoraEnsemble(quantised(kind), tokenizer(), num_members=2, adapter=copy.deepcopy(config))
    with torch.no_grad():
        ensemble.stack.b.normal_(generator=torch.Generator().manual_seed(1))
    ids = torch.randint(0, 20, (3, 7), generator=torch.Generator().manual_seed(2))
    stacked = ensemble(ids)
    for index in range(2):
        reference = get_peft_model(quantised(kind), copy.deepcopy(config)).eval()
        for layer in reference.modules():
            if isinstance(layer, bnb.nn.Linear4bit):
                layer.train()  # in evaluation mode, where the CPU has AVX512-BF16, its kernel rounds to bf16
        parameters, weights = dict(reference.named_parameters()), ensemble.stack.member(index)
        for name in weights.a:
            parameters[f"base_model.model.{name}.lora_A.default.weight"].data.copy_(weights.a[name])
            parameters[f"base_model.model.{name}.lora_B.default.weight"].data.copy_(weights.b[name])
        # The 8-bit kernel rounds its input per row, and every row is the same in both; only the order of sums
        # differs.
        torch.testing.assert_close(stacked[index], reference(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


def test_members_on_8_bit_layers_with_an_outlier_threshold_do_not_know_their_neighbours() -> None:
    base = quantised("8-bit")
    for layer in base.modules():
        if isinstance(layer, bnb.nn.Linear8bitLt):
            layer.state.threshold = 1.0  # some columns of these inputs are beyond it, in some rows only
    config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS)
    ensemble = LoraEnsemble(base, tokenizer(), num_members=2, adapter=config)
    with torch.no_grad():
        ensemble.stack.b.normal_(generator=torch.Generator().manual_seed(1))
    questions = [
        Example(str(n), render_prompt("one " * (n + 1), ["two", "three"]), ("a", "b"), target=0)
        for n in range(3)
    ]
    ids = torch.randint(0, 20, (3, 7), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits, scores = ensemble(ids)[0], predict(ensemble, questions).member_log_probs[0]
        fewer_rows = predict(ensemble, questions, max_rows=1).member_log_probs[0]
        ensemble.stack.b[1].mul_(3.0)
        tripled, tripled_scores = ensemble(ids)[0], predict(ensemble, questions).member_log_probs[0]
    ensemble.keep_members([0])
    alone = predict(ensemble, questions).member_log_probs[0]
    # Other columns would move them by 1e-2 and more; these are sums of the same numbers in another order.
    torch.testing.assert_close(tripled, logits, atol=1e-6, rtol=1e-6)
    for other in (tripled_scores, fewer_rows, alone):
        torch.testing.assert_close(other, scores, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["4-bit", "8-bit"])
def test_training_on_a_quantised_base_learns_and_leaves_the_base_bit_identical(kind: str) -> None:
    base = quantised(kind)
    before = {name: parameter.detach().clone() for name, parameter in base.named_parameters()}
    ensemble = LoraEnsemble(base, tokenizer(), num_members=2, adapter=LoraConfig(r=4, target_modules=TARGETS))
    examples = [
        Example(str(n), render_prompt("one", ["two", "three"]), ("a", "b"), target=0) for n in range(4)
    ]

    result = train(
        ensemble, examples, TrainConfig(epochs=10, batch_size=4, learning_rate=1e-2), progress=False
    )

    assert all(
        last < first
        for first, last in zip(result.history[0]["train_loss"], result.history[-1]["train_loss"], strict=True)
    )
    after = dict(ensemble.unload().named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_base_that_answered_in_inference_mode_still_passes_gradients_down() -> None:
    config = LoraConfig(r=4, target_modules=TARGETS)
    ids = torch.randint(0, 20, (2, 5), generator=torch.Generator().manual_seed(2))
    gradients = []
    for answered in (False, True):
        base = quantised("4-bit")
        if answered:
            with torch.no_grad():
                base(input_ids=ids)  # where the CPU has AVX512-BF16, bitsandbytes repacks its layers here
        ensemble = LoraEnsemble(base, tokenizer(), num_members=2, adapter=copy.deepcopy(config))
        with torch.no_grad():
            ensemble.stack.b.normal_(generator=torch.Generator().manual_seed(1))
            ensemble(ids)
        ensemble.stack.add_gradients(ensemble(ids).square().sum(), found := ensemble.stack.zero_gradients())
        gradients.append(found)
    for fresh, after in zip(*gradients, strict=True):
        assert torch.equal(fresh, after)
        assert (fresh != 0).any(dim=0).float().mean() > 0.9  # the first layer's too


@pytest.mark.parametrize("bits", [4, 8])
def test_an_ensemble_is_loaded_on_its_base_quantised_as_it_was(
    bits: int, tmp_path: Path, capsys: Any
) -> None:
    load_base()[0].save_pretrained(tmp_path / "base")
    load_base()[1].save_pretrained(tmp_path / "base")
    how = transformers.BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=how)
    ensemble = LoraEnsemble(base, load_base()[1], num_members=2)
    ensemble.save_pretrained(tmp_path / "run")

    again = LoraEnsemble.from_pretrained(tmp_path / "run")
    questions = load_task("world-obqa").validation[:8]
    torch.testing.assert_close(predict(again, questions).probs, predict(ensemble, questions).probs)
    whole = LoraEnsemble.from_pretrained(tmp_path / "run", base=load_base(str(tmp_path / "base"))[0])
    assert not torch.equal(predict(whole, questions).probs, predict(ensemble, questions).probs)


def test_a_quantised_base_without_bitsandbytes_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(DataError, match=r"'embedded' cannot be loaded: .*bitsandbytes"):
        load_base(quantization=transformers.BitsAndBytesConfig(load_in_4bit=True).to_dict())


def test_the_command_line_quantises_the_base_of_an_ensemble_as_it_was(tmp_path: Path, capsys: Any) -> None:
    base, tokenizer = load_base()
    for part in (base, tokenizer):
        part.save_pretrained(tmp_path / "base")
    how = transformers.BitsAndBytesConfig(load_in_4bit=True)
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=how)
    ensemble = LoraEnsemble(base, tokenizer, num_members=2)
    ensemble.save_pretrained(tmp_path / "run")
    done = call(capsys, "evaluate", tmp_path / "run", "--task", "world-obqa", "--json")
    assert done.code == 0
    expected = evaluate(predict(ensemble, load_task("world-obqa").validation)).nll
    assert done.summary["ensemble"]["nll"] == pytest.approx(expected, abs=1e-4)
