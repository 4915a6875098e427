"""The server at twice its capacity:
`python benchmarks/serve_load.py --seconds 60 --clients 200 --out results/serving/load.json`.

An ensemble on the embedded base, and one of its members merged into the base, are served by the same code, in
a process of its own on this machine. Two workloads: decisions, three questions about a case in each request,
and completions of 8 to 24 tokens. First the clients ask as fast as they get answers, which gives the
capacity; then they ask at twice that rate, whether answers come or not, so that the queue fills and requests
are turned away. Each answer is held against that of `predict` or `generate` for the same request. At the end
the ensemble's server is told to stop (SIGTERM) while all clients ask, and what it accepted must be answered;
another is killed (SIGKILL) while they ask, and started again.

Clients and server share the machine's cores, so the numbers are those of a server that has about half of
them.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import math
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
from peft import PeftModel
from predict_stream import resident_mb
from timing import add_record_flags, end_with, rounded
from transformers import GenerationConfig

from lora_ensembles import LoraEnsemble, generate_text, load_base, predict
from lora_ensembles.serve.asking import case_examples
from lora_ensembles.serve.catalogue import Catalogue, ServedModel

MEMBERS = 4
CASES = 64  # different ones, asked in turn
WAITING = 32  # requests that may wait, so that the clients can fill the queue
TOLERANCE = 1e-5
OVERLOAD = 2.0  # times the capacity
PATIENCE = 60  # seconds that a client waits for an answer
STATUSES = {"2xx": range(200, 300), "429": range(429, 430), "5xx": range(500, 600)}
WORDS = "the door is open and a cat waits near an old river while rain falls on red roofs".split()
ROUTES = {"decisions": "/v1/decisions", "completions": "/v1/completions"}


@dataclass(frozen=True)
class Case:
    """A request, and what is right: the probabilities of `predict`, or the text of `generate` and the
    log-probabilities of its tokens.
    """

    route: str
    body: dict[str, Any]
    expected: Any


@dataclass
class Tally:
    """The answers of one part of the run."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)  # of the answers with 2xx
    mixed: int = 0  # answers that are not the case's own
    lost: int = 0  # requests without any answer
    tokens: int = 0  # written

    def add(self, case: Case, answer: httpx.Response, seconds: float) -> None:
        name = next((name for name, codes in STATUSES.items() if answer.status_code in codes), "other")
        self.counts[name] += 1
        if name == "2xx":
            reply = answer.json()
            self.seconds.append(seconds)
            self.mixed += not right(case, reply)
            self.tokens += reply["usage"].get("completion_tokens", 0)

    @property
    def bad(self) -> int:
        """Answers that must not be."""
        return self.counts["5xx"] + self.counts["other"] + self.mixed + self.lost

    def to_dict(self, seconds: float) -> dict[str, Any]:
        ordered = sorted(self.seconds)
        return {
            "seconds": seconds,
            "answers_per_second": len(ordered) / seconds,
            "tokens_per_second": self.tokens / seconds,
            "p50_ms": 1000 * statistics.median(ordered) if ordered else None,
            "p99_ms": 1000 * ordered[int(0.99 * (len(ordered) - 1))] if ordered else None,
            **{name: self.counts[name] for name in (*STATUSES, "other")},
            "lost": self.lost,
            "mixed": self.mixed,
        }


def right(case: Case, reply: dict[str, Any]) -> bool:
    """Whether an answer is that of its case."""
    if case.route == ROUTES["completions"]:
        choice = reply["choices"][0]
        text, log_probs = case.expected
        given = map(math.exp, choice["logprobs"]["token_logprobs"])
        return bool(choice["text"] == text and _close([*given], [*map(math.exp, log_probs)]))
    return all(
        _close([one["probability"] for one in answer.get("probabilities", [answer])], expected)
        for answer, expected in zip(reply["answers"], case.expected, strict=True)
    )


def _close(values: Sequence[float], expected: Sequence[float]) -> bool:
    """Of options that a case does not have, and of a predicate's second, the answer says nothing."""
    return all(abs(one - own) <= TOLERANCE for one, own in zip(values, expected, strict=False))


