"""Written text and the uncertainty of its tokens, against formulas and against passes of single members."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from lora_ensembles.errors import ConfigError, DataError
from lora_ensembles.generation import text as generated_text
from lora_ensembles.generation.text import generate_text, pieces, score_texts
from lora_ensembles.generation.uncertainty import TokenUncertainty, token_uncertainty
from tiny_models import WINDOW, build_ensemble, random_rows, tokenizer

EXACTLY = GenerationConfig(max_new_tokens=7, min_new_tokens=7)
PROMPTS = ["Q: the red fox?", "Q: an old river and a small bird?\nA: (", "home"]


def entropy(probabilities: list[float]) -> float:
    return -sum(p * math.log(p) for p in probabilities if p > 0)


def test_token_uncertainty_is_that_of_the_formulas() -> None:
    first, second = [0.7, 0.2, 0.1], [0.1, 0.8, 0.1]
    split = token_uncertainty(torch.tensor([[first], [second]]).log(), torch.tensor([1]))
    mean = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    expected = (entropy(first) + entropy(second)) / 2
    assert split.log_probs.item() == pytest.approx(math.log(mean[1]))
    assert split.member_log_probs.flatten().tolist() == pytest.approx([math.log(0.2), math.log(0.8)])
    assert split.total_entropy.item() == pytest.approx(entropy(mean))
    assert split.expected_entropy.item() == pytest.approx(expected)
    assert split.mutual_information.item() == pytest.approx(entropy(mean) - expected)
    assert split.agreement.item() == 0.5


def test_summary_sums_log_probabilities_and_averages_the_rest() -> None:
    log_probs = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0)).log_softmax(dim=-1)
    tokens = torch.tensor([0, 3, 5, 1])
    split = token_uncertainty(log_probs, tokens)
    summary = split.summary()
    by_hand = sum(
        math.log(log_probs[:, k, token].exp().mean().item()) for k, token in enumerate(tokens.tolist())
    )
    assert summary["log_prob"] == pytest.approx(by_hand, abs=1e-5)
    assert summary["member_log_probs"] == pytest.approx(
        log_probs[:, range(4), tokens].sum(dim=1).tolist(), abs=1e-5
    )
    assert summary["mutual_information"] == pytest.approx(
        summary["total_entropy"] - summary["expected_entropy"], abs=1e-5
    )
    assert summary["largest_mutual_information"] == pytest.approx(
        split.mutual_information.max().item(), abs=1e-5
    )


def test_uncertainty_of_a_text_is_that_of_its_members_passes() -> None:
    ensemble = build_ensemble("llama", members=3, random_b=True)
    rows = [(row[:4], row[4:]) for row in random_rows([9, 12, 6], seed=4)]
    for (prompt, tokens), found in zip(rows, score_texts(ensemble, rows), strict=True):
        logits = ensemble(torch.tensor([prompt + tokens]))[:, 0, len(prompt) - 1 : -1].log_softmax(dim=-1)
        expected = token_uncertainty(logits, torch.tensor(tokens))
        for name, value in vars(expected).items():
            # float32 sums of a padded and of an unpadded pass
            torch.testing.assert_close(getattr(found, name), value, atol=1e-5, rtol=1e-5)


def test_scores_do_not_depend_on_how_many_texts_or_tokens_are_done_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ensemble = build_ensemble("llama", members=2, random_b=True)
    rows = [(row[:3], row[3:]) for row in random_rows([9, 12, 6, 5], seed=4)]
    together = score_texts(ensemble, rows)
    monkeypatch.setattr(generated_text, "LOGITS_AT_ONCE", 4 * 2 * len(tokenizer()))  # four tokens at once
    for one, other in zip(together, score_texts(ensemble, rows), strict=True):
        for name, value in vars(one).items():
            torch.testing.assert_close(getattr(other, name), value, atol=1e-5, rtol=1e-5)


def test_generate_text_writes_what_generate_writes_whatever_the_batch() -> None:
    ensemble = build_ensemble("llama", members=3, random_b=True)
    model: Any = ensemble.as_causal_lm()
    expected = []
    for prompt in PROMPTS:
        ids = tokenizer()(prompt, return_tensors="pt")["input_ids"]
        expected.append(model.generate(ids, generation_config=EXACTLY)[0, ids.shape[1] :].tolist())
    for batch_size in (1, 2, 8):
        texts = generate_text(ensemble, PROMPTS, EXACTLY, batch_size=batch_size)
        assert [list(text.token_ids) for text in texts] == expected
        assert [text.prompt for text in texts] == [0, 1, 2]
        assert all(
            text.text == tokenizer().decode(text.token_ids, skip_special_tokens=True) for text in texts
        )


def test_several_texts_a_prompt_name_their_prompt_and_differ() -> None:
    ensemble = build_ensemble("llama", members=2, random_b=True)
    config = GenerationConfig(max_new_tokens=7, min_new_tokens=7, do_sample=True, num_return_sequences=2)
    texts = generate_text(ensemble, PROMPTS, config, seed=3)
    assert [text.prompt for text in texts] == [0, 0, 1, 1, 2, 2]
    assert texts[0].token_ids != texts[1].token_ids


def test_a_seed_fixes_the_text_and_leaves_the_global_generator_alone() -> None:
    ensemble = build_ensemble("llama", members=2, random_b=True)
    config = GenerationConfig(max_new_tokens=7, do_sample=True)
    state = torch.get_rng_state()
    first, again, other = (generate_text(ensemble, PROMPTS, config, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert (
        [text.token_ids for text in first]
        == [text.token_ids for text in again]
        != [text.token_ids for text in other]
    )


def test_tokens_arrive_one_by_one_with_the_uncertainty_of_the_finished_text() -> None:
    ensemble = build_ensemble("llama", members=3, random_b=True)
    heard: list[tuple[str, TokenUncertainty]] = []
    for settings in ({}, {"prompt_lookup_num_tokens": 3}):
        heard.clear()
        config = GenerationConfig(max_new_tokens=7, min_new_tokens=7, **settings)
        text = generate_text(
            ensemble, [PROMPTS[1]], config, on_token=lambda word, split: heard.append((word, split))
        )[0]
        assert "".join(word for word, _ in heard) == text.text
        for place, (_, split) in enumerate(heard):
            for name, value in vars(split).items():
                torch.testing.assert_close(
                    value, getattr(text.uncertainty, name)[..., place], atol=1e-5, rtol=1e-5
                )


def test_a_text_ends_with_its_end_of_sequence_token() -> None:
    ensemble = build_ensemble("llama", members=2, random_b=True)
    never = generate_text(ensemble, PROMPTS, EXACTLY)
    end = never[0].token_ids[3]
    config = GenerationConfig(max_new_tokens=7, eos_token_id=end)
    for text, longer in zip(generate_text(ensemble, PROMPTS, config), never, strict=True):
        place = longer.token_ids.index(end) + 1 if end in longer.token_ids else 7
        assert text.token_ids == longer.token_ids[:place]
        assert len(text.tokens) == text.uncertainty.log_probs.numel() == place


def test_a_character_of_several_tokens_belongs_to_its_last() -> None:
    from lora_ensembles import load_base

    words = load_base()[1]
    ids = words("na naïve ☂", add_special_tokens=False)["input_ids"]
    found = pieces(words, ids)
    assert "".join(found) == "na naïve ☂"
    assert not any("�" in piece for piece in found)
    assert "" in found  # the umbrella is three bytes, each a token


def test_everything_about_a_text_is_json_able() -> None:
    import json

    text = generate_text(build_ensemble("llama", members=2, random_b=True), PROMPTS[:1], EXACTLY)[0]
    content = json.loads(json.dumps(text.to_dict()))
    assert len(content["tokens"]) == len(content["token_uncertainty"]["mutual_information"]) == 7
    assert len(content["sequence"]["member_log_probs"]) == 2


@pytest.mark.parametrize(
    ("prompts", "settings", "error", "message"),
    [
        ([""], {}, DataError, "prompt 1: an empty prompt"),
        (["home", " "], {}, DataError, "prompt 2: an empty prompt"),
        (["home " * (2 * WINDOW)], {}, DataError, "prompt 1"),
        (
            ["home"],
            {"max_new_tokens": WINDOW},
            ConfigError,
            f"the base's window {WINDOW} tokens; ask for fewer new tokens",
        ),
        (["home"], {"max_new_tokens": 0}, ConfigError, "max_new_tokens=0; it is a whole number"),
        (["home"], {"num_return_sequences": 2}, ConfigError, "do not fit each other"),
    ],
)
def test_what_cannot_work_is_refused(
    prompts: list[str], settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    config = GenerationConfig(max_new_tokens=4)
    for name, value in settings.items():
        setattr(config, name, value)
    with pytest.raises(error, match=message):
        generate_text(build_ensemble("llama", members=2), prompts, config)


def test_a_listener_for_several_texts_is_refused() -> None:
    with pytest.raises(ConfigError, match="one prompt, and neither beams nor several"):
        generate_text(build_ensemble("llama", members=2), PROMPTS, EXACTLY, on_token=lambda *_: None)
    with pytest.raises(ConfigError, match="batch_size=0"):
        generate_text(build_ensemble("llama", members=2), PROMPTS, EXACTLY, batch_size=0)
