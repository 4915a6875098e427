"""The method that docs/contributing-a-method.md adds: its code, read from the page, and what the page says a
method has to prove.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from command_line import base_folder, call
from lora_ensembles import LoraEnsemble, TrainConfig, baselines, calibrate, evaluate, predict
from lora_ensembles.baselines import IVON, TFB, SnapshotEnsemble, WeightPosterior
from lora_ensembles.cli.flags import baseline as flags
from lora_ensembles.cli.flags.baseline import BASELINES, POSTERIORS
from lora_ensembles.stack.sites import MemberWeights
from lora_ensembles.training.adapter_trainee import AdapterTrainee
from tiny_ensembles import ensemble, files_below, llama, questions, tokenizer

PAGE = Path(__file__).parents[2] / "docs" / "contributing-a-method.md"
CODE, _ = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
CONFIG = TrainConfig(epochs=4, batch_size=4, learning_rate=1e-2, loss="labels")


def page_class() -> Any:
    namespace: dict[str, Any] = {}
    exec(compile(CODE, str(PAGE), "exec"), namespace)
    return namespace["DiagonalLaplace"]


def posterior(*, members: int = 1, samples: int = 3, precision: float = 100.0) -> Any:
    """The page's class, on the tiny model."""
    return page_class()(ensemble(members=members), samples=samples, precision=precision)


def fitted(*, members: int = 1, precision: float = 100.0, config: TrainConfig = CONFIG) -> Any:
    made = posterior(members=members, precision=precision)
    made.fit(questions(8), config)
    return made


def entries(member: MemberWeights) -> dict[str, Tensor]:
    return {f"a.{name}": flat for name, flat in member.a.items()} | {
        f"b.{name}": flat for name, flat in member.b.items()
    }


def squared_gradients(member: MemberWeights) -> dict[str, Tensor]:
    """The sum over the questions of the squared gradients of -log p(answer), by autograd through a plain
    Llama with the weights W + s B A.
    """
    base, labels = llama(), tokenizer().convert_tokens_to_ids(["a", "b", "c", "d"])
    leaves = {name: flat.clone().requires_grad_() for name, flat in entries(member).items()}
    changed = {
        f"{name}.weight": base.get_submodule(name).weight
        + scaling * leaves[f"b.{name}"] @ leaves[f"a.{name}"]
        for name, scaling in member.scaling.items()
    }
    totals = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    for question in questions(8):
        tokens = tokenizer()(question.prompt, return_tensors="pt").input_ids
        logits = functional_call(base, changed, (tokens,)).logits[0, -1, labels]
        loss = -logits.log_softmax(dim=-1)[question.target]
        gradients = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
        for total, gradient in zip(totals.values(), gradients, strict=True):
            total += gradient.square()
    return totals


def test_the_method_has_at_most_40_lines_of_the_width_of_the_code() -> None:
    assert len(CODE.splitlines()) <= 40
    assert max(len(line) for line in CODE.splitlines()) <= 110
    assert "`Differs:`" in CODE


@pytest.mark.parametrize("mode", [0, 1])
def test_variances_are_those_of_the_gradients_of_a_plain_model(mode: int) -> None:
    laplace = fitted(members=2, precision=0.5)
    centre = laplace.member_of(mode, {name: flat[mode] for name, flat in laplace.trained.items()})
    spread = laplace.member_of(mode, {name: flat[mode] for name, flat in laplace.spread.items()})
    expected = squared_gradients(centre)
    assert max(float(total.max()) for total in expected.values()) > 0.1  # beside a precision of 0.5
    for name, found in entries(spread).items():
        torch.testing.assert_close(found, (0.5 + expected[name]).rsqrt(), rtol=1e-3, atol=1e-4, msg=name)


def test_an_order_of_options_more_does_not_count_a_question_twice() -> None:
    """Where all options are of one kind, each order of them is a row of its own, of which one is seen."""
    laplace = posterior(precision=0.5)
    laplace.fit(questions(8), TrainConfig(**{**CONFIG.to_dict(), "option_orders": 2}))
    rows = laplace._modes.rows
    assert len(rows.lengths) == 2 * 8
    total = torch.zeros_like(laplace.trained["b"])
    laplace.ensemble.set_members(
        [laplace.member_of(0, {name: flat[0] for name, flat in laplace.trained.items()})]
    )
    for row in range(16):
        loss = rows.losses(torch.tensor([[row]]), members=slice(0, 1)).loss.sum()
        gradients = laplace.ensemble.stack.zero_gradients()
        laplace.ensemble.stack.add_gradients(loss, gradients)
        total += gradients[1].square() / 2
    torch.testing.assert_close(laplace.spread["b"], (0.5 + total).rsqrt(), rtol=1e-4, atol=1e-5)


def test_samples_have_the_mean_and_the_spread_of_the_formula() -> None:
    laplace = fitted()
    own = {name: flat[0] for name, flat in laplace.trained.items()}
    centre = entries(laplace.member_of(0, own))
    spread = entries(laplace.member_of(0, {name: flat[0] for name, flat in laplace.spread.items()}))
    drawn = [entries(one) for one in laplace.draw(2000)]
    for name in centre:
        values = torch.stack([one[name] for one in drawn])
        noise = (values - centre[name]) / spread[name]
        # Of 2000 draws, a mean has a standard error of 0.022 and a spread one of 0.016; 5 of them.
        assert noise.mean(dim=0).abs().max() < 0.11
        assert (noise.std(dim=0) - 1).abs().max() < 0.08


