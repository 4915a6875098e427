"""Training on open answers of several tokens: against PEFT with torch.optim.AdamW, and against itself with
less memory.

`reference_training.assert_same_weights` says how equal weights have to be, and why.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

import breadth
from breadth import crossed
from lora_ensembles import LoraEnsemble, TrainConfig, train
from lora_ensembles.data import Completion, EncodedExample, encode_completions
from lora_ensembles.errors import DataError
from lora_ensembles.heads.lm.completions import score_completions
from lora_ensembles.heads.lm.losses import BaseStates, row_losses
from lora_ensembles.heads.lm.table import TokenTable
from lora_ensembles.stack.sites import MemberWeights
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
    open_examples,
    tokenizer,
)

LONG = Recipe()  # 10 examples in batches of 4, 4 and 2: 3 steps an epoch, 21 in all
SHORT = Recipe(epochs=2)
MEMBERS = 3
RECIPES = {
    "none": LONG,
    "kl": replace(LONG, kl_weight=0.3),
    "decay_of_b": replace(LONG, weight_decay_b=100.0),
    "decay_and_kl": replace(LONG, weight_decay_b=100.0, kl_weight=0.3),
    "clip": replace(LONG, max_grad_norm=0.5),
    "linear": replace(LONG, schedule="linear", warmup_steps=3),
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
BUDGET = "lora_ensembles.passes.answer_positions.LOGIT_BUDGET"
CACHE = "lora_ensembles.heads.lm.losses.BASE_CACHE_BYTES"
VOCABULARY = 2000  # of the model whose logits are by far its largest tensors


def encoded() -> list[EncodedExample]:
    return encode_completions(open_examples(), tokenizer())


def run(
    ensemble: LoraEnsemble, config: TrainConfig, examples: Sequence[Completion] | None = None
) -> list[MemberWeights]:
    train(ensemble, open_examples() if examples is None else examples, config, progress=False)
    return [ensemble.stack.member(m) for m in range(ensemble.num_members)]


def by_peft(name: str, m: int, recipe: Recipe) -> MemberWeights:
    seeds = build_ensemble(name, members=MEMBERS).info.seeds[m]
    return train_by_peft(build(name), adapter_config(name), seeds, encoded(), recipe)


def allow(monkeypatch: pytest.MonkeyPatch, *, tokens: int, vocabulary: int, copies: int = 1) -> None:
    """Let the head run over so many answer tokens at a time."""
    monkeypatch.setattr(BUDGET, copies * tokens * vocabulary)


@functools.cache
def without_regulariser(name: str) -> list[MemberWeights]:
    return run(build_ensemble(name, members=MEMBERS), config_of(RECIPES["none"]))


def test_the_examples_have_answers_of_many_lengths() -> None:
    assert {len(example.label_ids[0]) for example in encoded()} >= {
        2,
        3,
        5,
        8,
        10,
    }  # one more than words: the end


@pytest.mark.parametrize(("name", "recipe"), crossed(["llama", "gemma2"], RECIPES, usual="everything"))
def test_member_trained_in_stack_equals_member_trained_by_peft(name: str, recipe: str) -> None:
    stacked = run(build_ensemble(name, members=MEMBERS), config_of(RECIPES[recipe]))
    assert_same_weights(stacked[1], by_peft(name, 1, RECIPES[recipe]))
    if recipe != "none":  # and the setting does something
        assert_different_weights(stacked[1], without_regulariser(name)[1])


@pytest.mark.parametrize("recipe", ["none", "everything"])
def test_member_of_a_stack_of_2_equals_that_member_of_a_stack_of_4(recipe: str) -> None:
    few = run(build_ensemble(members=2), config_of(RECIPES[recipe]))
    many = run(build_ensemble(members=4), config_of(RECIPES[recipe]))
    for m in range(2):
        assert_same_weights(few[m], many[m])


@functools.cache
def in_one_piece(recipe: str) -> tuple[Any, Any]:
    """The members of a stack whose head runs in one piece, and the last of them by PEFT."""
    whole = run(build_ensemble(members=MEMBERS), config_of(RECIPES[recipe]))
    return whole, by_peft("llama", 2, RECIPES[recipe])


@pytest.mark.parametrize(
    ("tokens", "recipe"),
    [
        (3, "everything"),
        pytest.param(1, "none", marks=breadth.LONG),
        pytest.param(20, "none", marks=breadth.LONG),
        pytest.param(20, "everything", marks=breadth.LONG),
    ],
)
def test_head_in_chunks_equals_head_in_one_piece_and_peft(
    recipe: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, alone = in_one_piece(recipe)
    allow(monkeypatch, tokens=tokens, vocabulary=len(tokenizer()), copies=1 if recipe == "none" else 2)
    chunked = run(build_ensemble(members=MEMBERS), config_of(RECIPES[recipe]))
    for one, other in zip(chunked, whole, strict=True):
        assert_same_weights(one, other)
    assert_same_weights(chunked[2], alone)


@pytest.mark.parametrize("name", TRIED)
def test_head_in_chunks_does_what_each_model_does_behind_its_head(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(monkeypatch, tokens=5, vocabulary=len(tokenizer()), copies=2)
    recipe = replace(SHORT, kl_weight=0.3)
    assert_same_weights(
        run(build_ensemble(name, members=MEMBERS), config_of(recipe))[1], by_peft(name, 1, recipe)
    )


@pytest.mark.parametrize("recipe", ["kl", "everything"])
@pytest.mark.parametrize("name", ["llama", "opt"])  # OPT's head reads other states than its layers write
def test_divergence_from_kept_states_equals_that_from_a_base_asked_in_every_step(
    name: str, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = run(build_ensemble(name, members=MEMBERS), config_of(RECIPES[recipe]))
    monkeypatch.setattr(CACHE, 0)
    live = run(build_ensemble(name, members=MEMBERS), config_of(RECIPES[recipe]))
    for one, other in zip(live, kept, strict=True):
        assert_same_weights(one, other)


@pytest.mark.parametrize(
    ("limits", "max_rows"),
    crossed(["", "head in chunks", "base asked in every step"], [8, 4, 3], usual=3),
)
def test_accumulation_over_members_and_rows_equals_the_whole_batch(
    max_rows: int, limits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config_of(RECIPES["everything"]), epochs=3)
    whole = run(build_ensemble(), config)
    if limits == "head in chunks":
        allow(monkeypatch, tokens=4, vocabulary=len(tokenizer()), copies=2)
    if limits == "base asked in every step":
        monkeypatch.setattr(CACHE, 0)
    split = run(build_ensemble(), replace(config, max_rows=max_rows))
    for one, other in zip(split, whole, strict=True):
        assert_same_weights(one, other)


def test_a_snapshot_holds_the_weights_of_a_run_of_so_many_epochs() -> None:
    config = replace(config_of(replace(LONG, epochs=4, kl_weight=0.3, dropout=0.2)), snapshot_epochs=(2, 4))
    ensemble = build_ensemble()
    snapshots = train(ensemble, open_examples(), config, progress=False).snapshots
    assert list(snapshots) == [2, 4]
    for epoch, kept in snapshots.items():
        shorter = run(build_ensemble(), replace(config, epochs=epoch, snapshot_epochs=()))
        for one, other in zip(kept, shorter, strict=True):
            assert_identical_weights(one, other)


def test_a_divergence_weight_of_one_member_leaves_the_others_as_they_are() -> None:
    config = config_of(replace(LONG, epochs=3))
    mixed = run(build_ensemble(members=2), replace(config, kl_weight=[0.0, 0.5]))
    assert_same_weights(mixed[0], run(build_ensemble(members=2), config)[0])
    assert_different_weights(mixed[1], run(build_ensemble(members=2), config)[1])


# Memory


class Largest(TorchDispatchMode):
    """Records the most elements of any floating-point tensor that an operator returns, forward
    and backward.
    """

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else (result,):
            if isinstance(one, Tensor) and one.is_floating_point():
                self.elements = max(self.elements, one.numel())
        return result


def wide_ensemble(*, dtype: torch.dtype = torch.float32) -> LoraEnsemble:
    """Two members on a model with many words and little else."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return LoraEnsemble(
        LlamaForCausalLM(config).to(dtype), tokenizer(), num_members=2, adapter=adapter_config(rank=1)
    )


