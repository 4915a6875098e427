"""Text over HTTP: the official client of OpenAI, continuous and static batches, and every token and
probability equal to what `generate` gives for the same prompt.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from transformers import GenerationConfig

from breadth import LONG
from command_line import base_folder
from lora_ensembles import GeneratedText, LoraEnsemble, generate_text, load_base
from lora_ensembles.data import Message
from lora_ensembles.data.tokens.completions import encode_prompts
from lora_ensembles.serve.catalogue import Catalogue
from lora_ensembles.serve.completions import continuous
from lora_ensembles.serve.completions.continuous import ContinuousEngine
from lora_ensembles.serve.completions.engine import CompletionEngine
from lora_ensembles.serve.completions.engines import make_engine
from lora_ensembles.serve.completions.job import CompletionJob
from lora_ensembles.serve.completions.params import SamplingParams
from lora_ensembles.serve.completions.static import StaticEngine
from lora_ensembles.serve.settings import Limits, Settings
from served import WORDS, Process, language_model, served, served_here
from tiny_models import build_ensemble

CLOSE = 5e-5  # nats: passes of other sizes sum in another order
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"

needs_engine = pytest.mark.skipif(
    not continuous.has_engine(), reason="continuous batching needs transformers 5.17 or newer"
)


def prompt(number: int) -> str:
    drawn = random.Random(number)
    return "Q: " + " ".join(drawn.choices(WORDS, k=drawn.randrange(1, 30)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble of three members on a base with a chat template."""
    home = tmp_path_factory.mktemp("text")
    shutil.copytree(base_folder(), home / "base")
    (home / "base" / "chat_template.jinja").write_text(CHAT)
    ensemble = LoraEnsemble(*load_base(str(home / "base")), num_members=3, seed=1)
    drawn = torch.randn(ensemble.stack.b.shape, generator=torch.Generator().manual_seed(1))
    ensemble.stack.b.copy_(0.3 * drawn)
    ensemble.stack.refresh()
    ensemble.save_pretrained(home / "writer")
    return home / "writer"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Process]:
    with served(folder, "--max-new-tokens", "60") as made:
        yield made


@pytest.fixture(scope="module")
def ensemble(folder: Path) -> LoraEnsemble:
    return LoraEnsemble.from_pretrained(folder)


@pytest.fixture
def client(server: Process) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def written(
    ensemble: LoraEnsemble, given: Any, tokens: int, *, seed: int | None = None, **settings: Any
) -> GeneratedText:
    config = GenerationConfig(max_new_tokens=tokens, do_sample=seed is not None, **settings)
    return generate_text(ensemble, [given], config, seed=seed)[0]


def ids_of(ensemble: LoraEnsemble, text: str) -> tuple[int, ...]:
    return tuple(encode_prompts([text], ensemble.tokenizer)[0])


def run(engine: CompletionEngine, prompts: Sequence[str], tokens: Sequence[int]) -> list[Any]:
    """The texts that an engine writes to prompts, all asked at once."""
    jobs = [
        CompletionJob(
            engine.model,
            ids_of(engine.model.ensemble, text),
            SamplingParams(count, temperature=0.0),
            ends=frozenset(),
        )
        for text, count in zip(prompts, tokens, strict=True)
    ]
    engine.start()
    try:
        for job in jobs:
            engine.submit(job)
        return [job.future.result(120) for job in jobs]
    finally:
        engine.stop()


def same_uncertainty(beside: dict[str, Any], expected: GeneratedText) -> None:
    split = expected.uncertainty
    assert torch.tensor(beside["member_logprobs"]).T.tolist() == [
        pytest.approx(own, abs=CLOSE) for own in split.member_log_probs.tolist()
    ]
    for name, values in (
        ("total", split.total_entropy),
        ("aleatoric", split.expected_entropy),
        ("epistemic", split.mutual_information),
        ("agreement", split.agreement),
    ):
        assert beside[name] == pytest.approx(values.tolist(), abs=CLOSE)
    assert max(beside["epistemic"]) > 0


