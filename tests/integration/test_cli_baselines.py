"""`lora-ensembles evaluate --baseline NAME`, on an embedded task, on real data, and with a saved ensemble."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import base_folder, call
from lora_ensembles.cli import main
from lora_ensembles.cli.flags.baseline import BASELINES, OF_AN_ENSEMBLE, OF_LABEL_TOKENS

FEW = ["--limit-train", 32, "--limit", 20, "--epochs", 2, "--size", 2, "--json"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "stem"
    words = [
        "train",
        "--task",
        "world-mmlu-stem",
        "--base",
        base_folder(),
        "--limit",
        16,
        "--limit-validation",
        8,
        "--members",
        2,
    ]
    assert (
        main(
            [
                str(word)
                for word in [*words, "--lora-dropout", 0.1, "--epochs", 1, "--no-progress", "--out", out]
            ]
        )
        == 0
    )
    return out


MEMBERS = {"single": 1, "temperature": 1, "temperature-single": 1, "soup": 1, "multi-swag": 6}


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_is_measured_on_an_embedded_task(capsys, name):
    done = call(
        capsys, "evaluate", "--baseline", name, "--task", "world-mmlu-stem", "--base", base_folder(), *FEW
    )
    assert done.code == 0, done.err
    summary = done.summary
    assert summary["baseline"] == name
    assert summary["ood"] == "world-mmlu-ss"
    assert summary["ensemble"]["num_examples"] == 20
    assert summary["members"] == MEMBERS.get(name, 2)
    assert 0 <= summary["ensemble"]["accuracy"] <= 1


@pytest.mark.parametrize(
    "name", ["few-shot", "last-layer", "mc-dropout", "batch-ensemble", "temperature", "laplace"]
)
def test_baselines_are_measured_on_real_data(capsys, real_data, name):
    done = call(
        capsys,
        "evaluate",
        "--baseline",
        name,
        "--task",
        "arcc",
        "--data",
        real_data,
        "--base",
        base_folder(),
        *FEW,
    )
    assert done.code == 0, done.err
    assert done.summary["task"] == "arcc"


@pytest.mark.parametrize("name", [name for name in BASELINES if name not in OF_LABEL_TOKENS])
def test_baselines_have_heads_of_their_own_where_they_are_asked_for(capsys, name):
    words = [
        "--task",
        "world-mmlu-stem",
        "--ood",
        "none",
        "--head",
        "multiple-choice",
        "--base",
        base_folder(),
    ]
    done = call(capsys, "evaluate", "--baseline", name, *words, *FEW)
    assert done.code == 0, done.err
    assert done.summary["members"] == MEMBERS.get(name, 2)


@pytest.mark.parametrize("name", OF_AN_ENSEMBLE)
def test_a_saved_ensemble_is_asked_in_another_way(capsys, trained, name):
    done = call(capsys, "evaluate", trained, "--baseline", name, "--limit", 20, "--size", 3, "--json")
    assert done.code == 0, done.err
    assert done.summary["members"] == {"mc-dropout": 3, "tfb": 6, "laplace": 6}.get(name, 1)


def test_a_temperature_is_not_scored_on_what_it_was_fitted_on(capsys, trained):
    whole = call(capsys, "evaluate", trained, "--json").summary["ensemble"]["num_examples"]
    done = call(capsys, "evaluate", trained, "--baseline", "temperature", "--json")
    assert done.summary["ensemble"]["num_examples"] == whole - round(0.2 * whole)
    assert "which are not scored" in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--baseline", "last-layr", "--task", "world-cqa"], "did you mean 'last-layer'"),
        (["--baseline", "last-layer"], "give --task NAME"),
        (["--baseline", "single", "--task", "world-words"], "open answers"),
        ([], "DIR is needed"),
        (["runs/mine", "--head", "reward"], "runs/mine has its own; leave it out"),
        (["runs/mine", "--baseline", "single", "--head", "reward"], "trained with heads of its own kind"),
        (["--baseline", "single", "--task", "arcc", "--head", "reward"], "use --head multiple-choice"),
        (
            ["--baseline", "few-shot", "--task", "arcc", "--head", "multiple-choice"],
            "one of causal language models",
        ),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_two(capsys, words, message):
    done = call(capsys, "evaluate", *words)
    assert done.code == 2
    assert message in done.err


def test_a_baseline_that_asks_no_ensemble_refuses_one(capsys, trained):
    done = call(capsys, "evaluate", trained, "--baseline", "few-shot")
    assert done.code == 2
    assert "asks no trained ensemble" in done.err
