"""The verbs at work: train, evaluate, predict and tasks, on a base of the embedded one's kind that trains in
a second.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from peft import PeftModel

from command_line import base_folder, call
from lora_ensembles import CheckpointError, LoraEnsemble, evaluate, load_task, predict
from lora_ensembles.data.splits import sample
from lora_ensembles.storage.folder import update_info

FEW = ["--members", 2, "--epochs", 1, "--no-progress", "--json"]
QUESTIONS: list[dict[str, Any]] = [
    {"id": "sun", "question": "The sun is a", "options": ["planet", "star", "moon"], "answer": "star"},
    {"id": "new", "question": "Does it shine?", "options": ["yes", "no"]},
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lora_ensembles.cli import main

    out = tmp_path_factory.mktemp("runs") / "cqa"
    words = [
        "train",
        "--task",
        "world-cqa",
        "--base",
        base_folder(),
        "--limit",
        32,
        "--limit-validation",
        20,
        *FEW,
        "--out",
        out,
    ]
    assert main([str(word) for word in words]) == 0
    return out


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(f"{json.dumps(question)}\n" for question in QUESTIONS))
    return path


def metrics_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "ensemble.json").read_text())["task"]
    return content


def test_train_ends_with_its_metrics_and_stores_them(capsys, tmp_path):
    words = ["--task", "world-cqa", "--base", base_folder(), "--limit", 16, "--limit-validation", 8, *FEW]
    done = call(
        capsys, "train", *words, "--out", tmp_path / "run", "--weight-decay-b", "0.01,20", "--rank", 2
    )
    assert done.code == 0
    summary = done.summary
    assert summary["members"] == 2
    assert summary["task"] == "world-cqa"
    assert {"accuracy", "nll", "ece", "brier", "std"} <= set(summary["single"])
    assert "single member" in done.out
    stored = metrics_of(tmp_path / "run")
    assert stored["metrics"] == summary["ensemble"]
    assert stored["single"] == summary["single"]
    assert f"| nll | {summary['ensemble']['nll']:.4g} |" in (tmp_path / "run" / "README.md").read_text()
    used = json.loads((tmp_path / "run" / "training" / "config.json").read_text())
    assert (used["epochs"], used["weight_decay_b"]) == (1, [0.01, 20.0])


@pytest.mark.parametrize(
    ("given", "says"),
    [([], True), (["--learning-rate", 1e-3], False), (["--preset", "default"], False)],
)
def test_train_says_that_a_small_base_needs_a_larger_learning_rate(capsys, tmp_path, given, says):
    words = ["--task", "world-cqa", "--base", base_folder(), "--limit", 4, "--limit-validation", 4, *FEW]
    done = call(capsys, "train", *words, *given, "--out", tmp_path / "run")
    assert done.code == 0
    assert ("if it hardly learns, try --learning-rate 0.002" in done.err) == says


def test_members_that_train_wrote_open_in_peft(trained):
    for member in ("member_000", "member_001"):
        base = transformers.AutoModelForCausalLM.from_pretrained(base_folder())
        assert PeftModel.from_pretrained(base, trained / member).peft_config["default"].r == 8


def test_evaluate_finds_again_what_train_measured(capsys, trained):
    done = call(capsys, "evaluate", trained, "--limit", 20, "--json")
    assert (done.code, done.summary["task"], done.summary["ood"]) == (0, "world-cqa", "world-mmlu")
    stored = metrics_of(trained)
    for name in ("accuracy", "nll", "ece", "brier", "mutual_information"):
        assert done.summary["ensemble"][name] == pytest.approx(
            stored["metrics"][name], abs=1e-5
        )  # fp32 sums in another batch size
    assert done.summary["single"]["nll"] == pytest.approx(stored["single"]["nll"], abs=1e-5)


def test_evaluate_is_the_librarys_evaluation(capsys, trained):
    ensemble = LoraEnsemble.from_pretrained(trained, members=[1])
    expected = evaluate(predict(ensemble, sample(load_task("world-cqa").validation, 12, seed=0)))
    done = call(
        capsys,
        "evaluate",
        trained,
        "--limit",
        12,
        "--only",
        "1",
        "--ood",
        "none",
        "--intervals",
        "--max-rows",
        3,
        "--json",
    )
    got = done.summary["ensemble"]
    assert done.summary["members"] == 1
    assert got["ood_auroc"] is None
    assert got["nll"] == pytest.approx(expected.nll, abs=1e-5)
    assert got["accuracy"] == expected.accuracy
    low, high = got["intervals"]["nll"]
    assert low < got["nll"] < high
    assert "95 % interval" in done.out


def test_every_metric_of_evaluate_has_an_interval_the_one_out_of_distribution_too(capsys, trained):
    done = call(capsys, "evaluate", trained, "--limit", 20, "--intervals", "--json")

    got = done.summary["ensemble"]
    assert set(got["intervals"]) == {"accuracy", "nll", "ece", "brier", "ood_auroc"}
    low, high = got["intervals"]["ood_auroc"]
    assert 0 <= low < got["ood_auroc"] < high <= 1
    assert f"{low:.4f} to {high:.4f}" in done.out


def test_evaluate_on_another_task_and_set(capsys, trained):
    done = call(
        capsys, "evaluate", trained, "--task", "world-mmlu-ss", "--ood", "world-cqa", "--limit", 8, "--json"
    )
    assert (done.summary["task"], done.summary["ood"]) == ("world-mmlu-ss", "world-cqa")
    assert 0 <= done.summary["ensemble"]["ood_auroc"] <= 1


def test_own_csv_with_its_columns_is_remembered(capsys, tmp_path):
    lines = [f"Is {n} above five?,{'yes' if n > 5 else 'no'}\n" for n in range(12)]
    (tmp_path / "mine.csv").write_text("stem,gold\n" + "".join(lines))
    columns = ["--question-column", "stem", "--answer-column", "gold", "--labels", "yes,no"]
    out = tmp_path / "run"
    done = call(
        capsys,
        "train",
        "--train",
        tmp_path / "mine.csv",
        *columns,
        "--base",
        base_folder(),
        *FEW,
        "--seed",
        3,
        "--out",
        out,
    )
    assert (done.code, done.summary["task"]) == (0, "mine")
    again = call(capsys, "evaluate", out, "--json").summary
    assert again["ensemble"]["num_examples"] == 2  # a fifth of twelve, the same as in training
    assert again["ensemble"]["nll"] == pytest.approx(done.summary["ensemble"]["nll"], abs=1e-5)
    (tmp_path / "new.csv").write_text("stem\nIs 30 above five?\n")
    answered = call(capsys, "predict", out, "--in", tmp_path / "new.csv")
    assert set(json.loads(answered.out)["probs"]) == {"yes", "no"}
    on_file = call(capsys, "evaluate", out, "--file", tmp_path / "mine.csv", "--json").summary
    assert on_file["ensemble"]["num_examples"] == 12


def test_training_into_an_existing_folder_is_refused_and_resume_goes_on(capsys, trained):
    words = [
        "train",
        "--task",
        "world-cqa",
        "--base",
        base_folder(),
        "--limit",
        32,
        "--limit-validation",
        20,
        *FEW,
        "--out",
        trained,
    ]
    before = {path.name: path.read_bytes() for path in sorted(trained.glob("member_*/*.safetensors"))}
    refused = call(capsys, *words)
    assert refused.code == 2
    assert "exists already; choose another folder, go on with the run in it by --resume" in refused.err
    resumed = call(capsys, *words, "--resume")
    assert resumed.code == 0
    assert resumed.summary["ensemble"] == metrics_of(trained)["metrics"]
    assert {path.name: path.read_bytes() for path in sorted(trained.glob("member_*/*.safetensors"))} == before


def test_update_info_refuses_an_ensemble_of_another_size(trained):
    with pytest.raises(CheckpointError, match="holds 2 members, the ensemble has 1"):
        update_info(LoraEnsemble.from_pretrained(trained, members=[0]), trained)


def test_predict_gives_a_row_a_question_with_every_vote(capsys, trained, questions):
    done = call(capsys, "predict", trained, "--in", questions, "--json")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row.get("id") for row in rows] == ["sun", "new", None]
    assert (done.summary["questions"], done.summary["members"]) == (2, 2)
    assert [
        row["answer"] in question["options"] for row, question in zip(rows[:2], QUESTIONS, strict=True)
    ] == [True] * 2
    for row, options in zip(rows, (3, 2), strict=False):
        assert len(row["probs"]) == options
        assert sum(row["probs"].values()) == pytest.approx(1, abs=3e-6)  # six digits are written of each
        assert len(row["votes"]) == 2
        assert row["total_entropy"] == pytest.approx(
            row["expected_entropy"] + row["mutual_information"], abs=1e-5
        )
    assert [row["target"] for row in rows[:2]] == ["b", None]


def test_predict_writes_csv_and_never_over_a_file_by_accident(capsys, trained, questions, tmp_path):
    out = tmp_path / "answers.csv"
    assert call(capsys, "predict", trained, "--in", questions, "--out", out, "--only", "1").out == ""
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert list(rows[0])[:6] == ["row", "id", "prediction", "answer", "confidence", "prob_a"]
    assert rows[1]["prob_c"] == ""  # two options only
    assert rows[0]["vote_1"] == rows[0]["prediction"]  # the member's own index
    out.write_text("precious")
    refused = call(capsys, "predict", trained, "--in", questions, "--out", out)
    assert refused.code == 2
    assert "exists already; choose another name, or replace it by --overwrite" in refused.err
    assert out.read_text() == "precious"
    assert call(capsys, "predict", trained, "--in", questions, "--out", out, "--overwrite").code == 0
    assert out.read_text().startswith("row,id,")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_predict_of_standard_input_is_that_of_a_file(capsys, trained, questions, monkeypatch):
    expected = call(capsys, "predict", trained, "--in", questions).out.replace("questions.jsonl", "<stdin>")
    with open(questions, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        done = call(capsys, "predict", trained, "--in", "-")
    assert (done.code, done.out) == (0, expected)


def test_predict_reads_csv_from_standard_input(capsys, trained, monkeypatch):
    monkeypatch.setattr(
        sys, "stdin", io.StringIO('question,options\nThe sun is a,"[""planet"", ""star""]"\n')
    )
    row = json.loads(call(capsys, "predict", trained, "--in", "-", "--in-format", "csv").out)
    assert set(row["probs"]) == {"a", "b"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--in", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
        (["--in", "-"], "<stdin>: no rows"),
        (
            ["--in", "questions.jsonl", "--question-column", "stem"],
            "questions.jsonl, line 1: unknown column 'stem'",
        ),
        (["--in", "questions.jsonl", "--only", "0,7"], "it holds members 0 to 1"),
        (["--in", "questions.jsonl", "--base", "nowhere"], "base model 'nowhere' cannot be loaded"),
    ],
)
def test_predict_names_what_it_cannot_use(capsys, trained, questions, monkeypatch, words, message):
    monkeypatch.chdir(questions.parent)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    done = call(capsys, "predict", trained, *words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_an_ensemble_that_does_not_say_its_data_is_evaluated_on_what_is_given(capsys, trained, tmp_path):
    ensemble = LoraEnsemble.from_pretrained(trained)
    ensemble.info = dataclasses.replace(ensemble.info, task={})
    ensemble.save_pretrained(tmp_path / "bare")
    refused = call(capsys, "evaluate", tmp_path / "bare")
    assert refused.code == 2
    assert "does not say what it was trained on; pass --task NAME or --file FILE" in refused.err
    done = call(
        capsys, "evaluate", tmp_path / "bare", "--task", "world-cqa", "--limit", 4, "--ood", "none", "--json"
    )
    assert done.summary["ensemble"]["num_examples"] == 4


def test_tasks_lists_the_embedded_ones_and_where_the_papers_are(capsys):
    done = call(capsys, "tasks", "--json")
    assert done.summary["tasks"]["world-cqa"] == {"train": 400, "validation": 250, "options": [5]}
    assert done.summary["ood"]["world-cqa"] == {"set": "world-mmlu", "questions": 268}
    assert done.summary["named"]["obqa"] == "allenai/openbookqa"
    assert done.summary["named"]["winogrande-s"] == "allenai/winogrande"
    assert "--data DIR" in done.err


def test_tasks_of_the_papers_data_have_its_sizes(capsys, real_data):
    summary = call(capsys, "tasks", "--data", real_data, "--json").summary
    sizes = {name: (task["train"], task["validation"]) for name, task in summary["tasks"].items()}
    assert sizes == {  # Table 1 of arXiv:2310.00035, but for cqa's training set, which has 9741 in the data
        "cqa": (9741, 1221),
        "obqa": (4957, 500),
        "arce": (2249, 2375),
        "arcc": (1119, 1172),
        "mmlu-ss": (397, 3077),
        "mmlu-stem": (411, 3018),
        "arcc-dev": (1119, 299),  # of the published protocol, those that are in the folder
        "arce-dev": (2251, 570),
        "obqa-dev": (4957, 500),
    }
    assert (summary["tasks"]["cqa"]["options"], summary["tasks"]["arcc"]["options"]) == ([5], [3, 4, 5])
    assert summary["ood"]["cqa"]["set"] == "mmlu"


def test_tasks_of_a_partial_copy_are_those_that_are_there(capsys, tmp_path):
    folder = tmp_path / "openbookqa"
    folder.mkdir()
    row = json.dumps(
        {
            "question_stem": "The sun is a",
            "choices": {"text": ["planet", "star"], "label": ["A", "B"]},
            "answerKey": "B",
        }
    )
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(row + "\n")
    done = call(capsys, "tasks", "--data", tmp_path, "--json")
    assert done.summary["tasks"] == {"obqa": {"train": 1, "validation": 1, "options": [2]}}
    assert "commonsense_qa/train.jsonl: cannot be read" in done.summary["missing"]["cqa"]
    (folder / "test.jsonl").unlink()
    assert call(capsys, "tasks", "--data", tmp_path).code == 2
