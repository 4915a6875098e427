"""The server at twice its capacity:
`python benchmarks/serve_load.py --seconds 20 --clients 50 --out results/serve-load.json`.

Members on the embedded base answer cases of three questions each, in a process of its own on this machine.
First the clients ask as fast as they get answers, which gives the capacity; then they ask at twice that rate,
whether answers come or not, so that the queue fills and requests are turned away. Each answer is held against
that of `predict` for the same case. At the end the server is told to stop (SIGTERM) while all clients ask;
what it accepted must be answered.

Clients and server share the machine's cores, so the numbers are those of a server that has about half of
them.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
from predict_stream import resident_mb
from timing import add_record_flags, end_with, rounded

from lora_ensembles import LoraEnsemble, load_base, predict
from lora_ensembles.serve.asking import case_examples
from lora_ensembles.serve.catalogue import Catalogue, ServedModel

MEMBERS = 4
CASES = 64  # different ones, asked in turn
WAITING = 16  # requests that may wait, so that the clients can fill the queue
TOLERANCE = 1e-5
OVERLOAD = 2.0  # times the capacity
PATIENCE = 60  # seconds that a client waits for an answer
STATUSES = {"2xx": range(200, 300), "429": range(429, 430), "5xx": range(500, 600)}
WORDS = "the door is open and a cat waits near an old river while rain falls on red roofs".split()


@dataclass(frozen=True)
class Case:
    """A request, and the probabilities that `predict` gives for it."""

    body: dict[str, Any]
    expected: list[list[float]]


@dataclass
class Tally:
    """The answers of one part of the run."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)  # of the answers with 2xx
    mixed: int = 0  # answers with other probabilities than the case's own
    lost: int = 0  # requests without any answer

    def add(self, case: Case, answer: httpx.Response, seconds: float) -> None:
        name = next((name for name, codes in STATUSES.items() if answer.status_code in codes), "other")
        self.counts[name] += 1
        if name == "2xx":
            self.seconds.append(seconds)
            self.mixed += not right(case, answer.json())

    def to_dict(self, seconds: float) -> dict[str, Any]:
        ordered = sorted(self.seconds)
        return {
            "seconds": seconds,
            "answers_per_second": len(ordered) / seconds,
            "questions_per_second": 3 * len(ordered) / seconds,
            "p50_ms": 1000 * statistics.median(ordered) if ordered else None,
            "p99_ms": 1000 * ordered[int(0.99 * (len(ordered) - 1))] if ordered else None,
            **{name: self.counts[name] for name in (*STATUSES, "other")},
            "lost": self.lost,
            "mixed": self.mixed,
        }


def make_case(number: int) -> dict[str, Any]:
    """A state of its own, and questions of all three types."""
    drawn = random.Random(number)
    levels = [{"label": "dry"}, {"label": "damp"}, {"label": "wet"}]
    choices = [{"value": value} for value in drawn.sample(WORDS, 4)]
    return {
        "model": "cases",
        "input": f"Case {number}: " + " ".join(drawn.choices(WORDS, k=drawn.randrange(20, 60))),
        "questions": [
            {"type": "predicate", "instructions": "May the cat leave?"},
            {"type": "choice", "instructions": "What is meant?", "choices": choices},
            {"type": "score", "instructions": "How wet is it?", "levels": levels},
        ],
    }


def prepare(folder: Path) -> tuple[ServedModel, list[Case]]:
    """Save an ensemble whose members differ, and answer the cases offline."""
    ensemble = LoraEnsemble(*load_base(), num_members=MEMBERS)
    ensemble.stack.b.normal_()
    ensemble.save_pretrained(folder / "cases")
    ensemble = LoraEnsemble.from_pretrained(folder / "cases")
    model = Catalogue({"cases": ensemble})["cases"]
    cases = []
    for number in range(CASES):
        body = make_case(number)
        examples = case_examples(model, body["input"], body["questions"])
        cases.append(Case(body, predict(ensemble, examples).probs.tolist()))
    return model, cases


def offline(model: ServedModel, cases: Sequence[Case], *, seconds: float) -> float:
    """Cases a second that `predict` answers on one thread without a server,
    as many together as clients ask.
    """
    threads, together, done = torch.get_num_threads(), WAITING // 2, 0
    torch.set_num_threads(1)
    begin = time.perf_counter()
    while time.perf_counter() < begin + seconds:
        bodies = [case.body for case in itertools.islice(itertools.cycle(cases), done, done + together)]
        examples = [case_examples(model, body["input"], body["questions"]) for body in bodies]
        predict(model.ensemble, [one for own in examples for one in own])
        done += together
    torch.set_num_threads(threads)
    return done / (time.perf_counter() - begin)


