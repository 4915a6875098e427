"""A base over several ranks computes, trains and saves what one process does.

Expected values come from an ensemble on the whole base in this process, except where a message is expected.
FSDP gathers the weights themselves, so its numbers are the same; the products of a tensor-parallel base are
summed over the ranks in another order, which in float64 leaves about 1e-15 of the largest.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from safetensors.torch import load_file
from torch import Tensor

import sharded_ranks
from lora_ensembles import LoraEnsemble, load_base
from lora_ensembles.cli import main
from lora_ensembles.distributed.ranks import join_ranks
from lora_ensembles.embedded import sharded
from lora_ensembles.errors import AdapterError, ConfigError
from sharded_ranks import Result
from tiny_models import build, tokenizer

TESTS = Path(__file__).resolve().parent.parent
TIMEOUT = 300  # seconds; some 25 on two free cores


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the ranks left what came out of their cases."""
    try:
        sharded.check_shard("tp")
    except ConfigError as error:
        pytest.skip(str(error))
    sharded_ranks.register()
    made = tmp_path_factory.mktemp("ranks")
    paths = os.pathsep.join([str(TESTS), *sys.path])
    ranks = subprocess.Popen(
        [sys.executable, str(TESTS / "sharded_ranks.py"), str(made)],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, said = ranks.communicate(timeout=TIMEOUT)
    finally:
        with suppress(ProcessLookupError):  # ranks that wait for each other would never end
            os.killpg(ranks.pid, signal.SIGKILL)
    failed = [path.read_text() for path in sorted(made.glob("*.txt")) if "Traceback" in path.read_text()]
    assert ranks.returncode == 0, "\n".join([*failed, said[-3000:]])
    return made


def of_rank(folder: Path, case: str, rank: int = 0) -> Result:
    assert (folder / f"{case}.{rank}.txt").read_text() == ""
    return load_file(folder / f"{case}.{rank}.safetensors")


def message(folder: Path, case: str, rank: int = 0) -> str:
    return (folder / f"{case}.{rank}.txt").read_text()


def alone(folder: Path, name: str, *, at_once: int = sharded_ranks.MEMBERS) -> Result:
    """Logits and gradients in one process, `at_once` members in a pass, as a rank has them."""
    whole = sharded_ranks.ensemble(name, folder / "bases")
    members, parts = list(whole.stack.every_member()), []
    base = whole.unload()
    for first in range(0, len(members), at_once):
        some = LoraEnsemble.from_weights(
            base,
            whole.tokenizer,
            adapter=whole.adapter,
            weights=members[first : first + at_once],
            info=whole.info,
        )
        parts.append(sharded_ranks.logits_and_gradients(some))
        some.unload()
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0] if key != "held"}


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("case", "name", "ranks"),
    [
        ("four_fsdp", "gqa", 4),
        ("replicate_gqa", "gqa", 2),
        ("fsdp_gqa", "gqa", 2),
        ("fsdp_tied", "tied", 2),
        ("fsdp_mixtral", "mixtral", 2),
        ("fsdp_gpt2", "gpt2", 2),
    ],
)
def test_members_over_the_ranks_of_a_cut_base_compute_what_they_compute_alone(
    folder: Path, case: str, name: str, ranks: int
) -> None:
    expected = alone(folder, name, at_once=sharded_ranks.MEMBERS // ranks)
    for rank in range(ranks):
        found = of_rank(folder, case, rank)
        for key, values in expected.items():
            assert torch.equal(found[key], values), (key, relative(found[key], values))


@pytest.mark.parametrize(("case", "name", "ranks"), [("four_fsdp", "gqa", 4), ("fsdp_gpt2", "gpt2", 2)])
def test_each_rank_holds_its_share_of_a_cut_base(folder: Path, case: str, name: str, ranks: int) -> None:
    total = sum(parameter.numel() for parameter in build(name).parameters())
    held = int(of_rank(folder, case)["held"])
    assert total / ranks <= held < 1.1 * total / ranks  # a first axis that does not divide is rounded up


@pytest.mark.parametrize("name", ["gqa", "tied"])
def test_a_tensor_parallel_base_differs_by_the_order_of_sums_alone(folder: Path, name: str) -> None:
    expected = alone(folder, f"{name}_float64")
    for rank in range(2):
        found = of_rank(folder, f"tp_{name}_float64", rank)
        assert torch.equal(found["a"], expected["a"])
        assert relative(found["logits"], expected["logits"]) < 1e-13
        for key in ("gradient_a", "gradient_b"):  # summed in float32, which rounds by 6e-8
            assert relative(found[key], expected[key]) < 2e-7


@pytest.mark.parametrize(
    ("case", "name"), [("four_tp", "gqa"), ("tp_gqa", "gqa"), ("tp_tied", "tied"), ("tp_mixtral", "mixtral")]
)
def test_a_tensor_parallel_base_in_float32_differs_by_its_rounding(
    folder: Path, case: str, name: str
) -> None:
    expected, found = alone(folder, name), of_rank(folder, case)
    assert torch.equal(found["a"], expected["a"])
    for key in ("logits", "gradient_a", "gradient_b"):  # sums of some dozen numbers, through two layers
        assert relative(found[key], expected[key]) < 2e-6


def files(folder: Path) -> dict[str, bytes]:
    """The files of a run that are the same every time, by their names."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "tfevents" not in path.name and path.name != "environment.json"
    }


def test_a_run_over_ranks_that_share_the_members_writes_what_one_process_writes(folder: Path) -> None:
    expected = sharded_ranks.trained(
        sharded_ranks.ensemble("gqa", folder / "bases"), folder / "alone_trained"
    )
    of_one = files(folder / "alone_trained")
    for case in ("replicate_trained", "fsdp_trained"):
        for rank in range(2):
            assert torch.equal(of_rank(folder, case, rank)["log_probs"], expected["log_probs"])
        written = files(folder / case)
        assert written.keys() == of_one.keys()
        assert [name for name in written if written[name] != of_one[name]] == []


def test_members_above_a_trunk_train_over_the_ranks_of_a_cut_base(folder: Path) -> None:
    expected = sharded_ranks.trained(sharded_ranks.ensemble("gqa", folder / "bases", layers=[1]), None)
    assert torch.equal(of_rank(folder, "fsdp_trunk")["log_probs"], expected["log_probs"])


def test_ranks_that_need_different_numbers_of_chunks_of_logits_make_as_many(folder: Path) -> None:
    expected = sharded_ranks.in_chunks(sharded_ranks.ensemble("gqa", folder / "bases"), None)
    # The chunks are cut elsewhere, so the sums of gradients over them round otherwise, by 1e-7, which the
    # first steps of Adam magnify where a gradient is close to zero.
    torch.testing.assert_close(of_rank(folder, "fsdp_in_chunks")["b"], expected["b"], rtol=0, atol=1e-4)


def weights_of(folder: Path) -> dict[str, Tensor]:
    return {
        f"{path.parent.name}/{name}": tensor
        for path in sorted(folder.glob("member_*/adapter_model.safetensors"))
        for name, tensor in load_file(path).items()
    }


def assert_same_members(found: Path, expected: Path) -> None:
    weights, of_one = weights_of(found), weights_of(expected)
    assert weights.keys() == of_one.keys()
    for name, tensor in of_one.items():
        assert relative(weights[name], tensor) < 1e-6, name
    for path in expected.glob("member_*/adapter_config.json"):
        assert (found / path.relative_to(expected)).read_bytes() == path.read_bytes()
    assert (found / "ensemble.json").read_text().count("member_") == sharded_ranks.MEMBERS


@pytest.mark.parametrize(("case", "trained"), [("fsdp_loaded", "fsdp_trained"), ("tp_loaded", "tp_trained")])
def test_a_saved_ensemble_is_loaded_on_a_base_over_ranks(folder: Path, case: str, trained: str) -> None:
    for rank in range(2):
        log_probs = of_rank(folder, trained, rank)["log_probs"]
        assert torch.equal(of_rank(folder, case, rank)["log_probs"], log_probs)


@pytest.fixture(scope="module")
def alone_in_float64(folder: Path) -> Path:
    sharded_ranks.trained(sharded_ranks.ensemble("gqa_float64", folder / "bases"), folder / "alone_float64")
    return folder / "alone_float64"


def test_steps_on_a_tensor_parallel_base_with_clipping_decay_and_dropout_are_those_of_one_process(
    folder: Path, alone_in_float64: Path
) -> None:
    assert_same_members(folder / "tp_trained", alone_in_float64)


def test_a_run_over_ranks_that_a_signal_to_one_ended_goes_on_in_one_process(
    folder: Path, alone_in_float64: Path
) -> None:
    for rank in range(2):
        assert "after step 1 of 2" in message(folder, "tp_interrupted", rank)
    out = folder / "tp_interrupted"
    assert not (out / "ensemble.json").exists()
    made = sharded_ranks.ensemble("gqa_float64", folder / "bases")
    examples = sharded_ranks.letter_examples()
    sharded_ranks.train(
        made, examples, sharded_ranks.config(), validation=examples[:4], out=out, resume=True, progress=False
    )
    assert_same_members(out, alone_in_float64)


def test_the_command_line_under_torchrun_writes_the_folder_of_one_process(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message(folder, "fsdp_command_line") == ""
    assert main([*sharded_ranks.arguments(folder), "--out", str(folder / "cli_alone")]) == 0
    capsys.readouterr()
    written, of_one = files(folder / "cli_fsdp"), files(folder / "cli_alone")
    assert [name for name in of_one if written.get(name) != of_one[name]] == []


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("fsdp_uneven", "3 members do not split evenly over 2 ranks"),
        ("fsdp_generation", "needs all members in one process"),
        ("four_tp_heads", "num_key_value_heads=2, which 4 ranks do not share evenly"),
        ("tp_gpt2", "GPT2LMHeadModel has no plan of tensor parallelism"),
        ("tp_phi3", "layer 'model.layers.0.self_attn.qkv_proj' is 'colwise_gather_output'"),
        ("tp_taken", "rows.jsonl is a file; choose a folder"),
    ],
)
def test_what_the_ranks_cannot_do_is_refused_by_all_of_them(folder: Path, case: str, said: str) -> None:
    for rank in range(2):
        assert said in message(folder, case, rank)


def test_memory_that_runs_out_on_one_rank_is_not_answered_by_fewer_rows(folder: Path) -> None:
    said = message(folder, "fsdp_out_of_memory", rank=1)
    assert said.startswith("TrainingError: no memory left on rank 1 of 2")
    assert "set max_rows" in said


def test_a_rank_that_torchrun_did_not_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match=r"was not started by torchrun \(RANK, .*start it by `torchrun"):
        join_ranks()
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(ConfigError, match="WORLD_SIZE is 1: start 2 or more"):
        join_ranks()


def test_shards_that_are_unknown_or_too_new_for_the_releases_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match="shard='pp'; it is 'fsdp'"):
        load_base(shard="pp")  # type: ignore[arg-type]
    monkeypatch.setattr(sharded, "version", lambda package: "2.6.0+cpu" if package == "torch" else "5.24.0")
    with pytest.raises(ConfigError, match=r"shard='fsdp' needs torch 2\.8 or newer, and 2\.6\.0"):
        load_base(shard="fsdp")


def test_a_quantised_base_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded, "version", lambda package: "9.0")
    with pytest.raises(ConfigError, match=r"shard='fsdp' with a quantised base: .*accelerate#3983"):
        load_base(shard="fsdp", quantization={"load_in_4bit": True, "quant_method": "bitsandbytes"})


def test_a_device_is_not_named_for_all_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    call = "train --task world-cqa --out runs/none --shard-base tp --device cpu"
    assert main(call.split()) == 2
    assert "--device cpu: with several processes each takes the GPU of its number" in capsys.readouterr().err


def test_a_base_that_accelerate_spread_over_devices_is_refused() -> None:
    base = build("llama")
    base.hf_device_map = {"model.layers.0": 0, "model.layers.1": "cpu"}
    with pytest.raises(AdapterError, match=r"dispatched over several devices \(0, cpu\).*load it without"):
        LoraEnsemble(base, tokenizer(), num_members=2)
    offloaded = cpu_offload(build("llama"), execution_device=torch.device("cpu"))
    with pytest.raises(AdapterError, match="is offloaded, and comes to the device when it runs"):
        LoraEnsemble(offloaded, tokenizer(), num_members=2)


def test_the_package_is_a_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lora_ensembles", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("lora_ensembles", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip()
