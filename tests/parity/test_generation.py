"""The ensemble in Hugging Face's `generate` against a slow reference: M PEFT models, probabilities averaged
at every step, no cache.
"""

from __future__ import annotations

import copy
import functools
import io
import math
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    GenerationMixin,
    MaxLengthCriteria,
    PretrainedConfig,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)
from transformers.modeling_outputs import CausalLMOutput

from breadth import crossed, tried
from lora_ensembles import LoraEnsemble, load_base
from lora_ensembles.errors import ConfigError
from lora_ensembles.heads.whole_model import mean_log_probs
from tiny_models import TRIED, adapter_config, build, build_ensemble, random_rows, tokenizer

MEMBERS = 3
NEW_TOKENS = 6
SIDES = tried(  # grouped queries, sliding windows, learned positions, experts
    ("llama", "mistral", "gemma2", "qwen3", "gpt2", "opt", "mixtral"), ("llama", "gemma2", "gpt2", "mixtral")
)
PROMPTS = random_rows([5, 11, 8], seed=3)  # of different lengths, some beyond the sliding window


class SlowEnsemble(PreTrainedModel, GenerationMixin):
    """M PEFT models asked one after another about the whole text so far; the log of the mean of their
    probabilities.
    """

    def __init__(self, models: list[PeftModel]):
        super().__init__(PretrainedConfig(vocab_size=len(tokenizer()), bos_token_id=1, eos_token_id=2))
        self.models = torch.nn.ModuleList(models)
        self.generation_config = copy.deepcopy(models[0].generation_config)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_options: Any
    ) -> dict[str, Any]:
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None, return_dict: bool = True
    ) -> CausalLMOutput:
        rows = []
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        for ids, mask in zip(
            input_ids, attention_mask, strict=True
        ):  # each row by itself: no padding anywhere
            text = ids[mask.bool()][None]
            probabilities = torch.stack(
                [
                    model(input_ids=text, use_cache=False).logits[0, -1].softmax(dim=-1)
                    for model in self.models
                ]
            )
            rows.append(probabilities.mean(dim=0).log())
        return CausalLMOutput(logits=torch.stack(rows)[:, None])


def peft_members(name: str, ensemble: LoraEnsemble) -> list[PeftModel]:
    """Each member's adapter in a PEFT model of its own."""
    models = []
    for index in range(ensemble.num_members):
        model = get_peft_model(build(name), adapter_config(name)).eval()
        weights, parameters = ensemble.stack.member(index), dict(model.named_parameters())
        for site in weights.a:
            parameters[f"base_model.model.{site}.lora_A.default.weight"].data.copy_(weights.a[site])
            parameters[f"base_model.model.{site}.lora_B.default.weight"].data.copy_(weights.b[site])
        models.append(model)
    return models


def pair(name: str = "llama", *, members: int = MEMBERS) -> tuple[PreTrainedModel, SlowEnsemble]:
    ensemble = build_ensemble(name, members=members, random_b=True)
    return ensemble.as_causal_lm(), SlowEnsemble(peft_members(name, ensemble))


def left_padded(rows: list[list[int]]) -> dict[str, Tensor]:
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def generated(model: Any, rows: list[list[int]], **settings: Any) -> list[list[int]]:
    """The new tokens of each row; the same random draws on every call."""
    inputs = left_padded(rows)
    torch.manual_seed(11)
    found = model.generate(**inputs, **({"max_new_tokens": NEW_TOKENS, "pad_token_id": 0} | settings))
    return found[:, inputs["input_ids"].shape[1] :].tolist()


SAMPLED: dict[str, Any] = dict(do_sample=True, temperature=1.3)
MODES: dict[str, dict[str, Any]] = {
    "greedy": dict(do_sample=False),
    "never_ending": dict(do_sample=False, eos_token_id=None, min_new_tokens=NEW_TOKENS),
    "sampling": SAMPLED,
    "top_k": SAMPLED | dict(top_k=5),
    "top_p": SAMPLED | dict(top_p=0.7, top_k=0),
    "beams": dict(do_sample=False, num_beams=3),
    "beams_with_length_penalty": dict(do_sample=False, num_beams=4, length_penalty=2.0, early_stopping=True),
    "beam_sampling": SAMPLED | dict(num_beams=3),
    "several_samples": SAMPLED | dict(num_return_sequences=2),
    "several_beams": dict(do_sample=False, num_beams=3, num_return_sequences=2),
    "repetition_penalty": dict(do_sample=False, repetition_penalty=1.5),
}


@functools.cache
def slow_tokens(name: str, mode: str) -> list[list[int]]:
    """The tokens of the slow reference."""
    return generated(pair(name)[1], PROMPTS, use_cache=False, **MODES[mode])