def decision_body(number: int) -> dict[str, Any]:
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


def completion_body(number: int) -> dict[str, Any]:
    """A prompt and a number of tokens of its own."""
    drawn = random.Random(number)
    prompt = "Q: " + " ".join(drawn.choices(WORDS, k=drawn.randrange(5, 60)))
    written = {"max_tokens": drawn.randrange(8, 25), "temperature": 0, "logprobs": 0}
    return {"model": "cases", "prompt": prompt, **written}


def make_cases(model: ServedModel) -> dict[str, list[Case]]:
    """The cases of each workload, answered offline."""
    decisions, completions = [], []
    for number in range(CASES):
        body = decision_body(number)
        examples = case_examples(model.ensemble.info, body["input"], body["questions"])
        decisions.append(Case(ROUTES["decisions"], body, predict(model.ensemble, examples).probs.tolist()))
        body = completion_body(number)
        config = GenerationConfig(max_new_tokens=body["max_tokens"])
        text = generate_text(model.ensemble, [body["prompt"]], config)[0]
        completions.append(
            Case(ROUTES["completions"], body, (text.text, text.uncertainty.log_probs.tolist()))
        )
    return {"decisions": decisions, "completions": completions}


def save_arms(home: Path) -> dict[str, Path]:
    """The folders of an ensemble whose members differ, and of its first member merged into the base, under
    the same name.
    """
    ensemble = LoraEnsemble(*load_base(), num_members=MEMBERS)
    ensemble.stack.b.normal_()
    ensemble.save_pretrained(home / "ensemble" / "cases")
    base, tokenizer = load_base()
    adapted = PeftModel.from_pretrained(base, str(home / "ensemble" / "cases" / "member_000"))
    merged: Any = adapted.merge_and_unload()
    merged.save_pretrained(home / "merged" / "base")
    tokenizer.save_pretrained(home / "merged" / "base")
    alone = LoraEnsemble(*load_base(str(home / "merged" / "base")), num_members=1)
    alone.save_pretrained(home / "merged" / "cases")
    return {name: home / name / "cases" for name in ("ensemble", "merged")}


def offline(model: ServedModel, cases: Sequence[Case], *, seconds: float) -> float:
    """Cases of decisions a second that `predict` answers on one thread without a server, as many together as
    clients ask.
    """
    threads, together, done = torch.get_num_threads(), WAITING // 2, 0
    torch.set_num_threads(1)
    begin = time.perf_counter()
    while time.perf_counter() < begin + seconds:
        bodies = [case.body for case in itertools.islice(itertools.cycle(cases), done, done + together)]
        examples = [case_examples(model.ensemble.info, body["input"], body["questions"]) for body in bodies]
        predict(model.ensemble, [one for own in examples for one in own])
        done += together
    torch.set_num_threads(threads)
    return done / (time.perf_counter() - begin)


