"""Heads of the members' own: which one a base has, what texts are scored, rewards, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BertForSequenceClassification,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    RobertaForMultipleChoice,
)

from lora_ensembles import (
    HeadConfig,
    LoraEnsemble,
    MCDropout,
    SingleMember,
    TrainConfig,
    evaluate,
    generate_text,
    load_base,
    load_preferences,
    predict,
    predict_rewards,
    preferences_from_files,
    score_completions,
    train,
)
from lora_ensembles.baselines.single_member import num_trained_parameters
from lora_ensembles.data import Completion, Example, preference
from lora_ensembles.errors import AdapterError, ConfigError, DataError
from lora_ensembles.heads.resolve import adapter_for, member_modules, resolve_head
from lora_ensembles.heads.task.encoding import encode_texts
from lora_ensembles.passes.texts import text_window
from lora_ensembles.prediction.evaluation import evaluate_members
from lora_ensembles.prediction.rewards import RewardPrediction
from lora_ensembles.training.adapters import AdapterTrainee
from tiny_heads import (
    TRIED,
    WINDOW,
    adapter_config,
    build,
    build_ensemble,
    choice_examples,
    class_examples,
    examples_for,
    reward_examples,
    tokenizer,
)

KINDS = ("sequence-classification", "multiple-choice", "reward")
CONFIG = TrainConfig(epochs=1, batch_size=4, learning_rate=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_is_what_the_class_of_the_base_says(kind: str) -> None:
    assert (
        LoraEnsemble(build("bert", kind), tokenizer(), num_members=1, adapter=adapter_config()).info.head.kind
        == kind
    )


def test_a_classifier_of_one_label_scores_options_where_that_is_asked_for() -> None:
    ensemble = LoraEnsemble(build("llama", "reward"), tokenizer(), num_members=2, head="multiple-choice")
    assert ensemble.head.kind == "multiple-choice"
    assert predict(ensemble, choice_examples()).member_log_probs.shape == (2, 10, 4)


@pytest.mark.parametrize(
    ("kind", "asked", "needed"),
    [
        ("sequence-classification", "reward", r"num_labels=1"),
        ("sequence-classification", "causal-lm", r"AutoModelForCausalLM"),
        ("multiple-choice", "sequence-classification", r"AutoModelForSequenceClassification, num_labels"),
        ("reward", "sequence-classification", r"2 or more classes"),
    ],
)
def test_a_head_that_the_base_is_not_made_for_is_refused(kind: str, asked: str, needed: str) -> None:
    with pytest.raises(ConfigError, match=f"head '{asked}' on a Bert.*{needed}"):
        LoraEnsemble(build("bert", kind), tokenizer(), head=asked)  # type: ignore[arg-type]


def test_head_settings_out_of_range_are_refused() -> None:
    base = build("bert", "sequence-classification")
    base.config.problem_type = "multi_label_classification"
    with pytest.raises(ConfigError, match="problem_type='multi_label_classification', and classes are"):
        LoraEnsemble(base, tokenizer(), num_members=2)
    with pytest.raises(ConfigError, match="unknown head 'multiplechoice'; did you mean 'multiple-choice'"):
        HeadConfig("multiplechoice")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown head init 'zeros'"):
        HeadConfig(init="zeros")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_length=0"):
        HeadConfig(max_length=0)


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("bert", ["classifier"]),
        ("roberta", ["classifier"]),
        ("distilbert", ["pre_classifier", "classifier"]),
        ("deberta", ["pooler", "classifier"]),
        ("modernbert", ["head.dense", "classifier"]),
        ("llama", ["score"]),
    ],
)
def test_members_own_what_stands_beside_the_body(name: str, modules: list[str]) -> None:
    base = build(name, "sequence-classification")
    assert adapter_for(base, resolve_head(base, None), None).modules_to_save == modules


@pytest.mark.parametrize("name", TRIED)
def test_without_an_adapter_config_every_architecture_gets_layers_that_it_has(name: str) -> None:
    ensemble = LoraEnsemble(build(name, "reward"), tokenizer(), num_members=1)
    targets = 1 if name == "modernbert" else 2  # whose queries, keys and values are one layer
    assert len(ensemble.stack.sites) == 2 * targets  # of two layers
    assert predict(ensemble, reward_examples()).member_log_probs.shape == (1, 10, 2)


def test_modules_named_by_the_caller_are_the_members_own() -> None:
    config = LoraConfig(r=2, target_modules=["query"], modules_to_save=["pooler", "classifier"])
    ensemble = LoraEnsemble(build(), tokenizer(), num_members=2, adapter=config)
    assert {site.name for site in ensemble.stack.heads.sites} == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }


def test_a_checkpoint_without_the_weights_of_the_body_is_refused(tmp_path: Path) -> None:
    build("bert", "reward").bert.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert load_base(str(tmp_path), head="multiple-choice")[0].config.num_labels == 1
    weights = {
        f"elsewhere.{name}": tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()
    }
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="holds no weights of the body of a BertForSequenceClassification"):
        load_base(str(tmp_path), head="sequence-classification", num_labels=2)


def test_a_pooler_that_the_checkpoint_lacks_is_the_members_own(tmp_path: Path) -> None:
    body = build("roberta", "multiple-choice").roberta
    body.pooler = None  # as in a checkpoint of a masked language model
    body.save_pretrained(tmp_path / "base")
    ensemble = LoraEnsemble(
        RobertaForMultipleChoice.from_pretrained(tmp_path / "base"), tokenizer(), num_members=2
    )
    assert ensemble.adapter.modules_to_save == ["classifier", "roberta.pooler.dense"]
    expected = predict(ensemble, choice_examples()).member_log_probs
    ensemble.save_pretrained(tmp_path / "saved")
    other = RobertaForMultipleChoice.from_pretrained(
        tmp_path / "base"
    )  # its pooler and its classifier are newly initialised
    assert not torch.equal(
        other.roberta.pooler.dense.weight, ensemble.base.roberta.pooler.dense.base_layer.weight
    )
    again = LoraEnsemble.from_pretrained(tmp_path / "saved", base=other, tokenizer=tokenizer())
    torch.testing.assert_close(
        predict(again, choice_examples()).member_log_probs, expected, atol=1e-6, rtol=1e-6
    )


def test_of_a_head_with_a_norm_members_own_the_linear_layers_and_share_the_norm(tmp_path: Path) -> None:
    build("modernbert", "sequence-classification").model.save_pretrained(tmp_path / "base")

    def loaded() -> ModernBertForSequenceClassification:
        return ModernBertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)

    ensemble = LoraEnsemble(loaded(), tokenizer(), num_members=2)
    names = ("head.dense.weight", "head.dense.bias", "classifier.weight", "classifier.bias")
    assert tuple(site.name for site in ensemble.stack.heads.sites) == names
    norm = ensemble.base.head.norm.weight.clone()
    train(ensemble, class_examples(), CONFIG, progress=False)
    assert torch.equal(ensemble.base.head.norm.weight, norm)
    expected = predict(ensemble, class_examples()).member_log_probs
    ensemble.save_pretrained(tmp_path / "saved")
    other = loaded()  # its head is newly initialised
    assert not torch.equal(other.head.dense.weight, ensemble.base.head.dense.base_layer.weight)
    again = LoraEnsemble.from_pretrained(tmp_path / "saved", base=other, tokenizer=tokenizer())
    found = predict(again, class_examples()).member_log_probs
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_of_a_head_with_a_norm_what_the_checkpoint_brought_stays_frozen_where_it_lacked_the_rest(
    tmp_path: Path,
) -> None:
    language_model = ModernBertForMaskedLM(build("modernbert", "sequence-classification").config)
    language_model.save_pretrained(tmp_path)
    base = ModernBertForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    assert torch.equal(base.head.dense.weight, language_model.head.dense.weight)
    assert member_modules(base) == ["classifier"]
    base.save_pretrained(tmp_path / "trained")  # a checkpoint that has the whole head
    whole = ModernBertForSequenceClassification.from_pretrained(tmp_path / "trained")
    assert member_modules(whole) == ["head.dense", "classifier"]


def test_a_head_that_is_not_of_linear_layers_is_refused_by_name() -> None:
    base, adapter = build("bert", "sequence-classification"), adapter_config()
    adapter.modules_to_save = ["classifier"]
    base.classifier = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 3))
    with pytest.raises(
        AdapterError, match=r"'classifier' holds 'classifier.0', a LayerNorm.*layers \['classifier.1'\]"
    ):
        LoraEnsemble(base, tokenizer(), adapter=adapter)
    assert (
        type(base.bert.encoder.layer[0].attention.self.query) is nn.Linear
    )  # nothing of PEFT stays in the base
    base.classifier = nn.Sequential(
        nn.Conv1d(32, 32, 1), nn.Linear(32, 3)
    )  # a random one would not be the same again
    with pytest.raises(AdapterError, match=r"'classifier' holds 'classifier.0', a Conv1d"):
        LoraEnsemble(base, tokenizer(), adapter=adapter_config())


def test_the_base_gets_its_own_head_back_and_keeps_it_meanwhile() -> None:
    base = build()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    ensemble = LoraEnsemble(base, tokenizer(), num_members=2, adapter=adapter_config())
    train(ensemble, choice_examples(), CONFIG, progress=False)
    after = ensemble.unload().state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_fresh_heads_differ_between_members_and_base_heads_do_not() -> None:
    fresh, copied = build_ensemble(members=2).stack.heads, build_ensemble(members=2, init="base").stack.heads
    assert not torch.equal(fresh.flat[0], fresh.flat[1])
    assert torch.equal(copied.flat[0], copied.flat[1])
    assert torch.equal(copied.member(0)["classifier.weight"], build().classifier.weight)


def test_the_adapter_of_a_member_does_not_depend_on_where_its_head_begins() -> None:
    assert torch.equal(build_ensemble(init="fresh").stack.a, build_ensemble(init="base").stack.a)


# Texts


def test_a_choice_has_one_pair_an_option_and_none_for_options_that_are_not_there() -> None:
    base, head = build(), HeadConfig("multiple-choice")
    examples = choice_examples()
    table = encode_texts(examples, base, tokenizer(), head=head)
    assert table.counts.tolist() == [len(example.options) for example in examples]
    expected = tokenizer()(examples[1].question, examples[1].options[2])
    number = int(table.first[1]) + 2
    assert table.ids[number, : table.text_lengths[number]].tolist() == expected["input_ids"]
    assert table.types is not None
    assert table.types[number, : table.text_lengths[number]].tolist() == expected["token_type_ids"]


def test_a_reward_scores_prompt_and_answer_as_one_text() -> None:
    table = encode_texts(reward_examples(), build("bert", "reward"), tokenizer(), head=HeadConfig("reward"))
    example = reward_examples()[3]
    number = int(table.first[3]) + 1
    assert (
        table.ids[number, : table.text_lengths[number]].tolist()
        == tokenizer()(example.prompt + example.options[1])["input_ids"]
    )


def test_a_step_computes_no_more_texts_than_its_members_have() -> None:
    table = encode_texts(
        choice_examples(), build(), tokenizer(), head=HeadConfig("multiple-choice")
    )  # 2, 3, 4, 2, ... options
    batch = table.gather(torch.tensor([[0, 1], [2, 3]]))
    assert batch.numbers.shape == (2, 6)  # 2 + 3 and 4 + 2 options: the first member's are filled up by one
    scores = batch.per_example(torch.arange(12.0).view(2, 6, 1))
    assert scores[0].tolist() == [[0, 1, -torch.inf, -torch.inf], [2, 3, 4, -torch.inf]]
    assert scores[1].tolist() == [[6, 7, 8, 9], [10, 11, -torch.inf, -torch.inf]]


def test_the_window_of_roberta_is_less_than_its_table_of_positions() -> None:
    assert text_window(build("roberta", "reward")) == WINDOW
    assert text_window(build("bert", "reward")) == WINDOW


def test_a_text_beyond_the_window_is_refused_or_loses_its_beginning() -> None:
    base, head = build(), HeadConfig("multiple-choice", max_length=8)
    question = "the red fox saw a small bird near"
    example = Example("long", question, ("a", "b"), 0, question, ("home", "an old river"))
    with pytest.raises(DataError, match=r"example 'long': its text is 12 tokens, and the window is 8"):
        encode_texts([example], base, tokenizer(), head=head)
    table = encode_texts([example], base, tokenizer(), head=head, overlong="left")
    assert tokenizer().decode(table.ids[1]) == "[CLS] bird near [SEP] an old river [SEP]"
    with pytest.raises(ConfigError, match=f"max_length=64: the base reads {WINDOW} tokens at most"):
        encode_texts([example], base, tokenizer(), head=HeadConfig("multiple-choice", max_length=64))
    full = dataclasses.replace(example, options=("home", "the red fox saw a small bird"))
    with pytest.raises(DataError, match="its second text alone fills the window of 8"):
        encode_texts([full], base, tokenizer(), head=head, overlong="left")


def test_an_example_without_options_is_refused() -> None:
    example = Example("bare", "the fox", ("a", "b"), 0)
    with pytest.raises(DataError, match="example 'bare' has 0 options and 2 labels"):
        predict(build_ensemble(), [example])


def test_classes_must_be_those_of_the_base_and_of_the_training() -> None:
    ensemble = build_ensemble("bert", "sequence-classification")
    two = Example("two", "the fox", ("yes", "no"), 0)
    with pytest.raises(DataError, match=r"'two' has 2 classes \(yes, no\), and the base's head 3"):
        predict(ensemble, [two])
    train(ensemble, class_examples(), CONFIG, progress=False)
    assert ensemble.info.head.classes == ("one", "two", "three")
    other = dataclasses.replace(class_examples()[0], labels=("one", "three", "two"))
    with pytest.raises(
        DataError, match="has the classes one, three, two"
    ):  # before the first epoch, not after it
        train(
            build_ensemble("bert", "sequence-classification"),
            class_examples(),
            CONFIG,
            validation=[other],
            progress=False,
        )
    with pytest.raises(DataError, match="has the classes one, three, two, and the ensemble one, two, three"):
        predict(ensemble, [dataclasses.replace(class_examples()[0], labels=("one", "three", "two"))])


def test_a_trained_base_head_wants_its_classes_in_its_order() -> None:
    base = build("bert", "sequence-classification")
    base.config.id2label = {0: "two", 1: "one", 2: "three"}
    ensemble = LoraEnsemble(
        base, tokenizer(), num_members=1, adapter=adapter_config(), head=HeadConfig(init="base")
    )
    with pytest.raises(DataError, match="and the base's head two, one, three; give them in this order"):
        predict(ensemble, class_examples())


def test_a_decoder_without_a_padding_token_is_refused() -> None:
    base = build("llama", "reward")
    base.config.pad_token_id = None
    with pytest.raises(ConfigError, match="LlamaForSequenceClassification has no padding token"):
        LoraEnsemble(base, tokenizer())


# Training and prediction


def test_a_divergence_from_a_base_without_a_trained_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="heads were newly initialised, so the base has no distribution"):
        train(build_ensemble(), choice_examples(), dataclasses.replace(CONFIG, kl_weight=0.1), progress=False)


def test_a_decay_of_heads_that_is_too_large_is_refused_where_there_are_heads() -> None:
    config = dataclasses.replace(CONFIG, learning_rate=0.1, weight_decay_head=10.0)
    with pytest.raises(
        ConfigError, match=r"learning_rate \* weight_decay_head = 0.1 \* 10.0 = 1; it must be below 1"
    ):
        train(build_ensemble(), choice_examples(), config, progress=False)


def test_examples_without_an_answer_and_open_answers_are_refused() -> None:
    unlabelled = dataclasses.replace(choice_examples()[2], target=None)
    with pytest.raises(DataError, match="training example number 2 has no answer"):
        train(build_ensemble(), [choice_examples()[0], unlabelled], CONFIG, progress=False)
    with pytest.raises(DataError, match=r"open answers .* members with multiple-choice heads"):
        train(build_ensemble(), [Completion("1", "the fox", " home")], CONFIG, progress=False)
    with pytest.raises(DataError, match="no training examples"):
        train(build_ensemble(), [], CONFIG, progress=False)


def test_what_only_a_causal_language_model_does_is_refused() -> None:
    ensemble = build_ensemble()
    for what, call in {
        "calling an ensemble": lambda: ensemble(torch.ones(1, 3, dtype=torch.int64)),
        "generation": lambda: generate_text(ensemble, ["the fox"]),
        "scoring open answers": lambda: score_completions(ensemble, [Completion("1", "the fox", " home")]),
    }.items():
        with pytest.raises(
            ConfigError,
            match=f"{what} needs a causal language model, and these members have multiple-choice heads",
        ):
            call()


def test_the_base_called_by_itself_is_refused() -> None:
    ensemble = build_ensemble()
    with pytest.raises(AdapterError, match="the base model of an ensemble was called by itself"):
        ensemble.base(input_ids=torch.ones(1, 1, 3, dtype=torch.int64))


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_rows_in_flight_changes_no_prediction(kind: str) -> None:
    ensemble = build_ensemble("bert", kind, random_b=True)
    whole = predict(ensemble, examples_for(kind)).member_log_probs
    for rows in (1, 2, 7):
        torch.testing.assert_close(
            predict(ensemble, examples_for(kind), max_rows=rows).member_log_probs, whole, atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_operators_of_a_step_does_not_depend_on_the_number_of_members(kind: str) -> None:
    counts = []
    for members in (5, 8):  # with fewer, narrowed products are too small for the kernel that larger ones take
        ensemble = build_ensemble("bert", kind, members=members)
        rows = AdapterTrainee(ensemble, examples_for(kind), CONFIG).rows
        for _ in range(2):  # what a first pass in a process tries and keeps is not counted
            with _Counted() as counted:
                loss = rows.losses(torch.arange(4).expand(members, -1), members=slice(None)).loss.sum()
                ensemble.stack.add_gradients(loss, ensemble.stack.zero_gradients())
        counts.append(counted.calls)
    assert counts[0] == counts[1] > 100


class _Counted(TorchDispatchMode):
    """Counts the calls of operators."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_member_is_that_row_of_the_ensemble(kind: str) -> None:
    ensemble = build_ensemble("bert", kind, random_b=True)
    expected = predict(ensemble, examples_for(kind)).member_log_probs[2:]
    torch.testing.assert_close(
        predict(SingleMember(ensemble, 2), examples_for(kind)).member_log_probs,
        expected,
        atol=1e-5,
        rtol=1e-5,
    )


