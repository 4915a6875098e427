"""BatchEnsemble beyond its parity: how it starts, what varies, what it costs, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import get_peft_model

from lora_ensembles import (
    AdapterError,
    BatchEnsemble,
    ConfigError,
    LoraEnsemble,
    TrainConfig,
    TrainingError,
    predict,
)
from lora_ensembles.baselines.batch_ensemble import RankOneLinear
from lora_ensembles.stack.context import ForwardContext
from tiny_ensembles import adapter, ensemble, llama, no_memory_left, questions, same_state, state, tokenizer
from tiny_models import adapter_config, build, letter_examples, tokenizer as words

CONFIG = TrainConfig(epochs=4, batch_size=4, learning_rate=1e-2)
TRAIN, ASKED = questions(12), questions(6, start=12)


def made(
    *,
    members: int = 3,
    config: TrainConfig | None = None,
    sigma: float = 0.05,
    seed: int = 0,
    vary: tuple = ("init", "order"),
):
    built = BatchEnsemble(
        llama(), tokenizer(), num_members=members, adapter=adapter(), sigma=sigma, seed=seed, vary=vary
    )
    if config is not None:
        built.fit(TRAIN, config)
    return built


def offsets(built: BatchEnsemble) -> torch.Tensor:
    return torch.cat([built.inputs, built.outputs], dim=1)


def test_offsets_start_as_a_gaussian_of_the_size_asked_for() -> None:
    built = BatchEnsemble(llama(hidden=512), tokenizer(), num_members=4, adapter=adapter(), sigma=0.1)
    for member in offsets(
        built
    ):  # 1792 numbers: deviation of the mean 0.1 / 42, of the deviation itself 0.1 / 60; five of each
        assert float(member.mean()) == pytest.approx(0.0, abs=0.012)
        assert float(member.std()) == pytest.approx(0.1, abs=0.0085)
    correlation = torch.corrcoef(offsets(built)).fill_diagonal_(0)
    assert float(correlation.abs().max()) < 5 / 1792**0.5


def test_loss_falls_and_both_sources_of_randomness_tell_members_apart() -> None:
    built = made()
    history = built.fit(TRAIN, CONFIG).history
    assert all(
        last < first for first, last in zip(history[0]["train_loss"], history[-1]["train_loss"], strict=True)
    )
    for vary in (("init",), ("order",)):
        trained = offsets(made(config=CONFIG, vary=vary))
        assert float((trained[0] - trained[1]).abs().max()) > 1e-3
    same = offsets(made(config=CONFIG, vary=()))
    torch.testing.assert_close(same[0], same[1], atol=1e-6, rtol=0)


def test_a_member_does_not_know_its_neighbours() -> None:
    many, one = offsets(made(members=4, config=CONFIG)), offsets(made(members=1, config=CONFIG))
    torch.testing.assert_close(one[0], many[0], atol=1e-5, rtol=0)
    assert float((offsets(made(seed=1, config=CONFIG))[0] - many[0]).abs().max()) > 1e-2


def test_decay_pulls_to_the_base_on_the_side_that_it_is_set_for() -> None:
    strong = dict(learning_rate=1e-4, epochs=20)
    inputs = made(config=replace(CONFIG, **strong, weight_decay_a=3000.0, weight_decay_b=0.0))
    start = made()
    # 60 steps of a factor 1 - 1e-4 * 3000 leave 0.7^60 = 5e-10 of the start, and what Adam adds: at most 1e-4
    # / 0.3 in balance
    assert float(inputs.inputs.abs().max()) < 1e-3
    assert float((inputs.outputs - start.outputs).abs().max()) < 60 * 1e-4 + 1e-6


def test_limit_of_rows_changes_nothing() -> None:
    whole, split = made(config=CONFIG), made(config=replace(CONFIG, max_rows=3))
    torch.testing.assert_close(offsets(split), offsets(whole), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        predict(whole, ASKED, max_rows=1).probs, predict(whole, ASKED).probs, atol=1e-5, rtol=0
    )


def test_the_base_is_never_changed_and_comes_back_whole() -> None:
    base = llama()
    before = state(base)
    built = BatchEnsemble(base, tokenizer(), num_members=2, adapter=adapter())
    expected = predict(
        LoraEnsemble(llama(), tokenizer(), num_members=1, adapter=adapter()), ASKED
    ).probs  # B = 0: the base
    built.fit(TRAIN, CONFIG)
    with built.base_only() as alone:
        ids = torch.tensor([tokenizer()(ASKED[0].prompt)["input_ids"]])
        letters = torch.tensor(tokenizer().convert_tokens_to_ids(list("abcd")))
        with torch.no_grad():
            torch.testing.assert_close(
                alone(ids).logits[0, -1, letters].softmax(0), expected[0], atol=1e-5, rtol=0
            )
    assert same_state(built.unload(), before)
    with pytest.raises(AdapterError, match="this ensemble was unloaded"):
        predict(built, ASKED)
    assert predict(ensemble(base=base, members=1), ASKED).num_members == 1  # free for another


def test_trained_parameters_are_inputs_plus_outputs_of_the_targets() -> None:
    # q_proj maps 16 to 16 features and v_proj 16 to 8, in the one layer.
    assert made().num_trained_parameters == 16 + 16 + 16 + 8
    lora = LoraEnsemble(llama(), tokenizer(), num_members=1, adapter=adapter(rank=1))
    assert made().num_trained_parameters == lora.stack.a.shape[1] + lora.stack.b.shape[1]


def test_small_changes_of_an_offset_are_not_lost_in_bf16() -> None:
    layer = torch.nn.Linear(4096, 1, bias=False, dtype=torch.bfloat16)
    stacked = RankOneLinear(layer, name="layer", context=ForwardContext(tokens=2))
    before, after = 0.048, 0.0495  # as factors both are 1.046875 in bf16
    stacked.bind(torch.tensor([[before], [after]]).expand(2, 4096).contiguous(), torch.zeros(2, 1))
    seen: list[torch.Tensor] = []
    layer.register_forward_pre_hook(lambda _layer, arguments: seen.append(arguments[0].float()))
    with torch.no_grad():
        stacked(torch.rand(1, 1, 4096).bfloat16().expand(2, -1, -1))
    # Rounding of a product is off by at most 2^-9 of it, either way: over 4096 products by 2^-9 / 64 / 2 or
    # so of their sum.
    assert float(seen[0][1].sum() / seen[0][0].sum()) == pytest.approx((1 + after) / (1 + before), abs=2e-4)


def test_it_trains_in_bf16() -> None:
    built = BatchEnsemble(
        build("qwen2", dtype=torch.bfloat16), words(), num_members=2, adapter=adapter_config("qwen2")
    )
    history = built.fit(letter_examples(), TrainConfig(epochs=8, batch_size=4, learning_rate=1e-2)).history
    assert built.inputs.dtype == torch.float32
    assert all(
        last < first - 0.1
        for first, last in zip(history[0]["train_loss"], history[-1]["train_loss"], strict=True)
    )


def test_a_base_that_is_taken_is_refused() -> None:
    built = made()
    with pytest.raises(AdapterError, match="the base carries another BatchEnsemble; call `unload"):
        BatchEnsemble(built.base, tokenizer(), adapter=adapter())
    with pytest.raises(AdapterError, match="PEFT cannot place the adapter"):
        LoraEnsemble(built.base, tokenizer(), adapter=adapter())
    with pytest.raises(AdapterError, match="the base carries another ensemble; call `unload"):
        BatchEnsemble(ensemble().base, tokenizer(), adapter=adapter())
    with pytest.raises(AdapterError, match="the base is wrapped by PEFT already"):
        BatchEnsemble(get_peft_model(llama(), adapter()), tokenizer(), adapter=adapter())


def test_the_base_called_by_itself_is_an_error() -> None:
    built = made()
    with pytest.raises(AdapterError, match=r"call it inside `with ensemble.base_only\(\):`"):
        built.base(torch.tensor([[1, 2, 3]]))


def test_targets_that_cannot_work_are_refused() -> None:
    with pytest.raises(AdapterError, match="PEFT cannot place the adapter"):
        BatchEnsemble(llama(), tokenizer(), adapter=adapter(targets=["nothing"]))
    with pytest.raises(AdapterError, match="the output head cannot carry adapters"):
        BatchEnsemble(llama(), tokenizer(), adapter=adapter(targets=["lm_head"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(members=0), "num_members=0; an ensemble has at least 1 member"),
        (dict(sigma=-0.1), "sigma=-0.1; it is a finite number of at least 0"),
        (dict(sigma=float("nan")), "sigma=nan; it is a finite number"),
        (dict(config=replace(CONFIG, dropout=0.1)), "dropout=0.1: BatchEnsemble has no such setting"),
        (dict(config=replace(CONFIG, learning_rate=[0.1])), "learning_rate has 1 values for 3 members"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(**settings)


def test_memory_that_runs_out_is_an_error_that_says_what_to_do() -> None:
    built = made()
    with (
        no_memory_left(),
        pytest.raises(
            TrainingError, match="memory ran out at step 1 with a single row in flight; free memory"
        ),
    ):
        built.fit(TRAIN, CONFIG)
    with no_memory_left(), pytest.raises(ConfigError, match="memory ran out with a single row in flight"):
        predict(built, ASKED, max_rows=6)
