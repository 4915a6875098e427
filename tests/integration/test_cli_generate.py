"""`lora-ensembles generate`: streaming, colours, JSON, files of prompts, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import base_folder, call
from lora_ensembles.cli import generate

PROMPT = "Q: Where do otters live?\nA:"
ALWAYS_FIVE = ["--max-new-tokens", 5, "--min-new-tokens", 5]


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
        16,
        "--limit-validation",
        8,
        "--members",
        2,
    ]
    assert main([str(word) for word in [*words, "--epochs", 1, "--no-progress", "--out", out]]) == 0
    return out


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"id": "otter", "prompt": PROMPT},
        {"id": "sun", "prompt": "The sun is", "completion": " a star."},
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_text_is_streamed_and_the_summary_holds_everything(capsys, trained):
    done = call(capsys, "generate", trained, "--prompt", PROMPT, *ALWAYS_FIVE, "--json")
    assert done.code == 0
    text = done.summary["texts"][0]
    assert done.out.rpartition("\n{")[0] == text["text"]
    assert text["prompt"] == PROMPT
    assert len(text["tokens"]) == len(text["token_ids"]) == 5
    assert set(text["token_uncertainty"]) == {
        "log_probs",
        "member_log_probs",
        "total_entropy",
        "expected_entropy",
        "mutual_information",
        "agreement",
    }
    assert text["sequence"]["log_prob"] == pytest.approx(
        sum(text["token_uncertainty"]["log_probs"]), abs=1e-5
    )
    assert "mutual information" in done.err


def test_streamed_and_finished_texts_are_the_same(capsys, trained):
    streamed = call(capsys, "generate", trained, "--prompt", PROMPT, *ALWAYS_FIVE)
    finished = call(capsys, "generate", trained, "--prompt", PROMPT, *ALWAYS_FIVE, "--no-stream")
    assert streamed.out == finished.out
    assert streamed.out.strip()


def test_several_texts_are_numbered_and_sampling_follows_the_seed(capsys, trained):
    words = [
        "--prompt",
        PROMPT,
        *ALWAYS_FIVE,
        "--do-sample",
        "--temperature",
        1.5,
        "--num-return-sequences",
        2,
    ]
    first, again, other = (
        call(capsys, "generate", trained, *words, "--seed", seed).out for seed in (1, 1, 2)
    )
    assert first == again != other
    assert "[1] " in first
    assert "[2] " in first


def test_uncertain_tokens_are_shaded_with_a_legend(capsys, trained, monkeypatch):
    monkeypatch.setattr(generate, "SHADES", ((0.0, 230), (1e9, 203)))
    for words in ((), ("--no-stream",)):
        done = call(
            capsys, "generate", trained, "--prompt", PROMPT, *ALWAYS_FIVE, "--color", "always", *words
        )
        assert "\x1b[38;5;16;48;5;230m" in done.out
        assert "1000000000.0 and more" in done.err
    assert (
        "\x1b" not in call(capsys, "generate", trained, "--prompt", PROMPT, *ALWAYS_FIVE).out
    )  # no terminal here


def test_shades_follow_the_bounds_and_stop_at_line_ends():
    assert generate.shaded("word", 0.0) == "word"
    assert generate.shaded("word", 0.02).startswith("\x1b[38;5;16;48;5;230m")
    assert generate.shaded("word", 5.0).startswith("\x1b[38;5;16;48;5;203m")
    assert generate.shaded("word\n", 5.0).endswith("\x1b[0m\n")
    assert generate.shaded("\n", 5.0) == "\n"


def test_beams_and_stop_texts_work(capsys, trained):
    beams = call(
        capsys,
        "generate",
        trained,
        "--prompt",
        PROMPT,
        *ALWAYS_FIVE,
        "--num-beams",
        3,
        "--length-penalty",
        0.5,
        "--json",
    )
    assert beams.code == 0
    whole = beams.summary["texts"][0]["text"]
    stopped = call(
        capsys,
        "generate",
        trained,
        "--prompt",
        PROMPT,
        "--max-new-tokens",
        5,
        "--num-beams",
        3,
        "--stop",
        whole[2:4],
        "--json",
    )
    assert stopped.code == 0


def test_a_file_of_prompts_gives_one_record_a_prompt(capsys, trained, prompts, tmp_path):
    out = tmp_path / "texts.jsonl"
    done = call(
        capsys, "generate", trained, "--in", prompts, *ALWAYS_FIVE, "--out", out, "--max-rows", 2, "--json"
    )
    assert done.code == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["id"] for record in records] == ["otter", "sun"]
    assert records[0]["prompt"] == PROMPT
    assert records[1]["completion"] == " a star."
    assert done.summary["count"] == 2
    alone = call(capsys, "generate", trained, "--prompt", PROMPT, *ALWAYS_FIVE, "--json").summary["texts"][0]
    assert records[0]["token_ids"] == alone["token_ids"]


def test_members_can_be_chosen(capsys, trained):
    done = call(capsys, "generate", trained, "--prompt", PROMPT, *ALWAYS_FIVE, "--only", "1", "--json")
    assert done.summary["members"] == 1
    assert done.summary["texts"][0]["token_uncertainty"]["mutual_information"] == [0.0] * 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --prompt TEXT for one text, or --in FILE"),
        (["--prompt", "x", "--in", "y"], "give --prompt TEXT for one text, or --in FILE"),
        (["--prompt", ""], "an empty prompt"),
        (["--prompt", "  "], "an empty prompt"),
        (["--prompt", "x", "--chat"], "no chat template"),
        (["--prompt", "x", "--temperature", "0.5"], "--temperature: without --do-sample it changes nothing"),
        (
            ["--prompt", "x", "--length-penalty", "2"],
            "--length-penalty: without --num-beams it changes nothing",
        ),
        (["--prompt", "x", "--num-return-sequences", "2"], "do not fit each other"),
        (["--prompt", "x", "--do-sample", "--temperature", "-1"], "temperature"),
        (["--prompt", "x", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["--prompt", "x", "--max-new-tokens", "100000"], "ask for fewer new tokens"),
        (["--prompt", "x", "--tmperature", "2"], "did you mean '--temperature'"),
        (["--prompt", "x", "--out", "y"], "--out is for --in FILE"),
        (["--in", "x.jsonl", "--chat"], "--chat is for --prompt"),
        (["--in", "gone.jsonl"], "cannot be read"),
        (["--prompt", "x", "--cache-implementation", "statik"], "--cache-implementation"),
        (["--prompt", "x", "--only", "7"], "7"),
        (["--prompt", "x\udcff"], r"--prompt: 'x\udcff' is not UTF-8"),
        (["--prompt", "x", "--stop", "\ud83d"], r"--stop: '\ud83d' is not UTF-8"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_two(capsys, trained, words, message):
    done = call(capsys, "generate", trained, *words)
    assert done.code == 2
    lines = [line for line in done.err.splitlines() if line.startswith("lora-ensembles: error: ")]
    assert len(lines) == 1
    assert message in lines[0]


def test_an_existing_output_and_one_that_is_the_input_are_refused(capsys, trained, prompts, tmp_path):
    existing = tmp_path / "texts.jsonl"
    existing.write_text("precious")
    before = prompts.read_text()
    for words, message in (
        ([existing], "replace it by --overwrite"),
        ([prompts, "--overwrite"], "is the file that is read"),
        ([tmp_path / "texts.csv"], "no format has the suffix '.csv'; name it .jsonl"),
    ):
        done = call(capsys, "generate", trained, "--in", prompts, "--out", *words)
        assert done.code == 2
        assert message in done.err
    assert (existing.read_text(), prompts.read_text()) == ("precious", before)


def test_a_file_without_prompts_names_the_column(capsys, trained, tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text('{"promt": "x"}\n')
    done = call(capsys, "generate", trained, "--in", path)
    assert done.code == 2
    assert "did you mean 'promt'" in done.err
