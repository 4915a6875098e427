"""A study of members with heads of their own: an encoder built in code, from the choice of the decay to the
claims.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import tiny_heads
from breadth import LONG
from lora_ensembles.data import Example, Task
from lora_ensembles.prediction.evaluation import evaluate
from lora_ensembles.prediction.prediction import predict
from lora_ensembles.studies import grid as grids, measuring
from lora_ensembles.studies.arms import Arm
from lora_ensembles.studies.claims.judge import Claim, judge
from lora_ensembles.studies.grid import ENCODER, Grid, settings_of
from lora_ensembles.studies.kinds.choice import ChoiceConfig, choice, chosen
from lora_ensembles.studies.kinds.methods import MethodsConfig
from lora_ensembles.studies.kinds.paper import PaperConfig
from lora_ensembles.studies.kinds.rank import RankConfig
from lora_ensembles.studies.kinds.strength import StrengthConfig
from lora_ensembles.studies.predictions import Sheet
from lora_ensembles.studies.report import open_tables, tables
from lora_ensembles.studies.report.figures import DRAWINGS
from lora_ensembles.studies.runner import run_grid
from lora_ensembles.studies.setting import Bench
from lora_ensembles.studies.shared import Heads, Shared
from lora_ensembles.training import loop
from lora_ensembles.training.signals import Interrupted

TINY = Grid(
    "tiny",
    tasks=("words",),
    few_tasks=("words",),
    open_tasks=("words",),
    seeds=(0, 1),
    open_seeds=1,
    shared=Shared("tiny BERT", 2, 5e-3, 4, snapshots=(1, 2, 3, 4), limit=(None,) * 3),
    heads=Heads("multiple-choice", layers=(1,)),
    paper=PaperConfig(kl=(), pool=3),
    methods=MethodsConfig(folds=2),
    rank=RankConfig((1, 4)),
    strength=StrengthConfig((), (0.1,)),
    choice=ChoiceConfig((0.1, 0.6), held_out=0.3),
)


def questions(start: int) -> tuple[Example, ...]:
    found = []
    for n, one in enumerate(tiny_heads.choice_examples()):
        found.append(
            Example(
                f"{start}-{n}",
                f"{start}: {one.prompt}",
                one.labels,
                one.target,
                f"{one.question} {'the ' * start}".strip(),
                one.options,
            )
        )
    return tuple(found)


def load() -> tuple[Any, Any]:
    return tiny_heads.build("bert", "multiple-choice"), tiny_heads.tokenizer()


def a_bench() -> Bench:
    task = Task("words", questions(0) + questions(1), questions(2))
    return Bench(task, questions(3), load(), TINY.shared, TINY.heads)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[Claim]]:
    """The folder, the records by kind and the claims of the whole tiny grid."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "load_bench", lambda name, *_, **__: a_bench())
        found = run_grid(TINY, folder, load, say=lambda _: None)
    return folder, {kind: list(rows) for kind, rows in found.items()}, judge(found)


def test_adapters_are_on_the_layers_that_the_grid_names_and_members_own_their_heads() -> None:
    run = a_bench().train([Arm("none")], seed=0)
    assert {site.name.split(".")[3] for site in run.ensemble.stack.sites} == {"1"}
    assert run.ensemble.trunk is not None
    assert set(run.ensemble.stack.member(0).head) == {"classifier.weight", "classifier.bias"}


def test_the_chosen_strength_has_the_lowest_nll_on_questions_that_were_held_out_of_training() -> None:
    found = choice(TINY.choice, a_bench(), Sheet(), seed=0)
    held_out, rest = a_bench().held_out(share=TINY.choice.held_out, seed=0)
    assert found["sizes"] == {"held_out": len(held_out), "train": len(rest)}
    assert not {one.id for one in held_out} & {one.id for one in rest}
    for share, nll in zip(TINY.choice.choose, found["nll"], strict=True):
        arm = Arm("alone", weight_decay_b=share / TINY.shared.learning_rate)
        alone = a_bench().train([arm], seed=0, examples=rest)
        assert nll == pytest.approx(evaluate(predict(alone.ensemble, held_out)).nll, abs=1e-4)
    share = chosen(TINY.choice, [{"result": {"nll": [0.5, 0.9]}}, {"result": {"nll": [0.8, 0.2]}}])
    decayed = TINY.decayed(share)
    assert (decayed.paper.decay, decayed.paper.decays, decayed.methods.decay) == (0.6, (0.6,), 0.6)