def test_a_mode_beside_another_is_the_mode_alone() -> None:
    alone, both = fitted(members=1), fitted(members=2)
    for one, other in zip(alone.draw(), both.draw()[: alone.samples], strict=True):
        for name, value in entries(one).items():
            # Rows of both members are in one product, which sums them in another order.
            torch.testing.assert_close(value, entries(other)[name], rtol=1e-4, atol=1e-5)
    first, second = entries(both.draw()[0]), entries(both.draw()[alone.samples])
    assert not any(torch.allclose(first[name], second[name]) for name in first)


def test_a_run_that_was_stopped_and_resumed_is_the_whole_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(**{**CONFIG.to_dict(), "dropout": 0.1, "checkpoint_every": 2})
    whole = fitted(config=config)

    def stop(self: AdapterTrainee, step: int, total: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(AdapterTrainee, "stepped", stop)
        with pytest.raises(KeyboardInterrupt):
            posterior().fit(questions(8), config, out=tmp_path / "run")
    resumed = posterior()
    resumed.fit(questions(8), config, out=tmp_path / "run", resume=True)
    for one, other in zip(whole.draw(), resumed.draw(), strict=True):
        assert all(torch.equal(value, entries(other)[name]) for name, value in entries(one).items())


def test_samples_are_saved_and_loaded_and_calibrated_as_members(tmp_path: Path) -> None:
    laplace = fitted(members=2)
    prediction = predict(laplace, questions(4))
    assert prediction.num_members == 2 * laplace.samples
    assert 0 <= evaluate(prediction).accuracy <= 1
    laplace.save_pretrained(tmp_path / "saved")
    assert "member_005/adapter_model.safetensors" in files_below(tmp_path / "saved")
    loaded = LoraEnsemble.from_pretrained(tmp_path / "saved", base=llama(), tokenizer=tokenizer())
    torch.testing.assert_close(loaded.member_log_probs(questions(4)), prediction.member_log_probs)
    calibrate(laplace.ensemble, questions(8, start=8), kind="temperature")
    assert predict(laplace.ensemble, questions(4)).calibrated is not None


def test_the_first_samples_stay_where_more_are_drawn() -> None:
    laplace = fitted()
    few, more = laplace.draw(2), laplace.draw(4)
    for one, other in zip(few, more, strict=False):
        assert all(torch.equal(value, entries(other)[name]) for name, value in entries(one).items())


def test_every_method_that_trains_is_a_baseline_of_the_command_line() -> None:
    exported = {name: getattr(baselines, name) for name in baselines.__all__}
    methods = {
        name
        for name, one in exported.items()
        if isinstance(one, type) and issubclass(one, WeightPosterior) and one not in (WeightPosterior, TFB)
    }
    assert methods == set(POSTERIORS.values())  # TFB takes a trained ensemble, and has a branch of its own
    assert set(POSTERIORS) <= set(BASELINES)


def test_an_export_and_one_line_make_it_a_baseline_of_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(baselines, "DiagonalLaplace", page_class(), raising=False)
    monkeypatch.setitem(POSTERIORS, "diagonal-laplace", "DiagonalLaplace")
    monkeypatch.setattr(
        flags, "BASELINES", (*BASELINES, "diagonal-laplace")
    )  # as made of POSTERIORS at import
    words = ["--limit-train", 16, "--limit", 12, "--epochs", 1, "--size", 2, "--ood", "none", "--json"]
    task = ["--task", "world-mmlu-stem", "--base", base_folder()]
    done = call(capsys, "evaluate", "--baseline", "diagonal-laplace", *task, *words)
    assert done.code == 0, done.err
    assert (done.summary["baseline"], done.summary["members"]) == ("diagonal-laplace", 2)


def test_a_preset_is_adapted_by_the_method_itself() -> None:
    preset = TrainConfig(epochs=7, learning_rate=2e-3, weight_decay_b=0.1)
    assert posterior().adapted(preset) is preset
    ivon = IVON(ensemble(members=2), clip=1e-2).adapted(preset)
    # A step of IVON moves a weight by learning rate * clip at most, one of AdamW by about the learning rate.
    assert ivon.learning_rate == pytest.approx(2e-3 / 1e-2)
    assert (ivon.weight_decay_a, ivon.weight_decay_b) == (0.0, 0.0)
    rates = TrainConfig(learning_rate=[1e-3, 2e-3])
    assert IVON(ensemble(members=2)).adapted(rates).learning_rate == pytest.approx((1.0, 2.0))
    assert [SnapshotEnsemble(ensemble(), samples=s).adapted(preset).epochs for s in (3, 7, 9)] == [6, 7, 9]


def test_the_page_names_files_that_are_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    named = re.findall(r"`((?:baselines|src|tests)/[\w/]+\.py)`", text)
    package = PAGE.parents[1] / "src" / "lora_ensembles"
    assert len(named) > 3
    for name in named:
        assert any((root / name).is_file() for root in (package, PAGE.parents[1])), name
