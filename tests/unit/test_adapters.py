"""What cannot be stacked is refused by name and with a reason; what PEFT describes is what a member has."""

from __future__ import annotations

import pytest
import torch
from peft import IA3Config, LoftQConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import tiny_models
from lora_ensembles.ensemble import LoraEnsemble
from lora_ensembles.errors import AdapterError, CheckpointError
from lora_ensembles.stack.adapters import check_stackable, initial_weights, read_adapter, read_adapter_config
from lora_ensembles.stack.buffers import AdapterStack
from tiny_ensembles import adapter, ensemble, llama, tokenizer

QUERY = "model.layers.0.self_attn.q_proj"

UNSTACKABLE = {
    "use_dora": (True, "DoRA rescales the base weight"),
    "bias": ("lora_only", "trained biases belong to the base"),
    "lora_bias": (True, "biases of the B matrices are not stacked"),
    "modules_to_save": (["lm_head"], "own adapters only"),
    "target_parameters": (["mlp.experts.gate_up_proj"], "do not see one row per token of every member"),
    "layer_replication": ([(0, 1), (0, 1)], "replicated layers change the base"),
    "trainable_token_indices": ([1, 2], "trained embeddings are not stacked"),
}
REWRITING_INITS = ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "eva")


@pytest.mark.parametrize("option", UNSTACKABLE)
def test_option_that_cannot_be_stacked_is_refused_by_name_with_its_reason(option: str) -> None:
    value, reason = UNSTACKABLE[option]
    config = LoraConfig(r=2, target_modules=["q_proj"])
    setattr(config, option, value)  # some of these make LoraConfig itself ask for more options

    with pytest.raises(AdapterError, match=rf"LoraConfig\({option}=.*\) cannot be stacked: .*{reason}"):
        LoraEnsemble(llama(), tokenizer(), adapter=config)


@pytest.mark.parametrize("init", REWRITING_INITS)
def test_initialisation_that_rewrites_the_base_or_needs_data_is_refused_by_name(init: str) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"])
    config.init_lora_weights = init  # type: ignore[assignment]

    with pytest.raises(
        AdapterError,
        match=rf"init_lora_weights='{init}'\) cannot be stacked: it rewrites the base.*from_adapters",
    ):
        check_stackable(config)


@pytest.mark.parametrize("option", ["loftq_config", "eva_config", "corda_config", "arrow_config"])
def test_any_other_option_that_changes_the_arithmetic_is_refused(option: str) -> None:
    """Every field that is not known to be harmless is refused, so that an option of a later PEFT is not
    ignored without a word.
    """
    config = LoraConfig(r=2, target_modules=["q_proj"])
    assert hasattr(config, option)
    setattr(config, option, LoftQConfig(loftq_bits=4))

    with pytest.raises(AdapterError, match=rf"LoraConfig\({option}=.*cannot be stacked"):
        check_stackable(config)


def test_adapter_that_is_no_lora_is_refused() -> None:
    with pytest.raises(AdapterError, match=r"described by a peft\.LoraConfig; got IA3Config"):
        LoraEnsemble(
            llama(), tokenizer(), adapter=IA3Config(target_modules=["q_proj"], feedforward_modules=[])
        )  # type: ignore[arg-type]


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal"])
def test_initial_weights_are_those_of_peft_for_the_same_seed(init: bool | str) -> None:
    config = LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=["q_proj"],
        init_lora_weights=init,  # type: ignore[arg-type]
    )
    weights = initial_weights(llama(), config, seed=7)
    base = llama()
    torch.manual_seed(7)
    layer = get_peft_model(base, config).get_submodule(f"base_model.model.{QUERY}")

    assert torch.equal(weights.a[QUERY], layer.lora_A["default"].weight)
    assert torch.equal(weights.b[QUERY], layer.lora_B["default"].weight)
    assert weights.scaling[QUERY] == 6 / 2


