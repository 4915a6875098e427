"""A few tokens tried when an ensemble is made: what does not hold is refused by name, or read in the slower
way.
"""

from __future__ import annotations

import copy
import inspect
import logging
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from lora_ensembles import LoraEnsemble, TrainConfig, predict, train
from lora_ensembles.data import Example
from lora_ensembles.errors import AdapterError, ConfigError
from lora_ensembles.passes.answer_positions import read_prefix
from lora_ensembles.passes.shortcuts import shortcuts_of
from tiny_models import letter_examples, phrase_examples, tokenizer

SMALL: dict[str, Any] = dict(
    hidden_size=32,
    d_model=32,
    intermediate_size=48,
    d_inner=48,
    ffn_dim=48,
    num_hidden_layers=3,
    n_layer=3,
    decoder_layers=3,
    num_attention_heads=4,
    n_head=4,
    decoder_attention_heads=4,
    num_key_value_heads=4,
    head_dim=8,
    max_position_embeddings=64,
    initializer_range=0.2,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    dropout=0.0,
    kv_lora_rank=16,
    q_lora_rank=16,
    qk_rope_head_dim=8,
    qk_nope_head_dim=8,
    v_head_dim=8,
    n_routed_experts=4,
    num_local_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=24,
    n_group=2,
    topk_group=1,
    first_k_dense_replace=1,
)
# Logits are about 5 and an fp32 sum of 32 terms is exact to 1e-6 of that; some layers follow each other.
TOLERANCE = dict(atol=2e-5, rtol=1e-5)


def tiny(kind: str, auto: Any = AutoModelForCausalLM, **more: Any) -> PreTrainedModel:
    """A random model of a type of transformers, with the sizes that its config knows."""
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    described = CONFIG_MAPPING[kind]
    known = inspect.signature(described.__init__).parameters
    sizes = {name: value for name, value in SMALL.items() if name in known}
    config = described(vocab_size=len(tokenizer()), **(sizes | more))
    torch.manual_seed(1)
    model: PreTrainedModel = (
        (auto.from_config(config) if hasattr(auto, "from_config") else auto(config)).float().eval()
    )
    return model


def made(base: PreTrainedModel, *targets: str, members: int = 2, **more: Any) -> LoraEnsemble:
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules=list(targets), **more)
    return LoraEnsemble(base, tokenizer(), num_members=members, adapter=adapter)


def with_random_b(ensemble: LoraEnsemble) -> LoraEnsemble:
    generator = torch.Generator().manual_seed(5)
    ensemble.stack.b.copy_(0.2 * torch.randn(ensemble.stack.b.shape, generator=generator))
    ensemble.stack.refresh()
    return ensemble


@torch.no_grad()
def label_log_probs(model: Any, example: Example) -> Tensor:
    """log p of each label, by the model's own forward on one whole row at a time, without padding."""
    prompt = tokenizer()(example.prompt).input_ids
    sums = []
    for label in example.labels:
        ids = tokenizer()(example.prompt + label).input_ids
        log_probs = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(dim=-1)
        sums.append(sum(log_probs[place - 1, ids[place]] for place in range(len(prompt), len(ids))))
    return torch.stack(sums).log_softmax(dim=-1)


def check_scores(ensemble: LoraEnsemble, plain: PreTrainedModel, examples: list[Example]) -> None:
    """Holds fresh members, whose B is zero, to the base's own scores."""
    scores = predict(ensemble, examples).member_log_probs
    for number, example in enumerate(examples):
        expected = label_log_probs(plain, example).expand(ensemble.num_members, -1)
        torch.testing.assert_close(scores[:, number, : len(example.labels)], expected, **TOLERANCE)


@pytest.mark.parametrize(("kind", "inner"), [("inkling_text", ""), ("inkling2_text", ".linear")])
def test_a_layer_that_mixes_tokens_behind_its_attention_is_not_narrowed(kind: str, inner: str) -> None:
    base = tiny(kind)
    ensemble = made(copy.deepcopy(base), f"q_proj{inner}", f"v_proj{inner}")
    assert not shortcuts_of(ensemble.base).narrowed
    check_scores(ensemble, base, letter_examples()[:3])