@pytest.mark.parametrize(("name", "mode"), crossed(SIDES, MODES, usual="beam_sampling"))
def test_tokens_equal_the_slow_reference(name: str, mode: str) -> None:
    assert generated(pair(name)[0], PROMPTS, **MODES[mode]) == slow_tokens(name, mode)


@pytest.mark.parametrize("name", TRIED)
def test_greedy_tokens_and_beams_equal_the_slow_reference_on_every_architecture(name: str) -> None:
    for mode in ("greedy", "beams"):
        assert generated(pair(name)[0], PROMPTS, **MODES[mode]) == slow_tokens(name, mode)


@pytest.mark.parametrize("mode", ["greedy", "sampling", "beams"])
@pytest.mark.parametrize("name", SIDES)
def test_one_member_generates_what_its_peft_model_generates(name: str, mode: str) -> None:
    ensemble = build_ensemble(name, members=MEMBERS, random_b=True)
    peft = peft_members(name, ensemble)[1]
    assert generated(ensemble.member(1), PROMPTS, **MODES[mode]) == generated(peft, PROMPTS, **MODES[mode])


@pytest.mark.parametrize("mode", ["greedy", "sampling", "beams", "several_beams"])
@pytest.mark.parametrize("name", [name for name in SIDES if name not in ("opt", "mixtral")])
@pytest.mark.parametrize(
    "settings", [{}, {"prefill_chunk_size": 4}], ids=["whole_prompt", "prompt_in_chunks"]
)
def test_tokens_with_a_static_cache_equal_the_slow_reference(
    name: str, mode: str, settings: dict[str, Any]
) -> None:
    static = generated(
        pair(name)[0], PROMPTS, cache_implementation="static", disable_compile=True, **settings, **MODES[mode]
    )
    assert static == slow_tokens(name, mode)


@pytest.mark.parametrize("name", SIDES)
def test_prompt_look_up_gives_the_greedy_tokens(name: str) -> None:
    model, reference = pair(name)
    for row in PROMPTS:
        repeating = row + row[:4]  # so that there is something to look up
        settings = MODES["never_ending"]
        found = generated(model, [repeating], prompt_lookup_num_tokens=3, **settings)
        assert found == generated(reference, [repeating], use_cache=False, **settings)


def test_rows_of_a_left_padded_batch_equal_rows_alone() -> None:
    for name in SIDES:
        model, _ = pair(name)
        together = generated(model, PROMPTS, **MODES["never_ending"])
        assert together == [generated(model, [row], **MODES["never_ending"])[0] for row in PROMPTS]


def test_generation_without_a_cache_gives_the_same_tokens() -> None:
    model, _ = pair()
    assert generated(model, PROMPTS, use_cache=False, **MODES["greedy"]) == generated(
        model, PROMPTS, **MODES["greedy"]
    )


class _FirstTokenTwice(StoppingCriteria):
    """Stops a row that has written its first new token again."""

    def __init__(self, prompt: int):
        self.prompt = prompt

    def __call__(self, input_ids: Tensor, scores: Any, **_options: Any) -> Tensor:
        new = input_ids[:, self.prompt :]
        return (new == new[:, :1]).sum(dim=1) >= 2


def test_stopping_criteria_act_as_for_the_slow_reference() -> None:
    model, reference = pair()
    length = max(map(len, PROMPTS))
    criteria = StoppingCriteriaList([_FirstTokenTwice(length), MaxLengthCriteria(length + 7)])
    stopped = generated(model, PROMPTS, stopping_criteria=criteria, **MODES["never_ending"])
    assert stopped == generated(
        reference, PROMPTS, stopping_criteria=criteria, use_cache=False, **MODES["never_ending"]
    )
    assert stopped != generated(model, PROMPTS, **MODES["never_ending"])