def test_the_parameters_of_a_member_count_its_head() -> None:
    # Two layers of query and value with rank 4 on 32 features, and a head of 32 weights and a bias.
    assert num_trained_parameters(build_ensemble()) == 4 * 4 * (32 + 32) + 33


@pytest.mark.parametrize("kind", KINDS)
def test_passes_of_mc_dropout_differ_and_depend_on_the_question_alone(kind: str) -> None:
    ensemble = build_ensemble("bert", kind, random_b=True)
    passes = MCDropout(ensemble, member=1, passes=4, dropout=0.3)
    examples = examples_for(kind)
    whole = predict(passes, examples).member_log_probs
    assert whole.shape[0] == 4
    assert not torch.allclose(whole[0], whole[1], atol=1e-3)
    few = predict(passes, examples[:4][::-1], max_rows=3).member_log_probs.flip(1)
    torch.testing.assert_close(few, whole[:, :4, : few.shape[2]], atol=1e-5, rtol=1e-5)
    almost_none = predict(MCDropout(ensemble, member=1, passes=1, dropout=1e-7), examples).member_log_probs
    torch.testing.assert_close(
        almost_none[0], predict(ensemble, examples).member_log_probs[1], atol=1e-4, rtol=1e-4
    )


def test_a_saved_ensemble_remembers_its_head(tmp_path: Path) -> None:
    head = HeadConfig(max_length=24)
    ensemble = LoraEnsemble(
        build("bert", "sequence-classification"),
        tokenizer(),
        num_members=2,
        adapter=adapter_config(),
        head=head,
    )
    train(
        ensemble,
        class_examples(),
        CONFIG,
        validation=class_examples()[:4],
        out=tmp_path / "run",
        progress=False,
    )
    content = json.loads((tmp_path / "run" / "ensemble.json").read_text())
    assert content["head"] == {
        "kind": "sequence-classification",
        "init": "fresh",
        "max_length": 24,
        "classes": ["one", "two", "three"],
    }
    loaded = LoraEnsemble.from_pretrained(
        tmp_path / "run", base=build("bert", "sequence-classification"), tokenizer=tokenizer()
    )
    assert loaded.info.head == ensemble.info.head
    assert torch.equal(loaded.stack.heads.flat, ensemble.stack.heads.flat)