def test_an_mlp_that_wants_three_axes_is_not_narrowed(caplog: pytest.LogCaptureFixture) -> None:
    base = tiny("moshi")
    with caplog.at_level(logging.INFO, logger="lora_ensembles.passes.probe"):
        ensemble = made(copy.deepcopy(base), "linear")
    assert "MoshiForCausalLM: the shortcut 'narrowed' is not taken: it fails" in caplog.text
    check_scores(ensemble, base, letter_examples()[:3])


def test_a_common_decoder_takes_both_shortcuts() -> None:
    ensemble = made(tiny("llama"), "q_proj", "v_proj")
    assert shortcuts_of(ensemble.base).narrowed
    assert shortcuts_of(ensemble.base).prefix
    assert not shortcuts_of(
        ensemble.unload()
    ).narrowed  # the plain base is another model, on which nothing was tried


@pytest.mark.parametrize(
    ("kind", "targets", "more"),
    [
        (
            "minimax",
            ("q_proj", "v_proj"),
            dict(layer_types=["linear_attention", "full_attention", "linear_attention"], block_size=8),
        ),
        ("minimax", ("q_proj", "v_proj"), dict(layer_types=["full_attention"] * 3)),
        ("bart", ("q_proj", "v_proj"), dict(encoder_layers=2)),
        ("xlstm", ("q", "v"), dict(num_heads=4)),
    ],
)
def test_a_base_whose_cached_pass_differs_or_fails_is_read_whole(
    kind: str, targets: tuple[str, ...], more: dict[str, Any]
) -> None:
    base = tiny(kind, **more)
    ensemble = made(copy.deepcopy(base), *targets)
    assert read_prefix(ensemble.base, torch.tensor([[5, 6, 7]])) is None
    check_scores(ensemble, base, phrase_examples()[:4])


@pytest.mark.parametrize(
    "kind",
    [
        "bert",
        "roberta",
        "electra",
        "xlm-roberta",
        "rembert",
        "roformer",
        "megatron-bert",
        "data2vec-text",
        "ernie",
    ],
)
def test_an_encoder_without_is_decoder_is_refused_as_a_language_model(kind: str) -> None:
    base = tiny(kind)
    with pytest.raises(
        ConfigError, match=r"is not causal: what it says at a token changes .* is_decoder=True"
    ):
        made(base, "query", "value")
    assert not any(hasattr(module, "lora_a") for module in base.modules())  # the base has its own layers back


def test_a_bert_decoder_is_accepted_and_its_scores_are_its_own() -> None:
    base = tiny("bert", is_decoder=True)
    check_scores(made(copy.deepcopy(base), "query", "value"), base, letter_examples()[:3])


def test_a_masked_language_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="BertForMaskedLM is not causal"):
        made(tiny("bert", transformers.AutoModelForMaskedLM), "query", "value")


def vision_language(kind: str, text_kind: str, **more: Any) -> PreTrainedModel:
    """A tiny model that reads images and text, whose text part has the usual sizes."""
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    vocabulary = len(tokenizer())
    names = (
        "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim"
    ).split()
    text = {name: SMALL[name] for name in (*names, "max_position_embeddings")} | {"vocab_size": vocabulary}
    text |= {"model_type": text_kind, "pad_token_id": 0} | more.pop("text", {})
    config = CONFIG_MAPPING[kind](text_config=text, **more)
    torch.manual_seed(1)
    model: PreTrainedModel = transformers.AutoModelForImageTextToText.from_config(config).float().eval()
    return model


SIGLIP: dict[str, Any] = dict(
    model_type="siglip_vision_model",
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=28,
    patch_size=14,
)
LANGUAGE_PART = r".*language_model.*\.(q_proj|v_proj)"


def gemma3() -> PreTrainedModel:
    last = len(tokenizer())
    return vision_language(
        "gemma3",
        "gemma3_text",
        vision_config=SIGLIP,
        mm_tokens_per_image=4,
        image_token_index=last - 1,
        boi_token_index=last - 2,
        eoi_token_index=last - 3,
    )


