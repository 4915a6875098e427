"""Tiny configurations of any architecture: every size that a configuration holds, made small by its name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedConfig, SiglipVisionConfig

from architectures.settings import DEFAULTS, SETTINGS, TOWERS

HIDDEN = 32
HEADS = 4
HEAD_DIM = HIDDEN // HEADS
VOCABULARY = 96
WINDOW = 64  # tokens that the models see
SLIDING = 6  # tokens of a sliding attention window, and of other choices of tokens that attention makes
LEAST_LAYERS = 2

Rule = Callable[[int], int]


def _exactly(size: int) -> Rule:
    return lambda value: size


def _at_most(size: int) -> Rule:
    return lambda value: min(value, size)


# The first rule with a pattern for the whole name applies; numbers in lists are made small one by one.
INTEGERS: tuple[tuple[Rule, str], ...] = (
    (
        _exactly(LEAST_LAYERS),
        r"(num_|n_)?(hidden_|encoder_|decoder_|recurrent_|input_|output_)*layers? conf_num_hidden_layers"
        r" num_layers_per_stack (decoder|encoder)_num_layers depths? num_blocks resampler_depth"
        r" n_layers_per_attn_res_block",
    ),
    (
        _exactly(1),
        r"num_lstm_layers num_residual_layers num_res_blocks num_global_layers aligner_num_add_layers",
    ),
    (_exactly(1), r"block_sizes channel_multiplier topk_group"),
    (_at_most(1), r"first_k_dense_replace num_dense_layers"),
    (_at_most(HEAD_DIM), r"d_head dim_head d_kv n_groups"),
    (_at_most(2), r"kv_n_heads num_query_groups num_kv_heads (\w+_)?num_key_value_heads"),
    (_exactly(32), r"index_n_heads"),  # with few, a choice of tokens has to break ties of exact zeros
    (_at_most(HEADS), r"(\w+_)?heads?"),
    (_exactly(HEAD_DIM), r"(global_|swa_|linear_|index_|indexer_|mamba_|v_)?head_?dim kv_channels"),
    (_at_most(HEAD_DIM), r"(qk_nope|qk_rope|linear_key|linear_value|resampler)_head_dim attention_head_size"),
    (_exactly(HEAD_DIM), r"query_pre_attn_scalar"),
    (_exactly(4), r"rotary_dim"),
    (_exactly(16), r"\w*(_lora|gated_norm|laurel|adapter|loop_gate|dt|time_step)_rank"),
    (_exactly(8), r"\w*(state_size|d_state)"),
    (_at_most(24), r"\w*moe_intermediate_size \w*shared_expert\w*_(size|dim) shared_intermediate_size"),
    (
        _at_most(40),
        r"\w*(intermediate_size|ffn_dim|ffn_hidden_size|d_?ff|dim_ff|mlp_dim|n_inner|d_inner)\w* hidden_dim",
    ),
    (_exactly(4), r"(?!\w*shared)(\w+_)?experts"),
    (
        _at_most(2),
        r"num_experts_per_(tok|token) moe_topk moe_top_k moe_k top_k_experts n_group num_expert_group",
    ),
    (_at_most(VOCABULARY), r"(\w+_)?vocab_size(_per_layer_input)?"),
    (
        _exactly(WINDOW),
        r"(original_)?max_position_embeddings max_2d_position_embeddings max_(source|target)_positions"
        r" n_positions n_ctx max_seq_len context_length position_embedding_size num_position_embeddings"
        r" model_max_length",
    ),
    (
        _exactly(SLIDING),
        r"sliding_window(_size)? attention_window(_size)? local_attention_window_len attention_chunk_size"
        r" index_topk keep_window_size log_scaling_n_floor floor_scale rel_extent",
    ),
    (_exactly(2 * SLIDING), r"local_attention"),
    (_exactly(2), r"index_(topk_blocks|block_size|kpool)"),
    (_at_most(8), r"(mamba_)?chunk_size block_size"),
    (_exactly(28), r"image_size crop_size"),
    (_at_most(14), r"patch_size"),
    (_exactly(16), r"codebook_size num_embeddings"),
    (
        _exactly(4),
        r"image_seq_length video_seq_length \w*tokens_per_image num_image_tokens latent_query_num"
        r" canvas_length",
    ),
    (_exactly(16), r"max_num_patches seq_len img_max_token_num max_vit_seq_len min_image_size"),
    (
        _at_most(HIDDEN),
        r"(\w+_)?(hidden_size(_global)?|hidden_sizes|d_model|n_embd|dim|embedding_size|head_size|width)"
        r" (\w+_)?channels",
    ),
)
ABSENT = {"head_dim": HEAD_DIM, "num_key_value_heads": 2}  # where the default is nothing
SPECIAL_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SPECIAL = SPECIAL_TOKENS | {
    "eod_token_id": 2,
    "sep_token_id": 2,
    "cls_token_id": 1,
    "decoder_start_token_id": 1,
    "unk_token_id": 3,
}
# Tokens that stand for an image, a sound, their ends or a mask get the last ids, from the end.
PLACEHOLDERS = range(VOCABULARY - 1, VOCABULARY - 9, -1)
PLACEHOLDER = re.compile(
    r"(image|video|audio|vision|mask|img|frame|low_res|boi|eoi|boa|eoa|im|slice|newline|user)\w*_(id|index)"
)
DROPOUT = re.compile(r"\w*(drop|jitter)\w*")
INITIAL = re.compile(r"\w*initializer_range|(embed_)?init_std|initializer_std")


def tiny_config(cls: type[PreTrainedConfig], changes: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration of a class with every size made small, and `changes` on top."""
    default = cls(**DEFAULTS.get(cls.model_type, {}))
    config = cls(**SPECIAL_TOKENS | _shrunk(default, dict(changes)))
    if cls.model_type in TOWERS:
        # Not through the constructor, which takes no other type; no text passes through the tower.
        vars(config)["vision_config"] = tiny_config(SiglipVisionConfig, TOWERS[cls.model_type])
    return config