def largest_tensor(kl_weight: float) -> int:
    """Elements of the largest tensor of a training step of 8 rows."""
    ensemble = wide_ensemble()
    with Largest() as seen:
        train(
            ensemble,
            open_examples()[:4],
            TrainConfig(epochs=1, batch_size=4, kl_weight=kl_weight),
            progress=False,
        )
    return seen.elements


@pytest.mark.parametrize(("kl_weight", "copies"), [(0.0, 1), (0.3, 2)])
def test_no_tensor_is_larger_than_the_budget_of_logits_however_long_the_answers_are(
    kl_weight: float, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_tokens = 2 * sum(len(example.label_ids[0]) for example in encoded()[:4])
    assert (
        largest_tensor(kl_weight) == copies * answer_tokens * VOCABULARY
    )  # of answer tokens alone: none of prompt or padding
    allow(monkeypatch, tokens=10, vocabulary=VOCABULARY, copies=copies)
    assert largest_tensor(kl_weight) == copies * 10 * VOCABULARY < copies * answer_tokens * VOCABULARY


@pytest.mark.parametrize("base_states", [False, True])
def test_a_head_in_chunks_leaves_no_logits_for_the_backward_pass_to_keep(
    base_states: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = wide_ensemble()
    table = TokenTable.from_encoded(encoded(), 0)
    states = BaseStates.of(ensemble, table, rows=3) if base_states else None
    weight = ensemble.base.get_output_embeddings().weight  # kept as well, and no logits
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        logits = (
            tensor.shape[-1:] == (VOCABULARY,)
            and tensor.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr()
        )
        kept.append(tensor.numel() if logits else 0)
        return tensor

    def most_kept() -> int:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            row_losses(ensemble, table.gather(torch.arange(8).view(2, 4)), base_states=states)
        return max(kept)

    assert most_kept() == sum(len(example.label_ids[0]) for example in encoded()[:8]) * VOCABULARY
    allow(monkeypatch, tokens=10, vocabulary=VOCABULARY)
    assert most_kept() == 0


def test_no_tensor_is_larger_than_the_budget_of_logits_when_answers_are_scored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ensemble = wide_ensemble()
    whole = score_completions(ensemble, open_examples())
    # Of 12 tokens: the attention of torch 2.6 makes a table of (20, 2, 24, 24), more than the logits of 11.
    allow(monkeypatch, tokens=12, vocabulary=VOCABULARY)
    with Largest() as seen:
        chunked = score_completions(ensemble, open_examples())
    assert seen.elements == 12 * VOCABULARY
    # fp32: a product of twelve rows and one of a hundred may be summed in another order.
    torch.testing.assert_close(chunked.member_log_probs, whole.member_log_probs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_states_of_the_base_take_what_is_said_and_never_more_than_the_bound(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = wide_ensemble(dtype=dtype)
    table = TokenTable.from_encoded(encoded(), 0)
    wanted = (
        sum(len(example.label_ids[0]) for example in encoded()) * 8 * dtype.itemsize
    )  # tokens * hidden size * bytes
    monkeypatch.setattr(CACHE, wanted)
    kept = BaseStates.of(ensemble, table, rows=3).kept
    assert kept is not None
    assert (kept.dtype, kept.untyped_storage().nbytes()) == (dtype, wanted)
    monkeypatch.setattr(CACHE, wanted - 1)
    assert BaseStates.of(ensemble, table, rows=3).kept is None


# What is refused


def test_questions_and_open_answers_in_one_list_are_refused() -> None:
    mixed: list[Any] = [*letter_examples()[:2], *open_examples()[:3]]
    with pytest.raises(
        DataError, match=r"2 questions with options \(Example\) and 3 open answers \(Completion\) in one list"
    ):
        train(build_ensemble(), mixed, TrainConfig(epochs=1), progress=False)


def test_an_open_answer_that_is_not_known_is_refused_in_training_and_in_validation() -> None:
    unknown = [*open_examples()[:2], replace(open_examples()[2], completion=None)]
    with pytest.raises(DataError, match="example 'o2' has no completion"):
        train(build_ensemble(), unknown, TrainConfig(epochs=1), progress=False)
    with pytest.raises(DataError, match="example 'o2' has no completion"):
        train(build_ensemble(), open_examples(), TrainConfig(epochs=1), validation=unknown, progress=False)
