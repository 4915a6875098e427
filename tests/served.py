"""Tiny saved ensembles of every kind that a server can have, a server of them as a process of its own, and
the same app within the test's process.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from starlette.testclient import TestClient

import tiny_heads
from command_line import base_folder
from lora_ensembles import LoraEnsemble, calibrate, load_base
from lora_ensembles.cli import main
from lora_ensembles.data import Example
from lora_ensembles.serve.asking import case_examples
from lora_ensembles.serve.catalogue import Catalogue
from lora_ensembles.serve.completions.engines import CompletionEngines
from lora_ensembles.serve.engine import Engine
from lora_ensembles.serve.http.app import build_app
from lora_ensembles.serve.settings import Batching, Settings

WORDS = "the door is open and a cat waits near an old river while rain falls on red roofs".split()
TICKETS = ["billing", "bug", "praise"]
NAMES = ("cases", "tickets", "classes", "choices", "rewards")


def case(number: int, *, questions: int = 3) -> dict[str, Any]:
    """A case of a file: a state of its own, and questions of all three types."""
    drawn = random.Random(number)
    state = f"Case {number}: " + " ".join(drawn.choices(WORDS, k=drawn.randrange(4, 24)))
    asked: list[dict[str, Any]] = [
        {"name": "leave", "type": "predicate", "instructions": "May the cat leave?"},
        {
            "name": "who",
            "type": "choice",
            "instructions": f"Who waits at {drawn.choice(WORDS)}?",
            "choices": [
                {"value": "cat"},
                {"value": "river", "description": "the old one"},
                {"value": "rain"},
            ],
        },
        {
            "name": "wet",
            "type": "score",
            "instructions": "How wet is it?",
            "levels": [{"label": "dry"}, {"label": "damp", "description": "a little"}, {"label": "wet"}],
        },
    ]
    return {"id": f"c{number}", "state": state, "questions": asked[:questions]}


def text(number: int) -> str:
    """A text of words that every tokenizer here has, or reads as unknown."""
    drawn = random.Random(number)
    return " ".join(drawn.choices(tiny_heads.WORDS, k=drawn.randrange(2, 12)))


@dataclass(frozen=True)
class Saved:
    """The folders of saved ensembles, by name; their bases stand beside them."""

    home: Path

    def folder(self, name: str) -> Path:
        return self.home / name

    def load(self, name: str) -> LoraEnsemble:
        return LoraEnsemble.from_pretrained(self.folder(name))


def save_all(home: Path) -> Saved:
    """An ensemble of three members for each kind of request; "cases" is calibrated."""
    cases = language_model(seed=1)
    save(home, "cases", cases, calibrated_on=300)
    tickets = language_model(seed=2)
    remember(tickets, {"labels": TICKETS})
    save(home, "tickets", tickets)
    for name, kind in (
        ("classes", "sequence-classification"),
        ("choices", "multiple-choice"),
        ("rewards", "reward"),
    ):
        ensemble = tiny_heads.build_ensemble("bert", kind, random_b=True)
        if kind == "sequence-classification":
            _name_classes(ensemble, ("one", "two", "three"))
        base = home / "bases" / name
        ensemble.tokenizer.save_pretrained(base)
        tiny_heads.build("bert", kind).save_pretrained(base)
        ensemble.base.config._name_or_path = str(base)
        ensemble.save_pretrained(home / name)
    return Saved(home)


def language_model(*, seed: int) -> LoraEnsemble:
    ensemble = LoraEnsemble(*load_base(base_folder()), num_members=3, seed=seed)
    ensemble.stack.b.copy_(torch.randn(ensemble.stack.b.shape, generator=torch.Generator().manual_seed(seed)))
    ensemble.stack.refresh()
    return ensemble


def save(
    home: Path, name: str, ensemble: LoraEnsemble, *, calibrated_on: int = 0, order_passes: int = 1
) -> None:
    """Save an ensemble, calibrated on questions of cases with answers drawn at random."""
    if calibrated_on:
        held_out: list[Example] = []
        for number in range(10_000, 10_000 + calibrated_on // 3):
            made = case(number)
            held_out += case_examples(ensemble.info, made["state"], made["questions"], case=made["id"])
        drawn = random.Random(0)
        answered = [Example(**{**vars(one), "target": drawn.randrange(len(one.labels))}) for one in held_out]
        calibrate(ensemble, answered, kind="temperature", order_passes=order_passes)
    ensemble.save_pretrained(home / name)


def remember(ensemble: LoraEnsemble, source: Mapping[str, Any]) -> None:
    """Let an ensemble say that it was trained on this source."""
    ensemble.info = dataclasses.replace(ensemble.info, task={"source": dict(source)})


def _name_classes(ensemble: LoraEnsemble, classes: tuple[str, ...]) -> None:
    head = dataclasses.replace(ensemble.info.head, classes=classes)
    ensemble.info = dataclasses.replace(ensemble.info, head=head)


def offline(folder: Path, rows: Sequence[Mapping[str, Any]], tmp: Path, *flags: str) -> list[dict[str, Any]]:
    """The rows that `lora-ensembles predict` writes for these."""
    source, out = tmp / "asked.jsonl", tmp / "answered.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["predict", str(folder), "--in", str(source), "--out", str(out), "--no-progress", "--overwrite"]
    assert main([*words, *flags]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


@contextmanager
def served_here(
    ensembles: Mapping[str, LoraEnsemble],
    settings: Settings | None = None,
    *,
    batching: Batching | None = None,
    raising: bool = True,
) -> Iterator[TestClient]:
    """A client of the app within this process."""
    settings = settings or Settings()
    engine = Engine(batching, waiting=settings.limits.waiting)
    catalogue = Catalogue(ensembles)
    completions = CompletionEngines(catalogue, most=settings.limits.waiting)
    app = build_app(catalogue, engine, completions, settings)
    with TestClient(app, raise_server_exceptions=raising) as client:
        yield client


# Servers are forked from a process that has imported the libraries, once for all tests of a worker.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])


@dataclass
class Process:
    """A server in a process of its own, its address, and the files of its two streams."""

    process: Any
    url: str
    out: Path
    err: Path

    @property
    def lines(self) -> list[str]:
        """The lines that it has written to standard error."""
        return self.err.read_text().splitlines()

    @property
    def log(self) -> list[dict[str, Any]]:
        """The log of requests."""
        return [json.loads(line) for line in self.lines if line.startswith("{") and line.endswith("}")]

    def send(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.process.pid, number)

    def ended(self, seconds: float) -> int | None:
        """Its exit code, if it ends within these seconds."""
        self.process.join(seconds)
        code: int | None = self.process.exitcode
        return code


def _serve(words: Sequence[str], out: Path, err: Path) -> None:
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    torch.set_num_threads(1)
    sys.exit(main(["serve", *words]))


@contextmanager
def served(*words: str | Path) -> Iterator[Process]:
    """A server with these words of its command line, on a free port, until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    streams = Path(tempfile.mkdtemp(prefix="served-"))
    out, err = streams / "out", streams / "err"
    err.touch()
    command = [*map(str, words), "--port", str(port), "--json", "--device", "cpu"]
    process: Any = FORKS.Process(target=_serve, args=(command, out, err))
    process.start()
    made = Process(process, f"http://127.0.0.1:{port}", out, err)
    try:
        _wait_for(made)
        yield made
    finally:
        process.terminate()
        process.join(30)
        assert process.exitcode is not None
        shutil.rmtree(streams)


def _wait_for(made: Process) -> None:
    for _ in range(2400):  # a busy machine takes minutes
        assert made.process.exitcode is None, "\n".join(made.lines)
        try:
            with urllib.request.urlopen(f"{made.url}/ready", timeout=5) as answer:
                assert answer.status == 200
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"not ready: {made.lines}")
