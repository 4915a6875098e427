"""Mistakes on the command line in the command line's own words: flags, values, the config file, and what
other programs call a thing.
"""

from __future__ import annotations

import json
import re

import pytest

from command_line import call
from lora_ensembles.cli.common import Parser, flags_of
from lora_ensembles.cli.flags.settings import expand_config
from lora_ensembles.cli.program import parsers
from lora_ensembles.cli.screen.wording import HINTS, in_flags
from lora_ensembles.errors import LoraEnsemblesError
from lora_ensembles.training.config import PER_MEMBER_FIELDS, TrainConfig

TRAIN = ["train", "--task", "world-cqa", "--out", "out"]
WHOLE, POSITIVE, FINITE = "is no whole number", "is no whole number of at least 1", "is no finite number"
PYTHON = re.compile(r"\b\w+=\S|unsupported operand|invalid \w+ value|Traceback|\bself\b")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def mistake(capsys, *words: str) -> str:
    done = call(capsys, *words)
    assert (done.code, done.out) == (2, "")
    said = done.err.splitlines()[-1]
    assert said.startswith("lora-ensembles: error: ")
    return said.removeprefix("lora-ensembles: error: ")


@pytest.mark.parametrize(
    ("words", "flag", "value", "needed"),
    [
        *((TRAIN, "--rank", value, POSITIVE) for value in ("0", "-1", "1.5", "many")),
        *((TRAIN, "--alpha", value, FINITE) for value in ("nan", "inf", "much")),
        *((TRAIN, "--alpha", value, "is no number above 0") for value in ("0", "-5")),
        *((TRAIN, "--lora-dropout", value, FINITE) for value in ("nan", "1e400", "")),
        *((TRAIN, "--lora-dropout", value, "is no probability below 1") for value in ("1", "-0.1")),
        *((TRAIN, "--members", value, POSITIVE) for value in ("0", "2.5", "all")),
        *((TRAIN, "--seed", value, WHOLE) for value in ("a", "1.5", "")),
        *((TRAIN, f"--{name.replace('_', '-')}", "0.1,nan", FINITE) for name in PER_MEMBER_FIELDS),
        (TRAIN, "--warmup-steps", "few", WHOLE),
        (TRAIN, "--snapshot-epochs", "1,last", WHOLE),
        (
            TRAIN,
            "--base",
            "",
            "an empty name; give 'embedded', 'smollm2', a folder, a GGUF file, or a name on the hub",
        ),
        (["plan", "--base", "embedded"], "--memory", "nan", FINITE),
        (["plan", "--base", "embedded"], "--memory", "-1", "is no number above 0"),
        (["plan", "--base", "embedded"], "--tflops", "inf", FINITE),
        (["plan", "--base", "embedded"], "--tokens", "0", POSITIVE),
        (["generate", "x", "--prompt", "y"], "--stop", "", "an empty text; give one, or leave the flag out"),
        (["generate", "x", "--prompt", "y"], "--temperature", "nan", FINITE),
        (["generate", "x", "--prompt", "y"], "--top-k", "2.5", WHOLE),
        (["evaluate", "x"], "--only", "a", WHOLE),
        (
            ["evaluate", "x"],
            "--only",
            ",",
            "holds no number; write whole numbers with commas between, such as 0,1",
        ),
        (["predict", "x", "--in", "y.csv"], "--k", "nan", FINITE),
    ],
)
def test_value_that_cannot_be_is_refused_by_its_flag(capsys, words, flag, value, needed):
    said = mistake(capsys, *words, f"{flag}={value}")

    assert re.search(rf"argument {flag}(/--[a-z-]+)?: ", said)
    assert needed in said
    assert not PYTHON.search(said)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rank", "100000"], "--rank 100000; the layers that get adapters have at most 128 features"),
        (["--members", "10000000000"], "--members 10000000000 of rank 8 do not fit into memory"),
        (["--kl-weight", "-0.1"], "--kl-weight -0.1; it is a finite number of at least 0"),
        (["--max-grad-norm", "0"], "--max-grad-norm 0"),
        (
            ["--learning-rate", "1", "--weight-decay-b", "2"],
            "--learning-rate * --weight-decay-b = 1.0 * 2.0 = 2; it must be below 1",
        ),
        (["--learning-rate", "1e-3,2e-3"], "--learning-rate has 2 values for 5 members"),
        (["--snapshot-epochs", "99"], "--snapshot-epochs 99; it is a list of epochs"),
    ],
)
def test_error_of_the_library_names_the_flag(capsys, words, message):
    said = mistake(capsys, *TRAIN, *words)

    assert message in said
    assert not PYTHON.search(said)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("cut its beginning with overlong='left'", "cut its beginning with --overlong left"),
        ("go on by resume=True, or not", "go on by --resume, or not"),
        ("LoraConfig(lora_alpha=0) is wrong", "--alpha 0 is wrong"),
        ("snapshot_epochs=[1, 9]; a list", "--snapshot-epochs 1,9; a list"),
        ("dropout=None", "--dropout none"),
        ("take it out of target_modules", "take it out of --target-modules"),
        ("column 'target_modules' holds 'epochs=3'", "column 'target_modules' holds 'epochs=3'"),
        ("the base's window and its rows' epochs=3", "the base's window and its rows' --epochs 3"),
        ("/data/max_rows/learning_rate.csv", "/data/max_rows/learning_rate.csv"),
        ("set base.config.max_rows", "set base.config.max_rows"),
        ("no members and no seed", "no members and no seed"),
        (
            "load the right base, or pass check_base=False if they are meant to differ",
            "load the right base, or another one by --base",
        ),
    ],
)
def test_fields_become_flags_and_quoted_text_stays(message, said):
    assert in_flags(message, parsers()[1]["train"]) == said