def qwen2_vl() -> PreTrainedModel:
    last = len(tokenizer())
    return vision_language(
        "qwen2_vl",
        "qwen2_vl_text",
        text=dict(rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 2])),
        vision_config=dict(depth=2, embed_dim=16, hidden_size=32, num_heads=2, mlp_ratio=2, patch_size=14),
        image_token_id=last - 1,
        video_token_id=last - 2,
        vision_start_token_id=last - 3,
        vision_end_token_id=last - 4,
    )


def test_a_prefix_model_is_refused() -> None:
    base = vision_language(
        "paligemma", "gemma", vision_config=SIGLIP, image_token_index=len(tokenizer()) - 1, projection_dim=32
    )
    with pytest.raises(ConfigError, match="is not causal"):
        made(base, "q_proj", "v_proj")


def test_a_vision_language_base_trains_on_text_as_its_vocabulary_and_window_are_those_of_the_text_part() -> (
    None
):
    base = gemma3()
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules=LANGUAGE_PART)
    ensemble = LoraEnsemble(base, tokenizer(), num_members=2, adapter=adapter)
    history = train(
        ensemble, letter_examples()[:4], TrainConfig(epochs=8, learning_rate=1e-2), progress=False
    ).history
    assert max(history[-1]["train_loss"]) < min(history[0]["train_loss"])
    long = Example("long", "Q: " + "red fox " * 40 + "?\nA: (", ("a", "b"), 0)
    with pytest.raises(ValueError, match="64"):
        predict(ensemble, [long])


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_positions_of_three_axes_are_repeated_for_the_members_whatever_the_number_of_prompts(
    rows: int,
) -> None:
    adapter = LoraConfig(r=4, target_modules=LANGUAGE_PART)
    model = LoraEnsemble(qwen2_vl(), tokenizer(), num_members=2, adapter=adapter).as_causal_lm()
    prompts = torch.tensor([[5, 6, 7, 8 + row] for row in range(rows)])
    together = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=3, do_sample=False
    )
    single = [
        model.generate(prompt[None], attention_mask=torch.ones(1, 4), max_new_tokens=3, do_sample=False)[0]
        for prompt in prompts
    ]
    assert [row.tolist() for row in together] == [row.tolist() for row in single]


