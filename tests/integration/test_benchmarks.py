"""Every benchmark runs on a minimal shape and says what it promises; its check of equal results sees a
difference; its limits are right.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from breadth import LONG

REPOSITORY = Path(__file__).parents[2]
BENCHMARKS = REPOSITORY / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture(scope="module")
def every_family(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], str]:
    """What `bench.py --quick` prints: its last line, the record it writes, and the whole; rows of one window
    may not hold, and then it ends with 1.
    """
    record, printed = tmp_path_factory.mktemp("bench") / "cpu.json", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.syspath_prepend(BENCHMARKS)
        patch.setattr(sys, "argv", ["bench.py", "--quick", "--windows", "1", "--out", str(record)])
        with pytest.raises(SystemExit) as ended:
            importlib.import_module("bench").main()
    assert ended.value.code in (0, 1)
    output = printed.getvalue()
    return json.loads(output.splitlines()[-1]), json.loads(record.read_text()), output


@LONG
@pytest.mark.slow
def test_all_families_run_in_one_process_and_end_with_the_promised_line(
    every_family: tuple[dict[str, Any], dict[str, Any], str],
) -> None:
    said, whole, _ = every_family
    assert [row["id"] for row in said["rows"]] == [row["id"] for row in whole["rows"]]
    assert len(said["rows"]) == 9
    for row in said["rows"]:
        assert {"id", "ratios", "must", "ok"} <= row.keys()
    for row in whole["rows"]:
        assert row.get("exact", {"ok": True})["ok"], row
    exact = {row["id"]: row["ok"] for row in said["rows"]}
    assert exact["operators"]
    counted = next(row["operators_per_layer"] for row in whole["rows"] if row["id"] == "operators")
    assert counted["M=1"] == counted["M=16"]
    assert counted["M=1"]["forward"] <= 45
    assert counted["M=1"]["backward"] <= 80
    assert exact["memory-tiny"]
    assert {"versions", "device", "commit", "threads"} <= whole["environment"].keys()


@LONG
def test_decoding_counts_one_graph_and_scoring_has_every_peer(
    every_family: tuple[dict[str, Any], dict[str, Any], str],
) -> None:
    rows = {row["id"]: row for row in every_family[1]["rows"]}
    decoded = next(row for row in rows.values() if "graphs" in row)
    graphs = decoded["graphs"]
    assert graphs["ensemble"] == min(1, graphs["merged"])  # 0 where transformers' own model does not compile
    assert decoded["exact"]["same_texts"]
    assert {"A", "A'", "B", "C", "merged"} == decoded["ratios"].keys()
    assert rows["tiny-E1"]["ratios"].keys() == {"A", "A'", "B", "C"}
    assert rows["tiny-E2"]["ratios"].keys() == {"unshared", "C"}


@LONG
def test_training_prints_tokens_limit_memory_operators_and_padding(
    every_family: tuple[dict[str, Any], dict[str, Any], str],
) -> None:
    (row,) = (row for row in every_family[1]["rows"] if row["id"] == "tiny")
    assert {"A", "A'", "B", "C"} == row["ratios"].keys()
    assert row["exact"]["ok"]
    assert row["tokens_a_step"] == 2 * 2 * 8
    assert row["tokens_a_second"] == pytest.approx(
        row["tokens_a_step"] / row["seconds_a_step"]["stacked"], rel=1e-2
    )
    assert row["padding"] == 0
    assert row["peak_bytes"] > 0
    assert row["operators_per_layer"]["forward"] <= 45
    for words in ("tokens/s", "padding", "peak", "operators per layer", "weights apart"):
        assert words in every_family[2]


@pytest.mark.parametrize(("script", "profile"), [("score", "tiny-E2"), ("score", "embedded")])
def test_a_family_by_itself_ends_with_its_row(
    script: str, profile: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--profile", profile, "--windows", "1", "--json"])
    importlib.import_module(script).main()
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert row["exact"]["ok"]


@pytest.mark.parametrize("tuned", [False, True])
def test_plain_arms_score_labels_of_several_tokens_as_the_base_does(tuned: bool) -> None:
    from scoring_arms import is_single, plain_answer, score, tuned_answer

    from lora_ensembles.data import encode_examples
    from tiny_models import build_ensemble, phrase_examples, tokenizer

    ensemble, examples = build_ensemble(members=1), phrase_examples()  # before training: the base
    encoded = encode_examples(examples, tokenizer())
    assert not is_single(encoded)
    with ensemble.base_only() as base:
        answer = tuned_answer(base.model, base.lm_head) if tuned else plain_answer(base)
        found = score(encoded, answer, rows=5, tuned=tuned, device=base.device)
    torch.testing.assert_close(found, ensemble.member_log_probs(examples), atol=1e-5, rtol=1e-5)


def test_a_base_whose_layers_share_their_weights_loads_adapters_as_one_of_that_shape(tmp_path: Path) -> None:
    import startup
    from workloads import SHAPES, build, tokenizer

    from lora_ensembles import LoraEnsemble

    words = tokenizer(SHAPES["tiny"].vocabulary)
    whole = LoraEnsemble(build(SHAPES["tiny"]), words, num_members=2)
    whole.save_pretrained(tmp_path / "saved")
    base = startup.shared_base(SHAPES["tiny"])
    assert len({parameter.data_ptr() for parameter in base.parameters()}) == len(
        {tuple(one.shape) for one in base.parameters()}
    )
    shared = LoraEnsemble(base, words, num_members=1)
    shared.load_members([tmp_path / "saved" / "member_001"], check_base=False)
    for name, expected in whole.stack.member(1).a.items():
        assert torch.equal(shared.stack.member(1).a[name], expected)
    assert len(startup.adapter_seconds("tiny", windows=2)) == 2


def test_breakdown_holds_the_whole_step() -> None:
    import breakdown
    from train import SMALL

    described = dataclasses.replace(SMALL["demo"], steps=3)
    record = breakdown.measure("demo", described, windows=1)
    assert record["task"] == "world-cqa"
    assert record["not_found"] == []
    assert {"base linears", "LoRA", "attention", "head", "optimiser", "data", "logging"} <= record[
        "parts"
    ].keys()
    held = sum(sum(times.values()) for times in record["parts"].values())
    assert held == pytest.approx(record["milliseconds_a_step"])
    assert record["parts"]["base linears"]["backward"] > 0
    assert record["parts"]["LoRA"]["backward"] > 0


def test_weights_of_another_learning_rate_are_not_taken_for_the_same() -> None:
    from peers import TunedPeft, difference
    from train import SMALL
    from training_rows import TOLERANCE, Place, prepare

    setting = prepare(
        "tiny", SMALL["tiny"], Place("cpu", torch.float32, small=False, windows=1), batch=2, members=2
    )
    setting.stacked()
    stacked, initial = setting.ensemble.stack.member(1), setting.work.initial[1]
    same = TunedPeft(setting.work)
    same.train(1)
    assert difference(stacked, same.weights(1), initial) <= TOLERANCE[torch.float32]
    config = dataclasses.replace(setting.work.config, learning_rate=1.01e-3)
    other = TunedPeft(dataclasses.replace(setting.work, config=config))
    other.train(1)
    assert difference(stacked, other.weights(1), initial) > TOLERANCE[torch.float32]
    assert difference(stacked, setting.ensemble.stack.member(0), initial) > TOLERANCE[torch.float32]


def test_log_probabilities_of_other_weights_are_not_taken_for_the_same() -> None:
    import decode

    setting = decode.prepare(decode.SMALL["tiny"], small=False, device="cpu", dtype=torch.float32)
    arms = decode.arms_of(setting, 4, compiled=False)
    assert decode.exactness(setting, arms, 4)["ok"]
    setting.ensemble.stack.set_members([setting.ensemble.stack.member(index) for index in (1, 0)])
    assert not decode.exactness(setting, arms, 4)["ok"]


def test_a_difference_that_is_no_number_is_the_worst() -> None:
    from timing import worst

    assert worst(0.0, float("nan")) != worst(0.0, 1.0)
    assert not worst(0.0, float("nan")) <= 1e9


@pytest.mark.parametrize("allocated", [1000, 250_000])
def test_peak_is_the_largest_sum_of_what_is_held_at_a_time(allocated: int) -> None:
    from memory import peak_bytes

    def hold_two_of_three() -> None:
        first = torch.empty(allocated)
        del first
        second, third = torch.empty(allocated), torch.empty(allocated)
        del second, third

    peak = peak_bytes(hold_two_of_three, "cpu")
    assert 2 * 4 * allocated <= peak <= 2 * 4 * allocated + 256


def test_members_take_16_bytes_a_parameter_and_more_in_a_low_precision() -> None:
    import memory
    from limits import member_bytes, storages
    from workloads import SHAPES, build, sharing

    row = memory.measure("tiny", small=False, device="cpu")
    assert row["ok"]
    assert row["base_in_memory_once"]
    tiny = SHAPES["tiny"]
    # 2 layers, rank 8: A of q and v 2 * 32, B of q 32, B of v 16 (2 of 4 heads).
    assert member_bytes(tiny) == 16 * 2 * 8 * (64 + 32 + 16)
    assert member_bytes(tiny, dtype=torch.bfloat16) == 18 * 2 * 8 * (64 + 32 + 16)
    base = build(tiny)
    assert storages(list(sharing(base).parameters())) == storages(list(base.parameters()))
    assert storages(list(build(tiny).parameters())).isdisjoint(storages(list(base.parameters())))


def test_limits_are_those_of_llama_8b() -> None:
    # By hand from the shape: q and o 4096^2, k and v 4096 * 1024, three of 4096 * 14336, 32 layers; head 4096
    # * 128256.
    from limits import KNOWN, body, decode_seconds, head, lora_parameters, training_flops
    from workloads import SHAPES

    shape = SHAPES["8B"]
    assert body(shape) == 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336) == 6_979_321_856
    assert head(shape) == 525_336_576
    lora = 32 * 8 * (3 * 4096 + 1024)
    assert lora_parameters(shape) == lora
    every_logit = 4 * (6_979_321_856 + 525_336_576) + 12 * 32 * 4096 * 256 + 6 * lora
    assert training_flops(shape, length=512, answers=512) == pytest.approx(every_logit)
    for members, milliseconds in (
        (1, 3.16),
        (8, 3.36),
    ):  # bytes: base, adapters, 128 KiB a token of keys and values, over 4.8 TB/s
        read = 2 * (6_979_321_856 + 525_336_576 + members * lora) + members * 1024 * 131_072
        seconds = decode_seconds(shape, KNOWN["H200"], members=members, rows=1, seen=1024, element=2)
        assert seconds == pytest.approx(read / 4.8e12)
        assert 1000 * seconds == pytest.approx(milliseconds, abs=0.01)


def test_padding_is_what_rows_lack_to_the_longest_of_their_step() -> None:
    from workloads import padding

    steps = [torch.tensor([[3, 5], [1, 4]]), torch.tensor([[4, 1], [5, 3]])]
    long = [100 * lengths for lengths in steps]
    assert padding(steps, torch.device("cpu")) == (26, 4 * 5 + 4 * 5)
    assert padding(long, torch.device("cpu")) == (2600, 2 * (300 + 500) + 2 * (300 + 500))
    assert padding(long, torch.device("cuda")) == (2600, 4 * 500 + 4 * 500)


def test_page_is_what_the_records_give() -> None:
    import report

    assert report.PAGE.read_text() == report.page()


def test_page_says_what_was_not_measured_and_what_does_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import report

    monkeypatch.setattr(report, "RECORDS", tmp_path)
    assert report.page().count("not measured") == len(report.MEANING)
    made = {"device": "NVIDIA H200", "threads": 1, "platform": "Linux", "commit": "0", "versions": {}}
    row = {
        "id": "D1",
        "scaled": False,
        "ratios": {"A": 3.0, "C": 0.2},
        "must": {"A": 5.0},
        "at_most": {},
        "ok": False,
    }
    (tmp_path / "h200-D1.json").write_text(json.dumps({"rows": [row], "environment": made}))
    page = report.page()
    assert page.count("not measured") == len(report.MEANING) - 1
    (line,) = [line for line in page.splitlines() if line.startswith("| D1")]
    assert "3.00" in line
    assert "**no**" in line


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
@LONG
def test_a_prediction_that_is_killed_twice_has_every_row_once_and_its_memory_is_flat(tmp_path: Path) -> None:
    import predict_stream

    row = predict_stream.measure(tmp_path, 6000)

    assert [stop["exit_code"] for stop in row["stops"]] == [-9, 143]
    assert row["ok"], row


def test_an_answer_to_another_case_is_not_taken_for_the_right_one() -> None:
    from serve_load import ROUTES, Case, right

    case = Case(ROUTES["decisions"], {}, [[0.25, 0.75, 0.0], [0.5, 0.3, 0.2]])
    answers = [{"probability": 0.25}, {"probabilities": [{"probability": p} for p in (0.5, 0.3, 0.2)]}]
    assert right(case, {"answers": answers})
    assert not right(case, {"answers": [{"probability": 0.2501}, answers[1]]})
    written = Case(ROUTES["completions"], {}, ("a b", [-0.5, -1.0]))
    choice = {"text": "a b", "logprobs": {"token_logprobs": [-0.5, -1.0]}}
    assert right(written, {"choices": [choice]})
    assert not right(written, {"choices": [{**choice, "text": "a c"}]})
    assert not right(written, {"choices": [{**choice, "logprobs": {"token_logprobs": [-0.5, -1.001]}}]})
