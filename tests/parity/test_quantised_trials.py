"""Trials of quantised layers: those that mix rows are refused when an ensemble is made, those that pass no
gradient, or a wrong one, when it is trained; and bases that cannot be loaded say what they need.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_ensembles import LoraEnsemble, TrainConfig, load_base, predict, train
from lora_ensembles.errors import AdapterError, DataError
from lora_ensembles.stack.quantised import gradient_missing, rows_together
from tiny_models import adapter_config, build, letter_examples, tokenizer

LLAMA = "llama_all_linear"
MEMBERS = 2


def ensemble_on(base: PreTrainedModel) -> LoraEnsemble:
    return LoraEnsemble(base, tokenizer(), num_members=MEMBERS, adapter=adapter_config(LLAMA))


def test_inputs_that_torchao_rounds_pass_no_gradient_and_training_is_refused(tmp_path: Path) -> None:
    quantization = pytest.importorskip("torchao", reason="torchao is not installed").quantization
    build(LLAMA).save_pretrained(tmp_path)
    how = transformers.TorchAoConfig(quantization.Int8DynamicActivationInt8WeightConfig())
    base = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=how, dtype=torch.float32
    )
    ensemble = ensemble_on(base)
    assert predict(ensemble, letter_examples()).probs.isfinite().all()
    with pytest.raises(
        AdapterError,
        match=r"layer 'model.layers.0.self_attn.o_proj' is a Linear with a Int8Tensor .*"
        r"not be trained: its result carries no gradient",
    ):
        train(ensemble, letter_examples(), TrainConfig(epochs=1), progress=False)


class Rounded(nn.Linear):
    """A linear layer with an 8-bit weight, whose inputs are rounded by one scale: of a token, or of all."""

    def __init__(self, layer: nn.Linear, *, over: str, gradient: str):
        super().__init__(layer.in_features, layer.out_features, bias=False)
        self.scale = float(layer.weight.detach().abs().max()) / 127
        weight = (layer.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.over, self.gradient = over, gradient

    def forward(self, x: Tensor) -> Tensor:
        size = x.abs().amax(dim=-1, keepdim=True) if self.over == "token" else x.abs().max()
        size = size.clamp(min=1e-6)
        rounded = (x * 127 / size).round() * size / 127
        if self.gradient == "through":  # the straight-through estimator
            rounded = x + (rounded - x).detach()
        elif self.gradient == "none":
            rounded = rounded.detach()
        return nn.functional.linear(rounded, self.weight.to(x.dtype) * self.scale)


def rounded_llama(**settings: str) -> PreTrainedModel:
    model = build(LLAMA)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and name != "lm_head":
            model.set_submodule(name, Rounded(layer, **settings))
    return model


def test_a_layer_that_scales_its_inputs_over_all_rows_is_refused() -> None:
    with pytest.raises(
        AdapterError,
        match=r"layer 'model.layers.0.self_attn.q_proj' is a Rounded, on which members cannot be stacked: "
        r"its result for a row changes with the rows beside it, by \d",
    ):
        ensemble_on(rounded_llama(over="batch", gradient="through"))


@pytest.mark.parametrize(
    ("gradient", "reason"),
    [
        ("none", "its result carries no gradient"),
        ("scale", r"its gradient is not that of what it computes \("),  # through the largest input alone
    ],
)
def test_a_layer_that_passes_no_gradient_or_a_wrong_one_predicts_and_is_not_trained(
    gradient: str, reason: str
) -> None:
    ensemble = ensemble_on(rounded_llama(over="token", gradient=gradient))
    assert predict(ensemble, letter_examples()).probs.isfinite().all()
    with pytest.raises(AdapterError, match=rf"adapters can predict, but not be trained: {reason}"):
        train(ensemble, letter_examples(), TrainConfig(epochs=1), progress=False)


def test_a_layer_of_any_library_that_does_both_is_accepted() -> None:
    ensemble = ensemble_on(rounded_llama(over="token", gradient="through"))
    result = train(ensemble, letter_examples(), TrainConfig(epochs=2, learning_rate=1e-2), progress=False)
    assert all(torch.tensor(result.history[-1]["train_loss"]) < torch.tensor(result.history[0]["train_loss"]))


def test_layers_below_the_lowest_adapter_need_no_gradient() -> None:
    base = rounded_llama(over="token", gradient="none")
    highest = base.model.layers[1].mlp
    for name in ("gate_proj", "up_proj", "down_proj"):
        layer = getattr(build(LLAMA).model.layers[1].mlp, name)
        setattr(highest, name, Rounded(layer, over="token", gradient="through"))
    adapter = adapter_config(LLAMA)
    adapter.target_modules, adapter.layers_to_transform = ["gate_proj", "up_proj", "down_proj"], [1]
    ensemble = LoraEnsemble(base, tokenizer(), num_members=MEMBERS, adapter=adapter)
    train(ensemble, letter_examples(), TrainConfig(epochs=1), progress=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trials_accept_4_bit_layers_in_both_precisions(dtype: torch.dtype) -> None:
    bnb: Any = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    layer = bnb.nn.Linear4bit(64, 48, bias=True, compute_dtype=dtype, quant_type="nf4").to("cpu")
    layer.requires_grad_(False)
    x = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert rows_together(layer, x) is None
    assert gradient_missing(layer, x) is None


@pytest.mark.parametrize(
    ("method", "package"),
    [("torchao", "torchao"), ("gptq", "gptqmodel optimum"), ("compressed-tensors", "compressed-tensors")],
)
def test_a_quantised_base_whose_package_is_missing_is_an_error_that_says_how_to_install_it(
    method: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("torchao", "gptqmodel", "optimum", "compressed_tensors"):
        if importlib.util.find_spec(module) is not None:
            pytest.skip(f"{module} is installed")
        monkeypatch.setitem(sys.modules, module, None)
    fields = {"torchao": {"quant_type": {}}, "gptq": {"bits": 4}}.get(method, {})
    with pytest.raises(
        DataError, match=rf"'embedded' cannot be loaded: it is quantised by {method}.*{package}"
    ):
        load_base(quantization={"quant_method": method, **fields})