@pytest.mark.parametrize(
    ("auto", "message"),
    [
        (transformers.AutoModel, "LlamaModel has no language-model head"),
        (transformers.AutoModelForQuestionAnswering, "LlamaForQuestionAnswering has no language-model head"),
    ],
)
def test_a_base_without_a_language_model_head_is_refused_by_name(auto: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(tiny("llama", auto), "q_proj", "v_proj")


@pytest.mark.parametrize("build", ["t5", "bart"])
def test_an_encoder_decoder_is_refused_by_name(build: str) -> None:
    more = dict(d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0) if build == "t5" else {}
    kind = (
        transformers.T5ForConditionalGeneration
        if build == "t5"
        else transformers.BartForConditionalGeneration
    )
    with pytest.raises(ConfigError, match="is an encoder-decoder"):
        made(tiny(build, kind, **more), *(("q", "v") if build == "t5" else ("q_proj", "v_proj")))


def test_a_classifier_that_sees_tokens_in_front_of_rows_is_refused_since_it_would_mix_members() -> None:
    base = tiny("xlnet", transformers.AutoModelForSequenceClassification, num_labels=2)
    with pytest.raises(AdapterError, match="XLNetForSequenceClassification mixes the rows of a batch"):
        made(base, "layer_1", "layer_2")


def test_projections_of_cached_latents_see_rows_in_front_and_more_tokens_behind() -> None:
    base = tiny("deepseek_v3")
    ensemble = with_random_b(made(copy.deepcopy(base), "q_b_proj", "kv_b_proj"))
    plain = get_peft_model(
        base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_b_proj", "kv_b_proj"])
    ).eval()
    weights = ensemble.stack.member(1)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            layer = name.removeprefix("base_model.model.").partition(".lora_")[0]
            if "lora_A" in name:
                parameter.copy_(weights.a[layer])
            elif "lora_B" in name:
                parameter.copy_(weights.b[layer])
    examples = phrase_examples()[:4]
    scores = predict(ensemble, examples).member_log_probs[1]
    for number, example in enumerate(examples):
        torch.testing.assert_close(scores[number], label_log_probs(plain, example), **TOLERANCE)
    prompt = torch.tensor([[1, 5, 7]])
    written = ensemble.member(1).generate(prompt, max_new_tokens=4, do_sample=False)
    for length in range(3, written.shape[1]):
        with torch.no_grad():
            assert written[0, length] == plain(input_ids=written[:, :length]).logits[0, -1].argmax()


def test_a_model_may_ask_a_stacked_layer_for_its_weight() -> None:
    base = tiny("rwkv", attention_hidden_size=32)
    ensemble = made(base, "receptance", "value")
    layer = ensemble.stack.layers[0]
    assert layer.weight is layer.base_layer.weight
    assert layer.bias is layer.base_layer.bias
    assert (layer.in_features, layer.out_features) == tuple(reversed(layer.base_layer.weight.shape))


def test_a_classifier_that_asks_its_layer_for_a_dtype_is_scored() -> None:
    more = dict(d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0, num_labels=2)
    ensemble = made(tiny("t5", transformers.AutoModelForSequenceClassification, **more), "q", "wo")
    scores = predict(ensemble, [Example("1", "red fox </s>", ("a", "b"), 0)]).member_log_probs
    assert scores.shape == (2, 1, 2)


def test_hidden_states_of_four_axes_pass_a_trunk() -> None:
    base = tiny("deepseek_v4")
    ensemble = made(copy.deepcopy(base), "kv_proj", layers_to_transform=[2])
    check_scores(ensemble, base, letter_examples()[:3])
    train(ensemble, letter_examples()[:4], TrainConfig(epochs=1), progress=False)


def test_a_pooler_that_all_linear_takes_is_trained_as_peft_would() -> None:
    base = tiny("bert", transformers.AutoModelForSequenceClassification, num_labels=2)
    ensemble = LoraEnsemble(
        base, tokenizer(), num_members=2, adapter=LoraConfig(r=4, target_modules="all-linear")
    )
    assert "bert.pooler.dense" in {site.name for site in ensemble.stack.sites}
    questions = [
        Example(str(n), text, ("a", "b"), n % 2)
        for n, text in enumerate(["red fox", "small bird", "old river"])
    ]
    before = ensemble.stack.b.clone()
    train(ensemble, questions, TrainConfig(epochs=2, batch_size=2), progress=False)
    pooler = next(site for site in ensemble.stack.sites if site.name == "bert.pooler.dense")
    assert not torch.equal(pooler.view_b(ensemble.stack.b), pooler.view_b(before))
    together = predict(ensemble, questions).member_log_probs
    alone = torch.cat([predict(ensemble, [question]).member_log_probs for question in questions], dim=1)
    torch.testing.assert_close(together, alone, **TOLERANCE)


def test_a_classifier_whose_layers_return_lists_is_scored_without_shortcuts() -> None:
    base = tiny(
        "openai-gpt", transformers.AutoModelForSequenceClassification, num_labels=2, n_embd=32, n_positions=64
    )
    adapter = LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True)
    ensemble = LoraEnsemble(base, tokenizer(), num_members=2, adapter=adapter)
    assert ensemble.token_read is None
    assert predict(ensemble, [Example("1", "red fox", ("a", "b"), 0)]).member_log_probs.shape == (2, 1, 2)