@pytest.mark.parametrize(
    ("verb", "given", "meant"),
    [
        ("train", "--lr", "--learning-rate"),
        ("train", "--model", "--base"),
        ("train", "--output", "--out"),
        ("train", "--lora-r", "--rank"),
        ("train", "--weight-decay", "--weight-decay-a or --weight-decay-b"),
        ("evaluate", "--model", "--base"),
        ("predict", "--output", "--out"),
        ("predict", "--input", "--in"),
        ("predict", "--batch-size", "--max-rows"),
        ("generate", "--max-tokens", "--max-new-tokens"),
    ],
)
def test_flag_of_another_program_is_answered_with_the_one_here(capsys, verb, given, meant):
    assert mistake(capsys, verb, given, "x") == f"{verb}: unknown flag '{given}'; it is called {meant} here"


def test_every_hint_is_a_flag_of_some_verb():
    flags = {flag for parser in parsers()[1].values() for flag in flags_of(parser)}

    assert {word for hint in HINTS.values() for word in re.findall(r"--[\w-]+", hint)} <= flags


@pytest.mark.parametrize("verb", ["evaluate", "predict", "generate"])
def test_members_of_a_saved_ensemble_are_picked_by_only(capsys, verb):
    assert "to take some members of a saved ensemble, write --only 0,1" in mistake(
        capsys, verb, "x", "--members", "2"
    )


@pytest.mark.parametrize("flag", ["--threshold", "--abstain"])
def test_threshold_is_said_not_to_be_there(capsys, flag):
    assert "keep those that are sure enough" in mistake(capsys, "predict", "x", flag, "0.9")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"epochs": 0},
            "argument --epochs: '0' is no whole number of at least 1; "
            "--help shows what fits (epochs in run.json)",
        ),
        (
            {"kl_weight": [0.1, -1]},
            "--kl-weight -1.0; it is a finite number of at least 0 (kl_weight in run.json)",
        ),
        ({"lora_alpha": 0}, "'0' is no number above 0; --help shows what fits (lora_alpha in run.json)"),
        ({"schedule": "linea"}, "(schedule in run.json)"),
    ],
)
def test_error_in_a_config_file_names_file_and_key(capsys, tmp_path, content, message):
    (tmp_path / "run.json").write_text(json.dumps(content))

    assert mistake(capsys, *TRAIN, "--config", "run.json").endswith(message)


def test_flag_that_wins_over_the_config_file_is_not_said_to_come_from_it(capsys, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"kl_weight": 0.1}))

    said = mistake(capsys, *TRAIN, "--config", "run.json", "--kl-weight", "-1")

    assert said == "--kl-weight -1.0; it is a finite number of at least 0"


def test_names_of_a_config_file_are_kept_by_parser_and_not_shared():
    first, second = parsers()[1]["train"], Parser("other")

    expand_config(first, ["train"])

    assert (dict(first.origins), dict(second.origins)) == ({}, {})


@pytest.mark.parametrize("name", [*TrainConfig.__dataclass_fields__])
def test_help_of_train_shows_what_a_setting_is_by_default(name):
    help = str(flags_of(parsers()[1]["train"])[f"--{name.replace('_', '-')}"].help)
    values = [getattr(TrainConfig.preset(kind, task="obqa"), name) for kind in ("default", "embedded")]
    shown = [
        "none" if value in (None, ()) else f"{value:g}" if isinstance(value, float) else str(value)
        for value in values
    ]

    assert (
        help.endswith(f"(default: {shown[0]})")
        or f"(presets: default {shown[0]}, embedded {shown[1]}, paper " in help
    )


def test_errors_keep_their_class_in_other_words():
    from lora_ensembles.cli.screen.wording import in_words_of

    for kind in LoraEnsemblesError.__subclasses__():
        with pytest.raises(kind, match=r"^--resume$"), in_words_of(parsers()[1]["train"]):
            raise kind("resume=True")


def test_ensemble_of_the_hub_is_measured_by_its_name(capsys, tmp_path, monkeypatch):
    import huggingface_hub

    from command_line import base_folder

    trained = call(capsys, "train", "--task", "world-cqa", "--base", base_folder(), "--members", 1,
                   "--epochs", 1, "--limit", 8, "--limit-validation", 4, "--no-progress",
                   "--out", "copy")  # fmt: skip
    assert trained.code == 0
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path / "copy"))

    done = call(capsys, "evaluate", "me/animals", "--limit", 4, "--json")

    assert (done.code, done.summary["ensemble_dir"], done.summary["members"]) == (0, "me/animals", 1)
