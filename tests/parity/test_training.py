"""Training in a stack against training alone and against PEFT with torch.optim.AdamW, on the same batches.

`reference_training.assert_same_weights` says how equal weights have to be, and why.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from breadth import crossed
from lora_ensembles import LoraEnsemble, TrainConfig, train
from lora_ensembles.data import Example, encode_examples
from lora_ensembles.stack.sites import MemberWeights
from lora_ensembles.training import trainee
from reference_training import (
    Recipe,
    assert_different_weights,
    assert_identical_weights,
    assert_same_weights,
    config_of,
    train_by_peft,
)
from tiny_models import (
    TRIED,
    adapter_config,
    build,
    build_ensemble,
    letter_examples,
    phrase_examples,
    tokenizer,
)

LONG = Recipe()  # 10 examples in batches of 4, 4 and 2: 3 steps an epoch, 21 in all
SHORT = Recipe(epochs=2)
MEMBERS = 3
RECIPES = {
    "none": LONG,
    "kl": replace(LONG, kl_weight=0.7),
    "decay_of_b": replace(LONG, weight_decay_b=100.0),
    "decay_of_a": replace(LONG, weight_decay_a=100.0),
    "decay_of_both": replace(LONG, weight_decay_a=50.0, weight_decay_b=150.0),
    "decay_and_kl": replace(LONG, weight_decay_b=100.0, kl_weight=0.3),
    "clip": replace(LONG, max_grad_norm=0.5),
    "linear": replace(LONG, schedule="linear", warmup_steps=3),
    "cosine": replace(LONG, schedule="cosine", warmup_steps=2, weight_decay_b=100.0),
    "dropout": replace(LONG, dropout=0.3),
    "everything": replace(
        LONG,
        kl_weight=0.3,
        weight_decay_a=10.0,
        weight_decay_b=100.0,
        max_grad_norm=0.7,
        schedule="cosine",
        dropout=0.2,
    ),
}


def run(
    ensemble: LoraEnsemble, config: TrainConfig, examples: Sequence[Example] | None = None
) -> list[MemberWeights]:
    train(ensemble, letter_examples() if examples is None else examples, config, progress=False)
    return [ensemble.stack.member(m) for m in range(ensemble.num_members)]


def alone(name: str, m: int, *, members: int = MEMBERS) -> LoraEnsemble:
    """The ensemble of one: the same seeds, no neighbours."""
    ensemble = build_ensemble(name, members=members)
    ensemble.keep_members([m])
    return ensemble


def check_against_alone_and_peft(
    name: str, recipe: Recipe, examples: Sequence[Example] | None = None
) -> list[MemberWeights]:
    """Hold a stack against the ensemble of one and against PEFT; returns the stack's weights."""
    examples = letter_examples() if examples is None else examples
    ensemble = build_ensemble(name, members=MEMBERS)
    start = ensemble.stack.member(1)
    stacked = run(ensemble, config_of(recipe), examples)
    assert_different_weights(stacked[1], start)
    assert_same_weights(run(alone(name, 1), config_of(recipe), examples)[0], stacked[1])
    encoded = encode_examples(examples, tokenizer())
    assert_same_weights(
        stacked[1], train_by_peft(build(name), adapter_config(name), ensemble.info.seeds[1], encoded, recipe)
    )
    return stacked


@functools.cache
def _without_regulariser(name: str) -> list[MemberWeights]:
    return run(build_ensemble(name, members=MEMBERS), config_of(RECIPES["none"]))


@pytest.mark.parametrize(("name", "recipe"), crossed(["llama", "gpt2", "qwen3"], RECIPES, usual="everything"))
def test_member_trained_in_stack_equals_member_trained_alone_and_by_peft(name: str, recipe: str) -> None:
    stacked = check_against_alone_and_peft(name, RECIPES[recipe])
    if recipe != "none":  # and the setting does something
        assert_different_weights(stacked[1], _without_regulariser(name)[1])


@pytest.mark.parametrize("name", [name for name in TRIED if name not in ("llama", "gpt2", "qwen3")])
def test_every_architecture_trains_as_by_peft(name: str) -> None:
    check_against_alone_and_peft(name, SHORT)


def test_answers_of_several_tokens_train_as_by_peft() -> None:
    check_against_alone_and_peft("llama", replace(LONG, epochs=5, kl_weight=0.5), phrase_examples())


@pytest.mark.parametrize("recipe", ["none", "everything"])
def test_member_of_a_stack_of_2_equals_that_member_of_a_stack_of_8(recipe: str) -> None:
    few = run(build_ensemble(members=2), config_of(RECIPES[recipe]))
    many = run(build_ensemble(members=8), config_of(RECIPES[recipe]))
    for m in range(2):
        assert_same_weights(few[m], many[m])


