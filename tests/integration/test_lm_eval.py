"""An ensemble in lm-evaluation-harness: the scores are those of the members, and what the harness is asked
for is what it gets.

Everything runs on a tiny base in a folder and on a few questions written here, without a network.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
import transformers
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import Registry, get_model
from lm_eval.tasks import TaskManager
from peft import PeftModel

from breadth import LONG
from command_line import base_folder
from lora_ensembles import (
    CheckpointError,
    ConfigError,
    DataError,
    LoraEnsemble,
    MissingExtraError,
    evaluate,
    load_task,
    predict,
)
from lora_ensembles.data.paper_tasks import PAPER_TASKS
from lora_ensembles.embedded import load_base
from lora_ensembles.integrations.lm_eval import MODEL_NAME, TASKS_FOLDER, model, register, write_local_tasks
from lora_ensembles.integrations.lm_eval.__main__ import main
from lora_ensembles.integrations.lm_eval.local_tasks import paper_task_name
from tiny_ensembles import adapter
from tiny_models import randomise_b

# float32: sums of some dozen log-probabilities, computed by a stack here and by PEFT's layers there.
CLOSE = 1e-4
SUBJECTS = ("astronomy", "college_physics", "sociology")
PLACES = ("the lake", "the old forest", "a moor", "the coast")
CONTINUATIONS = [
    ("Q: Where does the otter live?\nA:", " in the lake"),
    ("Otters live in", " the"),
    ("Is the sun a star", "? It is."),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an ensemble of three members that differ."""
    ensemble = LoraEnsemble(*load_base(base_folder()), num_members=3, adapter=adapter())
    randomise_b(ensemble)
    path = tmp_path_factory.mktemp("ensembles") / "three"
    ensemble.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def peft_models(saved: Path) -> list[Any]:
    """The same members, each a PEFT model of its own."""
    return [
        PeftModel.from_pretrained(
            transformers.AutoModelForCausalLM.from_pretrained(base_folder()), str(saved / f"member_{m:03d}")
        ).eval()
        for m in range(3)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data sets in the hub's schemas, a few questions each."""
    folder = tmp_path_factory.mktemp("datasets")
    for name, splits in {
        "ai2_arc/ARC-Easy": ("train", "validation", "test"),
        "openbookqa": ("train", "validation", "test"),
        "mmlu": ("dev", "validation", "test"),
    }.items():
        (folder / name).mkdir(parents=True)
        for split in splits:
            rows = [json.dumps(_row(name, number)) for number in range(6)]
            (folder / name / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def _row(name: str, number: int) -> dict[str, Any]:
    question = f"Where does {'the otter or ' * number}the heron live?"
    if name == "mmlu":
        return {
            "question": question,
            "subject": SUBJECTS[number % 3],
            "choices": list(PLACES),
            "answer": number % 4,
        }
    stem = "question_stem" if name == "openbookqa" else "question"
    options = {"text": list(PLACES), "label": ["A", "B", "C", "D"]}
    return {"id": str(number), stem: question, "choices": options, "answerKey": "ABCD"[number % 4]}


@pytest.fixture
def local_tasks(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_local_tasks(data, tmp_path / "tasks")
    return tmp_path / "tasks"


def made(saved: Path, **arguments: Any) -> Any:
    """The model as the harness makes it from `--model_args` and its own flags."""
    register()
    return get_model(MODEL_NAME).create_from_arg_obj(
        {"pretrained": str(saved), **arguments}, {"batch_size": 2, "device": "cpu"}
    )


def run(name: str, arguments: dict[str, Any], tasks: Path, names: list[str]) -> dict[str, Any]:
    register()
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    result: dict[str, Any] = simple_evaluate(
        name,
        model_args=arguments,
        tasks=names,
        task_manager=manager,
        batch_size=2,
        device="cpu",
        bootstrap_iters=0,
    )
    return result


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    return [Instance(request_type=kind, doc={}, arguments=one, idx=0) for one in arguments]


def mixture(peft_models: list[Any], ids: list[int]) -> torch.Tensor:
    """(T, V) float64 log mean_m p_m of the token after each of `ids`, one PEFT model after another."""
    with torch.no_grad():
        rows = [one(input_ids=torch.tensor([ids])).logits[0].double().softmax(dim=-1) for one in peft_models]
    return torch.stack(rows).mean(dim=0).log()


def test_one_member_scores_what_the_harness_scores_with_peft(saved: Path, local_tasks: Path):
    names = ["arc_easy", "openbookqa", "mmlu_stem_tasks", paper_task_name("obqa")]
    one = run(MODEL_NAME, {"ensemble": str(saved), "members": 1}, local_tasks, names)
    peft = run("hf", {"pretrained": base_folder(), "peft": str(saved / "member_001")}, local_tasks, names)
    assert set(one["results"]) == {
        "arc_easy",
        "openbookqa",
        "mmlu_astronomy",
        "mmlu_college_physics",
        paper_task_name("obqa"),
    }
    for task, scores in one["results"].items():
        assert {name: value for name, value in scores.items() if isinstance(value, float)} == pytest.approx(
            {name: value for name, value in peft["results"][task].items() if isinstance(value, float)},
            abs=CLOSE,
        )
        ours, theirs = (
            [sample["filtered_resps"] for sample in some["samples"][task]] for some in (one, peft)
        )
        assert [[greedy for _, greedy in row] for row in ours] == [
            [greedy for _, greedy in row] for row in theirs
        ]
        assert [[value for value, _ in row] for row in ours] == [
            pytest.approx([value for value, _ in row], abs=CLOSE) for row in theirs
        ]
    assert one["config"]["num_members"] == 1
    assert one["config"]["base"] == base_folder()


def test_log_likelihood_of_an_ensemble_is_the_log_of_the_members_mean_probability(
    saved: Path, peft_models: list[Any]
):
    lm = made(saved)
    found = lm.loglikelihood(requests("loglikelihood", *CONTINUATIONS), disable_tqdm=True)
    for (prompt, continuation), (log_likelihood, greedy) in zip(CONTINUATIONS, found, strict=True):
        before, ids = lm.tok_encode(prompt), lm.tok_encode(prompt + continuation)
        assert ids[: len(before)] == before
        log_probs = mixture(peft_models, ids)
        answer = range(len(before), len(ids))
        assert log_likelihood == pytest.approx(
            sum(log_probs[t - 1, ids[t]].item() for t in answer), abs=CLOSE
        )
        assert greedy == all(log_probs[t - 1].argmax() == ids[t] for t in answer)


def test_rolling_log_likelihood_counts_every_token_once_over_windows(saved: Path, peft_models: list[Any]):
    text, window = "The otter lives in the lake. The heron lives near the old forest and the coast.", 8
    lm = made(saved, max_length=window)
    ids = lm.tok_encode(
        text
    )  # with the token that the tokenizer puts in front, which the harness scores as well
    assert len(ids) > 2 * window
    assert len(ids) % window != 0
    # Windows of 8 tokens, the first behind the prefix token; the last is moved back so that it is full, and
    # scores only what is left.
    expected = 0.0
    for begin in range(0, len(ids), window):
        end = min(begin + window, len(ids))
        inputs = [lm.prefix_token_id, *ids][end - window if begin else 0 : end]
        scored = mixture(peft_models, inputs)[-(end - begin) :]
        expected += sum(scored[t, ids[begin + t]].item() for t in range(end - begin))
    (found,) = lm.loglikelihood_rolling(requests("loglikelihood_rolling", (text,)), disable_tqdm=True)
    assert found == pytest.approx(expected, abs=CLOSE)


def test_generation_is_greedy_decoding_of_the_mean_and_ends_before_the_stop_word(
    saved: Path, peft_models: list[Any]
):
    lm = made(saved)
    prompts = [
        "Q: Where does the otter live?\nA:",
        "The heron lives in",
    ]  # of different lengths: one is padded on the left
    texts = []
    for prompt in prompts:
        ids = lm.tok_encode(prompt)
        for _ in range(6):
            ids.append(int(mixture(peft_models, ids)[-1].argmax()))
        texts.append(lm.tok_decode(ids[len(lm.tok_encode(prompt)) :]))
    settings = {"until": ["\n\n\n"], "max_gen_toks": 6}
    found = lm.generate_until(
        requests("generate_until", *((prompt, settings) for prompt in prompts)), disable_tqdm=True
    )
    assert found == texts
    stop = texts[0].strip()[:3]
    (cut,) = lm.generate_until(
        requests("generate_until", (prompts[0], {"until": [stop], "max_gen_toks": 6})), disable_tqdm=True
    )
    assert cut == texts[0].split(stop)[0]


def test_a_paper_task_scores_one_member_as_evaluate_does(saved: Path, local_tasks: Path, data: Path):
    name = paper_task_name("arce")
    scores = run(MODEL_NAME, {"pretrained": str(saved), "members": [2]}, local_tasks, [name])["results"][name]
    ensemble = LoraEnsemble.from_pretrained(saved, members=[2])
    measured = evaluate(predict(ensemble, load_task("arce", data=data).validation))
    expected = {"acc": measured.accuracy, "nll": measured.nll, "brier": measured.brier, "ece": measured.ece}
    assert {metric: scores[f"{metric},none"] for metric in expected} == pytest.approx(expected, abs=CLOSE)


@LONG
def test_the_six_task_files_hold_the_papers_questions_in_its_prompt(real_data: Path):
    manager = TaskManager(
        include_path=str(TASKS_FOLDER), include_defaults=False, metadata={"data": str(real_data)}
    )
    assert set(manager.all_subtasks) == set(map(paper_task_name, PAPER_TASKS))
    for name in PAPER_TASKS:
        (task,) = manager.load(paper_task_name(name))["tasks"].values()
        expected = load_task(name, data=real_data)
        documents = task.test_docs()
        assert (len(task.training_docs()), len(documents)) == (len(expected.train), len(expected.validation))
        for number in (0, len(documents) - 1):
            example = expected.validation[number]
            task.build_all_requests(limit=None, samples=[number], rank=0, world_size=1)
            asked = [instance.args for instance in task.instances]
            assert asked == [(example.prompt, label) for label in example.labels]
            assert task.doc_to_target(documents[number]) == example.target


def test_a_demonstration_closes_the_bracket(saved: Path, local_tasks: Path, data: Path):
    manager = TaskManager(include_path=str(local_tasks), include_defaults=False)
    (task,) = manager.load(paper_task_name("obqa"))["tasks"].values()
    task.set_config("num_fewshot", 1)
    task.set_fewshot_seed(0)
    context = task.fewshot_context(task.test_docs()[0], 1)
    shown = {f"{one.prompt}{one.labels[one.target or 0]})\n" for one in load_task("obqa", data=data).train}
    asked = load_task("obqa", data=data).validation[0].prompt
    assert context.endswith(asked)
    assert context.removesuffix(asked) in shown


def test_an_entry_point_names_the_registered_class():
    register()
    (point,) = (one for one in entry_points(group="lm_eval.models") if one.name == MODEL_NAME)
    assert point.load() is get_model(MODEL_NAME)
    registry: Registry[Any] = Registry("model")
    registry.register(MODEL_NAME, target=point)  # as versions after 0.4.13 do for each entry point
    assert registry.get(MODEL_NAME) is get_model(MODEL_NAME)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pretraind": "x"}, r"unknown argument 'pretraind'; did you mean 'pretrained'\?"),
        ({"peft": "x"}, "unknown argument 'peft'"),
        ({"trust_remote_code": True}, "unknown argument 'trust_remote_code'"),
        ({"batch_size": 4}, "batch_size is in model_args and is also a flag of the harness"),
        ({"ensemble": "other"}, "2 folders of an ensemble"),
        (
            {"members": "first"},
            r"members='first'; give one index, members=0, or a list of them, members=\[0,2\]",
        ),
        ({"members": []}, r"members=\[\]; give one index"),
        ({"members": True}, "members=True; give one index"),
        ({"dtype": "int3"}, "dtype 'int3'; known: float32"),
    ],
)
def test_arguments_that_cannot_work_are_refused(saved: Path, arguments: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        made(saved, **arguments)


def test_no_folder_and_an_unknown_device_are_refused(saved: Path):
    register()
    with pytest.raises(ConfigError, match="0 folders of an ensemble in model_args"):
        get_model(MODEL_NAME).create_from_arg_string("dtype=float32")
    with pytest.raises(ConfigError, match="device 'gpu'; give one that torch knows"):
        get_model(MODEL_NAME).create_from_arg_string(f"pretrained={saved},device=gpu")
    with pytest.raises(CheckpointError, match="nowhere"):
        get_model(MODEL_NAME).create_from_arg_string("pretrained=nowhere")


def test_without_the_harness_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(model, "model_class", model.model_class.__wrapped__)
    with pytest.raises(MissingExtraError, match=r'pip install "lora-ensembles\[eval\]"'):
        register()


def test_a_folder_without_data_sets_is_refused(tmp_path: Path):
    with pytest.raises(
        DataError,
        match="holds none of ai2_arc/ARC-Challenge, ai2_arc/ARC-Easy, commonsense_qa, mmlu, openbookqa",
    ):
        write_local_tasks(tmp_path, tmp_path / "out")
    (tmp_path / "mmlu").mkdir()
    (tmp_path / "mmlu" / "test.jsonl").write_text('{"question": "?", "choices": ["a", "b"], "answer": 0}\n')
    with pytest.raises(DataError, match=r"mmlu/test.jsonl, line 1: no column 'subject'"):
        write_local_tasks(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mistake_on_the_command_line_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["local-tasks", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m lora_ensembles.integrations.lm_eval: error: ")
    assert error.count("\n") == 1


@LONG
def test_the_command_line_runs_without_a_network_and_writes_no_pickle(
    saved: Path, data: Path, tmp_path: Path
):
    write_local_tasks(data, tmp_path / "tasks")
    words = [
        "run",
        "--model",
        MODEL_NAME,
        "--model_args",
        f"pretrained={saved},members=[0,2]",
        "--tasks",
        "openbookqa",
    ]
    words += [
        "--include_path",
        "tasks",
        "--device",
        "cpu",
        "--batch_size",
        "2",
        "--output_path",
        "out",
        "--log_samples",
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-m", "lora_ensembles.integrations.lm_eval", *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out").glob("*/results_*.json")
    record = SimpleNamespace(**json.loads(path.read_text()))
    assert record.config["num_members"] == 2
    assert record.config["model_args"]["members"] == [0, 2]
    assert math.isfinite(record.results["openbookqa"]["acc,none"])
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    pickles = [
        file
        for file in written
        if file.suffix in (".pkl", ".pickle", ".pt", ".bin", ".db") or file.read_bytes()[:1] == b"\x80"
    ]
    assert pickles == []
