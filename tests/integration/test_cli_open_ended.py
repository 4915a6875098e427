"""Open answers on the command line: a file is known by its columns, trained on, remembered, measured again;
and what is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from command_line import base_folder, call
from lora_ensembles import LoraEnsemble, completions_from_files, load_completions, score_completions
from lora_ensembles.data.splits import sample
from lora_ensembles.prediction.completions import evaluate_completions

FEW = ["--members", 2, "--epochs", 1, "--no-progress", "--json"]
PLACES = "rivers forests caves lakes".split()


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [
        {"prompt": f"Q: Where does otter {n} live?\nA:", "completion": f" It lives in {PLACES[n % 4]}."}
        for n in range(20)
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> Path:
    from lora_ensembles.cli import main

    folder = tmp_path_factory.mktemp("runs")
    words = [
        "train",
        "--train",
        write(folder / "otters.jsonl", rows),
        "--base",
        base_folder(),
        *FEW,
        "--kl-weight",
        "0.1",
    ]
    assert main([str(word) for word in [*words, "--out", folder / "run"]]) == 0
    return folder / "run"


def test_train_knows_open_answers_by_their_columns_and_stores_what_it_measured(capsys, tmp_path, rows):
    words = [
        "--train",
        write(tmp_path / "otters.jsonl", rows),
        "--base",
        base_folder(),
        *FEW,
        "--seed",
        3,
        "--out",
        tmp_path / "run",
    ]
    done = call(capsys, "train", *words)
    assert (done.code, done.summary["task"]) == (0, "otters")
    assert "otters: 16 training and 4 validation open answers" in done.err
    assert ("nll per token" in done.out, "perplexity" in done.out, "single member" in done.out) == (
        True,
        True,
        True,
    )
    stored = json.loads((tmp_path / "run" / "ensemble.json").read_text())["task"]
    assert stored["metrics"] == done.summary["ensemble"]
    assert stored["source"]["open_ended"] is True
    validation = completions_from_files(tmp_path / "otters.jsonl", seed=3).validation
    expected = evaluate_completions(
        score_completions(LoraEnsemble.from_pretrained(tmp_path / "run"), validation)
    )
    assert done.summary["ensemble"]["nll"] == pytest.approx(expected.nll, abs=1e-4)  # nll of size 50, float32
    assert (
        f"| perplexity | {done.summary['ensemble']['perplexity']:.4g} |"
        in (tmp_path / "run" / "README.md").read_text()
    )


def test_train_takes_a_validation_file_and_chats_where_the_tokenizer_has_a_template(capsys, tmp_path, rows):
    chats = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ]
        }
        for row in rows
    ]
    words = [
        "--validation",
        write(tmp_path / "few.jsonl", rows[:3]),
        "--base",
        base_folder(),
        *FEW,
        "--out",
        tmp_path / "run",
    ]
    done = call(capsys, "train", "--train", write(tmp_path / "otters.jsonl", rows), *words)
    assert done.summary["ensemble"]["num_examples"] == 3
    refused = call(
        capsys, "train", "--train", write(tmp_path / "chats.jsonl", chats), *words[2:-1], tmp_path / "other"
    )
    assert refused.code == 2
    assert "chat messages, and the tokenizer has no chat template" in refused.err


def test_a_run_on_open_answers_goes_on_by_resume(capsys, trained, rows):
    words = [
        "train",
        "--train",
        trained.parent / "otters.jsonl",
        "--base",
        base_folder(),
        *FEW,
        "--kl-weight",
        "0.1",
        "--out",
        trained,
    ]
    before = json.loads((trained / "ensemble.json").read_text())
    done = call(capsys, *words, "--resume")
    assert done.code == 0
    assert json.loads((trained / "ensemble.json").read_text()) == before


def test_evaluate_finds_again_what_train_measured(capsys, trained):
    stored = json.loads((trained / "ensemble.json").read_text())["task"]
    done = call(capsys, "evaluate", trained, "--json", "--intervals", "--max-rows", 3)
    assert done.code == 0
    for name in ("nll", "nll_per_token", "perplexity"):
        assert done.summary["ensemble"][name] == pytest.approx(
            stored["metrics"][name], rel=1e-5
        )  # fp32 sums in another batch size
        low, high = done.summary["ensemble"]["intervals"][name]
        assert low < done.summary["ensemble"][name] < high
    assert done.summary["single"]["nll"] == pytest.approx(stored["single"]["nll"], rel=1e-5)
    assert "95 % interval" in done.out


def test_evaluate_on_another_file_goes_by_its_columns(capsys, trained, tmp_path, rows):
    path = write(tmp_path / "new.jsonl", rows[:5])
    done = call(capsys, "evaluate", trained, "--file", path, "--only", "1", "--limit", 4, "--json")
    ensemble = LoraEnsemble.from_pretrained(trained, members=[1])
    expected = evaluate_completions(score_completions(ensemble, sample(load_completions(path), 4, seed=0)))
    assert (done.summary["task"], done.summary["members"]) == ("new", 1)
    assert done.summary["ensemble"]["nll"] == pytest.approx(expected.nll, rel=1e-5)
    questions = write(
        tmp_path / "questions.jsonl", [{"question": "Where?", "options": PLACES, "answer": 0}] * 3
    )
    assert "accuracy" in call(capsys, "evaluate", trained, "--file", questions, "--json").summary["ensemble"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["train", "--labels", "a,b"],
            "--labels: for questions with options; .*otters.jsonl has open answers",
        ),
        (
            ["train", "--options-column", "a,b", "--answer-column", "completion"],
            "--options-column, --answer-column: for questions with options",
        ),
        (["train", "--validation", "questions.jsonl"], "questions.jsonl, line 1: unknown column 'prompt'"),
        (
            ["evaluate", "--ood", "world-cqa"],
            "--ood: for questions with options; the rows here have open answers",
        ),
        (["evaluate", "--labels", "a,b", "--file", "otters.jsonl"], "--labels: for questions with options"),
        (
            ["predict", "--in", "otters.jsonl"],
            "was trained on open answers, so there are no options to predict; let it answer by lora-ens",
        ),
    ],
)
def test_what_makes_no_sense_for_open_answers_is_refused_by_name(
    capsys, trained, tmp_path, monkeypatch, rows, words, message
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "otters.jsonl", rows)
    write(tmp_path / "questions.jsonl", [{"question": "Where?", "options": PLACES, "answer": 0}])
    verb, *rest = words
    place = ["--train", "otters.jsonl", "--out", tmp_path / "run", *FEW] if verb == "train" else [trained]
    done = call(capsys, verb, *place, *rest)
    assert done.code == 2
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=message):
        raise ValueError(done.err)
