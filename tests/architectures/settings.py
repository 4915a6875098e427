"""What tiny models of single architectures need beside sizes made small by name.

Keys are model types, of whole configurations and of those inside others (text, vision, audio).
"""

from __future__ import annotations

from typing import Any

ROPE: dict[str, Any] = dict(rope_type="default", rope_theta=1e4)
MROPE: dict[str, Any] = dict(rope_parameters=ROPE | dict(mrope_section=[2, 1, 1]))
GLM_MROPE: dict[str, Any] = dict(
    rope_parameters=ROPE | dict(mrope_section=[2, 1, 1], partial_rotary_factor=1.0)
)
LINEAR_FULL: dict[str, Any] = dict(num_hidden_layers=2, layer_types=["linear_attention", "full_attention"])
SLIDING_FULL: dict[str, Any] = dict(num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"])
MAMBA: dict[str, Any] = dict(mamba_n_heads=4, mamba_d_head=16)  # heads * size = expand (2) * hidden size (32)
SHARED_KV: dict[str, Any] = dict(
    num_hidden_layers=4,
    num_kv_shared_layers=2,
    layer_types=["sliding_attention", "full_attention"] * 2,
)
# Layers of full attention have heads of another size than sliding ones.
GEMMA4: dict[str, Any] = dict(global_head_dim=16)
QWEN4_INDEXER: dict[str, Any] = dict(
    indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=4, indexer_compress_ratio=2
)

# Where the defaults contradict themselves.
DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma4_assistant": dict(
        text_config=dict(hidden_size_per_layer_input=0, vocab_size_per_layer_input=0, num_kv_shared_layers=30)
    ),
    "gemma4_unified_assistant": dict(text_config=dict(num_kv_shared_layers=30)),
}
# Vision towers that need timm; SigLIP's stand in their place, with what the models read off their own.
TOWERS: dict[str, dict[str, Any]] = {
    "fast_vlm": {},
    "gemma3n": dict(vocab_size=4, vocab_offset=88, rms_norm_eps=1e-6),
    "perception_lm": dict(model_args=dict(embed_dim=32)),
}