def test_a_stop_string_ends_the_text() -> None:
    base, words = load_base()
    model = LoraEnsemble(base, words, num_members=2).as_causal_lm()
    inputs = words("Q: Who is", return_tensors="pt")
    settings = dict(**inputs, max_new_tokens=12, min_new_tokens=1, eos_token_id=None, do_sample=False)
    length = inputs["input_ids"].shape[1]
    whole = words.decode(model.generate(**settings)[0, length:])  # type: ignore[operator]
    stop = whole[len(whole) // 2 :][:4]
    stopped = model.generate(**settings, stop_strings=[stop], tokenizer=words)  # type: ignore[operator]
    cut = words.decode(stopped[0, length:])
    assert len(cut) < len(whole)
    assert stop in cut


def test_a_text_streamer_prints_what_is_generated() -> None:
    model, _ = pair()
    row = PROMPTS[1]
    with redirect_stdout(io.StringIO()) as printed:
        model_tokens = model.generate(  # type: ignore[operator]
            torch.tensor([row]),
            max_new_tokens=NEW_TOKENS,
            streamer=TextStreamer(tokenizer(), skip_prompt=True),
        )
    assert printed.getvalue().strip("\n") == tokenizer().decode(model_tokens[0, len(row) :]).strip("\n")
    assert printed.getvalue().strip()


def test_chat_template_prompts_equal_the_slow_reference() -> None:
    chat = copy.deepcopy(tokenizer())
    chat.chat_template = (
        "{% for m in messages %}{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
    )
    messages = [
        {"role": "user", "content": "the red fox"},
        {"role": "assistant", "content": "home"},
        {"role": "user", "content": "a bird"},
    ]
    inputs = chat.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    rows = inputs["input_ids"].tolist()
    model, reference = pair("qwen2")
    assert generated(model, rows, **MODES["never_ending"]) == generated(
        reference, rows, use_cache=False, **MODES["never_ending"]
    )


@pytest.mark.parametrize("name", SIDES)
def test_log_probabilities_are_the_mean_of_the_members_probabilities(name: str) -> None:
    model, reference = pair(name)
    ids = torch.tensor(random_rows([9, 9], seed=7))
    output: Any = model(ids)
    members = torch.stack([peft(input_ids=ids).logits.log_softmax(dim=-1) for peft in reference.models])
    # Members' log-probabilities agree to float32's rounding of sums over the vocabulary.
    torch.testing.assert_close(output.member_log_probs, members, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.logits, members.exp().mean(dim=0).log(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.logits.exp().sum(dim=-1), torch.ones(2, 9), atol=1e-5, rtol=0)


def test_logits_to_keep_gives_the_last_positions() -> None:
    model, _ = pair()
    ids = torch.tensor(random_rows([9, 9], seed=7))
    whole: Any = model(ids)
    for keep in (1, 4, torch.tensor([2, 5])):
        wanted = whole.logits[:, keep] if isinstance(keep, Tensor) else whole.logits[:, -keep:]
        torch.testing.assert_close(model(ids, logits_to_keep=keep).logits, wanted, atol=1e-6, rtol=1e-6)


def test_loss_is_the_cross_entropy_of_the_ensemble() -> None:
    model, _ = pair()
    ids = torch.tensor(random_rows([9, 9], seed=7))
    output: Any = model(input_ids=ids, labels=ids)
    expected = -output.logits[:, :-1].gather(2, ids[:, 1:, None]).mean()
    torch.testing.assert_close(output.loss, expected)


def test_a_tuple_is_returned_where_one_is_asked_for() -> None:
    model, _ = pair()
    ids = torch.tensor(random_rows([4], seed=7))
    assert torch.equal(model(ids, return_dict=False)[0], model(ids).logits)


def test_mean_of_log_probs_survives_a_member_that_rules_a_token_out() -> None:
    members = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).log()
    assert mean_log_probs(members).tolist() == pytest.approx([math.log(0.75), math.log(0.25)])


def test_members_added_or_dropped_later_are_seen() -> None:
    ensemble = build_ensemble("llama", members=2, random_b=True)
    model = ensemble.as_causal_lm()
    ids = torch.tensor(random_rows([6], seed=7))
    ensemble.add_members(1)
    assert model(ids).member_log_probs.shape[0] == 3
    ensemble.keep_members([1])
    torch.testing.assert_close(model(ids).logits, ensemble(ids)[0].log_softmax(dim=-1))


def test_a_hook_on_the_causal_model_does_not_run_for_the_base() -> None:
    ensemble = build_ensemble("llama", members=2)
    model, calls = ensemble.as_causal_lm(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    with ensemble.base_only() as base:
        base(torch.tensor([[5, 6]]))
    assert not calls
    model(torch.tensor([[5, 6]]))
    assert calls == [1]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda ensemble: ensemble.member(2), "pass different numbers from 0 to 1"),
        (lambda ensemble: ensemble.as_causal_lm()(), "pass input_ids"),
        (lambda ensemble: ensemble.as_causal_lm().save_pretrained("x"), r"model\.ensemble\.save_pretrained"),
    ],
)
def test_misuse_gets_a_clear_error(act: Callable[[LoraEnsemble], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        act(build_ensemble("llama", members=2))


def test_the_uncalled_for_argument_is_refused_by_generate() -> None:
    model, _ = pair()
    with pytest.raises(ValueError, match="temprature"):
        generated(model, PROMPTS, temprature=0.5)


def test_outputs_as_a_tuple_stand_in_the_order_of_the_bases() -> None:
    ensemble = build_ensemble("llama", members=1, random_b=True)
    ids = torch.tensor([random_rows([5])[0]])
    with torch.no_grad():
        logits, cache, *_ = ensemble.as_causal_lm()(ids, use_cache=True, return_dict=False)
    assert logits.shape[:2] == (1, 5)
    assert cache.get_seq_length() == 5