def test_adapters_that_no_pass_reaches_stay_as_they_are() -> None:
    ensemble = with_random_b(made(tiny("bart"), "q_proj", "v_proj", members=1))
    crossing = [site for site in ensemble.stack.sites if "encoder_attn" in site.name]
    assert crossing  # a lone decoder has no encoder to attend to
    before = {
        site.name: (site.view_a(ensemble.stack.a).clone(), site.view_b(ensemble.stack.b).clone())
        for site in ensemble.stack.sites
    }
    config = TrainConfig(
        epochs=3, batch_size=2, learning_rate=1e-3, weight_decay_a=100.0, weight_decay_b=500.0
    )
    train(ensemble, letter_examples()[:4], config, progress=False)
    for site in ensemble.stack.sites:
        same = site in crossing
        assert torch.equal(site.view_a(ensemble.stack.a), before[site.name][0]) is same
        assert torch.equal(site.view_b(ensemble.stack.b), before[site.name][1]) is same


def test_a_classifier_that_reads_padding_scores_a_text_as_it_does_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = tiny(
        "convbert",
        transformers.AutoModelForSequenceClassification,
        num_labels=2,
        embedding_size=32,
        conv_kernel_size=3,
    )
    ensemble = made(base, "query", "value")
    texts = ["red fox", "the small bird near an old river", "home"]
    questions = [Example(str(n), text, ("a", "b"), 0) for n, text in enumerate(texts)]
    together = predict(ensemble, questions).member_log_probs
    alone = torch.cat([predict(ensemble, [question]).member_log_probs for question in questions], dim=1)
    torch.testing.assert_close(together, alone, **TOLERANCE)
    assert "ConvBertForSequenceClassification reads padding" in caplog.text


def test_members_that_are_added_are_tried_as_well() -> None:
    ensemble = made(tiny("deepseek_v3"), "q_b_proj", "kv_b_proj", members=1)
    ensemble.add_members(1)
    assert all(layer.by_row for layer in ensemble.stack.layers)
    assert ensemble.as_causal_lm().generate(torch.tensor([[1, 5, 7]]), max_new_tokens=2).shape == (1, 5)


def test_the_trial_leaves_members_as_they_were() -> None:
    ensemble = made(tiny("llama"), "q_proj", "v_proj", members=3)
    assert (ensemble.stack.b == 0).all()  # as PEFT begins


def test_adapters_of_which_a_pass_over_text_reaches_none_are_refused_in_training() -> None:
    ensemble = LoraEnsemble(
        gemma3(), tokenizer(), num_members=2, adapter=LoraConfig(r=4, target_modules=r".*vision.*q_proj")
    )
    with pytest.raises(AdapterError, match="the loss depends on no adapter"):
        train(ensemble, letter_examples()[:4], TrainConfig(epochs=1), progress=False)


def test_positions_kept_from_one_call_for_the_next_allow_no_shared_prefix() -> None:
    ensemble = LoraEnsemble(
        qwen2_vl(), tokenizer(), num_members=2, adapter=LoraConfig(r=4, target_modules=LANGUAGE_PART)
    )
    assert not shortcuts_of(ensemble.base).prefix
    before = predict(ensemble, phrase_examples()).member_log_probs
    ensemble.as_causal_lm().generate(torch.tensor([[1, 5, 7]]), max_new_tokens=2)
    torch.testing.assert_close(predict(ensemble, phrase_examples()).member_log_probs, before, atol=0, rtol=0)


def test_a_router_that_returns_more_than_a_tensor_is_refused_by_its_name() -> None:
    class Router(torch.nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), None

    class First(torch.nn.Module):
        def forward(self, gated: Any) -> Tensor:
            return gated[0]

    base = tiny("llama")
    plain = base.model.layers[0].mlp.gate_proj
    router = Router(plain.in_features, plain.out_features, bias=False)
    router.weight.data.copy_(plain.weight)
    base.model.layers[0].mlp.gate_proj = router
    base.model.layers[0].mlp.act_fn = First()
    with pytest.raises(
        AdapterError, match=r"is a Router that returns a tuple .* exclude_modules=\['gate_proj'\]"
    ):
        made(base, "gate_proj")


def test_a_base_without_token_embeddings_is_refused_by_name() -> None:
    base = tiny("canine", transformers.AutoModelForSequenceClassification, num_labels=2)
    with pytest.raises(ConfigError, match="CanineForSequenceClassification has no table of token embeddings"):
        made(base, "query", "value")
