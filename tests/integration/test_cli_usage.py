"""The command line before any work is done: help, flags, settings files, mistakes and exit codes."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import shlex
import subprocess
import sys

import pytest
import torch

import lora_ensembles
import tiny_models
from command_line import call
from lora_ensembles import AdapterError, ColumnMapping, ConfigError, MissingExtraError, TrainConfig
from lora_ensembles.cli import main
from lora_ensembles.cli.common import Arguments, flags_of
from lora_ensembles.cli.flags import settings
from lora_ensembles.cli.program import VERBS, parsers


def parse(*words: str) -> Arguments:
    """The values of a `train` call's flags."""
    parser, verbs = parsers()
    return parser.parse_args(settings.expand_config(verbs["train"], ["train", *words]), namespace=Arguments())


def shell(
    *words: str, code: str = "import sys; from lora_ensembles.cli import main; sys.exit(main())"
) -> list[str]:
    return [sys.executable, "-c", code, *words]


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_shows_examples_that_parse(capsys, verb):
    done = call(capsys, verb, "--help")
    assert done.code == 0
    lines = [line.strip() for line in done.out.partition("examples:")[2].splitlines() if line.strip()]
    assert len(lines) >= 3
    parser, _ = parsers()
    for line in lines:
        words = shlex.split(line.partition("lora-ensembles ")[2].partition("  ")[0].partition(" |")[0])
        assert words[0] == verb
        parser.parse_args(words, namespace=Arguments())