def test_a_member_added_later_is_the_member_that_it_would_have_been() -> None:
    grown = build_ensemble(members=2)
    grown.add_members(1)
    grown.keep_members([2])
    assert_same_weights(run(grown, config_of(SHORT))[0], run(build_ensemble(members=3), config_of(SHORT))[2])


def test_a_sweep_in_one_stack_equals_separate_runs() -> None:
    values: dict[str, list[float]] = dict(
        learning_rate=[1e-3, 4e-3, 2e-3],
        weight_decay_a=[0.0, 5.0, 50.0],
        weight_decay_b=[100.0, 0.0, 20.0],
        kl_weight=[0.0, 0.5, 1.5],
        dropout=[0.3, 0.0, 0.1],
    )
    config = config_of(replace(LONG, epochs=5))
    swept = run(build_ensemble(members=3), replace(config, **values))  # type: ignore[arg-type]
    for m in range(3):
        own = replace(config, **{name: value[m] for name, value in values.items()})
        assert_same_weights(swept[m], run(alone("llama", m), own)[0])


def test_a_snapshot_holds_the_weights_of_a_run_of_so_many_epochs() -> None:
    whole = train(build_ensemble(), letter_examples(), config_of(replace(LONG, epochs=5)), progress=False)
    assert whole.snapshots == {}
    config = replace(config_of(replace(LONG, epochs=5, dropout=0.2)), snapshot_epochs=(2, 5))
    ensemble = build_ensemble()
    snapshots = train(ensemble, letter_examples(), config, progress=False).snapshots
    assert list(snapshots) == [2, 5]
    for epoch, kept in snapshots.items():
        shorter = run(build_ensemble(), replace(config, epochs=epoch, snapshot_epochs=()))
        for m in range(MEMBERS):
            assert_identical_weights(kept[m], shorter[m])  # the same operations on the same numbers


@pytest.mark.parametrize("max_rows", [8, 4, 3])
@pytest.mark.parametrize("recipe", ["none", "everything"])
def test_accumulation_over_members_and_rows_equals_the_whole_batch(recipe: str, max_rows: int) -> None:
    config = replace(config_of(RECIPES[recipe]), epochs=3)
    whole = run(build_ensemble(), config)
    split = run(build_ensemble(), replace(config, max_rows=max_rows))
    for m in range(MEMBERS):
        assert_same_weights(split[m], whole[m])


@pytest.mark.parametrize("recipe", ["none", "everything"])
def test_a_step_read_in_parts_by_length_equals_the_whole(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config_of(RECIPES[recipe]), epochs=3)
    weights, passes = [], []
    for cost in (10**9, 0):
        monkeypatch.setattr(trainee, "PASS_TOKENS", cost)
        ensemble = build_ensemble()
        made = []
        ensemble.base.get_decoder().register_forward_pre_hook(lambda *_, made=made: made.append(1))
        weights.append(run(ensemble, config))
        passes.append(len(made))
    assert passes[1] > passes[0] >= 9  # steps
    for one, other in zip(*weights, strict=True):
        assert_same_weights(one, other)


def test_in_bf16_the_masters_stay_fp32_and_the_loss_stays_close() -> None:
    config = config_of(replace(LONG, learning_rate=1e-3))
    exact, half = (
        build_ensemble(),
        LoraEnsemble(
            build("llama", dtype=torch.bfloat16), tokenizer(), num_members=3, adapter=adapter_config()
        ),
    )
    history = train(exact, letter_examples(), config, progress=False).history
    history_half = train(half, letter_examples(), config, progress=False).history
    stack = half.stack
    assert (stack.a.dtype, stack.working_a.dtype, stack.layers[0].lora_b.dtype) == (
        torch.float32,
        torch.bfloat16,
        torch.bfloat16,
    )
    assert torch.equal(stack.working_b, stack.b.bfloat16())  # the working copies follow the masters
    assert not torch.equal(stack.b, stack.b.bfloat16().float())  # which hold more than bf16 can
    for row, row_half in zip(history, history_half, strict=True):
        # bf16 keeps 8 bits: about 0.4 % an operation, some dozen operations deep, on losses of size 1.
        torch.testing.assert_close(
            torch.tensor(row_half["train_loss"]), torch.tensor(row["train_loss"]), atol=0.1, rtol=0.05
        )


def test_a_step_below_the_resolution_of_bf16_is_not_lost() -> None:
    # One bf16 step beside a weight of 0.1 is about 5e-4; twenty steps of 1e-5 must still move the master by
    # about 2e-4.
    half = LoraEnsemble(
        build("llama", dtype=torch.bfloat16), tokenizer(), num_members=1, adapter=adapter_config()
    )
    before = half.stack.b.clone()
    run(half, config_of(replace(LONG, learning_rate=1e-5)))
    assert 5e-5 < float((half.stack.b - before).abs().max()) < 21 * 1.5e-5
