"""`lora-ensembles plan --gpus`: splits over several GPUs, and flags that need each other."""

from __future__ import annotations

import json

import pytest

from command_line import base_folder, call


def test_plan_over_gpus_prints_each_split_and_says_which_to_take(capsys: pytest.CaptureFixture[str]) -> None:
    words = f"plan --base {base_folder()} --dtype float32 --members 4 --batch-size 2 --tokens 16".split()
    words += "--gpus 2 --gpu-memory 1 --examples 100 --epochs 2 --price 3 --json".split()
    done = call(capsys, *words)
    assert done.code == 0, done.err
    summary = done.summary
    assert summary["split"] == "replicate"
    kinds = [row["kind"] for row in summary["splits"]]
    assert kinds[:2] == ["replicate", "fsdp"]
    for row in summary["splits"]:
        assert row["total"] == row["base"] + row["gathered"] + row["members"] + row["activations"]
        assert row["seconds_at_the_limit"] == pytest.approx(100 * row["seconds_a_step_at_the_limit"])
        assert row["cost_at_the_limit"] == pytest.approx(2 * 3 * row["seconds_at_the_limit"] / 3600)
    assert f"take base on each GPU: {summary['reason']}" in done.err
    assert json.dumps(summary)


def test_plan_says_what_would_fit(capsys: pytest.CaptureFixture[str]) -> None:
    words = f"plan --base {base_folder()} --members 2 --batch-size 2 --tokens 16 --gpus 2".split()
    done = call(capsys, *words, "--gpu-memory", "0.00001", "--json")
    assert done.summary["split"] is None
    assert "no split fits 90% of 1e-05 GB: take GPUs of 1 GB" in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "0"], "'0' is no whole number of at least 1"),
        (["--gpus", "8"], "--gpus 8 without --gpu-memory; give the memory of each, 80 for example"),
        (["--nodes", "2"], "--nodes without --gpus; give --gpus N"),
        (["--price", "2"], "--price without --gpus"),
        (["--gpus", "8", "--memory", "80", "--nodes", "3"], "--gpus 8 on --nodes 3; each node has as many"),
        (["--gpus", "8", "--memory", "80", "--interconnect", "0"], "no number above 0"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    done = call(capsys, "plan", "--base", base_folder(), *words)
    assert done.code == 2
    assert message in done.err
