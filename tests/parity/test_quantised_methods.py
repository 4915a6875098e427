"""Adapters on every kind of quantised base that runs on a CPU: stacked = PEFT on the same base, in logits,
gradients and five steps of training; what passes no gradient, or mixes rows, is refused by name.

Each base is made as a user makes it, by transformers from a saved model and a quantisation config, except
those of HQQ, which transformers 5 does not load. Only bitsandbytes is part of the development extra. The
others (torchao, optimum-quanto, hqq, gptqmodel with optimum) are tried where they are installed, by
`pytest -W default`: they warn of themselves.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from breadth import EVERY
from command_line import call
from lora_ensembles import LoraEnsemble, load_base, predict, train
from lora_ensembles.data import encode_examples
from lora_ensembles.embedded.quantised import QUANTIZE
from lora_ensembles.errors import AdapterError
from lora_ensembles.stack.quantised import (
    keep_differentiable,
    quantised_layers,
)
from reference_training import Recipe, assert_same_weights, config_of, train_by_peft
from tiny_models import adapter_config, build, letter_examples, pad, random_rows, randomise_b, tokenizer

LLAMA, GPT2 = "llama_all_linear", "gpt2"
MEMBERS = 2
FIVE_STEPS = Recipe(epochs=5, batch_size=10)
GROUP = 8  # divides every side of these layers
Make = Callable[[Path], PreTrainedModel]

# Not ours: the library's notes on its own CPU kernels.
pytestmark = pytest.mark.filterwarnings("ignore:.*(float16 during quantization|MatMul8bitLt|Some matrices).*")


def loaded(config: Callable[[], Any]) -> Make:
    """Loads a saved model with the quantisation config that `config` makes."""

    def make(folder: Path) -> PreTrainedModel:
        model: PreTrainedModel = transformers.AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=config(), dtype=torch.float32
        )
        return model

    return make


def bnb(**settings: Any) -> Make:
    return loaded(lambda: transformers.BitsAndBytesConfig(**settings))


def torchao(name: str, **settings: Any) -> Make:
    def config() -> Any:
        from torchao import quantization

        if name.startswith("Intx"):
            settings.update(weight_dtype=torch.int4, granularity=quantization.PerGroup(GROUP))
        return transformers.TorchAoConfig(getattr(quantization, name)(**settings))

    return loaded(config)


def quanto(weights: str) -> Make:
    return loaded(lambda: transformers.QuantoConfig(weights=weights))


def hqq(bits: int) -> Make:
    def make(folder: Path) -> PreTrainedModel:
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

        model: PreTrainedModel = transformers.AutoModelForCausalLM.from_pretrained(folder)
        how = BaseQuantizeConfig(nbits=bits, group_size=GROUP)
        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear) and name != "lm_head":
                made = HQQLinear(layer, copy.deepcopy(how), compute_dtype=torch.float32, device="cpu")
                model.set_submodule(name, made)
        return model

    return make


def gptq(folder: Path) -> PreTrainedModel:
    """Quantised once, by its own library, and then loaded as a checkpoint of the hub is."""
    quantised = folder.with_name(f"{folder.name}-gptq")
    if not quantised.exists():
        texts = [example.prompt for example in letter_examples()] * 4
        how = transformers.GPTQConfig(
            bits=4,
            group_size=32,
            dataset=texts,
            tokenizer=tokenizer(),
            modules_in_block_to_quantize=[
                ["self_attn.q_proj"],
                ["self_attn.o_proj"],
            ],  # the others are too narrow
        )
        model = loaded(lambda: how)(folder)
        model.save_pretrained(quantised)
    saved: PreTrainedModel = transformers.AutoModelForCausalLM.from_pretrained(quantised, dtype=torch.float32)
    return saved


@dataclass(frozen=True)
class Method:
    """A way to quantise a base.

    Attributes:
        package: what has to be installed.
        make: the quantised model of a folder.
        rounds_inputs: whether inputs are rounded too, so that a difference of 1e-7 can become one of 1e-2.
    """

    package: str
    make: Make
    rounds_inputs: bool = False


DOUBLE = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
METHODS = {
    "nf4": Method("bitsandbytes", bnb(load_in_4bit=True, bnb_4bit_quant_type="nf4")),
    "fp4": Method("bitsandbytes", bnb(load_in_4bit=True, bnb_4bit_quant_type="fp4")),
    "nf4-double": Method("bitsandbytes", bnb(**DOUBLE)),
    "int8": Method("bitsandbytes", bnb(load_in_8bit=True, llm_int8_threshold=0.0), rounds_inputs=True),
    "torchao-int8": Method("torchao", torchao("Int8WeightOnlyConfig")),
    "torchao-float8": Method("torchao", torchao("Float8WeightOnlyConfig")),
    "torchao-int4": Method("torchao", torchao("IntxWeightOnlyConfig")),
    "quanto-int8": Method("optimum.quanto", quanto("int8")),
    "quanto-int4": Method("optimum.quanto", quanto("int4")),
    "quanto-float8": Method("optimum.quanto", quanto("float8")),
    "hqq-4": Method("hqq", hqq(4)),
    "hqq-8": Method("hqq", hqq(8)),
    "gptq-4": Method("gptqmodel", gptq),
}
# GPT-2's Conv1D is another layer before quantisation; the libraries beside bitsandbytes leave it as it is.
ON_GPT2 = [("nf4-double", GPT2), ("int8", GPT2)] if EVERY else []
TRIED = [(method, LLAMA) for method in METHODS if EVERY or method != "fp4"] + ON_GPT2
every_method = pytest.mark.parametrize(("method", "name"), TRIED)
Bases = Callable[[str, str], PreTrainedModel]


def needs(package: str) -> None:
    try:
        found = importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        pytest.skip(f"{package} is not installed")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """Makes a tiny model, quantised by a method: the same on every call."""
    folder = tmp_path_factory.mktemp("bases")

    def make(method: str, name: str) -> PreTrainedModel:
        needs(METHODS[method].package)
        if not (folder / name).exists():
            build(name).save_pretrained(folder / name)
        base = METHODS[method].make(folder / name).eval()
        keep_differentiable(base)  # PEFT's reference by the same kernel as the stack
        return base

    return make


def ensemble_on(base: PreTrainedModel, name: str) -> LoraEnsemble:
    return LoraEnsemble(base, tokenizer(), num_members=MEMBERS, adapter=adapter_config(name))


@every_method
def test_logits_and_gradients_on_a_quantised_base_equal_pefts(
    method: str, name: str, bases: Bases, tmp_path: Path
) -> None:
    ensemble = ensemble_on(bases(method, name), name)
    assert quantised_layers(ensemble.base)
    randomise_b(ensemble)
    ids, mask = pad(random_rows([13, 7, 9], seed=1))
    logits = ensemble(ids)
    totals = ensemble.stack.zero_gradients()
    ensemble.stack.add_gradients((logits * mask[..., None]).square().sum(), totals)
    ensemble.save_pretrained(tmp_path / "saved")
    for m in range(MEMBERS):
        reference = PeftModel.from_pretrained(
            bases(method, name), str(tmp_path / "saved" / f"member_{m:03d}"), is_trainable=True
        ).eval()
        expected = reference(input_ids=ids, attention_mask=mask, use_cache=False).logits
        # fp32 sums in another order. Rounded inputs are the same numbers in both.
        torch.testing.assert_close(logits[m][mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)
        (expected * mask[..., None]).square().sum().backward()
        parameters = dict(reference.named_parameters())
        for site in ensemble.stack.sites:
            for matrix, found in (("A", site.view_a(totals[0])[m]), ("B", site.view_b(totals[1])[m])):
                gradient = parameters[f"base_model.model.{site.name}.lora_{matrix}.default.weight"].grad
                assert gradient is not None
                assert (found - gradient).norm() <= 1e-5 * gradient.norm()


@every_method
def test_five_steps_of_training_on_a_quantised_base_equal_pefts(method: str, name: str, bases: Bases) -> None:
    base = bases(method, name)
    ensemble, examples = ensemble_on(base, name), letter_examples()
    train(ensemble, examples, config_of(FIVE_STEPS), progress=False)
    encoded = encode_examples(examples, tokenizer())
    for m, seeds in enumerate(ensemble.info.seeds):
        expected = train_by_peft(bases(method, name), adapter_config(name), seeds, encoded, FIVE_STEPS)
        found = ensemble.stack.member(m)
        if not METHODS[method].rounds_inputs:
            assert_same_weights(found, expected)
            continue
        # After a step weights differ by 1e-7, which may move an input over the border between two 8-bit
        # numbers: a change by 1/127 of the largest, in one feature of a token.
        for site, b in expected.b.items():
            assert (found.b[site] - b).norm() <= 0.05 * b.norm()


@pytest.mark.parametrize(  # of bitsandbytes, test_quantised.py has the others
    ("method", "name"), [one for one in TRIED if METHODS[one[0]].package != "bitsandbytes" or one[1] == GPT2]
)
def test_an_ensemble_on_a_quantised_base_is_loaded_on_the_same_base_and_on_no_other(
    method: str, name: str, bases: Bases, tmp_path: Path
) -> None:
    base = bases(method, name)
    ensemble, examples = ensemble_on(base, name), letter_examples()
    randomise_b(ensemble)
    ensemble.save_pretrained(tmp_path / "run")
    expected = predict(ensemble, examples)
    again = bases(method, name)
    if not method.startswith("hqq"):  # transformers does not load it by its config
        tokenizer().save_pretrained(again.config._name_or_path)
        loaded = LoraEnsemble.from_pretrained(tmp_path / "run")
        torch.testing.assert_close(predict(loaded, examples).probs, expected.probs, atol=1e-6, rtol=0)
        assert quantised_layers(loaded.base).keys() == quantised_layers(ensemble.base).keys()
    plain = build(name)
    plain.config._name_or_path = again.config._name_or_path
    LoraEnsemble.from_pretrained(tmp_path / "run", base=plain, tokenizer=tokenizer())  # the same base
    other = build(name)
    with torch.no_grad():
        other.get_input_embeddings().weight.mul_(2)
    with pytest.raises(AdapterError, match="was trained on base"):
        LoraEnsemble.from_pretrained(tmp_path / "run", base=other, tokenizer=tokenizer())


def awq_llama() -> PreTrainedModel:
    """A Llama whose query and output projections hold AWQ's 4-bit weights, which it multiplies in 16 bits."""
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear

    model = build(LLAMA, dtype=torch.float16)
    for name, layer in list(model.named_modules()):
        if not name.endswith(("q_proj", "o_proj")):
            continue
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
        plain.weight.data = layer.weight.data.float()
        low, high = (plain.weight.detach().amin(-1), plain.weight.detach().amax(-1))  # one group a row
        scales = ((high - low) / 15)[:, None]
        packed = AwqTorchLinear(
            bits=4,
            group_size=layer.in_features,
            sym=False,
            desc_act=False,
            in_features=layer.in_features,
            out_features=layer.out_features,
            register_buffers=True,
            dtype=torch.float16,
        )
        packed.pack(plain, scales, (-low[:, None] / scales).round().clamp(0, 15))
        packed.post_init()
        model.set_submodule(name, packed)
    return model.eval()


