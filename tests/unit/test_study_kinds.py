"""The kinds of records about what the paper leaves open: methods side by side, initialisation, rank,
strength.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import runpy
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from peft import LoraConfig, get_peft_model

from lora_ensembles import load_base
from lora_ensembles.baselines import LastLayerEnsemble, TemperatureScaled
from lora_ensembles.calibration.temperature import best_temperature, scaled_log_probs
from lora_ensembles.data import Task
from lora_ensembles.data.prompts import rendered
from lora_ensembles.prediction.prediction import predict
from lora_ensembles.stack.seeds import member_seeds
from lora_ensembles.studies.arms import Arm, stacked_members, train_arms
from lora_ensembles.studies.grid import (
    BY_PROTOCOL,
    CHOICE,
    COMPARISON,
    FULL,
    KINDS,
    OPEN_KINDS,
    PAPER,
    QUICK,
    SMOLLM2,
    TRIALS,
    Grid,
    cells,
    settings_of,
)
from lora_ensembles.studies.kinds.choice import chosen
from lora_ensembles.studies.kinds.initialisation import STARTS
from lora_ensembles.studies.kinds.methods import MethodsConfig
from lora_ensembles.studies.kinds.paper import PaperConfig
from lora_ensembles.studies.kinds.rank import RankConfig
from lora_ensembles.studies.kinds.strength import StrengthConfig
from lora_ensembles.studies.measures import cross_scaled
from lora_ensembles.studies.measuring import MEASURES
from lora_ensembles.studies.predictions import Sheet, differences
from lora_ensembles.studies.setting import Bench, load_bench
from lora_ensembles.studies.shared import Asking, Shared
from lora_ensembles.studies.store import cell
from lora_ensembles.training.config import TrainConfig
from random_predictions import random_prediction
from tiny_ensembles import adapter, llama, questions, tokenizer

TINY = Grid(
    "tiny",
    tasks=("animals",),
    few_tasks=("animals",),
    open_tasks=("animals",),
    seeds=(3,),
    shared=Shared(members=2, learning_rate=1e-2, batch_size=4, snapshots=(1, 2), limit=(None,) * 3),
    paper=PaperConfig(shots=0, draws=2),
    methods=MethodsConfig(shots=0, draws=2),
    rank=RankConfig((1, 4)),
    strength=StrengthConfig((0.01, 1.0), (0.1,)),
)
CONFIG = TrainConfig(epochs=2, batch_size=4, learning_rate=1e-2, snapshot_epochs=[1, 2])


def bench() -> Bench:
    return Bench(
        Task("animals", tuple(questions(16)), tuple(questions(24, start=16))),
        tuple(questions(8, start=40)),
        (llama(), tokenizer()),
        TINY.shared,
    )


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, Any]]:
    """The result of every kind on the tiny grid."""
    return {
        kind: MEASURES[kind](TINY.settings(kind, "animals"), bench(), Sheet(), seed=3) for kind in OPEN_KINDS
    }


# What records are keyed by


def test_records_of_the_first_kinds_are_keyed_by_all_that_they_depend_on(tmp_path: Path) -> None:
    known = {
        "base": "embedded",
        "members": 5,
        "learning_rate": 2e-3,
        "batch_size": 16,
        "snapshots": [1, 2, 3, 5, 10],
        "limit": [200, 250, 250],
        "sample_seed": 0,
    }
    paper = {
        "kl": [0.01, 0.05, 0.1, 1.0],
        "decays": [0.032, 0.16, 0.32],
        "decay": 0.16,
        "pool": 20,
        "subsets": 5,
        "folds": 5,
        "shots": 3,
        "draws": 10,
    }
    probe = {"factors": [1.0, 3.0, 10.0, 30.0, 100.0], "held_out": 0.2}
    for kind, own in (
        ("sweep", paper | {"ood": "world-mmlu"}),
        ("randomness", paper),
        ("pool", paper),
        ("few_shot", paper | {"ood": "world-mmlu"}),
        ("last_layer", probe | {"ood": "world-mmlu"}),
    ):
        settings = settings_of(FULL, kind, "world-cqa", 0)
        assert settings == {"kind": kind, "task": "world-cqa", "seed": 0} | known | own
        cell(tmp_path, kind, settings, dict)
        other = dataclasses.replace(FULL, few_tasks=("world-obqa",), rank=RankConfig((1,))).having(
            strength={"wide_kl": (1.0,)}, methods={"folds": 2}
        )
        assert settings_of(other, kind, "world-cqa", 0) == settings
    assert (
        tmp_path / "sweep-57f5ff21d10e.json"
    ).exists()  # the first digits of the SHA-256 of these settings as sorted JSON


def test_every_committed_record_is_found_by_its_grid() -> None:
    repository = Path(__file__).parents[2]
    results = repository / "results"
    minilm = runpy.run_path(str(repository / "benchmarks" / "minilm.py"))["GRID"]
    chosen_on = [json.loads(path.read_text()) for path in (results / "minilm").glob("choice-*.json")]
    grids = {"embedded": FULL, "smollm2": SMOLLM2}
    if len(chosen_on) == len(minilm.tasks):
        grids["minilm"] = minilm.decayed(chosen(minilm.choice, chosen_on))
    assert len(list((results / "embedded").glob("*-world-*.json"))) >= 30
    for folder, grid in grids.items():
        wanted = [*cells(grid), *((CHOICE, task, grid.seeds[0]) for task in grid.tasks if grid.choice)]
        names = {f"{kind}-{task}" for kind, task, _ in wanted}
        kept = [
            path
            for path in sorted((results / folder).glob("*.json"))
            if path.stem.rpartition("-")[0] in names
        ]
        made: list[Path] = []
        for kind, task, seed in wanted:
            with contextlib.suppress(LookupError):  # of a setting that has not been measured
                cell(results / folder, f"{kind}-{task}", settings_of(grid, kind, task, seed), _refuse)
                made.append(results)
        assert len(made) == len(kept)


def _refuse() -> dict[str, Any]:
    raise LookupError("no record")


def test_a_new_kind_is_keyed_by_what_it_depends_on() -> None:
    assert {*KINDS, CHOICE, TRIALS, COMPARISON, BY_PROTOCOL} == set(MEASURES)
    assert settings_of(FULL, "rank", "world-cqa", 1) == {
        "kind": "rank",
        "task": "world-cqa",
        "seed": 1,
        "base": "embedded",
        "members": 5,
        "learning_rate": 2e-3,
        "batch_size": 16,
        "snapshots": [1, 2, 3, 5, 10],
        "limit": [200, 250, 250],
        "sample_seed": 0,
        "ranks": [1, 2, 4, 8, 16, 32, 64],
    }
    for kind in KINDS:
        assert json.dumps(settings_of(FULL, kind, "world-cqa", 0))


def test_open_kinds_have_every_seed_of_open_tasks_in_full_and_one_of_one_in_quick() -> None:
    for grid, tasks, seeds in ((FULL, 1, 3), (PAPER, 3, 3), (QUICK, 1, 1)):
        found = list(cells(grid, OPEN_KINDS))
        assert len(set(found)) == len(found) == len(OPEN_KINDS) * tasks * seeds


# Arms that start differently, in one stack


def test_smaller_ranks_in_a_stack_have_the_weights_they_have_alone_and_their_padding_stays_zero() -> None:
    arms = [
        Arm("rank 1", rank=1),
        Arm("rank 2, decayed", rank=2, weight_decay_b=20.0, weight_decay_a=20.0),
        Arm("rank 6", rank=6),
    ]
    together = train_arms(
        (llama(), tokenizer()), arms, questions(), CONFIG, members=2, seed=3, adapter=adapter()
    )
    stack = together.ensemble.stack
    for index, arm in enumerate(arms):
        alone = train_arms(
            (llama(), tokenizer()), [arm], questions(), CONFIG, members=2, seed=3, adapter=adapter()
        )
        for row, other in zip(together.rows(index), range(2), strict=True):
            mine, theirs = stack.member(row), alone.ensemble.stack.member(other)
            for name in mine.a:
                assert mine.a[name].shape[0] == arm.rank
                # The same sums in a larger batched product.
                torch.testing.assert_close(mine.a[name], theirs.a[name], atol=1e-6, rtol=1e-5)
                torch.testing.assert_close(mine.b[name], theirs.b[name], atol=1e-6, rtol=1e-5)
            for site in stack.sites:
                assert not site.view_a(stack.a)[row, arm.rank :].any()
                assert not site.view_b(stack.b)[row, :, arm.rank :].any()


def test_every_rank_has_the_scaling_of_the_adapter() -> None:
    for config in (
        adapter(rank=2, alpha=8),
        LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj"]),
    ):
        made = stacked_members(
            (llama(), tokenizer()),
            [Arm("own"), Arm("1", rank=1), Arm("9", rank=9)],
            members=1,
            seed=0,
            adapter=config,
        )
        scalings = {round(scaling, 6) for row in made.stack.scaling for scaling in row}
        assert scalings == {4.0}  # 8 / 2, and 8 / sqrt(4)


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal"])
def test_an_arm_starts_where_peft_starts_with_its_initialisation(
    init: bool | Literal["gaussian", "orthogonal"],
) -> None:
    arms = [Arm("own"), Arm("other", init=init), Arm("tenth", init=init, start_b=0.1)]
    made = stacked_members((llama(), tokenizer()), arms, members=2, seed=5, adapter=adapter())
    for member in range(2):
        base = llama()  # which seeds torch itself
        torch.manual_seed(member_seeds(5, member).init)
        reference = get_peft_model(
            base, LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=init)
        )
        expected = {name: tensor for name, tensor in reference.named_parameters() if "lora_" in name}
        own, tenth = made.stack.member(2 + member), made.stack.member(4 + member)
        for name in own.a:
            prefix = f"base_model.model.{name}"
            assert torch.equal(own.a[name], expected[f"{prefix}.lora_A.default.weight"])
            assert torch.equal(own.b[name], expected[f"{prefix}.lora_B.default.weight"])
            assert torch.equal(tenth.a[name], own.a[name])
            torch.testing.assert_close(tenth.b[name], own.b[name] / 10)


def test_a_run_remembers_where_its_members_started() -> None:
    run = train_arms(
        (llama(), tokenizer()),
        [Arm("one"), Arm("two", init=False)],
        questions(),
        CONFIG,
        members=2,
        seed=3,
        adapter=adapter(),
    )
    untrained = stacked_members((llama(), tokenizer()), run.arms, members=2, seed=3, adapter=adapter())
    for row, before in enumerate(run.initial):
        for name, matrix in untrained.stack.member(row).b.items():
            assert torch.equal(before.b[name], matrix)


# What the kinds measure


def test_every_kind_gives_plain_numbers(measured: dict[str, dict[str, Any]]) -> None:
    for result in measured.values():
        assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_strength_measures_early_stopping_after_every_epoch_and_the_rest_at_the_end(
    measured: dict[str, dict[str, Any]],
) -> None:
    arms = measured["strength"]["arms"]
    assert list(arms) == ["none", "KL 0.01", "KL 1", "decay of B 0.1"]
    assert [list(arm["epochs"]) for arm in arms.values()] == [["1", "2"], ["2"], ["2"], ["2"]]
    one = bench()
    config = dataclasses.replace(bench().config, snapshot_epochs=[1])
    run = train_arms(one.model, [Arm("none")], one.task.train, config, members=2, seed=3)
    run.ensemble.stack.set_members(run.trained.snapshots[1])
    known = predict(run.ensemble, one.task.validation)
    right = (known.choices == known.targets).float().mean().item()
    assert arms["none"]["epochs"]["1"]["ensemble"]["accuracy"] == pytest.approx(right, abs=1e-6)


def test_rank_counts_the_parameters_of_each_rank(measured: dict[str, dict[str, Any]]) -> None:
    arms = measured["rank"]["arms"]
    # hidden 16; one layer whose query maps 16 to 16 features and whose value maps 16 to 8
    assert {name: arm["parameters"] for name, arm in arms.items()} == {
        "rank 1": 16 + 16 + 16 + 8,
        "rank 4": 4 * (16 + 16 + 16 + 8),
    }
    assert [arm["rank"] for arm in arms.values()] == [1, 4]


def test_untrained_members_whose_b_is_zero_answer_as_the_base_does(
    measured: dict[str, dict[str, Any]],
) -> None:
    arms = measured["initialisation"]["arms"]
    assert list(arms) == [*STARTS, *(f"{name}, same order" for name in STARTS)]
    starts = {name: arms[name]["start"]["ensemble"] for name in STARTS}
    one = bench()
    untrained = stacked_members(one.model, [Arm("base")], members=1, seed=0, adapter=adapter())
    known = predict(untrained, one.task.validation)
    nll = -known.log_probs[range(known.num_examples), known.targets].mean().item()
    for name in (
        "Kaiming",
        "Gaussian",
        "orthogonal",
    ):  # the last starts A and B away from zero, and their product at it
        assert starts[name]["nll"] == pytest.approx(nll, rel=5e-4)  # records are in half precision
    assert starts["random B"]["nll"] != pytest.approx(nll, abs=1e-3)


def test_methods_hold_metrics_parameters_and_seconds_of_every_way_to_an_ensemble(
    measured: dict[str, dict[str, Any]],
) -> None:
    found = measured["methods"]["methods"]
    assert set(found) == {
        "few-shot base",
        "single member",
        "ensemble",
        "single member, decay of B",
        "ensemble, decay of B",
        "single member, scaled",
        "ensemble, scaled",
        "MC dropout",
        "last-layer ensemble",
        "BatchEnsemble",
    }
    layer = 8 * (16 + 16 + 16 + 8)  # rank 8 on query and value
    counts = {name: row["trained_parameters"] for name, row in found.items()}
    assert counts["few-shot base"] == 0
    assert counts["single member"] == counts["MC dropout"] == layer
    assert counts["ensemble"] == 2 * layer
    assert counts["single member, scaled"] == layer + 1
    assert counts["ensemble, scaled"] == 2 * layer + 1
    assert counts["last-layer ensemble"] == 2 * 4 * 16  # four letters
    assert counts["BatchEnsemble"] == 2 * (16 + 16 + 16 + 8)
    for name, row in found.items():
        assert row["seconds_per_1000"] > 0
        assert (row["training_seconds"] > 0) == (name != "few-shot base")


def test_scaling_keeps_accuracy_and_every_question_is_scaled_by_a_temperature_of_others(
    measured: dict[str, dict[str, Any]],
) -> None:
    found = measured["methods"]["methods"]
    for name in ("single member", "ensemble"):
        assert found[f"{name}, scaled"]["accuracy"] == found[name]["accuracy"]
        assert found[f"{name}, scaled"]["temperature"] > 0
        assert found[f"{name}, scaled"]["seconds_per_1000"] == found[name]["seconds_per_1000"]
    prediction, ood = random_prediction(1), random_prediction(2)
    scaled, other, temperature = cross_scaled(prediction, ood, folds=3, seed=0)
    assert temperature == best_temperature(prediction)
    torch.testing.assert_close(other.log_probs, scaled_log_probs(ood, temperature))
    order = torch.randperm(prediction.num_examples, generator=torch.Generator().manual_seed(0))
    for fold in range(3):
        rows = order[fold::3]
        others = torch.tensor(sorted(set(range(prediction.num_examples)) - set(rows.tolist())))
        known = scaled_log_probs(prediction.take(rows), best_temperature(prediction.take(others)))
        torch.testing.assert_close(scaled.log_probs[rows], known)


def test_fitting_on_questions_that_were_trained_on_would_be_refused() -> None:
    one = bench()
    heads = LastLayerEnsemble(*one.model, num_members=1)
    with pytest.raises(ValueError, match="was trained on"):
        TemperatureScaled.fit(heads, one.task.train[:2], trained_on=one.task.train)


def test_the_single_members_metrics_are_the_mean_over_the_ensembles_members(
    measured: dict[str, dict[str, Any]],
) -> None:
    one = bench()
    run = train_arms(one.model, [Arm("none")], one.task.train, one.config, members=2, seed=3)
    known = predict(run.ensemble, one.task.validation)
    right = (known.member_choices == known.targets).float().mean().item()
    assert measured["methods"]["methods"]["single member"]["accuracy"] == pytest.approx(right, abs=1e-6)


# Questions that are answered by text


def test_a_grid_that_asks_for_texts_says_so_in_its_key_and_asks_for_them() -> None:
    asking = Asking("text", "labels", layers=(1,))
    grid = dataclasses.replace(FULL, asking=asking).having(shared={"limit": (8, 6, 4)})
    settings = settings_of(grid, "sweep", "world-cqa", 0)
    assert {name: settings[name] for name in ("answer", "loss", "layers")} == {
        "answer": "text",
        "loss": "labels",
        "layers": [1],
    }
    assert not {"answer", "loss"} & set(settings_of(FULL, "sweep", "world-cqa", 0))
    asked = load_bench("world-cqa", grid, load_base)
    for example in (*asked.task.train, *asked.task.validation, *asked.ood):
        assert example.labels == tuple(f" {option}" for option in example.options)
    assert (len(asked.task.train), len(asked.task.validation), len(asked.ood)) == (8, 6, 4)
    assert asked.config.loss == "labels"
    assert asked.adapter.layers_to_transform == [1]


@pytest.mark.parametrize("kind", ["sweep", "few_shot", "last_layer"])
def test_a_kind_is_measured_on_answers_by_text(kind: str) -> None:
    plain, sheet = bench(), Sheet()
    asked = dataclasses.replace(
        plain, task=in_text(plain.task), ood=rendered(plain.ood, "text"), asking=Asking("text", "labels")
    )
    result = MEASURES[kind](TINY.settings(kind, "animals"), asked, sheet, seed=3)
    assert differences(json.loads(json.dumps(result)), sheet) == []


def in_text(task: Task) -> Task:
    return Task(task.name, rendered(task.train, "text"), rendered(task.validation, "text"))
