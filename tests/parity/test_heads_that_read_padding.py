"""Bases that read the padding behind a text: members score and train as PEFT does with every text
by itself.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lora_ensembles import LastLayerHeads, LoraEnsemble, MCDropout, SingleMember, predict, train
from lora_ensembles.heads.task.table import passes_of_one_length
from lora_ensembles.passes.token_probe import padding_is_read
from lora_ensembles.training.adapters import AdapterTrainee
from reference_heads import assert_same_head, check_scores, check_training
from reference_training import Recipe, assert_same_weights, config_of
from tiny_heads import KINDS, PADDING_READERS, TRIED, build, build_ensemble, examples_for, tokenizer

RECIPE = Recipe(epochs=2, loss="auto")  # 10 examples in batches of 4, 4 and 2: 3 steps an epoch
READERS = [
    ("convbert", "sequence-classification"),
    ("convbert", "multiple-choice"),
    ("nystromformer", "reward"),
    ("yoso", "sequence-classification"),
    ("roformer", "multiple-choice"),
]
every_reader = pytest.mark.parametrize(("name", "kind"), READERS)
LENGTHS = (14, 9, 6)


def change_by_padding(name: str, kind: str) -> float:
    """The largest change of a score, in shares of the largest score, between a text beside a longer one and
    by itself.
    """
    model, score = build(name, kind), {}
    ids = torch.arange(4, 4 + max(LENGTHS)).repeat(len(LENGTHS), 1)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    shape = (1,) if "MultipleChoice" in type(model).__name__ else ()

    def scores(rows: slice, length: int) -> Tensor:
        given = {"input_ids": ids * mask, "attention_mask": mask}
        return model(
            **{key: value[rows, :length].unflatten(0, (-1, *shape)) for key, value in given.items()}
        ).logits

    with torch.no_grad():
        score["beside"] = scores(slice(None), max(LENGTHS))
        score["alone"] = torch.cat([scores(slice(n, n + 1), length) for n, length in enumerate(LENGTHS)])
    return float((score["beside"] - score["alone"]).abs().max() / score["alone"].abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*TRIED, *PADDING_READERS])
def test_a_trial_tells_which_bases_read_padding(name: str, kind: str) -> None:
    changed = change_by_padding(name, kind)
    assert changed < 1e-5 or changed > 1e-3  # rounding, or far from it
    assert padding_is_read(build(name, kind)) == (changed > 1e-3)
    assert (changed > 1e-3) == ((name, kind) in READERS or name in ("convbert", "nystromformer", "yoso"))


@pytest.mark.parametrize("name", TRIED)
def test_in_half_precision_rounding_is_not_taken_for_padding_that_is_read(name: str) -> None:
    assert not padding_is_read(build(name, "sequence-classification", dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("convbert", "multiple-choice"), ("roformer", "multiple-choice"), ("yoso", "sequence-classification")],
)
def test_in_half_precision_padding_that_is_read_shows_above_rounding(name: str, kind: str) -> None:
    assert padding_is_read(build(name, kind, dtype=torch.bfloat16))


@every_reader
def test_every_member_scores_as_peft_does_text_by_text(name: str, kind: str) -> None:
    check_scores(name, kind)


@every_reader
def test_member_trained_in_stack_equals_member_trained_alone_and_by_peft_text_by_text(
    name: str, kind: str
) -> None:
    check_training(name, kind, RECIPE)


def test_with_divergence_from_a_trained_base_members_train_as_by_peft_text_by_text() -> None:
    recipe = replace(RECIPE, kl_weight=0.7, max_grad_norm=0.5)
    check_training("convbert", "multiple-choice", recipe, init="base")


def test_with_dropout_members_train_as_by_peft_text_by_text() -> None:
    check_training("convbert", "multiple-choice", replace(RECIPE, dropout=0.3))


def test_trained_in_padded_batches_members_would_differ() -> None:
    padded, apart = (build_ensemble("convbert", "sequence-classification") for _ in range(2))
    padded.padding_is_read = False
    for ensemble in (padded, apart):
        train(ensemble, examples_for("sequence-classification"), config_of(RECIPE), progress=False)
    assert (
        float((padded.stack.b - apart.stack.b).abs().max()) > 1e-4
    )  # ten times what `assert_same_weights` allows


@pytest.mark.parametrize("max_rows", [7, 1])
def test_in_parts_the_weights_are_those_of_whole_batches(max_rows: int) -> None:
    config, kind = config_of(replace(RECIPE, dropout=0.2)), "multiple-choice"
    whole, split = build_ensemble("convbert", kind), build_ensemble("convbert", kind)
    train(whole, examples_for(kind), config, progress=False)
    train(split, examples_for(kind), replace(config, max_rows=max_rows), progress=False)
    for m in range(3):
        assert_same_weights(split.stack.member(m), whole.stack.member(m))
        assert_same_head(split.stack.member(m), whole.stack.member(m), steps=6)


def test_validation_and_other_predictors_say_of_a_text_what_they_say_of_it_alone() -> None:
    ensemble = build_ensemble("convbert", "sequence-classification", random_b=True)
    examples = examples_for("sequence-classification")
    for predictor in (
        ensemble,
        LastLayerHeads(build("convbert", "sequence-classification"), tokenizer(), num_members=2),
        SingleMember(ensemble, 1),
        MCDropout(ensemble, member=2, passes=3, dropout=0.3),
    ):
        together = predict(predictor, examples).member_log_probs
        alone = torch.cat([predict(predictor, [example]).member_log_probs for example in examples], dim=1)
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def passes_of(ensemble: LoraEnsemble, kind: str) -> list[torch.Size]:
    """The rows and tokens of the passes that the losses of a step take."""
    rows = AdapterTrainee(ensemble, examples_for(kind), config_of(RECIPE)).rows
    assert ensemble.padding_is_read
    assert ensemble.token_read is None  # both are tried here, and not counted below
    seen: list[torch.Size] = []
    handle = ensemble.base.get_input_embeddings().register_forward_hook(
        lambda _module, arguments, _result: seen.append(arguments[0].shape)
    )
    rows.losses(torch.tensor([[0, 1, 2], [3, 4, 5], [0, 5, 9]]), members=slice(None))
    handle.remove()
    return seen


def test_a_step_reads_each_text_once_and_no_padding() -> None:
    seen = passes_of(build_ensemble("convbert", "multiple-choice"), "multiple-choice")
    lengths = []
    for shape in seen:
        lengths += [shape[1]] * shape[0]
    examples = [examples_for("multiple-choice")[n] for n in (0, 1, 2, 3, 4, 5, 0, 5, 9)]
    expected = [
        len(f"{example.question} {option}".split()) + 3  # [CLS] and two [SEP]
        for example in examples
        for option in example.options
    ]
    assert sorted(lengths) == sorted(expected)
    assert len(seen) < len(expected)  # texts of one length are read together


def test_passes_of_one_length_hold_every_text_once() -> None:
    lengths = torch.randint(0, 4, (5, 9), generator=torch.Generator().manual_seed(3))
    counted = torch.zeros_like(lengths)
    for members, texts in passes_of_one_length(lengths):
        assert len(lengths[members].gather(1, texts).unique()) == 1
        counted[members] = counted[members].scatter_add(1, texts, torch.ones_like(texts))
    assert torch.equal(counted, (lengths > 0).long())