def test_logits_and_gradients_on_layers_of_awq_equal_pefts_within_16_bits() -> None:
    needs("gptqmodel")
    adapter = adapter_config(LLAMA)
    adapter.target_modules = ["q_proj", "o_proj", "up_proj"]
    ensemble = LoraEnsemble(awq_llama(), tokenizer(), num_members=MEMBERS, adapter=copy.deepcopy(adapter))
    randomise_b(ensemble)
    ids, mask = pad(random_rows([13, 7, 9], seed=1))
    logits, totals = ensemble(ids), ensemble.stack.zero_gradients()
    ensemble.stack.add_gradients((logits.float() * mask[..., None]).square().mean(), totals)
    for m in range(MEMBERS):
        reference = get_peft_model(awq_llama(), copy.deepcopy(adapter)).eval()
        parameters, weights = dict(reference.named_parameters()), ensemble.stack.member(m)
        for name in weights.a:
            parameters[f"base_model.model.{name}.lora_A.default.weight"].data.copy_(weights.a[name])
            parameters[f"base_model.model.{name}.lora_B.default.weight"].data.copy_(weights.b[name])
        expected = reference(input_ids=ids, attention_mask=mask).logits
        kept = mask.bool()
        # PEFT's adapters compute in float32 here, ours in the base's float16, of 11 bits.
        assert (logits[m] - expected)[kept].norm() <= 2e-3 * expected[kept].norm()
        (expected.float() * mask[..., None]).square().mean().div(MEMBERS).backward()
        for site in ensemble.stack.sites:
            gradient = parameters[f"base_model.model.{site.name}.lora_A.default.weight"].grad
            assert gradient is not None
            assert (site.view_a(totals[0])[m] - gradient).norm() <= 2e-2 * gradient.norm()