def test_a_completion_is_the_text_of_generate(client: openai.OpenAI, ensemble: LoraEnsemble) -> None:
    expected = written(ensemble, prompt(0), 12)
    made = client.completions.create(
        model="writer", prompt=prompt(0), max_tokens=12, temperature=0, logprobs=3
    )
    choice = made.choices[0]
    assert choice.text == expected.text
    assert choice.finish_reason == "length"
    assert choice.logprobs is not None
    given = choice.logprobs.token_logprobs or []
    assert given == pytest.approx(expected.uncertainty.log_probs.tolist(), abs=CLOSE)
    assert "".join(choice.logprobs.tokens or []) == choice.text
    for own, top in zip(given, choice.logprobs.top_logprobs or [], strict=True):
        assert len(top) == 3
        assert max(top.values()) == pytest.approx(own)  # the most probable token was taken
    same_uncertainty(choice.model_dump()["uncertainty"], expected)
    assert made.usage is not None
    assert made.usage.completion_tokens == 12
    assert made.usage.prompt_tokens == len(ids_of(ensemble, prompt(0)))


def test_texts_are_drawn_as_generate_draws_them(client: openai.OpenAI, ensemble: LoraEnsemble) -> None:
    made = client.completions.create(
        model="writer",
        prompt=[prompt(1), prompt(2)],
        n=2,
        max_tokens=10,
        temperature=0.8,
        top_p=0.9,
        seed=7,
    )
    assert [choice.index for choice in made.choices] == [0, 1, 2, 3]
    for choice, (number, seed) in zip(made.choices, ((1, 7), (1, 8), (2, 7), (2, 8)), strict=True):
        expected = written(ensemble, prompt(number), 10, seed=seed, temperature=0.8, top_p=0.9, top_k=0)
        assert choice.text == expected.text
    assert len({choice.text for choice in made.choices}) > 1


def test_a_chat_is_rendered_by_the_template(client: openai.OpenAI, ensemble: LoraEnsemble) -> None:
    chat = (Message("system", "Be short."), Message("user", "Where do otters live?"))
    expected = written(ensemble, chat, 9)
    made = client.chat.completions.create(
        model="writer",
        messages=[
            {"role": "developer", "content": "Be short."},
            {"role": "user", "content": [{"type": "text", "text": "Where do otters live?"}]},
        ],
        max_completion_tokens=9,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
    )
    choice = made.choices[0]
    assert choice.message.content == expected.text
    assert choice.logprobs is not None
    content = choice.logprobs.content or []
    given = [one.logprob for one in content]
    assert given == pytest.approx(expected.uncertainty.log_probs.tolist(), abs=CLOSE)
    assert all(len(one.top_logprobs) == 2 and one.bytes == list(one.token.encode()) for one in content)
    same_uncertainty(choice.model_dump()["uncertainty"], expected)


def test_a_stream_gives_the_same_tokens_one_by_one(client: openai.OpenAI, ensemble: LoraEnsemble) -> None:
    expected = written(ensemble, prompt(3), 15)
    chunks = list(
        client.completions.create(
            model="writer",
            prompt=prompt(3),
            max_tokens=15,
            temperature=0,
            stream=True,
            logprobs=0,
            stream_options={"include_usage": True},
        )
    )
    texts = [chunk for chunk in chunks if chunk.choices]
    assert "".join(chunk.choices[0].text for chunk in texts) == expected.text
    assert [chunk.choices[0].finish_reason for chunk in texts] == [None] * 15 + ["length"]
    parts = [chunk.choices[0].logprobs for chunk in texts[:-1]]
    logprobs = [value for part in parts if part for value in part.token_logprobs or []]
    assert logprobs == pytest.approx(expected.uncertainty.log_probs.tolist(), abs=CLOSE)
    beside = [chunk.choices[0].model_dump()["uncertainty"] for chunk in texts]
    same_uncertainty({name: [value for one in beside for value in one[name]] for name in beside[0]}, expected)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 15


def test_a_chat_streams_each_of_its_answers(client: openai.OpenAI, ensemble: LoraEnsemble) -> None:
    chat = client.chat.completions.create(
        model="writer",
        messages=[{"role": "user", "content": "Hello"}],
        max_tokens=5,
        temperature=0,
        n=2,
        stream=True,
    )
    said, pieces = {0: "", 1: ""}, {0: "", 1: ""}
    for chunk in chat:
        choice = chunk.choices[0]
        said[choice.index] += choice.delta.content or ""
        pieces[choice.index] += "".join(choice.model_dump()["uncertainty"]["tokens"])  # of every chunk
    assert pieces == said
    assert said[0] == said[1] == written(ensemble, (Message("user", "Hello"),), 5).text


