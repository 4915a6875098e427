"""The demo and its report, with settings of a few seconds."""

from __future__ import annotations

import html
import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

from command_line import base_folder, call
from lora_ensembles import (
    CheckpointError,
    ConfigError,
    LoraEnsemble,
    MissingExtraError,
    TrainConfig,
    evaluate,
    load_base,
    predict,
    train,
)
from lora_ensembles.baselines import FewShot
from lora_ensembles.studies.demo import NAMES, DemoSettings, check_ready, compare, run_demo, twice
from lora_ensembles.studies.demo.page import reading
from lora_ensembles.studies.report.page import Section, Table, page, paragraph, pictures

TINY = DemoSettings(train_questions=24, validation_questions=16, ood_questions=12, epochs=2, shots=1, draws=2)
ROWS = ("few_shot", "single", "ensemble", "ensemble_decay")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("runs") / "demo"
    return run_demo(out, members=2, seed=1, model=load_base(base_folder()), settings=TINY, progress=False)


@pytest.fixture(scope="module")
def compared():
    return compare("world-arcc", members=2, seed=1, model=load_base(base_folder()), settings=TINY)


def test_demo_measures_every_row_and_metric(demo):
    content = json.loads(json.dumps(demo.to_dict()))
    assert set(content) == {*ROWS, "seconds", "report"}
    for row in ROWS:
        assert {name: type(content[row][name]) for name in NAMES} == dict.fromkeys(NAMES, float)
    assert [len(row) for row in demo.table.rows] == [6] * 4
    assert "±" in str(demo.table).splitlines()[2]


def test_demo_numbers_are_those_of_its_saved_ensembles(demo, compared):
    for row in ("ensemble", "ensemble_decay"):
        ensemble = LoraEnsemble.from_pretrained(demo.report.parent / row)
        assert ensemble.num_members == 2
        measured = evaluate(predict(ensemble, compared.task.validation))
        assert demo.metrics[row]["nll"] == pytest.approx(
            measured.nll, abs=1e-5
        )  # fp32 sums in another batch size


def test_both_arms_of_the_demo_are_what_they_would_be_alone(compared):
    """The plain and the decayed ensemble in one stack of four equal two ensembles of two, trained one after
    the other from equal seeds.
    """
    for arm, decay in ((compared.plain, TINY.plain_decay_b), (compared.decayed, TINY.decay_b)):
        alone = LoraEnsemble(*load_base(base_folder()), num_members=2, seed=1)
        config = TrainConfig(
            epochs=TINY.epochs,
            batch_size=TINY.batch_size,
            learning_rate=TINY.learning_rate,
            weight_decay_b=decay,
        )
        train(alone, compared.task.train, config, progress=False)
        expected = predict(alone, compared.task.validation).member_log_probs
        torch.testing.assert_close(
            arm.prediction.member_log_probs, expected, atol=1e-4, rtol=0
        )  # fp32, through 4 steps of Adam
    assert (
        compared.plain.prediction.member_log_probs - compared.decayed.prediction.member_log_probs
    ).abs().max() > 1e-3


def test_few_shot_row_is_the_mean_over_draws_of_the_untouched_base(compared):
    few_shot = FewShot(
        *load_base(base_folder()), compared.task.train, shots=TINY.shots, draws=TINY.draws, seed=1
    )
    prediction = predict(few_shot, compared.task.validation)
    expected = sum(evaluate(prediction.member(draw)).nll for draw in range(TINY.draws)) / TINY.draws
    assert compared.metrics()["few_shot"]["nll"] == pytest.approx(expected, abs=1e-6)


def test_twice_repeats_weights_and_seeds():
    ensemble = twice(LoraEnsemble(*load_base(base_folder()), num_members=2, seed=4))
    assert ensemble.num_members == 4
    assert torch.equal(ensemble.stack.a[:2], ensemble.stack.a[2:])
    assert ensemble.info.seeds[:2] == ensemble.info.seeds[2:]
    assert not torch.equal(ensemble.stack.a[0], ensemble.stack.a[1])


def test_report_needs_no_other_file_and_no_network(demo):
    text = demo.report.read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "<script" not in text
    assert "@import" not in text
    assert "url(" not in text