def test_the_base_of_a_saved_ensemble_is_loaded_by_its_class(tmp_path: Path) -> None:
    build("bert", "sequence-classification").save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    base = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    ensemble = LoraEnsemble(base, tokenizer(), num_members=2, adapter=adapter_config())
    expected = predict(ensemble, class_examples()).member_log_probs
    ensemble.save_pretrained(tmp_path / "saved")
    loaded = LoraEnsemble.from_pretrained(tmp_path / "saved")
    assert type(loaded.base) is BertForSequenceClassification
    torch.testing.assert_close(
        predict(loaded, class_examples()).member_log_probs, expected, atol=1e-6, rtol=1e-6
    )


def test_members_without_the_ensembles_head_are_refused(tmp_path: Path) -> None:
    ensemble = build_ensemble("bert", "sequence-classification", members=1)
    build_ensemble("bert", "reward", members=1).save_pretrained(tmp_path / "other")
    with pytest.raises(
        AdapterError,
        match=r"a member's head is classifier.bias \(1,\), classifier.weight \(1, 32\) and the ensemble's "
        r".* \(3, 32\)",
    ):
        ensemble.load_members([tmp_path / "other" / "member_000"])
    assert ensemble.num_members == 1


def test_members_of_a_causal_language_model_own_no_modules() -> None:
    from tiny_models import build as causal, tokenizer as words

    with pytest.raises(
        AdapterError,
        match=r"modules_to_save=\['lm_head'\]\) cannot be stacked: "
        r"members of a causal language model own adapters",
    ):
        LoraEnsemble(
            causal("llama"),
            words(),
            adapter=LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]),
        )


