"""Every member folder is a LoRA module of vLLM: by its rules as they are written here, and by its own loader
where an unpacked wheel is at hand.

The rules are those of vLLM 0.33: `vllm/lora/peft_helper.py`, `vllm/lora/utils.py`, `vllm/lora/lora_model.py`,
`vllm/config/lora.py`.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch import nn

import tiny_heads
import tiny_models
import vllm_source
from lora_ensembles import LoraEnsemble
from lora_ensembles.stack.adapters import PREFIX, STACKABLE_INITS

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank may be
PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")  # texts that vLLM takes for plain LoRA
REFUSED = (  # by vLLM, if they are set
    "use_dora",
    "lora_bias",
    "alora_invocation_tokens",
    "layer_replication",
    "use_bdlora",
    "use_qalora",
)
HEADS = ("classifier", "score")  # the only modules_to_save
TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.(?P<matrix>lora_A|lora_B)\.weight")


def adapter(**options: Any) -> LoraConfig:
    given = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    return LoraConfig(**(given | options))


def causal(config: LoraConfig, *, name: str = "llama") -> LoraEnsemble:
    made = LoraEnsemble(
        tiny_models.build(name), tiny_models.tokenizer(), num_members=2, adapter=config, seed=3
    )
    return different(made)


def different(ensemble: LoraEnsemble) -> LoraEnsemble:
    """The ensemble with matrices B that are not zero."""
    shape = ensemble.stack.b.shape
    ensemble.stack.b.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    ensemble.stack.refresh()
    return ensemble


def from_elsewhere(tmp: Path) -> LoraEnsemble:
    """Members of different ranks and scalings, as if they were trained elsewhere."""
    configs = adapter(), adapter(r=2, rank_pattern={"q_proj": 8}, alpha_pattern={"v_proj": 6})
    for number, config in enumerate(configs):
        causal(config).save_pretrained(tmp / str(number))
    base, folders = tiny_models.build("llama"), [tmp / str(number) / "member_000" for number in (0, 1)]
    return LoraEnsemble.from_adapters(base, tiny_models.tokenizer(), folders, check_base=False)


ENSEMBLES: dict[str, Callable[[Path], LoraEnsemble]] = {
    "the default": lambda tmp: causal(adapter(r=8, lora_alpha=32)),
    "all linear layers": lambda tmp: causal(adapter(target_modules="all-linear")),
    "targets by an expression": lambda tmp: causal(adapter(target_modules=r".*\.(q_proj|o_proj)")),
    "targets of one layer": lambda tmp: causal(adapter(layers_to_transform=[1])),
    "rank-stabilised": lambda tmp: causal(adapter(use_rslora=True)),
    "ranks and scalings by layer": lambda tmp: causal(
        adapter(rank_pattern={"v_proj": 2}, alpha_pattern={r"layers\.0\.self_attn\.q_proj": 3})
    ),
    "Conv1D": lambda tmp: causal(adapter(target_modules=["c_attn"], fan_in_fan_out=True), name="gpt2"),
    "adapters from elsewhere": from_elsewhere,
    "a sequence classifier": lambda tmp: different(
        tiny_heads.build_ensemble("llama", "sequence-classification")
    ),
    "a reward model": lambda tmp: different(tiny_heads.build_ensemble("llama", "reward")),
    **{
        f"init_lora_weights={init!r}": functools.partial(
            lambda tmp, init: causal(adapter(init_lora_weights=init)), init=init
        )
        for init in STACKABLE_INITS
    },
}


@pytest.fixture(params=ENSEMBLES)
def ensemble(request: pytest.FixtureRequest, tmp_path: Path) -> LoraEnsemble:
    made: LoraEnsemble = ENSEMBLES[request.param](tmp_path)
    return made


def saved(ensemble: LoraEnsemble, folder: Path, *, dtype: torch.dtype = torch.float32) -> list[Path]:
    """The member folders of the saved ensemble."""
    ensemble.save_pretrained(folder, dtype=dtype)
    folders = sorted(folder.glob("member_*"))
    assert len(folders) == ensemble.num_members
    return folders


def scaling(config: dict[str, Any], module: str) -> float:
    """alpha / r, or alpha / sqrt(r), with the first pattern that ends the name of the module."""

    def value(pattern: str, default: float) -> float:
        for key, own in (config[pattern] or {}).items():
            if re.match(rf"(.*\.)?({key})$", module):
                return float(own)
        return default

    rank, alpha = value("rank_pattern", config["r"]), value("alpha_pattern", config["lora_alpha"])
    return alpha / math.sqrt(rank) if config["use_rslora"] else alpha / rank


def test_the_config_of_every_member_asks_for_nothing_that_vllm_refuses(
    ensemble: LoraEnsemble, tmp_path: Path
) -> None:
    for folder in saved(ensemble, tmp_path / "saved"):
        config = json.loads((folder / "adapter_config.json").read_text())
        assert isinstance(config["r"], int)
        assert config["r"] > 0
        assert config["lora_alpha"] > 0
        assert isinstance(config["target_modules"], list | str)
        assert max([config["r"], *(config["rank_pattern"] or {}).values()]) <= max(RANKS)
        assert config["bias"] == "none"
        assert set(config["modules_to_save"] or ()) <= set(HEADS)
        assert not (ensemble.info.head.kind == "causal-lm" and config["modules_to_save"])
        assert not any(config.get(option) for option in REFUSED)
        init = config["init_lora_weights"]
        assert isinstance(init, bool) or init in PLAIN_INITS


def test_the_tensors_of_every_member_are_named_and_shaped_as_vllm_reads_them(
    ensemble: LoraEnsemble, tmp_path: Path
) -> None:
    layers = {
        name
        for name, module in ensemble.base.named_modules()
        if not list(module.children()) or hasattr(module, "base_layer")
    }
    for index, folder in enumerate(saved(ensemble, tmp_path / "saved")):
        assert {file.name for file in folder.iterdir()} <= {
            "adapter_config.json",
            "adapter_model.safetensors",
            "README.md",
        }
        config = json.loads((folder / "adapter_config.json").read_text())
        own, found = ensemble.stack.member(index), {}
        for name, tensor in load_file(folder / "adapter_model.safetensors").items():
            match = TENSOR.fullmatch(name)
            if match is None:  # a head
                assert name.split(".")[-2] in HEADS
                continue
            found[match["module"], match["matrix"]] = tensor
            assert match["module"] in layers
        modules = {module for module, _ in found}
        assert modules == set(own.a)
        for module in modules:
            a, b = found[module, "lora_A"], found[module, "lora_B"]
            assert a.shape[0] == b.shape[1]
            factor = scaling(config, module)
            update = own.scaling[module] * own.b[module] @ own.a[module]
            torch.testing.assert_close(factor * b @ a, update, atol=1e-6, rtol=1e-5)  # sums of floats


@vllm_source.NEEDED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_vllms_own_loader_reads_every_member_as_it_was_trained(
    ensemble: LoraEnsemble, tmp_path: Path, dtype: torch.dtype
) -> None:
    utils = functions_of_utils()
    numbers = iter(range(1, 1000))
    stubs = {
        "vllm.config.lora": vllm_source.stub(LoRAConfig=object),
        "vllm.lora.utils": vllm_source.stub(**utils, get_lora_id=lambda: next(numbers)),
        "vllm.model_executor.models.utils": vllm_source.stub(WeightsMapper=object),
        "vllm.utils.torch_utils": vllm_source.stub(PIN_MEMORY=False),
    }
    modules = ("vllm.lora.peft_helper", "vllm.lora.lora_weights", "vllm.lora.lora_model")
    # vLLM takes every linear layer of its model as a target, by the last part of its name.
    expected = {
        name.removesuffix(".base_layer").rpartition(".")[2]
        for name, module in ensemble.base.named_modules()
        if isinstance(module, nn.Linear) or hasattr(module, "base_layer")
    }
    with vllm_source.loaded(modules, stubs) as (peft_helper, _, lora_model):
        for index, folder in enumerate(saved(ensemble, tmp_path / "saved", dtype=dtype)):
            helper = peft_helper.PEFTHelper.from_local_dir(str(folder), max_position_embeddings=64)
            helper.validate_legal(SimpleNamespace(max_lora_rank=16))
            read = lora_model.LoRAModel.from_local_checkpoint(
                str(folder), expected, helper, lora_model_id=index + 1, device="cpu"
            )
            own = ensemble.stack.member(index)
            assert set(read.loras) == set(own.a)
            assert len(read.modules_to_save) == (0 if ensemble.info.head.kind == "causal-lm" else 1)
            for name, weights in read.loras.items():
                update = own.scaling[name] * own.b[name].to(dtype).float() @ own.a[name].to(dtype).float()
                found = weights.scaling * weights.lora_b.float() @ weights.lora_a.float()
                torch.testing.assert_close(found, update, atol=1e-6, rtol=1e-5)  # sums of floats


@vllm_source.NEEDED
def test_the_rules_that_are_written_here_are_vllms() -> None:
    names = vllm_source.fields("vllm.lora.peft_helper", "PEFTHelper")
    assert {*REFUSED, "modules_to_save", "bias", "rank_pattern", "alpha_pattern", "use_rslora"} <= set(names)
    ranks = vllm_source.value("vllm.config.lora", "MaxLoRARanks")
    assert ranks == f"Literal[{', '.join(map(str, RANKS))}]"
    parse = functions_of_utils()["parse_fine_tuned_lora_name"]
    assert parse(f"{PREFIX}model.layers.0.q_proj.lora_A.weight") == ("model.layers.0.q_proj", True)
    assert parse(f"{PREFIX}score.weight") == ("score", False)
    with pytest.raises(ValueError, match="unsupported LoRA weight"):
        parse(f"{PREFIX}model.layers.0.q_proj.lora_A.default.weight")


def functions_of_utils() -> dict[str, Any]:
    names = ("parse_fine_tuned_lora_name", "is_base_embedding_weights")
    return vllm_source.functions_run("vllm.lora.utils", names)
