"""The last-layer ensemble beyond its parity: what varies, what stays, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from lora_ensembles import (
    AdapterError,
    ConfigError,
    DataError,
    LastLayerEnsemble,
    TrainConfig,
    TrainingError,
    predict,
)
from tiny_ensembles import ensemble, llama, no_memory_left, questions, same_state, state, tokenizer
from tiny_models import build, letter_examples, tokenizer as words

CONFIG = TrainConfig(epochs=4, batch_size=4, learning_rate=1e-2)
TRAIN, ASKED = questions(12), questions(6, start=12)


def last_layer(*, members: int = 3, seed: int = 0, config: TrainConfig | None = CONFIG) -> LastLayerEnsemble:
    made = LastLayerEnsemble(llama(), tokenizer(), num_members=members, seed=seed)
    if config is not None:
        made.fit(TRAIN, config)
    return made


def test_loss_falls_and_members_differ_by_their_order_alone() -> None:
    made = LastLayerEnsemble(llama(), tokenizer(), num_members=3)
    history = made.fit(TRAIN, CONFIG).history
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert all(
        last < first for first, last in zip(history[0]["train_loss"], history[-1]["train_loss"], strict=True)
    )
    assert float((made.rows[0] - made.rows[1]).abs().max()) > 1e-3
    whole = LastLayerEnsemble(llama(), tokenizer(), num_members=3)
    whole.fit(TRAIN, replace(CONFIG, batch_size=len(TRAIN)))  # one batch: no order
    torch.testing.assert_close(whole.rows[0], whole.rows[1], atol=1e-5, rtol=0)


def test_a_member_does_not_know_its_neighbours() -> None:
    many, one = last_layer(members=4), last_layer(members=1)
    torch.testing.assert_close(one.rows[0], many.rows[0], atol=1e-6, rtol=0)
    assert float((last_layer(seed=1).rows[0] - many.rows[0]).abs().max()) > 1e-3


def test_the_base_is_never_changed_and_fitting_again_starts_anew() -> None:
    made = last_layer(config=None)
    before = state(made.base)
    made.fit(TRAIN, CONFIG)
    first = made.rows.clone()
    made.fit(TRAIN, CONFIG)
    assert torch.equal(made.rows, first)
    assert same_state(made.base, before)


def test_the_base_runs_once_over_the_training_data() -> None:
    made = last_layer(config=None)
    rows: list[int] = []

    def count(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        rows.append(
            arguments[0].shape[0] * (arguments[0].shape[1] > 1)
        )  # rows of one token carry states to the head

    made.base.get_input_embeddings().register_forward_pre_hook(count)
    made.fit(TRAIN, CONFIG)
    assert sum(rows) == len(TRAIN)


def test_limit_of_rows_changes_nothing() -> None:
    made, split = last_layer(), last_layer(config=replace(CONFIG, max_rows=3))
    torch.testing.assert_close(split.rows, made.rows, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        predict(made, ASKED, max_rows=1).probs, predict(made, ASKED).probs, atol=1e-5, rtol=0
    )


def test_labels_that_were_not_trained_keep_the_base_s_rows() -> None:
    made = LastLayerEnsemble(llama(), tokenizer(), num_members=2)
    made.fit(questions(8, options=2), CONFIG)
    assert made.num_trained_parameters == 2 * 16
    first = torch.tensor([tokenizer()(ASKED[0].prompt)["input_ids"]])
    letters = torch.tensor(tokenizer().convert_tokens_to_ids(list("abcd")))
    with torch.no_grad():
        expected = made.base(first).logits[0, -1, letters]
    found = made.member_log_probs(ASKED)[:, 0]
    # log-probabilities share their normaliser, so the difference of two untrained labels is the base's
    torch.testing.assert_close(
        found[:, 2] - found[:, 3], (expected[2] - expected[3]).expand(2), atol=1e-5, rtol=0
    )
    assert float((found[:, 0] - found[:, 3] - expected[0] + expected[3]).abs().max()) > 1e-3


def test_trained_parameters_are_the_label_tokens_rows() -> None:
    assert last_layer(config=None).num_trained_parameters == 0
    assert last_layer().num_trained_parameters == 4 * 16


def test_in_bf16_masters_stay_fp32_and_the_untouched_members_stay_close_to_the_base() -> None:
    base = build("gemma2", dtype=torch.bfloat16)
    made = LastLayerEnsemble(base, words(), num_members=2)
    before = predict(made, letter_examples()).probs
    made.fit(letter_examples(), TrainConfig(epochs=1, batch_size=4, learning_rate=0.0))
    assert made.rows.dtype == torch.float32
    torch.testing.assert_close(
        predict(made, letter_examples()).probs, before, atol=0.02, rtol=0
    )  # bf16: 8 bits of a logit of size 1 to 5
    losses = [
        row["train_loss"]
        for row in made.fit(
            letter_examples(), TrainConfig(epochs=5, batch_size=4, learning_rate=3e-3)
        ).history
    ]
    assert all(last < first - 0.1 for first, last in zip(losses[0], losses[-1], strict=True))


def test_a_base_that_carries_an_ensemble_is_used_inside_base_only() -> None:
    carrier = ensemble(members=2, trained=True)
    made = LastLayerEnsemble(carrier.base, tokenizer(), num_members=3)
    with pytest.raises(AdapterError, match=r"inside `with ensemble.base_only"):
        made.fit(TRAIN, CONFIG)
    with carrier.base_only():
        made.fit(TRAIN, CONFIG)
        found = predict(made, ASKED).probs
    torch.testing.assert_close(found, predict(last_layer(), ASKED).probs, atol=1e-5, rtol=0)


class Doubting(LlamaForCausalLM):
    """A Llama that lowers the logits of later tokens of its vocabulary, behind its head."""

    def forward(self, input_ids: Tensor, **settings: object) -> CausalLMOutputWithPast:
        output = super().forward(input_ids, **settings)
        logits = output.logits
        return CausalLMOutputWithPast(logits=logits - 0.1 * torch.arange(logits.shape[-1]))


def test_what_a_model_does_token_by_token_behind_its_head_is_refused() -> None:
    model = Doubting(llama().config).eval()
    with pytest.raises(
        AdapterError, match="Doubting does something behind its head that differs from token to token"
    ):
        LastLayerEnsemble(model, tokenizer()).fit(TRAIN, CONFIG)


def test_a_head_without_a_plain_matrix_is_refused() -> None:
    model = llama()
    model.lm_head.weight = nn.Parameter(
        torch.zeros(100, 1, dtype=torch.uint8), requires_grad=False
    )  # as a 4-bit layer packs it
    with pytest.raises(AdapterError, match="LlamaForCausalLM has no output head with a plain weight matrix"):
        LastLayerEnsemble(model, tokenizer())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(dropout=0.1), "dropout=0.1: a last-layer ensemble has no such setting; leave it out"),
        (dict(dropout=(0.0, 0.1, 0.0)), "dropout=.* a last-layer ensemble has no such setting"),
        (dict(loss="labels"), "loss='labels': a last-layer ensemble has no such setting"),
        (dict(learning_rate=[0.1, 0.2]), "learning_rate has 2 values for 3 members"),
    ],
)
def test_settings_that_it_does_not_have_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        last_layer(config=replace(CONFIG, **change))


def test_no_dropout_said_outright_is_no_setting() -> None:
    assert torch.equal(last_layer(config=replace(CONFIG, dropout=0.0)).rows, last_layer().rows)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_members=0; an ensemble has at least 1 member"):
        last_layer(members=0)
    with pytest.raises(DataError, match="training example number 1 has no answer"):
        LastLayerEnsemble(llama(), tokenizer()).fit([replace(TRAIN[0], target=None)], CONFIG)
    with pytest.raises(DataError, match="no training examples were given"):
        LastLayerEnsemble(llama(), tokenizer()).fit([], CONFIG)


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    with pytest.raises(TrainingError, match=r"of member 1 is nan at step \d+: its learning rate 1e\+38 is"):
        last_layer(
            config=replace(CONFIG, learning_rate=[0.01, 1e38, 0.01], weight_decay_a=0.0, weight_decay_b=0.0)
        )


def test_memory_that_runs_out_while_predicting_is_an_error_that_says_what_to_do() -> None:
    made = last_layer()
    with no_memory_left(), pytest.raises(ConfigError, match="memory ran out with a single row in flight"):
        predict(made, ASKED, max_rows=6)
