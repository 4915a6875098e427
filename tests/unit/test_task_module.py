"""An ensemble with task heads as a Hugging Face model: `.logits` that say what `predict` says."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import pipeline

from lora_ensembles import predict, predict_rewards
from lora_ensembles.errors import ConfigError
from lora_ensembles.heads.task.encoding import encode_texts
from lora_ensembles.heads.task.module import EnsembleScores
from tiny_ensembles import ensemble
from tiny_heads import build_ensemble, examples_for, tokenizer

TEXTS = ["the red fox", "an old river", "a small bird saw it"]


def batch(texts: list[str]) -> dict[str, torch.Tensor]:
    return dict(tokenizer()(texts, return_tensors="pt", padding=True))


@torch.no_grad()
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_classifiers_logits_are_the_log_of_the_members_mean_probabilities(name: str) -> None:
    made = build_ensemble(name, "sequence-classification", random_b=True)
    examples = examples_for("sequence-classification")
    table = encode_texts(examples, made.base, tokenizer(), head=made.info.head)
    texts = table.texts(torch.arange(len(examples)))
    types = {} if texts.types is None else {"token_type_ids": texts.types}
    output = made.as_classifier()(input_ids=texts.ids, attention_mask=texts.mask, **types)
    assert isinstance(output, EnsembleScores)
    expected = predict(made, examples)
    torch.testing.assert_close(output.logits, expected.log_probs, atol=1e-5, rtol=1e-5)
    assert output.member_logits.shape == expected.member_log_probs.shape
    torch.testing.assert_close(
        output.member_logits.log_softmax(-1), expected.member_log_probs, atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_a_multiple_choice_model_compares_the_options_of_a_question() -> None:
    made = build_ensemble("bert", "multiple-choice", random_b=True)
    whole = batch(TEXTS)  # three options of one question
    ids, mask = whole["input_ids"][None], whole["attention_mask"][None]
    output = made.as_classifier()(input_ids=ids, attention_mask=mask)
    assert output.logits.shape == (1, 3)
    members = [made.stack.member(index) for index in range(3)]
    alone = []
    for member in members:
        made.set_members([member])
        alone.append(made.as_classifier()(input_ids=ids, attention_mask=mask).logits.exp())
    torch.testing.assert_close(output.logits.exp(), torch.stack(alone).mean(0), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_a_reward_models_logits_are_the_mean_of_the_members_scores() -> None:
    made = build_ensemble("bert", "reward", random_b=True)
    output = made.as_reward_model()(**batch(TEXTS))
    expected = predict_rewards(made, TEXTS).member_scores
    torch.testing.assert_close(output.logits[:, 0], expected.mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.member_logits[..., 0], expected, atol=1e-5, rtol=1e-5)


def test_a_pipeline_and_a_loss_take_the_classifier() -> None:
    made = build_ensemble("bert", "sequence-classification", random_b=True)
    model = made.as_classifier()
    said = pipeline("text-classification", model=model, tokenizer=tokenizer())(TEXTS[0])
    with torch.no_grad():
        logits = model(**batch(TEXTS[:1])).logits
        assert said[0]["score"] == pytest.approx(logits.exp().max().item(), abs=1e-4)
        labels = torch.tensor([1])
        loss = model(**batch(TEXTS[:1]), labels=labels).loss
        assert loss.item() == pytest.approx(-logits[0, 1].item())
        assert isinstance(model(**batch(TEXTS[:1]), return_dict=False), tuple)


def test_a_pipeline_names_the_classes_that_the_ensemble_knows() -> None:
    made = build_ensemble("bert", "sequence-classification", random_b=True)
    numbered = dict(made.base.config.id2label)
    classes = tuple(f"class {number}" for number in range(len(numbered)))
    made.info = dataclasses.replace(made.info, head=dataclasses.replace(made.info.head, classes=classes))
    said = pipeline("text-classification", model=made.as_classifier(), tokenizer=tokenizer())(TEXTS[0])
    assert said[0]["label"] in classes
    assert made.base.config.id2label == numbered


def test_views_of_other_heads_are_refused_by_name() -> None:
    reward, choice = build_ensemble("bert", "reward"), build_ensemble("bert", "multiple-choice")
    with pytest.raises(ConfigError, match="as_classifier on members with reward heads; use as_reward_model"):
        reward.as_classifier()
    with pytest.raises(ConfigError, match="as_reward_model on members with multiple-choice heads"):
        choice.as_reward_model()
    with pytest.raises(ConfigError, match="as_classifier needs members with heads of their own"):
        ensemble().as_classifier()
    with pytest.raises(ConfigError, match="whose members learn from pairs"):
        reward.as_reward_model()(**batch(TEXTS), labels=torch.tensor([1, 0, 1]))
    with pytest.raises(ConfigError, match=r"save that one: model\.ensemble\.save_pretrained"):
        reward.as_reward_model().save_pretrained("anywhere")