def test_a_member_writes_alone(client: openai.OpenAI, ensemble: LoraEnsemble, folder: Path) -> None:
    made = client.completions.create(model="writer/member_001", prompt=prompt(4), max_tokens=8, temperature=0)
    beside = made.choices[0].model_dump()["uncertainty"]
    assert beside["epistemic"] == pytest.approx([0.0] * 8, abs=1e-6)
    assert [len(own) for own in beside["member_logprobs"]] == [1] * 8
    alone = written(LoraEnsemble.from_pretrained(folder, members=[1]), prompt(4), 8)
    assert made.choices[0].text == alone.text != written(ensemble, prompt(4), 8).text


def test_a_stop_text_ends_a_text_wherever_tokens_end(client: openai.OpenAI, ensemble: LoraEnsemble) -> None:
    expected = written(ensemble, prompt(5), 30).text
    for start in (3, 9, len(expected) // 2):
        stop = expected[start : start + 4]
        cut = expected[: expected.index(stop)]
        made = client.completions.create(
            model="writer", prompt=prompt(5), max_tokens=30, temperature=0, stop=["never there", stop]
        )
        assert (made.choices[0].text, made.choices[0].finish_reason) == (cut, "stop")
        streamed = client.completions.create(
            model="writer", prompt=prompt(5), max_tokens=30, temperature=0, stop=stop, stream=True
        )
        assert "".join(chunk.choices[0].text for chunk in streamed) == cut


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"model": "nobody", "prompt": "a"}, 404, "nobody"),
        ({"prompt": ""}, 400, "empty"),
        ({"prompt": "a " * 5000}, 400, "reads at most"),
        ({"prompt": [10**6]}, 400, "counted from 0"),
        ({"prompt": []}, 400, ""),
        ({"prompt": "a", "max_tokens": 61}, 400, "at most 60"),
        ({"prompt": "a", "n": 400}, 400, ""),
        ({"prompt": "a", "temperature": 3}, 400, ""),
        ({"prompt": "a", "top_p": 0}, 400, ""),
        ({"prompt": "a", "stop": ""}, 400, ""),
        ({"prompt": "a", "echo": True}, 400, ""),
        ({"prompt": "a", "frequency_penalty": 0.5}, 400, ""),
        ({"prompt": "a", "logprobs": 21}, 400, ""),
        ({"prompt": "a", "colour": "red"}, 400, "xtra"),
        ({"prompt": ["a"] * 300}, 429, "queue is full"),
        ({"prompt": ["a"] * 401}, 400, "at most 400"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_written_is_refused_in_openais_shape(
    server: Process, body: dict[str, Any], status: int, words: str
) -> None:
    for stream in (False, True):
        asked = {"model": "writer", "stream": stream, **body}
        answer = httpx.post(f"{server.url}/v1/completions", json=asked, timeout=30)
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert words in error["message"]
        assert {*error} == {"message", "type", "param", "code"}


def test_a_chat_without_a_template_is_refused() -> None:
    with served_here({"plain": language_model(seed=2)}) as client:
        body = {"model": "plain", "messages": [{"role": "user", "content": "Hello"}]}
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400
        assert "chat template" in answer.json()["error"]["message"]


def test_texts_are_the_same_beside_others_and_beside_decisions(
    server: Process, ensemble: LoraEnsemble
) -> None:
    """Every request gets its own text while many join and leave, and decisions are answered between."""

    def text_of(number: int) -> tuple[str, list[float]]:
        body = {
            "model": "writer",
            "prompt": prompt(number),
            "max_tokens": 4 + number % 9,
            "temperature": 0,
            "logprobs": 0,
        }
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120).json()["choices"][0]
        return answer["text"], answer["logprobs"]["token_logprobs"]

    def decided(number: int) -> float:
        asked = [{"type": "predicate", "instructions": "Is it raining?", "name": "wet"}]
        body = {"model": "writer", "input": prompt(number), "questions": asked}
        answer = httpx.post(f"{server.url}/v1/decisions", json=body, timeout=120).json()["answers"][0]
        return float(answer["probability"])

    alone = [decided(number) for number in range(8)]
    with ThreadPoolExecutor(24) as pool:
        texts, decisions = pool.map(text_of, range(100, 148)), pool.map(decided, [*range(8)] * 3)
        answers, together = list(texts), list(decisions)
    for number, (text, log_probs) in zip(range(100, 148), answers, strict=True):
        expected = written(ensemble, prompt(number), 4 + number % 9)
        assert text == expected.text
        assert log_probs == pytest.approx(expected.uncertainty.log_probs.tolist(), abs=CLOSE)
    assert together == pytest.approx(alone * 3, abs=CLOSE)