def test_the_command_line_trains_on_a_base_that_it_quantises_and_finds_it_again(
    tmp_path: Path, capsys: Any
) -> None:
    needs("bitsandbytes")
    few = ("--members", 1, "--epochs", 1, "--limit", 8, "--limit-validation", 8)
    done = call(capsys, "train", "--task", "world-obqa", "--quantize", "nf4", *few, "--out", tmp_path / "run")
    assert done.code == 0
    recorded = json.loads((tmp_path / "run" / "ensemble.json").read_text())["base"]["quantization"]
    # The embedded base is stored in float32, and so multiplies.
    assert {name: recorded[name] for name in DOUBLE} == DOUBLE
    assert recorded["bnb_4bit_compute_dtype"] == "float32"
    ensemble = LoraEnsemble.from_pretrained(tmp_path / "run")
    assert {type(layer).__name__ for layer in quantised_layers(ensemble.base).values()} == {"Linear4bit"}


def test_the_words_of_the_flag_are_what_bitsandbytes_does() -> None:
    needs("bitsandbytes")
    kinds = {}
    for word, fields in QUANTIZE.items():
        base, _ = load_base(quantization=fields)
        kinds[word] = {type(layer).__name__ for layer in quantised_layers(base).values()}
    assert kinds == {"nf4": {"Linear4bit"}, "int8": {"Linear8bitLt"}}
