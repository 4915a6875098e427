"""`lora-ensembles study methods --protocol published`: a tiny run of it, and everything it names."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from command_line import call
from lora_ensembles.data import load_ood, load_task, ood_names, task_names
from lora_ensembles.studies import check, grid
from lora_ensembles.studies.comparison.budget import Settings
from lora_ensembles.studies.comparison.measure import ProtocolConfig
from lora_ensembles.studies.comparison.methods import METHODS, VARIANTS, Place
from lora_ensembles.studies.report.published import COLUMNS, SHORT
from lora_ensembles.studies.store import by_kind
from lora_ensembles.training.config import TrainConfig
from published_data import write_published
from tiny_ensembles import llama, tokenizer

CHOSEN = {name: grid.PUBLISHED.published.chosen[name] for name in ("ensemble, decay of B", "BLoB")}
TINY = dataclasses.replace(
    grid.PUBLISHED,
    tasks=("winogrande-s", "obqa-dev", "boolq"),
    published=ProtocolConfig(steps=3, members=2, samples=3, folds=2, chosen=CHOSEN),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base and with data, and a protocol of two methods and three steps."""
    monkeypatch.setattr(grid, "PUBLISHED", TINY)
    llama(window=512).save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    write_published(tmp_path / "data")
    return tmp_path


def test_the_protocol_goes_from_data_to_tables(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    words = ("study", "methods", "--protocol", "published", "--base", folder / "base")
    words += ("--data", folder / "data", "--out", folder / "out", "--seeds", "0")
    done = call(capsys, *words, "--tasks", "winogrande-s,obqa-dev", "--json")
    assert done.code == 0, done.err
    assert done.summary["records"] == {"published": 2}
    header = next(line for line in done.out.splitlines() if line.startswith("method, ECE"))
    assert header.endswith("OBQA to Phy")
    assert [header.count(name) for name in ("WG-S", "WG-M", "BoolQ", "OBQA to ")] == [1, 0, 0, 4]
    records = {record["settings"]["task"]: record for record in by_kind(folder / "out")["published"]}
    result = records["obqa-dev"]["result"]
    outside = TINY.elsewhere[0][1]
    assert {name: result["sizes"][name] for name in outside} == dict(zip(outside, (6, 6, 3, 3), strict=True))
    for name, part in result["methods"].items():
        assert list(part["elsewhere"]) == list(outside)
        assert all(set(rows) == {"raw", "scaled"} for rows in part["elsewhere"].values())
        # 3 steps of 4 rows of 8 questions are one pass and a half, of each member.
        assert part["training_passes"] == (3.0 if name == "ensemble, decay of B" else 1.5)
        assert part["rows"] == (2 if name == "ensemble, decay of B" else 3)
    assert "elsewhere" not in records["winogrande-s"]["result"]["methods"]["BLoB"]
    checked = check.check(folder / "out")
    assert (checked.records, checked.wrong) == (2, ())
    assert checked.parts == 2 * (2 + 2 + 2 * 4)

    again = call(capsys, "report", folder / "out")
    assert (again.code, again.out.strip()) == (0, "\n".join(done.out.splitlines()[:-1]).strip())
    assert "docs/methods.md has the published numbers" in again.err
    elsewhere = call(capsys, "report", folder / "out", "--out", folder / "page")
    assert (elsewhere.code, (folder / "page").exists()) == (2, False)
    assert "have tables and no page" in elsewhere.err

    before = {path: path.stat().st_mtime_ns for path in (folder / "out").glob("*.json")}
    assert call(capsys, *words).code == 0  # what is there is not measured again
    assert len(list((folder / "out").glob("*.json"))) == 3
    assert all(path.stat().st_mtime_ns == moment for path, moment in before.items())


def test_everything_that_the_protocol_names_is_there(tmp_path: Path) -> None:
    whole, config = grid.PUBLISHED, grid.PUBLISHED.published
    write_published(tmp_path)
    assert set(whole.tasks) <= set(task_names())
    for task in whole.tasks:
        assert load_task(task, data=tmp_path).train
    for task, others in whole.elsewhere:
        assert task in whole.tasks
        assert set(others) <= set(ood_names())
        assert all(load_ood(other, data=tmp_path) for other in others)
    assert set(config.chosen) <= {*METHODS, *VARIANTS}
    for settings in config.chosen.values():
        assert Settings(**settings).learning_rate == 1e-4
    assert (config.steps, config.members, config.samples) == (5000, 3, 10)
    assert (whole.seeds, whole.asking.alpha, whole.asking.batch_size) == ((0, 1, 2), 16, 4)
    assert all(task in SHORT and (other is None or other in SHORT) for task, other in COLUMNS)


def test_a_record_by_the_protocol_is_keyed_by_all_of_it() -> None:
    settings = grid.settings_of(
        grid.PUBLISHED.having(shared={"base": "tiny"}), grid.BY_PROTOCOL, "obqa-dev", 1
    )
    assert settings["elsewhere"] == list(grid.PUBLISHED.elsewhere[0][1])
    assert {name: settings[name] for name in ("base", "steps", "members", "samples", "alpha", "loss")} == {
        "base": "tiny",
        "steps": 5000,
        "members": 3,
        "samples": 10,
        "alpha": 16,
        "loss": "labels",
    }
    assert json.loads(json.dumps(settings)) == settings


@pytest.mark.parametrize("start", [grid.FULL, grid.PAPER, grid.ENCODER, grid.SMOLLM2])
def test_records_of_other_grids_keep_their_keys(start: grid.Grid) -> None:
    for kind in ("sweep", "methods", "comparison", "trials"):
        settings = grid.settings_of(start, kind, start.tasks[0], 0)
        assert not {"alpha", "elsewhere", "steps"} & set(settings)


def test_members_take_the_steps_of_the_protocol_whatever_the_number_of_questions() -> None:
    """5,000 steps of 4 rows over 640 questions, 160 steps an epoch, end within the 32nd."""

    class Bench:
        config = TrainConfig(batch_size=4)

    place = Place(Bench(), grid.PUBLISHED.published.place(Bench(), seed=0).budget, 0, steps=5000)  # type: ignore[arg-type]
    settings, share = place.lasting(Settings(1e-4, 0, 0.1), [None] * 640)  # type: ignore[list-item]
    config = place.config(settings)
    assert (settings.epochs, config.max_steps, config.warmup_steps) == (32, 5000, 300)
    assert (config.schedule, share) == ("linear", pytest.approx(5000 / (32 * 160)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["study", "all", "--base", "b"], "use `study methods --protocol published`"),
        (["study", "methods"], "--base NAME is needed"),
        (["study", "methods", "--base", "b", "--budget", "5"], "--budget with --protocol"),
        (["study", "methods", "--base", "b", "--members", "5", "--quick"], "--members, --quick with --prot"),
        (["study", "methods", "--base", "b", "--tasks", "boolqq"], "did you mean 'boolq'"),
        (["study", "methods", "--base", "b", "--tasks", "cqa"], "unknown task 'cqa'"),
        (["study", "methods", "--base", "b", "--seeds", "a"], "whole numbers"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_two(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(capsys, *words, "--protocol", "published", "--out", "x")
    assert done.code == 2
    assert message in done.err
    assert list(Path().iterdir()) == []