def _shrunk(config: PreTrainedConfig, changes: dict[str, Any]) -> dict[str, Any]:
    """The arguments that make a configuration small; only those that are not the class's own defaults."""
    changes = SETTINGS.get(config.model_type, {}) | changes
    known = {*inspect.signature(type(config).__init__).parameters}
    known |= {stored for given, stored in type(config).attribute_map.items() if given in known}
    usual = vars(type(config)(**DEFAULTS.get(config.model_type, {})))
    placeholders = iter([*PLACEHOLDERS] * 3)
    reads = "vocab_size" in vars(config)
    small: dict[str, Any] = {
        name: token for name, token in SPECIAL_TOKENS.items() if reads or name in vars(config)
    }
    if config.is_encoder_decoder:
        small["decoder_start_token_id"] = 1
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            small[name] = type(value)(**_shrunk(value, changes.pop(name, {})))
        elif name in known and not name.startswith("_"):
            if PLACEHOLDER.fullmatch(name) and (value is None or type(value) is int):
                small[name] = next(placeholders)
            elif (tiny := _tiny(name, value)) != usual.get(name):
                small[name] = tiny
    small |= {name: layers for name, layers in _layers(config).items() if name in known}
    small |= {
        name: size for name, size in ABSENT.items() if name in known and vars(config).get(name, 0) is None
    }
    if "kv_lora_rank" in known and "num_key_value_heads" in known:
        small["num_key_value_heads"] = HEADS  # a compressed state holds every head
    return small | changes


def _tiny(name: str, value: Any) -> Any:
    if name in SPECIAL:
        return SPECIAL[name]
    if value is None or isinstance(value, bool | str):
        return False if name == "use_mamba_kernels" else value
    if isinstance(value, list | tuple):
        return type(value)(_tiny(name, part) for part in value)
    if DROPOUT.fullmatch(name):
        return 0.0
    if INITIAL.fullmatch(name):
        return 0.2
    if isinstance(value, int):
        for rule, patterns in INTEGERS:
            if any(re.fullmatch(pattern, name) for pattern in patterns.split()):
                return rule(value)
    if name == "logit_scale":
        return 0.3  # the defaults are for much wider states
    if name == "rope_parameters":
        return _tiny_rope(value)
    return value


def _tiny_rope(value: Mapping[str, Any]) -> dict[str, Any]:
    if "mrope_section" not in value:
        return dict(value)
    half = round(HEAD_DIM * value.get("partial_rotary_factor", 1.0)) // 2
    parts = len(value["mrope_section"])
    section = [half // parts] * parts
    section[0] += half - sum(section)
    return dict(value) | {"mrope_section": section}


def _layers(config: PreTrainedConfig) -> dict[str, Any]:
    """As few layers as show every combination of the kinds that a configuration lists for each layer."""
    name = "num_hidden_layers" if "num_hidden_layers" in vars(config) else "num_layers"
    count = vars(config).get(name)
    if not isinstance(count, int) or count <= LEAST_LAYERS:
        return {}
    numbered = {key: value for key, value in vars(config).items() if _numbers_layers(key, value, count)}
    listed = {
        key: value
        for key, value in vars(config).items()
        if isinstance(value, list | tuple) and len(value) == count and key not in numbered and key[0] != "_"
    }
    columns = [*listed.values(), *([layer in value for layer in range(count)] for value in numbered.values())]
    if not columns:
        return {}
    kinds = [repr(kind) for kind in zip(*columns, strict=True)]
    first = {kinds.index(kind) for kind in kinds}
    others = [layer for layer in range(count) if layer not in first]
    picked = sorted({*first, *others[: max(0, LEAST_LAYERS - len(first))]})
    return {
        name: len(picked),
        **{key: type(value)(_tiny(key, value[layer]) for layer in picked) for key, value in listed.items()},
        **{
            key: type(value)(place for place, layer in enumerate(picked) if layer in value)
            for key, value in numbered.items()
        },
    }


def _numbers_layers(name: str, value: Any, count: int) -> bool:
    """Whether a list says which layers are of a kind, by their numbers."""
    return (
        re.fullmatch(r"\w+_(layers|idxs|indexes|indices|ids)", name) is not None
        and isinstance(value, list | tuple)
        and all(type(number) is int for number in value)
        and list(value) == sorted({*value})
        and all(0 <= number < count for number in value)
    )