def test_embedding_as_target_is_refused_by_its_name_and_kind() -> None:
    with pytest.raises(
        AdapterError,
        match=r"target 'model\.embed_tokens' is a torch\S*\.Embedding; "
        r".*leave it out by exclude_modules=\['embed_tokens'\]",
    ):
        LoraEnsemble(llama(), tokenizer(), adapter=adapter(targets=["q_proj", "embed_tokens"]))


class Convolved(nn.Module):
    """A base with a convolution, as far as PEFT looks at it."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"model_type": "convolved"}
        self.linear, self.conv = nn.Linear(4, 4), nn.Conv1d(4, 4, 1)


def test_convolution_as_target_is_refused_by_its_name_and_kind() -> None:
    base = Convolved()

    with pytest.raises(
        AdapterError,
        match=r"target 'conv' is a torch\S*\.Conv1d; .*leave it out by exclude_modules=\['conv'\]",
    ):
        initial_weights(base, LoraConfig(r=2, target_modules=["linear", "conv"]), seed=0)
    assert type(base.linear) is nn.Linear
    assert type(base.conv) is nn.Conv1d


def test_output_head_as_target_is_refused() -> None:
    with pytest.raises(
        AdapterError, match="the output head cannot carry adapters; take it out of target_modules"
    ):
        LoraEnsemble(llama(), tokenizer(), adapter=adapter(targets=["q_proj", "lm_head"]))


def test_target_that_the_base_does_not_have_is_named() -> None:
    with pytest.raises(
        AdapterError, match=r"PEFT cannot place the adapter: Target modules .*c_attn.* not found"
    ):
        LoraEnsemble(llama(), tokenizer(), adapter=adapter(targets=["c_attn"]))


def test_rank_and_alpha_of_single_layers_are_peft_s() -> None:
    config = LoraConfig(
        r=2,
        lora_alpha=4,
        target_modules=["q_proj", "v_proj"],
        rank_pattern={"q_proj": 3},
        alpha_pattern={"v_proj": 10},
        use_rslora=True,
    )
    weights = initial_weights(llama(), config, seed=0)
    value = QUERY.replace("q_proj", "v_proj")

    assert weights.a[QUERY].shape[0] == weights.b[QUERY].shape[1] == 3
    assert weights.scaling == pytest.approx({QUERY: 4 / 3**0.5, value: 10 / 2**0.5})


def test_members_of_other_targets_do_not_stack() -> None:
    base = llama()
    members = [initial_weights(base, adapter(targets=[target]), seed=0) for target in ("q_proj", "v_proj")]

    with pytest.raises(AdapterError, match="the members adapt different layers"):
        AdapterStack(base, members, dtype=torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("drop", "does not hold an A and a B of one rank for each layer"),
        ("rank", "does not hold an A and a B of one rank for each layer"),
        ("foreign", "'base_model.model.lm_head.weight', which is not a weight of a LoRA on a linear layer"),
        ("convolution", r"lora_A.weight' of shape \(2, 16, 1\); a LoRA on a linear layer has matrices only"),
        ("empty", "does not hold an A and a B of one rank for each layer"),
    ],
)
def test_tensors_that_are_no_lora_are_refused(tmp_path, change: str, message: str) -> None:
    ensemble(members=1).save_pretrained(tmp_path / "saved")
    folder = tmp_path / "saved" / "member_000"
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    key = f"base_model.model.{QUERY}.lora_A.weight"
    if change == "drop":
        del tensors[key]
    elif change == "rank":
        tensors[key] = tensors[key][:1].contiguous()
    elif change == "foreign":
        tensors["base_model.model.lm_head.weight"] = torch.zeros(3, 3)
    elif change == "convolution":
        tensors[key] = tensors[key][..., None].contiguous()
    else:
        tensors = {}
    save_file(tensors, path)

    with pytest.raises(CheckpointError, match=message):
        read_adapter(folder, read_adapter_config(folder))


def test_placing_an_adapter_on_transposed_layers_says_nothing() -> None:
    """PEFT warns of Conv1D layers and corrects the field; warnings are errors here."""
    initial_weights(tiny_models.build("gpt2"), LoraConfig(target_modules=["c_attn"]), seed=0)