@contextmanager
def server(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str, float]]:
    """A server of a saved ensemble, ready to be asked, its address, and the seconds that it took to load; its
    log goes to a file.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "lora_ensembles.cli", "serve", str(folder), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # the other core is the clients'
    begin = time.perf_counter()
    with open(folder.parent / "log", "w") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--max-waiting", str(WAITING)],
            stderr=log,
            text=True,
            env=environment,
        )
        try:
            while True:
                assert process.poll() is None, (folder.parent / "log").read_text()
                try:
                    httpx.get(f"http://127.0.0.1:{port}/ready")
                    break
                except httpx.TransportError:
                    time.sleep(0.05)
            yield process, f"http://127.0.0.1:{port}", time.perf_counter() - begin
        finally:
            process.kill()
            process.wait()


async def ask(client: httpx.AsyncClient, case: Case, tally: Tally) -> None:
    begin = time.perf_counter()
    try:
        answer = await client.post(case.route, json=case.body)
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


async def until_signal(
    url: str, cases: Sequence[Case], signalled: Callable[[], None], *, clients: int
) -> Tally:
    """Requests at once, in the middle of which the server is told something: when the first has its answer,
    all others have been accepted or turned away.
    """
    tally = Tally()
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, headers={"connection": "close"}) as client:
        sent = [asyncio.ensure_future(ask(client, case, tally)) for case in cases[:clients]]
        while not sum(tally.counts.values()):
            await asyncio.sleep(0.001)
        signalled()
        await asyncio.gather(*sent)
    return tally


def loaded(
    url: str, cases: Sequence[Case], pid: int, *, clients: int, seconds: float
) -> tuple[dict[str, Any], int]:
    """Capacity, and twice as much; and the number of answers that must not be."""
    asyncio.run(load(url, cases, clients=4, seconds=1.0, rate=None))  # warm
    first, closed = resident_mb(pid), max(2.0, seconds / 4)
    capacity = asyncio.run(load(url, cases, clients=WAITING // 2, seconds=closed, rate=None))
    rate = OVERLOAD * len(capacity.seconds) / closed
    begin = time.perf_counter()
    overload = asyncio.run(load(url, cases, clients=clients, seconds=seconds, rate=rate))
    took = time.perf_counter() - begin
    row = {
        "capacity": capacity.to_dict(closed),
        "overload": {"asked_per_second": rate, **overload.to_dict(took)},
        "resident_mb": {"before": first, "after": resident_mb(pid)},
    }
    return row, capacity.bad + overload.bad + (not overload.counts["2xx"])


def measure(home: Path, *, clients: int, seconds: float) -> dict[str, Any]:
    """The whole run."""
    arms, rows, bad = save_arms(home), {}, 0
    for arm, folder in arms.items():
        model = Catalogue({"cases": LoraEnsemble.from_pretrained(folder)})["cases"]
        cases = make_cases(model)
        row: dict[str, Any] = {
            "offline_decisions_per_second": offline(model, cases["decisions"], seconds=seconds / 8)
        }
        with server(folder) as (process, url, _):
            for name, own in cases.items():
                row[name], wrong = loaded(url, own, process.pid, clients=clients, seconds=seconds)
                bad += wrong
        rows[arm] = row
        if arm == "ensemble":
            ends, wrong = ended(folder, [*cases["decisions"], *cases["completions"]])
            bad += wrong
    return {
        "id": "serve-load",
        "members": MEMBERS,
        "clients": clients,
        "max_waiting": WAITING,
        **rows,
        **ends,
        "ok": bad == 0,
    }


def ended(folder: Path, cases: Sequence[Case]) -> tuple[dict[str, Any], int]:
    """A server that is told to stop, and one that is killed, while clients ask both kinds of requests."""
    mixed = random.Random(0).sample(list(cases), len(cases))
    with server(folder) as (process, url, _):
        stopped = asyncio.run(
            until_signal(url, mixed, lambda: process.send_signal(signal.SIGTERM), clients=3 * WAITING)
        )
        code = process.wait(timeout=PATIENCE)
    with server(folder) as (process, url, first):
        killed = asyncio.run(until_signal(url, mixed, process.kill, clients=3 * WAITING))
    with server(folder) as (_, url, again):
        after = asyncio.run(load(url, mixed, clients=4, seconds=1.0, rate=None))
    row = {
        "stopped": {
            "exit_code": code,
            "2xx": stopped.counts["2xx"],
            "429": stopped.counts["429"],
            "lost": stopped.lost,
        },
        "killed": {
            "2xx": killed.counts["2xx"],
            "429": killed.counts["429"],
            "connection_errors": killed.lost,
            "load_seconds": first,
            "restart_seconds": again,
            "answered_after": after.counts["2xx"],
        },
    }
    failed = killed.mixed + killed.counts["5xx"] + (not after.counts["2xx"])
    return row, stopped.bad + abs(code) + failed + after.bad


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
    for arm, name, part in itertools.product(
        ("ensemble", "merged"), ROUTES, ("capacity", "overload", "resident_mb")
    ):
        said = ", ".join(f"{key} {value}" for key, value in row[arm][name][part].items())
        print(f"{arm:<9} {name:<12} {part:<12} {said}")
    for part in ("stopped", "killed"):
        print(f"{part:<35} " + ", ".join(f"{key} {value}" for key, value in row[part].items()))
    end_with(row, arguments)
    sys.exit(0 if row["ok"] else 1)


if __name__ == "__main__":
    main()