SETTINGS: dict[str, dict[str, Any]] = {
    "apertus1p5": dict(
        image_token_offset=80,
        audio_token_offset=84,
        vision_config=dict(codebook_size=4),
        audio_config=dict(codebook_size=4),
    ),
    "bamba": MAMBA | dict(attn_layer_indices=[1]),
    "blt": dict(num_hidden_layers=2, encoder_hash_byte_group_vocab=50),
    "canine": dict(num_hash_buckets=32),
    "chameleon": dict(vocabulary_map={"<image>": 95}),
    "cohere_compass_text": SLIDING_FULL
    | dict(rope_parameters=dict(full_attention=ROPE, sliding_attention=ROPE)),
    "dbrx": dict(
        attn_config=dict(kv_n_heads=2, clip_qkv=8.0, rope_theta=1e4),
        ffn_config=dict(moe_top_k=2, ffn_hidden_size=32),
    ),
    "deepseek_ocr2_text": dict(
        num_experts_per_tok=2, num_hidden_layers=2, mlp_layer_types=["dense", "sparse"]
    ),
    "deepseek_v2": dict(num_experts_per_tok=2, first_k_dense_replace=1),
    "deepseek_v4": dict(compress_rates=dict(compressed_sparse_attention=2, heavily_compressed_attention=4)),
    "diffusion_gemma_text": GEMMA4
    | dict(num_global_key_value_heads=2, num_experts=4, top_k_experts=2, moe_intermediate_size=24),
    "dory": dict(
        num_hidden_layers=4,
        n_input_layers=1,
        n_recurrent_layers=2,
        n_output_layers=1,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    ),
    "dots1": dict(n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, first_k_dense_replace=1),
    "dots3_note_audio_encoder": dict(adapter_input_size=32, conv_output_size=32),
    "dots3_note_text": dict(
        swa_num_attention_heads=4,
        swa_num_key_value_heads=4,
        swa_q_lora_rank=16,
        swa_kv_lora_rank=16,
        swa_head_dim=16,
        swa_qk_nope_head_dim=8,
        swa_v_head_dim=8,
        head_dim=16,
        num_key_value_heads=4,
    ),
    "electra": dict(embedding_size=24),
    "emu3": dict(vocabulary_map={"<image>": 95}),
    "ernie4_5_vl_moe_text": dict(rope_parameters=ROPE | dict(mrope_section=[1, 1, 2])),
    "esm": dict(vocab_size=96, mask_token_id=89),
    "esmc": dict(num_key_value_heads=4, vocab_size=96),
    "falcon_h1": dict(mamba_n_heads=4, mamba_d_head=8, mamba_d_ssm=32),
    "gemma3n": dict(audio_config=dict(vocab_size=4, vocab_offset=92)),
    "gemma3n_text": SHARED_KV
    | dict(
        intermediate_size=40, activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0], hidden_size_per_layer_input=16
    ),
    "gemma4": dict(
        text_config=dict(enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=24)
    ),
    "gemma4_assistant": dict(text_config=dict(num_kv_shared_layers=2, hidden_size_per_layer_input=0)),
    "gemma4_text": GEMMA4 | dict(hidden_size_per_layer_input=16),
    "gemma4_unified_assistant": dict(text_config=dict(num_kv_shared_layers=2)),
    "gemma4_unified_text": GEMMA4,
    "glm46v_text": GLM_MROPE,
    "glm4v_moe_text": GLM_MROPE,
    "glm4v_text": GLM_MROPE,
    "glm_ocr_text": GLM_MROPE,
    "glmga_text": GLM_MROPE,
    "gpt_neo": dict(attention_types=[[["global", "local"], 1]], window_size=6),
    "granite4_vision": dict(
        downsample_rate="1/2",
        deepstack_layer_map=[[-1, 0]],
        spatial_target_layers=[1],
        vision_config=dict(hidden_size=64),  # its heads are 64 wide
        qformer_config=dict(hidden_size=64, encoder_hidden_size=64),
    ),
    "granitemoehybrid": MAMBA | LINEAR_FULL,
    "hrm_text": dict(num_hidden_layers=2, num_layers_per_stack=None, H_cycles=2, L_cycles=2, L_bp_cycles=[2]),
    "hunyuan_vl_text": dict(rope_parameters=ROPE | dict(mrope_section=[1, 1, 1, 1])),
    "hunyuan_vl_vision": dict(max_image_size=28),
    "hy_v4_vl_vision": dict(max_image_size=28),
    "inkling2_loop_text": dict(
        num_hidden_layers=4,
        layer_types=["hybrid_sliding", "hybrid"] * 2,
        loop_layer_index_start=2,
        loop_layer_index_end=4,
        loop_num_passes=2,
    ),
    "inkling_text": dict(logits_mup_width_multiplier=1.0),
    "jamba": dict(
        num_hidden_layers=3,
        attn_layer_period=3,
        attn_layer_offset=2,
        expert_layer_period=2,
        expert_layer_offset=1,
    ),
    "layoutlmv3": dict(coordinate_size=4, shape_size=8, input_size=28, patch_size=14),
    "lfm2_moe": dict(num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"], num_dense_layers=1),
    "lilt": dict(hidden_size=48),  # sizes of its boxes are a sixth of it, its channels a quarter
    "longcat_flash": dict(zero_expert_num=2, head_dim=8, qk_head_dim=16),
    "mamba2": dict(num_heads=4, head_dim=16, n_groups=2),
    "markuplm": dict(
        max_xpath_tag_unit_embeddings=16,
        max_xpath_subs_unit_embeddings=16,
        tag_pad_id=15,
        subs_pad_id=15,
        max_depth=4,
        xpath_unit_hidden_size=8,
    ),
    "molmo2_adapter": dict(vision_feature_layer=[1, 0]),
    "nemotron_h": dict(n_groups=2),
    "paddleocr_vl_text": MROPE,
    "perceiver": dict(d_latents=32, num_latents=8, num_self_attends_per_block=2),
    "qwen2_5_omni_text": MROPE,
    "qwen2_5_omni_thinker": dict(vision_start_token_id=92),  # as in its checkpoints; the class has no default
    "qwen2_5_vl_text": MROPE,
    "qwen2_vl_text": MROPE,
    "qwen3_omni_moe_thinker": dict(vision_start_token_id=92),
    "qwen4_exp_text": QWEN4_INDEXER
    | dict(
        hc_lowrank=16,
        ple_layer_ids=[1],
        heads_per_ngram=2,
        ngram_vocab_size_base=50,
        make_ngram_vocab_size_divisible_by=8,
        split_ngram_parts=1,
    ),
    "radio": dict(max_img_size=28),
    "recurrent_gemma": dict(num_hidden_layers=3),
    "reformer": dict(
        attn_layers=["local", "lsh"],
        axial_pos_shape=(8, 8),
        axial_pos_embds_dim=(12, 20),
        feed_forward_size=40,
        local_attn_chunk_length=4,
        lsh_attn_chunk_length=4,
        num_buckets=4,
        hash_seed=0,
    ),
    "step3p5": SLIDING_FULL
    | dict(
        sliding_window=6,
        mlp_layer_types=["dense", "sparse"],
        rope_parameters=dict(full_attention=ROPE, sliding_attention=ROPE),
    ),
    "wavtokenizer_encoder": dict(
        num_filters=2, hidden_size=32, codebook_dim=32, decoder_attention_num_groups=4
    ),
    "xlstm": dict(hidden_size=64, embedding_dim=64, qk_dim_factor=1.0, chunk_size=16),
    "xmod": dict(default_language="en_XX"),
    "zamba": dict(
        attention_hidden_size=64,
        attention_head_dim=16,
        num_hidden_layers=4,
        layers_block_type=["linear_attention", "hybrid", "linear_attention", "hybrid"],
    ),
}