def test_a_client_that_goes_away_frees_its_place(server: Process) -> None:
    body = {"model": "writer", "prompt": prompt(6), "max_tokens": 60, "n": 100, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
        next(answer.iter_lines())
    end = time.monotonic() + 20
    while time.monotonic() < end:
        metrics = httpx.get(f"{server.url}/metrics", timeout=30).text
        open_texts = [
            float(line.rpartition(" ")[2])
            for line in metrics.splitlines()
            if line.startswith(
                ("lora_ensembles:num_requests_running{", "lora_ensembles:num_requests_waiting{")
            )
        ]
        if sum(open_texts) == 0:
            break
        time.sleep(0.1)
    assert sum(open_texts) == 0
    assert "lora_ensembles:generation_tokens_total" in metrics


@needs_engine
def test_a_long_prompt_is_read_in_parts(ensemble: LoraEnsemble) -> None:
    """Beyond the tokens of one pass, and beside short ones."""
    prompts = [" ".join(WORDS * 20), prompt(1)]
    assert len(ids_of(ensemble, prompts[0])) > 256  # PASS_TOKENS
    texts = run(ContinuousEngine(Catalogue({"writer": ensemble})["writer"], most=10), prompts, [6, 6])
    assert [text.text for text in texts] == [written(ensemble, one, 6).text for one in prompts]


@needs_engine
def test_requests_that_do_not_fit_into_the_cache_together_wait(ensemble: LoraEnsemble) -> None:
    model, prompts = Catalogue({"writer": ensemble})["writer"], [prompt(number) for number in range(12)]
    texts = run(ContinuousEngine(model, most=20, cached_tokens=128), prompts, [20] * 12)
    assert [text.text for text in texts] == [written(ensemble, one, 20).text for one in prompts]


@pytest.mark.parametrize(
    ("name", "continuously"),
    [
        ("llama", True),
        ("gpt2", True),
        ("granite", True),
        ("mistral", False),
        ("opt", False),
        ("falcon", False),
    ],
)
def test_each_base_is_served_by_the_engine_that_is_right_for_it(name: str, continuously: bool) -> None:
    ensemble = build_ensemble(name, members=2, random_b=True)
    engine = make_engine(Catalogue({name: ensemble})[name], most=10)
    continuously = continuously and continuous.has_engine()
    assert isinstance(engine, ContinuousEngine if continuously else StaticEngine), engine.batching
    prompts, counts = [prompt(number) for number in range(5)], [4 + number for number in range(5)]
    for text, given, count in zip(run(engine, prompts, counts), prompts, counts, strict=True):
        expected = written(ensemble, given, count, eos_token_id=-1)
        assert [one.token for one in text.tokens] == list(expected.token_ids)


@needs_engine
def test_a_failed_engine_says_so(ensemble: LoraEnsemble, monkeypatch: pytest.MonkeyPatch) -> None:
    with served_here({"writer": ensemble}, raising=False) as client:

        def failing(*_: object) -> None:
            raise RuntimeError("out of order")

        monkeypatch.setattr("lora_ensembles.serve.completions.paged.write_next", failing)
        body = {"model": "writer", "prompt": "Q:", "max_tokens": 3}
        assert client.post("/v1/completions", json=body).status_code == 500
        assert client.get("/ready").status_code == 503
        assert client.post("/v1/completions", json=body).status_code == 503


@pytest.mark.parametrize("field", [{"temperature": 1.4e-45}, {"temperature": 1e-3}, {"top_p": 1e-9}])
def test_the_smallest_numbers_take_the_most_probable_token(
    server: Process, ensemble: LoraEnsemble, field: dict[str, float]
) -> None:
    body = {"model": "writer", "prompt": prompt(7), "max_tokens": 5, **field}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=30)
    assert answer.json()["choices"][0]["text"] == written(ensemble, prompt(7), 5).text