def right(case: Case, reply: dict[str, Any]) -> bool:
    """Whether an answer has the probabilities of its case."""
    for answer, expected in zip(reply["answers"], case.expected, strict=True):
        probs = [one["probability"] for one in answer.get("probabilities", [answer])]
        if any(
            abs(prob - value) > TOLERANCE for prob, value in zip(probs, expected[: len(probs)], strict=True)
        ):
            return False
    return True


@contextmanager
def server(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of the saved ensemble, ready to be asked, and its address; its log goes to a file."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "lora_ensembles.cli", "serve", str(folder / "cases"), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # the other core is the clients'
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--max-waiting", str(WAITING)],
            stderr=log,
            text=True,
            env=environment,
        )
        try:
            while True:
                assert process.poll() is None, (folder / "log").read_text()
                try:
                    httpx.get(f"http://127.0.0.1:{port}/ready")
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


async def ask(client: httpx.AsyncClient, case: Case, tally: Tally) -> None:
    begin = time.perf_counter()
    try:
        answer = await client.post("/v1/decisions", json=case.body)
    except httpx.TransportError:
        tally.lost += 1
        return
    tally.add(case, answer, time.perf_counter() - begin)


async def load(url: str, cases: Sequence[Case], *, clients: int, seconds: float, rate: float | None) -> Tally:
    """So many clients for so long, each on a connection of its own; at a rate of requests a second over all
    of them, or each as soon as it has its answer.
    """
    tally = Tally()
    begin = time.perf_counter()

    async def one(number: int) -> None:
        drawn = random.Random(number)
        step = 0.0 if rate is None else clients / rate
        due = begin + step * number / clients
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client:
            while True:
                due = max(due, time.perf_counter()) if rate is None else due
                if max(due, time.perf_counter()) >= begin + seconds:
                    return
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                await ask(client, drawn.choice(cases), tally)
                due += step

    await asyncio.gather(*(one(number) for number in range(clients)))
    return tally


async def until_stopped(
    url: str, cases: Sequence[Case], process: subprocess.Popen[str], *, clients: int
) -> Tally:
    """Requests at once, in the middle of which the server is told to stop: when the first has its answer, all
    others have been accepted or turned away.
    """
    tally = Tally()
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, headers={"connection": "close"}) as client:
        sent = [asyncio.ensure_future(ask(client, case, tally)) for case in cases[:clients]]
        while not sum(tally.counts.values()):  # the first answer: all others have been accepted
            await asyncio.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        await asyncio.gather(*sent)
    return tally


def measure(folder: Path, *, clients: int, seconds: float) -> dict[str, Any]:
    """The whole run."""
    model, cases = prepare(folder)
    without_server = offline(model, cases, seconds=max(2.0, seconds / 8))
    with server(folder) as (process, url):
        asyncio.run(load(url, cases, clients=4, seconds=1.0, rate=None))  # warm
        first = resident_mb(process.pid)
        closed = max(2.0, seconds / 4)
        capacity = asyncio.run(load(url, cases, clients=WAITING // 2, seconds=closed, rate=None))
        rate = OVERLOAD * len(capacity.seconds) / closed
        begin = time.perf_counter()
        overload = asyncio.run(load(url, cases, clients=clients, seconds=seconds, rate=rate))
        took = time.perf_counter() - begin
        last = resident_mb(process.pid)
        stopped = asyncio.run(until_stopped(url, cases, process, clients=2 * WAITING))
        code = process.wait(timeout=PATIENCE)
    parts = {
        "capacity": capacity.to_dict(closed),
        "overload": {"asked_per_second": rate, **overload.to_dict(took)},
        "stopped": {
            "exit_code": code,
            "2xx": stopped.counts["2xx"],
            "429": stopped.counts["429"],
            "lost": stopped.lost,
        },
    }
    bad = sum(tally.counts["5xx"] + tally.counts["other"] + tally.mixed + tally.lost for tally in
              (capacity, overload, stopped))  # fmt: skip
    return {
        "id": "serve-load",
        "members": MEMBERS,
        "clients": clients,
        "max_waiting": WAITING,
        "offline_answers_per_second": without_server,
        **parts,
        "resident_mb": {"before": first, "after": last},
        "ok": bad == 0 and code == 0 and overload.counts["2xx"] > 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--clients", type=int, default=50)
    add_record_flags(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="serve-load-") as folder:
        row = rounded(measure(Path(folder), clients=arguments.clients, seconds=arguments.seconds), digits=4)
    print(f"{'offline':<12}{row['offline_answers_per_second']} answers per second without a server")
    for name in ("capacity", "overload", "stopped"):
        print(f"{name:<12}" + ", ".join(f"{key} {value}" for key, value in row[name].items()))
    print(f"resident    {row['resident_mb']['before']} MB before, {row['resident_mb']['after']} MB after")
    end_with(row, arguments)
    sys.exit(0 if row["ok"] else 1)


if __name__ == "__main__":
    main()