# Rewards


def test_rewards_are_the_scores_of_the_pairs_that_were_trained() -> None:
    ensemble = build_ensemble("llama", "reward", random_b=True)
    examples = reward_examples()
    texts = [example.prompt + option for example in examples for option in example.options]
    scores = predict_rewards(ensemble, texts).member_scores.view(3, 10, 2)
    torch.testing.assert_close(
        predict(ensemble, examples).member_log_probs, scores.log_softmax(-1), atol=1e-5, rtol=1e-5
    )


def test_mean_spread_and_lower_bound_of_rewards_are_those_of_torch() -> None:
    scores = torch.randn(5, 7)
    rewards = RewardPrediction(scores)
    torch.testing.assert_close(rewards.mean, scores.mean(0))
    torch.testing.assert_close(rewards.std, scores.std(0, unbiased=False))
    torch.testing.assert_close(rewards.lower_bound(1.5), scores.mean(0) - 1.5 * scores.std(0, unbiased=False))
    torch.testing.assert_close(rewards.centred().member_scores.mean(1), torch.zeros(5), atol=1e-6, rtol=0)
    assert RewardPrediction(scores[:1]).std.tolist() == [0.0] * 7
    with pytest.raises(ConfigError, match="k=-1; the lower bound is mean"):
        rewards.lower_bound(-1)