@needs_engine
def test_a_job_that_fails_does_so_alone(ensemble: LoraEnsemble) -> None:
    model = Catalogue({"writer": ensemble})["writer"]
    engine, ids = ContinuousEngine(model, most=4), ids_of(ensemble, prompt(8))

    def hang_up(_: object) -> None:
        raise RuntimeError("nobody listens")

    params = SamplingParams(4, temperature=0.0)
    jobs = [
        CompletionJob(model, ids, params, ends=frozenset(), on_token=on_token) for on_token in (hang_up, None)
    ]
    engine.start()
    try:
        for job in jobs:
            engine.submit(job)
        with pytest.raises(RuntimeError, match="nobody listens"):
            jobs[0].future.result(60)
        assert jobs[1].future.result(60).text == written(ensemble, prompt(8), 4).text
        assert engine.alive
    finally:
        engine.stop()


def test_time_limits_hold_for_texts(ensemble: LoraEnsemble) -> None:
    with served_here({"writer": ensemble}, Settings(Limits(seconds=0.05))) as client:
        body = {"model": "writer", "prompt": "Q:", "max_tokens": 1000, "temperature": 0}
        answer = client.post("/v1/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")


def test_prompts_are_logged_only_when_asked(
    server: Process, ensemble: LoraEnsemble, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Q: " not in json.dumps(server.log)
    with served_here({"writer": ensemble}, Settings(log_prompts=True)) as client:
        client.post("/v1/completions", json={"model": "writer", "prompt": prompt(1), "max_tokens": 1})
        chat = [{"role": "user", "content": "Where do otters live?"}]
        client.post("/v1/chat/completions", json={"model": "writer", "messages": chat, "max_tokens": 1})
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    (text,), (asked,) = [line["prompts"] for line in lines]
    assert prompt(1) in text
    assert "user: Where do otters live?" in asked


@LONG
def test_models_are_reloaded_without_a_lost_request(folder: Path, tmp_path: Path) -> None:
    """While clients ask on, every answer is the old model's or the new one's; a folder that is broken changes
    nothing.
    """
    home = tmp_path / "writer"
    shutil.copytree(folder, home)
    new = LoraEnsemble(*load_base(str(folder.parent / "base")), num_members=3, seed=9)
    new.stack.b.copy_(0.3 * torch.randn(new.stack.b.shape, generator=torch.Generator().manual_seed(9)))
    new.stack.refresh()
    old = LoraEnsemble.from_pretrained(folder)
    expected = [(written(old, prompt(n), 6).text, written(new, prompt(n), 6).text) for n in range(6)]
    assert all(before != after for before, after in expected)
    asked = [{"type": "predicate", "instructions": "Is it raining?", "name": "wet"}]
    stop = threading.Event()
    seen: list[tuple[int, int, str]] = []
    decided: list[tuple[int, float]] = []

    with served(home) as server:

        def ask(own: int) -> None:
            while not stop.is_set():
                body = {"model": "writer", "prompt": prompt(own), "max_tokens": 6, "temperature": 0}
                answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
                seen.append((own, answer.status_code, answer.json()["choices"][0]["text"]))
                question = {"model": "writer", "input": "Rain falls.", "questions": asked}
                answer = httpx.post(f"{server.url}/v1/decisions", json=question, timeout=60)
                decided.append((answer.status_code, answer.json()["answers"][0]["probability"]))

        clients = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
        for client in clients:
            client.start()
        _until(lambda: len(seen) > 12)
        new.save_pretrained(tmp_path / "new")
        home.rename(tmp_path / "old")
        (tmp_path / "new").rename(home)
        server.send(signal.SIGHUP)
        _until(lambda: any(line.startswith("reloaded") for line in server.lines))
        after = len(seen)
        _until(lambda: len(seen) > after + 24)
        whole = (home / "ensemble.json").read_text()
        (home / "ensemble.json").write_text("{")
        server.send(signal.SIGHUP)
        _until(lambda: any(line.startswith("not reloaded") for line in server.lines))
        broken = len(seen)
        _until(lambda: len(seen) > broken + 12)
        stop.set()
        for client in clients:
            client.join()
        (home / "ensemble.json").write_text(whole)
        server.send(signal.SIGHUP)
        server.send(signal.SIGTERM)  # a reload that is under way keeps no server from its end
        assert server.ended(30) == 0
    assert {status for _, status, _ in seen} == {status for status, _ in decided} == {200}
    assert all(text in expected[own] for own, _, text in seen)
    assert all(text == expected[own][1] for own, _, text in seen[after + 12 :])
    assert seen[0][2] == expected[seen[0][0]][0]
    assert decided[0][1] != pytest.approx(decided[-1][1], abs=1e-4)


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