@pytest.mark.parametrize("words", [("--help",), ("train", "--help"), ("train", "--tsk", "x"), ("trian",)])
def test_help_and_mistakes_load_nothing_heavy(words):
    heavy = "torch", "transformers", "peft", "datasets", "torchmetrics", "matplotlib"
    code = (
        "import sys; from lora_ensembles.cli import main; main(sys.argv[1:]); "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run(shell(*words, code=code), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_public_name_of_the_stub_is_there():
    assert 40 < len(lora_ensembles.__all__) < 70
    for name, module in lora_ensembles._HOME_OF.items():
        assert getattr(lora_ensembles, name) is getattr(
            importlib.import_module(f"lora_ensembles.{module}"), name
        )
    assert set(lora_ensembles.__all__) <= set(dir(lora_ensembles))


def test_a_name_the_package_does_not_have_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        lora_ensembles.trian  # noqa: B018


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a verb is needed: demo, tasks, train, evaluate, calibrate, predict"),
        (["trian"], "unknown verb 'trian'; did you mean 'train'?"),
        (["train", "--memberz", "3"], "train: unknown flag '--memberz'; did you mean '--members'?"),
        (["train", "--memb", "3"], "unknown flag '--memb'"),
        (["tasks", "extra"], "unrecognized arguments: extra"),
        (["predict", "runs/x"], "required: --in"),
        (["train", "--task", "obqa"], "--out DIR is needed"),
        (["train", "--out", "x"], "give --task NAME .* or --train FILE"),
        (["train", "--task", "obqa", "--train", "x.csv", "--out", "x"], "one of the two"),
        (
            ["train", "--task", "obqa", "--question-column", "stem", "--out", "x"],
            "--question-column: for your own files",
        ),
        (
            ["train", "--task", "obqa", "--epochs", "many", "--out", "x"],
            "argument --epochs: 'many' is no whole number of at least 1",
        ),
        (
            ["train", "--task", "obqa", "--epochs", "0", "--out", "x"],
            "argument --epochs: '0' is no whole number of at least 1",
        ),
        (
            ["train", "--task", "obqa", "--learning-rate", "fast", "--out", "x"],
            "argument --learning-rate: 'fast' is no finite number",
        ),
        (["train", "--task", "obqa", "--schedule", "linea", "--out", "x"], "invalid choice: 'linea'"),
        (
            ["train", "--task", "obqa", "--preset", "papr", "--out", "x"],
            "unknown preset 'papr'; did you mean 'paper'?",
        ),
        (
            ["train", "--task", "world-cqa", "--preset", "paper", "--out", "x"],
            "the paper has no settings for 'world-cqa'",
        ),
        (["train", "--task", "obqq", "--out", "x"], "unknown task 'obqq'; did you mean 'obqa'?"),
        (["train", "--train", "nowhere.csv", "--out", "x"], "nowhere.csv: cannot be read: No such file"),
        (["tasks", "--data", "nowhere"], "nowhere is no folder"),
        (["evaluate", "nowhere"], "nowhere is no folder"),
        (
            ["demo", "--task", "world-obqa", "--out", "x"],
            "needs a task with an out-of-distribution set: .* 'world-cqa'",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    done = call(capsys, *words)
    assert done.code == 2
    assert done.out == ""
    assert done.err.count("\n") == 1
    assert done.err.startswith("lora-ensembles: error: ")
    with pytest.raises(ConfigError, match=message):
        raise ConfigError(done.err)
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_is_not_there_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = call(capsys, "train", "--task", "world-obqa", "--out", tmp_path / "run", "--device", "cuda")
    assert done.code == 2
    assert done.err.splitlines()[-1].endswith(
        "--device cuda: torch finds no GPU here; leave it at 'auto', or install a torch build for your GPU"
    )


def test_interrupt_is_exit_code_130_without_a_traceback(capsys, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(VERBS["tasks"], "run", interrupted)
    done = call(capsys, "tasks")
    assert (done.code, done.err) == (130, "lora-ensembles: interrupted\n")


def test_an_error_that_is_not_the_users_keeps_its_traceback(monkeypatch):
    def broken(_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(VERBS["tasks"], "run", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        main(["tasks"])


def test_a_reader_that_has_gone_is_no_traceback():
    read, write = os.pipe()
    os.close(read)
    code = (
        "import sys; from lora_ensembles.cli import main; from lora_ensembles.cli.program import VERBS; "
        "VERBS['tasks'].run = lambda _: print('row'); sys.exit(main())"
    )
    done = subprocess.run(shell("tasks", code=code), stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 141


def test_exit_code_reaches_the_shell():
    done = subprocess.run(
        [sys.executable, "-m", "lora_ensembles.cli", "trian"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("lora-ensembles: error: unknown verb 'trian'")


def test_version_is_that_of_the_package(capsys):
    from importlib.metadata import version

    assert call(capsys, "--version").out.strip() == version("lora-ensembles")


@pytest.mark.parametrize("record", [TrainConfig, ColumnMapping])
def test_every_field_of_the_records_is_a_flag_with_an_explanation(record):
    flags = flags_of(parsers()[1]["train"])
    for field in dataclasses.fields(record):
        name = field.name.replace("_", "-")
        assert (flags.get(f"--{name}-column") or flags[f"--{name}"]).help


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--epochs", "3"], "epochs", 3),
        (["--learning-rate", "1e-3"], "learning_rate", 1e-3),
        (["--learning-rate", "1e-3,2e-3"], "learning_rate", [1e-3, 2e-3]),
        (["--weight-decay-b", "0.01, 20"], "weight_decay_b", [0.01, 20.0]),
        (["--dropout", "none"], "dropout", None),
        (["--max-grad-norm", "none"], "max_grad_norm", None),
        (["--snapshot-epochs", "1,3"], "snapshot_epochs", [1, 3]),
        (["--schedule", "cosine"], "schedule", "cosine"),
    ],
)
def test_a_flag_gives_a_field_of_the_training_settings_its_value(words, field, value):
    config = settings.train_config(parse("--task", "obqa", *words), default="default", task="obqa")
    assert getattr(config, field) == value
    assert config == dataclasses.replace(TrainConfig.preset("default"), **{field: value})


def test_the_preset_is_what_is_not_given():
    config = settings.train_config(
        parse("--task", "obqa", "--preset", "paper", "--epochs", "1"), default="default", task="obqa"
    )
    assert config == dataclasses.replace(TrainConfig.preset("paper", task="obqa"), epochs=1)


def test_config_file_gives_values_and_flags_win(tmp_path):
    path = tmp_path / "settings.json"
    content = {
        "task": "obqa",
        "epochs": 3,
        "learning_rate": [1e-3, 2e-3],
        "max-grad-norm": None,
        "r": 4,
        "resume": True,
        "vary": ["order"],
    }
    path.write_text(json.dumps(content))
    args = parse("--config", str(path), "--epochs", "7")
    config = settings.train_config(args, default="default", task="obqa")
    assert (config.epochs, config.learning_rate, config.max_grad_norm) == (7, [1e-3, 2e-3], None)
    assert (args.task, args.r, args.resume, args.vary) == ("obqa", 4, True, ["order"])


def test_config_file_may_be_yaml(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(
        "epochs: 3\nlearning_rate: 1e-3\nsnapshot_epochs: [1, 2]\n"
    )  # YAML reads 1e-3 as a text, the flag as a number
    config = settings.train_config(parse("--config", str(path)), default="default", task=None)
    assert (config.epochs, config.learning_rate, config.snapshot_epochs) == (3, 1e-3, [1, 2])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"epoch": 3}', "unknown field 'epoch'; did you mean 'epochs'?"),
        ("a.json", '{"resume": "yes"}', "resume is 'yes'; it is true or false"),
        ("a.json", '{"epochs": true}', "epochs is True; it takes a text, a number"),
        ("a.json", '{"adapter": {"r": 4}}', "unknown field 'adapter'"),
        ("a.json", "[1]", "holds a list; it needs fields"),
        ("a.json", "{", "is not JSON"),
        ("a.yaml", "a: [", "is not YAML"),
        ("a.yaml", f"epochs: {'9' * 5000}", "is not YAML that can be read"),
        ("a.yaml", "[" * 20_000, "is not YAML that can be read"),
        ("a.json", "[" * 100_000, "is not JSON"),
    ],
)
def test_a_config_file_that_cannot_be_used_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        parse("--config", str(tmp_path / name))


def test_yaml_without_the_extra_names_the_install_command(tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_text("epochs: 3\n")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingExtraError, match=r"pip install \"lora-ensembles\[yaml\]\""):
        parse("--config", str(tmp_path / "a.yaml"))


def test_adapter_flags_become_fields_of_the_lora_config():
    args = parse(
        "--rank",
        "4",
        "--alpha",
        "16",
        "--target-modules",
        "k_proj,o_proj",
        "--lora-dropout",
        "0.1",
        "--use-rslora",
    )
    config = settings.adapter_config(args, tiny_models.build("llama"))
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora) == (4, 16, 0.1, True)
    assert set(config.target_modules or ()) == {"k_proj", "o_proj"}


@pytest.mark.parametrize(("name", "targets"), [("llama", {"q_proj", "v_proj"}), ("gpt2", {"c_attn"})])
def test_default_targets_are_the_papers_or_pefts_for_the_architecture(name, targets):
    config = settings.adapter_config(parse(), tiny_models.build(name))
    assert set(config.target_modules or ()) == targets
    assert (config.r, config.lora_alpha) == (8, 32)


def test_a_base_of_unknown_layers_lists_its_linear_ones():
    base = tiny_models.build("gpt2")
    base.config.model_type = "homemade"
    with pytest.raises(
        AdapterError, match=r"--target-modules with some of its linear layers: c_attn, c_fc, c_proj"
    ):
        settings.adapter_config(parse(), base)
