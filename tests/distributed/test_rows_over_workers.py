"""Rows answered by the workers of a Ray cluster are those of one process, byte for byte: each once and in
order, also where workers are killed, and where a run is stopped and goes on in another way.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from breadth import LONG
from command_line import Outcome, base_folder, call
from killing import processes_named, workers_killed
from lora_ensembles import LoraEnsemble, load_base
from lora_ensembles.cli.screen import partial
from lora_ensembles.distributed import streams
from lora_ensembles.distributed.cluster import Workers, cluster
from lora_ensembles.distributed.streams import map_stream
from lora_ensembles.errors import ConfigError, DataError
from tiny_ensembles import adapter, files_below

COUNT = 700  # rows, which are three parts
OPTIONS = ["planet", "star", "moon"]
ON_RAY = ("--on", "ray", "--workers", 2)
WORKER = "ray::MapWorker"
# Ray Data warns of its own old settings where it copies them.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


@pytest.fixture(scope="module", autouse=True)
def connected() -> Iterator[Any]:
    """One cluster of this machine for all tests."""
    with cluster() as ray:
        yield ray


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "cqa"
    ensemble = LoraEnsemble(*load_base(base_folder()), num_members=2, adapter=adapter())
    ensemble.stack.b.normal_()
    ensemble.save_pretrained(path)
    return path


def write(path: Path, *, count: int = COUNT, bad: dict[int, str] | None = None) -> Path:
    """Questions of which some cannot be used."""
    with open(path, "w") as file:
        for number in range(count):
            text = (bad or {}).get(number, f"Is {number} a planet?")
            row = {"question": text, "options": OPTIONS[: 2 + number % 2], "note": f'no. "{number}"'}
            file.write(f"{json.dumps(row)}\n")
    return path


@LONG
def test_a_stream_comes_in_order_and_once_where_workers_are_killed(connected: Any) -> None:
    def things() -> Iterator[int]:
        yield from range(40)

    def load() -> Any:
        def squared(number: int) -> list[int]:
            time.sleep(0.2)
            return [number, number**2]

        return squared

    seen: list[list[int]] = []
    with workers_killed(lambda: processes_named(WORKER) if len(seen) > 4 else (), 2) as killed:
        for one in map_stream(Workers(connected, 2), things, load):
            seen.append(one)
    assert len(killed) == 2
    assert seen == [[number, number**2] for number in range(40)]


def test_an_error_of_a_worker_or_of_the_source_comes_in_its_place(connected: Any) -> None:
    def things() -> Iterator[int]:
        yield from range(3)
        raise DataError("the source ends badly")

    def failing_at(number: int) -> Any:
        def load() -> Any:
            def checked(thing: int) -> int:
                if thing == number:
                    raise ConfigError(f"no {thing}")
                return thing

            return checked

        return load

    for number, error, message in ((1, ConfigError, "no 1"), (7, DataError, "the source ends badly")):
        stream = map_stream(Workers(connected, 1), things, failing_at(number))
        count = min(number, 3)
        assert [next(stream) for _ in range(count)] == list(range(count))
        with pytest.raises(error, match=message):
            next(stream)


@LONG
def test_a_thing_that_takes_every_worker_with_it_is_an_error_in_the_end(
    connected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "RETRIES", 1)

    def load() -> Any:
        def fatal(thing: int) -> int:
            if thing == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return thing

        return fatal

    stream = map_stream(Workers(connected, 1), lambda: iter(range(4)), load)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(ConfigError, match="a worker was lost, and again after 1 restarts"):
        next(stream)


def stopped_after(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a signal come once so many parts are written."""
    real, seen = partial._Partial.write, []

    def write(self: Any, text: str, *, rows: int) -> None:
        real(self, text, rows=rows)
        seen.append(rows)
        if len(seen) == parts:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(partial._Partial, "write", write)