def test_rewards_are_evaluated_by_the_spread_and_correlation_of_their_members() -> None:
    scores = torch.randn(3, 9, dtype=torch.float64)
    metrics = evaluate(RewardPrediction(scores))
    pairs = torch.corrcoef(scores)[[0, 0, 1], [1, 2, 2]]
    assert metrics.correlation == pytest.approx(pairs.mean().item(), abs=1e-6)
    centred = scores - scores.mean(1, keepdim=True)
    assert metrics.std == pytest.approx(centred.std(0, unbiased=False).mean().item(), abs=1e-6)
    assert evaluate(RewardPrediction(scores[:1])).correlation is None
    assert evaluate(RewardPrediction(torch.ones(2, 4))).correlation is None
    with pytest.raises(ConfigError, match="no labels to judge a member by"):
        evaluate_members(RewardPrediction(scores))  # type: ignore[arg-type]


def test_training_on_pairs_learns_to_prefer() -> None:
    pairs = [
        preference(str(n), "what does it say", f" {word} good", f" {word} bad")
        for n, word in enumerate("red fox small bird old".split())
    ]
    ensemble = build_ensemble("bert", "reward")
    train(ensemble, pairs, TrainConfig(epochs=10, batch_size=5, learning_rate=5e-3), progress=False)
    assert evaluate(predict(ensemble, pairs)).accuracy == 1.0
    good, bad = predict_rewards(ensemble, ["what does it say went good", "what does it say went bad"]).mean
    assert good > bad