@LONG
def test_records_say_the_head_the_layers_and_where_the_decay_comes_from(
    study: tuple[Path, dict[str, Any], list[Claim]],
) -> None:
    _, records, _ = study
    assert {kind: len(rows) for kind, rows in records.items()} == {
        "choice": 1,
        "sweep": 2,
        "randomness": 2,
        "pool": 2,
        "few_shot": 0,
        "last_layer": 2,
        "methods": 1,
        "initialisation": 1,
        "rank": 1,
        "strength": 1,
    }
    settings = records["sweep"][0]["settings"]
    assert settings["head"] == "multiple-choice"
    assert settings["layers"] == [1]
    assert settings["decays"] == [settings["decay"]]
    assert settings["decay"] in TINY.choice.choose
    assert settings["decay_chosen_on"] == "0.3 of the training questions, held out"
    assert {"single member", "ensemble", "MC dropout", "last-layer ensemble"} < set(
        records["methods"][0]["result"]["methods"]
    )
    assert not {"few-shot base", "BatchEnsemble"} & set(records["methods"][0]["result"]["methods"])


@LONG
def test_a_part_of_the_grid_has_the_strength_that_the_whole_grid_chose(
    study: tuple[Path, dict[str, Any], list[Claim]],
) -> None:
    folder, records, _ = study
    part = run_grid(
        TINY, folder, load, kinds=("sweep", "pool"), seeds=TINY.seeds[1:], say=lambda _: None
    )  # all of them are there
    assert part == {"choice": records["choice"], "sweep": records["sweep"][1:], "pool": records["pool"][1:]}
    assert not run_grid(TINY, folder, load, kinds=("sweep",), tasks=("another",), say=lambda _: None)["sweep"]


@LONG
def test_claims_that_the_head_allows_have_intervals_and_the_others_a_reason(
    study: tuple[Path, dict[str, Any], list[Claim]],
) -> None:
    _, _, claims = study
    judged = {claim.id: claim for claim in claims}
    for name in ("C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "C9"):
        assert judged[name].verdict == "inconclusive", name  # one task decides nothing
    assert "no distribution over the answers" in judged["C2"].reason
    assert "few-shot prompts" in judged["C11"].reason
    missing = {part.name for part in judged["C11"].parts if part.verdict == "not applicable"}
    assert "accuracy, few-shot against single member" in missing


@LONG
def test_every_figure_and_table_but_the_few_shot_one_is_made_of_records_of_heads(
    study: tuple[Path, dict[str, Any], list[Claim]],
) -> None:
    _, found, _ = study
    records = {kind: rows for kind, rows in found.items() if rows}
    drawn = {
        drawing.name
        for drawing in DRAWINGS
        if set(drawing.needs) <= set(records) and drawing.draw(records).axes
    }
    assert drawn == {drawing.name for drawing in DRAWINGS} - {"figure_1a"}
    for table in (
        tables.table_1,
        tables.table_2,
        tables.side_by_side,
        tables.costs,
        open_tables.methods,
        open_tables.strength,
    ):
        assert table(records).rows


def test_settings_of_label_tokens_do_not_name_a_head() -> None:
    assert "head" not in settings_of(grids.FULL, "sweep", "world-cqa", 0)
    assert json.dumps(settings_of(ENCODER, "sweep", "arcc", 0))


ONE_SWEEP = dataclasses.replace(TINY, seeds=(0,), choice=None)


class Steps:
    """Counts the steps of training, and stops the program at one of them."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.made, self.stop = 0, -1
        step = loop._guarded_step

        def counted(*arguments: Any) -> Any:
            if self.made == self.stop:
                raise Interrupted("terminated", 15)
            self.made += 1
            return step(*arguments)

        patch.setattr(loop, "_guarded_step", counted)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    def bench(name: str, grid: Grid, load_model: Any, *, ood: bool, under_way: Any) -> Any:
        return dataclasses.replace(a_bench(), under_way=under_way)

    monkeypatch.setattr(measuring, "load_bench", bench)
    return Steps(monkeypatch)


def swept(folder: Path) -> dict[str, Any]:
    (record,) = run_grid(ONE_SWEEP, folder, load, kinds=("sweep",), say=lambda _: None)["sweep"]
    result = dict(record["result"])
    assert result.pop("seconds") > 0
    (kept,) = folder.glob("*.safetensors")
    return result | {"kept": {name: tensor.tolist() for name, tensor in load_file(kept).items()}}


def test_a_record_goes_on_from_the_last_epoch_of_the_run_that_was_stopped(
    steps: Steps, tmp_path: Path
) -> None:
    whole = swept(tmp_path / "whole")
    total, out = steps.made, tmp_path / "stopped"

    # In the first of two runs, of which two epochs of four are kept, and at the end of the second.
    for stop in (total // 3, total - total // 4 - 1):
        steps.made, steps.stop = 0, stop
        with pytest.raises(Interrupted, match=r"^terminated; the same command goes on from there$"):
            swept(out)
        assert (out / "unfinished").is_dir()
        assert not list(out.glob("*.json"))
    steps.made, steps.stop = 0, -1
    assert swept(out) == whole
    assert steps.made < total / 4
    assert not (out / "unfinished").exists()