@LONG
@pytest.mark.parametrize("first", [ON_RAY, ()])
def test_rows_over_workers_that_are_stopped_go_on_to_the_bytes_of_one_process(
    capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, saved: Path, first: tuple[Any, ...]
) -> None:
    rows = write(tmp_path / "rows.jsonl", bad={0: " ", 300: " ", 301: "word " * 3000, COUNT - 1: " "})
    flags = ["--in", rows, "--skip-bad-rows", "--keep-columns", "note", "--no-progress"]
    whole, out = tmp_path / "whole.csv", tmp_path / "answers.csv"
    plain = call(capsys, "predict", saved, *flags, "--out", whole, "--json")

    with monkeypatch.context() as patch:
        stopped_after(1, patch)
        stopped = call(capsys, "predict", saved, *flags, "--out", out, *first)
    assert stopped.code == 128 + signal.SIGTERM
    assert f"terminated. 256 rows are kept in {out}.partial: go on by --resume" in stopped.err
    other = () if first else ON_RAY
    done = call(capsys, "predict", saved, *flags, "--out", out, "--resume", "--json", *other)

    assert done.code == 0, done.err
    assert out.read_bytes() == whole.read_bytes()
    assert done.summary | {"out": "", "seconds": 0} == plain.summary | {"out": "", "seconds": 0}
    assert (done.summary["questions"], done.summary["bad_rows"]) == (COUNT - 4, 4)
    assert files_below(tmp_path) == {rows.name, out.name, whole.name}


@LONG
def test_rows_of_the_embedded_base_are_the_same_where_a_worker_is_killed(capsys: Any, tmp_path: Path) -> None:
    ensemble = LoraEnsemble(*load_base(), num_members=2)
    ensemble.stack.b.normal_(std=0.05)
    ensemble.save_pretrained(tmp_path / "run")
    rows, out, whole = write(tmp_path / "rows.jsonl", count=4000), tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    words = ["predict", tmp_path / "run", "--in", rows, "--no-progress"]
    assert call(capsys, *words, "--out", whole).code == 0
    left = Path(f"{out}.partial")

    def answering() -> list[int]:
        return processes_named(WORKER) if left.exists() and left.stat().st_size > 0 else []

    with workers_killed(answering, 1) as killed:
        done = call(capsys, *words, "--out", out, *ON_RAY)
    assert (done.code, len(killed)) == (0, 1)
    assert out.read_bytes() == whole.read_bytes()


@LONG
def test_a_signal_while_workers_start_ends_at_once_and_leaves_nothing(
    capsys: Any, tmp_path: Path, saved: Path
) -> None:
    rows = write(tmp_path / "rows.jsonl")
    timer = threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    done = call(capsys, "predict", saved, "--in", rows, "--out", tmp_path / "a.jsonl", *ON_RAY)
    timer.join()
    assert (done.code, done.err.splitlines()[-1]) == (130, "lora-ensembles: interrupted")
    assert files_below(tmp_path) == {rows.name}


@LONG
def test_a_row_that_is_too_long_is_one_line_and_keeps_the_rows_before(
    capsys: Any, tmp_path: Path, saved: Path
) -> None:
    rows = write(tmp_path / "rows.jsonl", bad={600: "word " * 3000})
    out = tmp_path / "a.jsonl"
    words = ["predict", saved, "--in", rows, "--out", out, "--no-progress"]
    over_workers = call(capsys, *words, *ON_RAY)
    alone = call(capsys, *words, "--overwrite")
    assert over_workers == alone
    assert alone.code == 2
    assert f"512 rows are kept in {out}.partial" in alone.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--in", "-", *ON_RAY], "--on ray: - is answered as its rows come, in this process; leave --on out"),
        (["--in", "rows.jsonl", "--workers", 2], "--workers 2 without --on; give --on ray as well"),
        (["--in", "rows.jsonl", *ON_RAY, "--device", "cpu"], "--device cpu beside --on ray"),
        (["--in", "rows.jsonl", "--on", "slurm"], "invalid choice: 'slurm'"),
    ],
)
def test_flags_that_do_not_fit_workers_are_refused(
    capsys: Any, saved: Path, flags: list[Any], message: str
) -> None:
    done: Outcome = call(capsys, "predict", saved, *flags)
    assert (done.code, message in done.err) == (2, True)