def test_report_shows_three_questions_with_every_members_vote(demo):
    text = demo.report.read_text(encoding="utf-8")
    assert text.count("<h3>") == 3
    assert text.count("<td>member 0</td>") == text.count("<td>member 1</td>") == 3
    assert text.count("class=chosen") == 3 * (2 + 1)  # each member's vote and the ensemble's
    assert "decay_b" in text
    assert "torch" in text


def test_demo_folder_holds_numbers_and_pictures(demo):
    folder = demo.report.parent
    for name in ("reliability.png", "risk_coverage.png", "wrong_confidence.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    content = json.loads((folder / "results.json").read_text())
    assert content["ensemble"] == demo.metrics["ensemble"]
    assert content["settings"]["epochs"] == TINY.epochs
    assert len(content["member_seeds"]) == 2


def test_demo_says_what_every_row_is_and_how_far_the_ensemble_is_from_its_members(demo):
    assert list(demo.meanings) == [row[0] for row in demo.table.rows]
    for name, shown in (("accuracy", "accuracy is"), ("nll", "NLL"), ("ece", "ECE")):
        change = round(demo.metrics["ensemble"][name] - demo.metrics["single"][name], 3)
        words = "the same" if change == 0 else f"{'lower' if change < 0 else 'higher'} by {abs(change):.3f}"
        assert f"{shown} {words}" in demo.sentences[0]
    text = demo.report.read_text(encoding="utf-8")
    for sentence in (*demo.meanings.values(), *demo.sentences):
        assert html.escape(sentence) in text


@pytest.mark.parametrize(("auroc", "near"), [(0.9, False), (0.52, True)])
def test_demo_says_which_column_is_near_chance(demo, compared, auroc, near):
    rows = {row: {**values, "ood_auroc": auroc} for row, values in demo.metrics.items()}
    last = reading(rows, compared.decayed.single, options=4, ood="world-mmlu")[-1]
    assert "0.5 is chance" in last
    assert ("Here every row is near it" in last) is near


def test_settings_of_the_demo_are_folded_away(demo):
    text = demo.report.read_text(encoding="utf-8")
    folded = re.search(r"<details>(.*?)</details>", text, re.S).group(1)
    assert "learning_rate" in folded
    assert "learning_rate" not in text.replace(folded, "")


def test_demo_replaces_only_an_earlier_demo_and_only_when_asked(demo, tmp_path):
    folder = demo.report.parent
    with pytest.raises(CheckpointError, match=r"exists already; .* overwrite=True"):
        check_ready(folder, task="world-cqa", overwrite=False)
    check_ready(folder, task="world-cqa", overwrite=True)
    (tmp_path / "precious").write_text("")
    with pytest.raises(CheckpointError, match="does not hold an earlier demo"):
        check_ready(tmp_path, task="world-cqa", overwrite=True)


def test_demo_without_matplotlib_fails_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"lora-ensembles\[plots\]"):
        run_demo(tmp_path / "demo")


def test_demo_task_needs_an_out_of_distribution_set(tmp_path):
    with pytest.raises(ConfigError, match=r"'world-obqa'.*Known: .*world-cqa"):
        run_demo(tmp_path / "demo", task="world-obqa")


def test_demo_verb_ends_with_its_numbers_and_overwrites_when_asked(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("lora_ensembles.studies.demo.run.DemoSettings", lambda: TINY)
    words = ["demo", "--base", base_folder(), "--members", 2, "--no-progress", "--out", tmp_path / "demo"]
    done = call(capsys, *words, "--json")
    assert done.code == 0
    assert set(done.summary) == {*ROWS, "seconds", "report"}
    assert Path(done.summary["report"]).is_file()
    assert "ensemble of 2, decay of B" in done.out
    assert call(capsys, *words).code == 2
    assert call(capsys, *words, "--overwrite").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_table_is_aligned_as_text_and_escaped_as_html():
    table = Table(("", "a < b"), (("one", "0.1"), ("three", "22.05")), chosen=frozenset({(1, 1)}))
    assert str(table).splitlines() == ["       a < b", "one      0.1", "three  22.05"]
    assert "a &lt; b" in table.to_html()
    assert "<td class=chosen>22.05</td>" in table.to_html()


def test_page_escapes_what_it_shows():
    text = page(
        "<title>",
        [Section("<heading>", (paragraph("a & b"), pictures([(b"x", '"quoted"')])))],
        intro="<intro>",
    )
    for raw in ("<heading>", "a & b", '"quoted"', "<intro>"):
        assert raw not in text
    assert text.startswith("<!doctype html>")
