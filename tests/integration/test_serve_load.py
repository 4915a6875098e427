"""The server under load: the bounded queue, clients that go away, time-outs, limits, and its end."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from starlette.testclient import TestClient

from command_line import base_folder
from lora_ensembles import LoraEnsemble, MissingExtraError, load_base
from lora_ensembles.cli import main
from lora_ensembles.data import Example
from lora_ensembles.serve import extra
from lora_ensembles.serve.catalogue import Catalogue
from lora_ensembles.serve.completions.engines import CompletionEngines
from lora_ensembles.serve.engine import Engine, EngineStopped, QueueFull
from lora_ensembles.serve.http.app import build_app
from lora_ensembles.serve.http.request_checks import RequestChecks
from lora_ensembles.serve.jobs import Job, Questions
from lora_ensembles.serve.settings import Batching, Guarantees, Limits, Settings, read_keys
from served import case, save, served, served_here
from tiny_ensembles import ensemble as tiny_ensemble, questions as tiny_questions

BODY = {"model": "tiny", "input": "otter", "questions": [{"type": "predicate", "instructions": "live"}]}
SECONDS = 20  # until a test gives up waiting for what must happen


@pytest.fixture
def tiny() -> LoraEnsemble:
    return tiny_ensemble(members=2, trained=True)


@contextmanager
def held(ensemble: LoraEnsemble) -> Iterator[threading.Event]:
    """While passes of the model begin only once the event is set."""
    gate = threading.Event()
    handle = ensemble.base.get_input_embeddings().register_forward_pre_hook(
        lambda *_: gate.wait(SECONDS) and None
    )
    try:
        yield gate
    finally:
        gate.set()
        handle.remove()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def jobs_of(ensemble: LoraEnsemble, count: int) -> list[Job]:
    model = Catalogue({"tiny": ensemble})["tiny"]
    return [Job(model, Questions((question,))) for question in tiny_questions(count)]


def test_a_full_queue_is_429_with_the_seconds_to_wait(tiny: LoraEnsemble) -> None:
    settings = Settings(Limits(waiting=2))
    one_by_one = Batching(questions=1, wait=0)
    with (
        served_here({"tiny": tiny}, settings, batching=one_by_one) as client,
        held(tiny) as gate,
        ThreadPoolExecutor(4) as pool,
    ):
        metric = 'lora_ensembles:num_requests_%s{model_name="tiny"} %d'
        first = pool.submit(client.post, "/v1/decisions", json=BODY)
        until(lambda: metric % ("running", 1) in client.get("/metrics").text)
        waiting = [pool.submit(client.post, "/v1/decisions", json=BODY) for _ in range(2)]
        until(lambda: metric % ("waiting", 2) in client.get("/metrics").text)
        refused = client.post("/v1/decisions", json=BODY)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        gate.set()
        assert [one.result().status_code for one in (first, *waiting)] == [200] * 3
        text = client.get("/metrics").text
        assert 'lora_ensembles:admission_rejections_total{model_name="tiny"} 1.0' in text
        assert 'lora_ensembles:request_success_total{model_name="tiny"} 3.0' in text


def test_an_answer_that_takes_too_long_is_504_and_the_next_ones_are_given(tiny: LoraEnsemble) -> None:
    settings = Settings(Limits(seconds=0.2))
    with served_here({"tiny": tiny}, settings) as client, held(tiny) as gate:
        late = client.post("/v1/decisions", json=BODY)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        gate.set()
        assert client.post("/v1/decisions", json=BODY).status_code == 200
        assert 'request_failures_total{model_name="tiny",status="504"} 1.0' in client.get("/metrics").text


def test_clients_that_went_away_are_dropped_and_all_others_answered_even_at_the_end(tmp_path: Path) -> None:
    """Over real connections: of requests that wait together, the one whose client hangs up is not computed;
    and SIGTERM ends the server only when every request that it accepted has its answer.
    """
    save(tmp_path, "cases", case_ensemble())
    asked = case(1)
    body = {"model": "cases", "input": asked["state"], "questions": asked["questions"]}
    flags = ("--batch-wait-ms", "1500", "--batch-questions", "1000")
    with served(tmp_path / "cases", *flags) as server, ThreadPoolExecutor(24) as pool:

        def ask() -> int:
            return httpx.post(f"{server.url}/v1/decisions", json=body, timeout=30).status_code

        def metrics() -> str:
            return httpx.get(f"{server.url}/metrics").text

        waiting = 'num_requests_waiting{model_name="cases"} '
        payload = json.dumps(body).encode()
        head = "POST /v1/decisions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as gone:
            gone.sendall(f"{head}content-length: {len(payload)}\r\n\r\n".encode() + payload)
            stay = [pool.submit(ask) for _ in range(2)]
            until(lambda: f"{waiting}3" in metrics())
        until(lambda: f"{waiting}2" in metrics())
        assert [one.result() for one in stay] == [200, 200]
        assert 'lora_ensembles:questions_total{model_name="cases"} 6.0' in metrics()
        until(lambda: any(line["status"] == 499 for line in server.log))

        answers = [pool.submit(ask) for _ in range(24)]
        until(lambda: f"{waiting}24" in metrics())
        server.send(signal.SIGTERM)
        assert [one.result() for one in answers] == [200] * 24
        assert server.ended(SECONDS) == 0
        assert json.loads(server.out.read_text())["served"] == ["cases"]


def case_ensemble() -> LoraEnsemble:
    return LoraEnsemble(*load_base(base_folder()), num_members=2)


def test_requests_that_wait_together_are_one_prediction(
    tiny: LoraEnsemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    whole = LoraEnsemble.member_log_probs

    def counting(self: LoraEnsemble, examples: Any, *, max_rows: int | None = None) -> torch.Tensor:
        counts.append(len(examples))
        return whole(self, examples, max_rows=max_rows)

    monkeypatch.setattr(LoraEnsemble, "member_log_probs", counting)
    jobs = jobs_of(tiny, 8)
    with Engine(Batching(questions=5, wait=5.0)) as engine:
        for job in jobs:
            engine.submit(job)
        for job in jobs[:5]:
            job.future.result(SECONDS)
    assert counts == [5, 3]  # the second when the engine stopped: what waits is finished
    expected = tiny.member_log_probs(tiny_questions(8)).exp()
    for number, job in enumerate(jobs):
        (answer,) = job.future.result(0).results
        assert torch.allclose(torch.tensor(answer.members), expected[:, number], atol=1e-5)
    with pytest.raises(EngineStopped):
        engine.submit(jobs_of(tiny, 1)[0])


@pytest.mark.parametrize(
    ("question", "problem"),
    [
        (tiny_questions(1, start=800)[0], "the window is 64"),
        (Example("x", "otter", ("lake", "lake forest"), None), "label"),
    ],
)
def test_a_request_that_cannot_be_read_fails_alone(
    tiny: LoraEnsemble, question: Example, problem: str
) -> None:
    good, bad = jobs_of(tiny, 2)
    bad.work = Questions((question,))
    other = Job(good.model, Questions(tuple(tiny_questions(3))))
    with Engine(Batching(wait=0.2)) as engine:
        for job in (good, bad, other):
            engine.submit(job)
        assert len(good.future.result(SECONDS).results) == 1
        assert len(other.future.result(SECONDS).results) == 3
        with pytest.raises(ValueError, match=problem):
            bad.future.result(SECONDS)


def test_a_fault_of_the_model_is_500_and_the_worker_goes_on(
    tiny: LoraEnsemble, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a private detail")

    with served_here({"tiny": tiny}, raising=False) as client:
        handle = tiny.base.get_input_embeddings().register_forward_pre_hook(fail)
        failed = client.post("/v1/decisions", json=BODY)
        handle.remove()
        assert failed.status_code == 500
        assert "private" not in failed.text
        assert "a private detail" in caplog.text
        assert client.post("/v1/decisions", json=BODY).status_code == 200
        assert client.get("/ready").status_code == 200


def test_a_server_that_stops_says_so_and_is_not_ready(tiny: LoraEnsemble) -> None:
    engine = Engine()
    catalogue = Catalogue({"tiny": tiny})
    completions = CompletionEngines(catalogue, most=4)
    with TestClient(build_app(catalogue, engine, completions, Settings())) as client:
        engine.stop()
        refused = client.post("/v1/decisions", json=BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200


def test_a_body_that_does_not_come_is_408() -> None:
    sent: list[Any] = []

    async def app(*_: object) -> None:
        raise AssertionError("no route is reached")

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(SECONDS)
        return {}

    async def send(message: Any) -> None:
        sent.append(message)

    checks = RequestChecks(app, Settings(Limits(seconds=0.05)))
    scope = {"type": "http", "method": "POST", "path": "/classify", "headers": []}
    asyncio.run(checks(scope, receive, send))
    assert sent[0]["status"] == 408


def test_the_queue_is_bounded_and_cancelled_requests_take_no_place(tiny: LoraEnsemble) -> None:
    jobs = jobs_of(tiny, 4)
    with Engine(Batching(wait=30.0), waiting=2) as engine:
        engine.submit(jobs[0])
        engine.submit(jobs[1])
        with pytest.raises(QueueFull, match="try again in 1 s"):
            engine.submit(jobs[2])
        assert jobs[0].future.cancel()
        engine.submit(jobs[3])
        assert engine.num_waiting() == 2


@pytest.mark.parametrize(
    ("limits", "body", "status", "code"),
    [
        ({"body_bytes": 100}, BODY | {"input": "x" * 200}, 413, "request_too_large"),
        ({"questions": 1}, BODY | {"questions": BODY["questions"] * 2}, 400, "too_many_questions"),
        ({"prompt_chars": 50}, BODY | {"input": "otter " * 10}, 400, "prompt_too_long"),
    ],
)
def test_limits(
    tiny: LoraEnsemble, limits: dict[str, int], body: dict[str, Any], status: int, code: str
) -> None:
    with served_here({"tiny": tiny}, Settings(Limits(**limits))) as client:  # type: ignore[arg-type]
        refused = client.post("/v1/decisions", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)

        def parts() -> Iterator[bytes]:  # without a length
            yield json.dumps(body).encode()

        streamed = client.post("/v1/decisions", content=parts(), headers={"content-type": "application/json"})
        assert streamed.status_code == status


def test_other_origins_are_let_in_only_where_that_was_asked_for(tiny: LoraEnsemble) -> None:
    page = {"origin": "https://page.example"}
    asks = {**page, "access-control-request-method": "POST"}
    with served_here({"tiny": tiny}) as client:
        assert "access-control-allow-origin" not in client.get("/health", headers=page).headers
    settings = Settings(origins=("https://page.example",), keys=("k",))
    with served_here({"tiny": tiny}, settings) as client:
        assert client.options("/v1/decisions", headers=asks).status_code == 200  # it carries no key
        allowed = client.get("/health", headers=page).headers["access-control-allow-origin"]
        assert allowed == "https://page.example"


def test_prompts_are_logged_only_on_request(tiny: LoraEnsemble, capsys: pytest.CaptureFixture[str]) -> None:
    with served_here({"tiny": tiny}, Settings(log_prompts=True)) as client:
        client.post("/v1/decisions", json=BODY)
    (line,) = capsys.readouterr().err.splitlines()
    (prompt,) = json.loads(line)["prompts"]
    assert prompt.startswith("Q: otter\n\nlive")


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_ENSEMBLES_API_KEYS", "one, two,")
    file = tmp_path / "keys"
    file.write_text("# two people\n\ntwo\nthree\n")
    assert read_keys(None) == ("one", "two")
    assert read_keys(file) == ("one", "two", "three")
    file.write_text("# nobody\n")
    with pytest.raises(ValueError, match="no keys"):
        read_keys(file)
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_keys(tmp_path / "gone")


def test_a_guarantee_that_cannot_be_given_is_an_error_at_the_start(tmp_path: Path) -> None:
    ensemble = case_ensemble()
    save(tmp_path, "cases", ensemble, calibrated_on=30)
    with (
        pytest.raises(ValueError, match="that takes 459 at least"),
        served_here({"cases": ensemble}, Settings(guarantees=Guarantees(risk=0.01))),
    ):
        pass
    with served_here({"cases": ensemble}) as client:
        asked = case(1)
        body = {"model": "cases", "input": asked["state"], "questions": asked["questions"], "risk": 0.01}
        refused = client.post("/v1/decisions", json=body)
        assert refused.status_code == 400
        assert "that takes 459" in refused.json()["error"]["message"]


def test_mistakes_of_the_command_line_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*words: str | Path) -> str:
        assert main(["serve", *map(str, words)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    (tmp_path / "a" / "run").mkdir(parents=True)
    (tmp_path / "b" / "run").mkdir(parents=True)
    assert "would both be served as 'run'" in said(tmp_path / "a" / "run", tmp_path / "b" / "run")
    assert "is no port" in said(tmp_path, "--port", "65536")
    assert "--risk" in said(tmp_path, "--risk", "2")
    assert "wait=-0.001" in said(tmp_path, "--batch-wait-ms", "-1")
    assert "ensemble.json" in said(tmp_path / "a" / "run", "--port", "0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        message = said(tmp_path / "a" / "run", "--port", str(taken.getsockname()[1]))
    assert "no connections can be taken there" in message
    monkeypatch.setattr(extra, "find_spec", lambda _: None)
    assert "pip install 'lora-ensembles[serve]'" in said(tmp_path)
    with pytest.raises(MissingExtraError, match="fastapi and uvicorn and prometheus-client"):
        extra.check_installed()


def test_an_ensemble_of_open_answers_writes_text_only(tiny: LoraEnsemble) -> None:
    tiny.info = dataclasses.replace(tiny.info, task={"source": {"open_ended": True}})
    assert Catalogue({"tiny": tiny})["tiny"].tasks == ("completions",)
    with served_here({"tiny": tiny}) as client:
        asked = [{"type": "predicate", "instructions": "Is it?"}]
        answer = client.post("/v1/decisions", json={"model": "tiny", "input": "a", "questions": asked})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == "tiny answers /v1/completions and /v1/chat/completions"