def test_rewards_are_asked_of_reward_models_and_texts_alone() -> None:
    with pytest.raises(ConfigError, match="members with multiple-choice heads; it needs a reward model"):
        predict_rewards(build_ensemble(), ["the fox"])
    reward = build_ensemble("bert", "reward")
    with pytest.raises(DataError, match="no texts to score"):
        predict_rewards(reward, [])
    with pytest.raises(DataError, match="text 2 is empty"):
        predict_rewards(reward, ["the fox", " "])
    with pytest.raises(ConfigError, match="max_rows is 0"):
        predict_rewards(reward, ["the fox"], max_rows=0)


# Preferences


def pairs_file(folder: Path, *rows: object) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pairs_are_read_with_and_without_a_prompt(tmp_path: Path) -> None:
    path = pairs_file(
        tmp_path,
        {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"},
        {"id": "x", "chosen": "good", "rejected": "bad"},
    )
    first, second = load_preferences(path)
    assert (first.prompt, first.options, first.labels, first.target) == (
        "2 + 2 =",
        (" 4", " 5"),
        ("chosen", "rejected"),
        0,
    )
    assert (second.id, second.prompt, second.options) == ("x", "", ("good", "bad"))
    task = preferences_from_files(path)
    assert (len(task.train), len(task.validation)) == (1, 1)


def test_chats_are_rendered_by_the_template(tmp_path: Path) -> None:
    made = build_chat_tokenizer()
    user, good, bad = (
        {"role": role, "content": text}
        for role, text in (("user", "why"), ("assistant", "good"), ("assistant", "bad"))
    )
    rows = (
        {"chosen": [user, good], "rejected": [user, bad]},
        {"prompt": [user], "chosen": [good], "rejected": [bad]},
    )
    for example in load_preferences(pairs_file(tmp_path, *rows), tokenizer=made):
        assert (example.prompt, example.options) == ("user : why assistant :", (" good", " bad"))
    with pytest.raises(
        DataError, match=r"pairs.jsonl, line 1: chat messages are rendered by the tokenizer's template"
    ):
        load_preferences(pairs_file(tmp_path, *rows))
    with pytest.raises(DataError, match="must differ in their last message alone"):
        load_preferences(
            pairs_file(tmp_path, {"chosen": [user, good], "rejected": [bad, bad]}), tokenizer=made
        )


def build_chat_tokenizer() -> object:
    import copy

    made = copy.deepcopy(tokenizer())
    made.chat_template = (
        "{% for m in messages %}{{ m.role + ' : ' + m.content }}{% if not loop.last %} "
        "{% endif %}{% endfor %}{% if add_generation_prompt %} assistant :{% endif %}"
    )
    return made


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, r"line 1: unknown column 'rejected'"),
        ({"chosen": "b", "rejected": "b"}, r"line 1: chosen and rejected are the same text 'b'"),
        ({"chosen": "b", "rejected": " "}, r"line 1: the rejected text is empty"),
        (
            {"chosen": [{"role": "user"}], "rejected": "b"},
            r"line 1: column 'chosen' holds .*; a text, or a list of",
        ),
    ],
)
def test_pairs_that_cannot_be_used_are_refused_with_their_line(
    tmp_path: Path, row: object, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_preferences(pairs_file(tmp_path, row))
