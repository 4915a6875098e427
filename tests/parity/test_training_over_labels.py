"""Training over the label set: against PEFT with torch.optim.AdamW, label by label, and against itself with
less memory.

`reference_training.assert_same_weights` says how equal weights have to be, and why.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from breadth import crossed
from lora_ensembles import LoraEnsemble, TrainConfig, predict, train
from lora_ensembles.data import Example, encode_examples
from lora_ensembles.heads.lm import label_losses
from lora_ensembles.passes.branches import can_branch
from lora_ensembles.passes.shortcuts import shortcuts_of
from lora_ensembles.stack.sites import MemberWeights
from lora_ensembles.training.adapters import AdapterTrainee
from reference_training import (
    Recipe,
    assert_different_weights,
    assert_identical_weights,
    assert_same_weights,
    config_of,
    train_by_peft,
)
from tiny_models import (
    ARCHITECTURES,
    adapter_config,
    build,
    build_ensemble,
    letter_examples,
    phrase_examples,
    tokenizer,
)

LONG = Recipe(loss="labels", epochs=3)  # 10 examples in batches of 4, 4 and 2: 3 steps an epoch
SHORT = replace(LONG, epochs=2)
MEMBERS = 3
REGULARISED = replace(
    LONG, kl_weight=0.5, weight_decay_a=10.0, weight_decay_b=100.0, max_grad_norm=0.7, schedule="cosine"
)
RECIPES = {
    "none": LONG,
    "kl": replace(LONG, kl_weight=0.7),
    "mean": replace(LONG, label_score="mean"),
    "mean_and_kl": replace(LONG, label_score="mean", kl_weight=0.7),
    "everything": REGULARISED,
}


def mixed_examples() -> list[Example]:
    """Examples with two to four labels of one to three tokens; some share their first tokens, one is the
    beginning of another.
    """
    labels = (
        (" yes", " no", " not at all", " maybe so"),
        (" not", " not at all", " no"),
        (" yes", " no"),
        (" maybe so", " maybe"),
        (" at home", " at all", " at home yes"),
    )
    return [
        replace(example, id=f"m{n}", labels=labels[n % 5], target=(n * 7 + n // 3) % len(labels[n % 5]))
        for n, example in enumerate(letter_examples())
    ]


EXAMPLES = {"mixed": mixed_examples, "letters": letter_examples, "phrases": phrase_examples}


def run(
    ensemble: LoraEnsemble, config: TrainConfig, examples: Sequence[Example] | None = None
) -> list[MemberWeights]:
    train(ensemble, mixed_examples() if examples is None else examples, config, progress=False)
    return [ensemble.stack.member(m) for m in range(ensemble.num_members)]


def by_peft(name: str, m: int, recipe: Recipe, examples: Sequence[Example]) -> MemberWeights:
    seeds = build_ensemble(name, members=MEMBERS).info.seeds[m]
    encoded = encode_examples(examples, tokenizer())
    return train_by_peft(build(name), adapter_config(name), seeds, encoded, recipe)


@functools.cache
def over_vocabulary(name: str, kind: str) -> list[MemberWeights]:
    config = config_of(replace(LONG, loss="vocabulary"))
    return run(build_ensemble(name, members=MEMBERS), config, EXAMPLES[kind]())


def test_the_mixed_examples_differ_in_labels_and_in_tokens() -> None:
    encoded = encode_examples(mixed_examples(), tokenizer())
    assert {len(example.label_ids) for example in encoded} == {2, 3, 4}
    assert {len(label) for example in encoded for label in example.label_ids} == {1, 2, 3}


@pytest.mark.parametrize(("kind", "recipe"), crossed(EXAMPLES, RECIPES, usual="everything"))
def test_member_trained_over_labels_in_a_stack_equals_member_trained_by_peft(kind: str, recipe: str) -> None:
    examples = EXAMPLES[kind]()
    stacked = run(build_ensemble(members=MEMBERS), config_of(RECIPES[recipe]), examples)
    assert_same_weights(stacked[1], by_peft("llama", 1, RECIPES[recipe], examples))
    assert_different_weights(stacked[1], over_vocabulary("llama", kind)[1])


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "opt", "mpt", "qwen3_moe"])
def test_other_architectures_train_over_labels_as_by_peft(name: str) -> None:
    assert name in ARCHITECTURES
    stacked = run(build_ensemble(name, members=2), config_of(SHORT))
    assert_same_weights(stacked[1], by_peft(name, 1, SHORT, mixed_examples()))


def test_adapters_of_the_top_layer_train_over_labels_as_in_a_model_that_keeps_no_states(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    top = replace(adapter_config(), layers_to_transform=[1])
    kept = run(build_ensemble(adapter=top), config_of(REGULARISED))
    encoded = encode_examples(mixed_examples(), tokenizer())
    seeds = build_ensemble().info.seeds[1]
    assert_same_weights(kept[1], train_by_peft(build("llama"), top, seeds, encoded, REGULARISED))
    monkeypatch.setattr("lora_ensembles.passes.trunk_states.TRUNK_CACHE_BYTES", 0)
    live = run(build_ensemble(adapter=top), config_of(REGULARISED))
    assert_same_weights(live[1], kept[1])


def trained(
    name: str, least: float, monkeypatch: pytest.MonkeyPatch, adapter: LoraConfig | None = None
) -> tuple[int, list[MemberWeights]]:
    """Rows of an example with most labels, and the members, where one row must save `least` times
    the tokens.
    """
    monkeypatch.setattr(label_losses, "WORTH_SHARING", least)
    ensemble = build_ensemble(name, members=2, adapter=adapter)
    trainee = AdapterTrainee(ensemble, mixed_examples(), config_of(REGULARISED))
    return trainee.rows.passes, run(ensemble, config_of(REGULARISED))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma", "qwen3_moe", "opt", "gptj"])
def test_labels_in_one_row_train_as_labels_in_a_row_each(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    apart, expected = trained(name, 1e9, monkeypatch)
    together, members = trained(name, 0.0, monkeypatch)
    assert (apart, together) == (2, 1)
    for one, other in zip(members, expected, strict=True):
        assert_same_weights(one, other)


def test_labels_in_one_row_take_the_states_of_a_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    top = replace(adapter_config(), layers_to_transform=[1])
    _, expected = trained("llama", 1e9, monkeypatch, top)
    together, members = trained("llama", 0.0, monkeypatch, top)
    assert together == 1
    assert_same_weights(members[1], expected[1])


@pytest.mark.parametrize("name", ["mpt", "bloom", "falcon_alibi", "mistral"])
def test_a_model_that_counts_tokens_of_other_labels_reads_a_row_for_each(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # ALiBi counts the keys in between; a sliding window of 6 tokens too.
    assert not shortcuts_of(build_ensemble(name).base).branches
    assert trained(name, 0.0, monkeypatch)[0] == 2


def test_rows_longer_than_a_window_are_not_shared() -> None:
    base = build_ensemble("qwen3").base
    assert can_branch(base, base.config.max_position_embeddings)
    assert not can_branch(base, base.config.max_position_embeddings + 1)


def test_letters_with_dropout_train_over_labels_as_by_peft() -> None:
    recipe = replace(LONG, dropout=0.3)
    stacked = run(build_ensemble(members=MEMBERS), config_of(recipe), letter_examples())
    assert_same_weights(stacked[1], by_peft("llama", 1, recipe, letter_examples()))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_member_of_a_stack_equals_that_member_alone(dropout: float) -> None:
    config = config_of(replace(REGULARISED, dropout=dropout))
    stacked = run(build_ensemble(members=4), config)
    for m in range(2):
        ensemble = build_ensemble(members=4)
        ensemble.keep_members([m])
        assert_same_weights(run(ensemble, config)[0], stacked[m])


@pytest.mark.parametrize("max_rows", [24, 12, 5, 1])
def test_a_step_in_parts_equals_the_whole_step(max_rows: int) -> None:
    config = config_of(replace(REGULARISED, dropout=0.2, epochs=3))
    whole = run(build_ensemble(), config)
    for one, other in zip(run(build_ensemble(), replace(config, max_rows=max_rows)), whole, strict=True):
        assert_same_weights(one, other)


# Gemma 2 does more behind its head.
@pytest.mark.parametrize(("name", "places"), crossed(["llama", "gemma2"], [1, 3, 20], usual=3))
def test_head_in_chunks_equals_head_in_one_piece(
    name: str, places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(build_ensemble(name), config_of(REGULARISED))
    monkeypatch.setattr("lora_ensembles.passes.answer_positions.LOGIT_BUDGET", places * len(tokenizer()))
    for one, other in zip(run(build_ensemble(name), config_of(REGULARISED)), whole, strict=True):
        assert_same_weights(one, other)


def test_settings_of_their_own_for_each_member_equal_separate_runs() -> None:
    values: dict[str, list[float]] = {"learning_rate": [1e-3, 4e-3, 2e-3], "kl_weight": [0.0, 0.5, 1.5]}
    config = config_of(LONG)
    swept = run(build_ensemble(members=3), replace(config, **values))  # type: ignore[arg-type]
    for m in range(3):
        ensemble = build_ensemble(members=3)
        ensemble.keep_members([m])
        own = replace(config, **{name: value[m] for name, value in values.items()})
        assert_same_weights(swept[m], run(ensemble, own)[0])


def test_resumed_run_and_snapshots_have_the_weights_of_an_uninterrupted_run(tmp_path: Path) -> None:
    config = replace(config_of(replace(REGULARISED, dropout=0.2)), snapshot_epochs=(2,), checkpoint_every=1)
    whole = build_ensemble()
    kept = train(whole, mixed_examples(), config, progress=False).snapshots[2]
    stopped, steps = build_ensemble(), 0

    def refresh(original: object = stopped.stack.refresh) -> None:
        nonlocal steps
        steps += 1
        original()  # type: ignore[operator]
        if steps == 7:
            raise KeyboardInterrupt

    stopped.stack.refresh = refresh  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        train(stopped, mixed_examples(), config, out=tmp_path / "run", progress=False)
    resumed = build_ensemble()
    again = train(resumed, mixed_examples(), config, out=tmp_path / "run", resume=True, progress=False)
    for m in range(MEMBERS):
        assert_identical_weights(resumed.stack.member(m), whole.stack.member(m))
        assert_identical_weights(again.snapshots[2][m], kept[m])


def test_loss_of_an_epoch_without_updates_is_the_nll_of_the_prediction() -> None:
    ensemble = build_ensemble(random_b=True)
    config = TrainConfig(epochs=1, batch_size=10, learning_rate=0.0, loss="labels", label_score="mean")
    history = train(ensemble, mixed_examples(), config, progress=False).history
    prediction = predict(ensemble, mixed_examples())
    targets = torch.tensor([example.target for example in mixed_examples()])
    nll = -prediction.member_log_probs[:, range(10), targets].mean(dim=1)
    right = (prediction.member_choices == targets).float().mean(dim=1)
    # fp32, in batches of other shapes: sums of some dozen numbers agree to about 1e-6.
    torch.testing.assert_close(torch.tensor(history[0]["train_loss"]), nll, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.tensor(history[0]["train_accuracy"]), right)
