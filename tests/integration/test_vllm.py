"""The endpoint plugin for vLLM gives the answers of `predict`, by an engine that reads the member folders by
PEFT, and is called as vLLM calls it.

vLLM itself is not run here; `test_vllm_source.py` holds the plugin and the engine of these tests to its code.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import tomllib
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from openai.types.decision import Decision
from starlette.testclient import TestClient
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import fake_vllm
import tiny_heads
import vllm_source
from breadth import tried
from command_line import base_folder
from lora_ensembles import predict
from lora_ensembles.data import encode_examples
from lora_ensembles.errors import AdapterError, CheckpointError, ConfigError, DataError, LoraEnsemblesError
from lora_ensembles.prediction.uncertainty import split_entropy
from lora_ensembles.serve.asking import case_examples
from lora_ensembles.serve.http.bodies import DecisionRequest
from lora_ensembles_vllm import DecisionsPlugin, plugin
from lora_ensembles_vllm.compare import largest_differences
from lora_ensembles_vllm.engine import FIRST_ID
from lora_ensembles_vllm.plugin import PATH, decisions
from lora_ensembles_vllm.settings import VARIABLE, read_settings
from served import Saved, case, language_model, remember, save, served_here

CLOSE = 1e-5  # PEFT computes W x + s B A x in another order than a stack does
PROJECT = Path(__file__).parents[2] / "integrations" / "vllm" / "pyproject.toml"
GROUP = "vllm.endpoint_plugins"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    home = tmp_path_factory.mktemp("saved")
    save(home, "plain", language_model(seed=1))
    save(home, "calibrated", language_model(seed=1), calibrated_on=300)
    save(home, "orders", language_model(seed=2), calibrated_on=300, order_passes=2)
    return Saved(home)


@pytest.fixture(autouse=True)
def vllm() -> Iterator[None]:
    with fake_vllm.installed():
        yield


def engine(*folders: Path, check_base: bool = True, **settings: Any) -> fake_vllm.Engine:
    given = {"folders": [str(folder) for folder in folders], "check_base": check_base}
    settings.setdefault("additional_config", {"lora_ensembles": given})
    settings.setdefault("base", base_folder())
    return fake_vllm.Engine(**settings)


@contextmanager
def served(made: fake_vllm.Engine, *, raising: bool = True) -> Iterator[TestClient]:
    """An app that is built and told of its engine in the order in which vLLM does it."""
    app, own = FastAPI(), DecisionsPlugin()
    own.attach_router(app)
    asyncio.run(own.init_state(made, app.state, Namespace()))
    with TestClient(app, raise_server_exceptions=raising) as client:
        yield client


def start(made: fake_vllm.Engine, **args: Any) -> None:
    app = FastAPI()
    asyncio.run(DecisionsPlugin().init_state(made, app.state, Namespace(**args)))


def body(number: int, *, model: str = "plain", **more: Any) -> dict[str, Any]:
    asked = case(number)
    return {"model": model, "input": asked["state"], "questions": asked["questions"], **more}


def probs_of(answer: dict[str, Any]) -> list[float]:
    if answer["type"] == "predicate":
        return [answer["probability"], 1 - answer["probability"]]
    return [one["probability"] for one in answer["probabilities"]]


@pytest.mark.parametrize("logits", [False, True], ids=["raw_logprobs", "raw_logits"])
def test_the_answers_are_those_of_predict(saved: Saved, logits: bool) -> None:
    ensemble, asked = saved.load("plain"), case(0)
    examples = case_examples(ensemble.info, asked["state"], asked["questions"])
    expected = predict(ensemble, examples)
    entropies = split_entropy(expected.member_log_probs)
    with served(engine(saved.folder("plain"), logits=logits)) as client:
        reply = client.post(PATH, json=body(0)).json()
    assert [answer["type"] for answer in reply["answers"]] == ["predicate", "choice", "score"]
    for row, (answer, example) in enumerate(zip(reply["answers"], examples, strict=True)):
        width = len(example.labels)
        assert probs_of(answer) == pytest.approx(expected.probs[row, :width].tolist(), abs=CLOSE)
        for member, own in enumerate(answer["members"]):
            whole = expected.member_log_probs[member, row, :width].exp().tolist()
            assert own == pytest.approx(whole, abs=CLOSE)
        parts = dict(zip(("total", "aleatoric", "epistemic"), (part[row] for part in entropies), strict=True))
        assert answer["uncertainty"] == pytest.approx(
            {name: float(part) for name, part in parts.items()}, abs=CLOSE
        )
        assert answer["uncertainty"]["epistemic"] > 0.001
        assert answer["abstain"] is answer["prediction_set"] is None
    tokens = sum(len(one.prompt_ids) for one in encode_examples(examples, ensemble.tokenizer))
    assert reply["usage"]["input_tokens"] == reply["usage"]["total_tokens"] == tokens
    assert (reply["model"], reply["calibration"], reply["confidence_kind"]) == ("plain", None, "top")


@pytest.mark.parametrize("name", tried(["calibrated", "orders"], ["calibrated"]))
def test_a_calibrated_ensemble_answers_as_our_own_server_does(saved: Saved, name: str) -> None:
    asked = [body(number, model=name, id=f"c{number}", risk=0.7, coverage=0.5) for number in range(4)]
    with served_here({name: saved.load(name)}) as client:
        expected = [client.post(PATH, json=one).json() for one in asked]
    assert all(one["calibration"] for one in expected)
    with served(engine(saved.folder(name))) as client:
        found = [client.post(PATH, json=one).json() for one in asked]
    for one, other in zip(found, expected, strict=True):
        assert rounded(one) == rounded(other)


def rounded(value: Any) -> Any:
    """A reply with its numbers as `pytest.approx` compares them."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return pytest.approx(value, abs=CLOSE) if type(value) is float else value


def test_every_member_is_asked_once_for_the_first_tokens_of_the_labels(saved: Saved) -> None:
    made = engine(saved.folder("plain"), saved.folder("orders"), max_loras=6)
    ensemble, asked = saved.load("plain"), case(5)
    encoded = encode_examples(
        case_examples(ensemble.info, asked["state"], asked["questions"]), ensemble.tokenizer
    )
    with served(made) as client:
        client.post(PATH, json=body(5)).raise_for_status()
        assert made.admitted == [9]
        assert sorted((tuple(one.ids), one.lora.lora_path) for one in made.asked) == sorted(
            (one.prompt_ids, str(saved.folder("plain") / f"member_00{member}"))
            for one in encoded
            for member in range(3)
        )
        labels = {one.prompt_ids: [first for (first,) in one.label_ids] for one in encoded}
        assert all(one.params.logprob_token_ids == labels[tuple(one.ids)] for one in made.asked)
        made.asked.clear()
        client.post(PATH, json=body(5, model="orders")).raise_for_status()
    assert len(made.asked) == 3 * 3 * 2  # members, questions, orders
    used = {one.lora.lora_int_id for one in made.asked}
    assert used == {FIRST_ID + number for number in (3, 4, 5)}


def test_openais_client_reads_the_answers(saved: Saved) -> None:
    with served(engine(saved.folder("calibrated"))) as client:
        content = client.post(PATH, json=body(1, model="calibrated", coverage=0.5)).json()
    read = Decision.model_validate(content)
    assert [answer.type for answer in read.answers] == ["predicate", "choice", "score"]
    assert read.answers[0].model_dump()["prediction_set"] is not None


QUESTION = {"type": "predicate", "instructions": "It rains."}
WRONG: dict[str, tuple[Any, int, str | None, str]] = {
    "no object": ([1], 400, None, "dictionary"),
    "no questions": ({"model": "plain", "input": "x", "questions": []}, 400, "questions", "at least 1"),
    "an unknown field": (body(0, rsik=0.1), 400, "rsik", "not permitted"),
    "a risk above 1": (body(0, risk=2), 400, "risk", "less than"),
    "an unknown model": (body(0, model="plian"), 404, "model", "did you mean 'plain'"),
    "too many questions": (
        {"model": "plain", "input": "x", "questions": [QUESTION] * 401},
        400,
        None,
        "at most 400",
    ),
    "too many options": (
        {
            "model": "plain",
            "input": "x",
            "questions": [
                {
                    "type": "choice",
                    "instructions": "Which?",
                    "choices": [{"value": f"v{number}"} for number in range(27)],
                }
            ],
        },
        400,
        None,
        "26",
    ),
    "an image": (
        {
            "model": "plain",
            "input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}],
            "questions": [QUESTION],
        },
        400,
        None,
        "input_image",
    ),
    "a prompt that is too long": (
        {"model": "plain", "input": "river " * 600, "questions": [QUESTION]},
        400,
        None,
        "512",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_malformed_request_gets_an_error_in_openais_shape(saved: Saved, name: str) -> None:
    given, status, param, said = WRONG[name]
    made = engine(saved.folder("plain"))
    with served(made) as client:
        reply = client.post(PATH, json=given)
    error = reply.json()["error"]
    assert reply.status_code == status
    assert sorted(error) == ["code", "message", "param", "type"]
    assert (error["param"] or None) == param or (param and error["param"].startswith(param))
    assert said in error["message"]
    assert made.asked == []


@pytest.mark.parametrize("content", [b"{", b"\xff", b'{"model": NaN}', b'{"model": "\\ud800"}'])
def test_a_body_that_is_no_json_gets_an_error_in_openais_shape(saved: Saved, content: bytes) -> None:
    with served(engine(saved.folder("plain"))) as client:
        reply = client.post(PATH, content=content, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "invalid_json"


def test_a_read_without_a_label_is_an_error_and_no_answer(saved: Saved) -> None:
    ensemble = saved.load("plain")
    (one,) = encode_examples(case_examples(ensemble.info, "x", [QUESTION]), ensemble.tokenizer)
    with served(engine(saved.folder("plain"), forgets=one.label_ids[1])) as client:
        reply = client.post(PATH, json=body(0))
    assert reply.status_code == 500
    assert reply.json()["error"]["code"] == "read_failed"


def test_errors_of_the_engine_are_left_to_vllm(saved: Saved) -> None:
    made = engine(saved.folder("plain"), fails=RuntimeError("the engine is dead"))
    with served(made) as client, pytest.raises(RuntimeError, match="the engine is dead"):
        client.post(PATH, json=body(0))
    assert made.open == 0


def test_reads_end_when_the_client_goes_away(saved: Saved) -> None:
    made, app = engine(saved.folder("plain"), waits=True), FastAPI()

    async def ask() -> int:
        await DecisionsPlugin().init_state(made, app.state, Namespace())

        async def receive() -> dict[str, Any]:
            while made.open < 9:
                await asyncio.sleep(0.001)
            return {"type": "http.disconnect"}

        request: Any = SimpleNamespace(app=app, receive=receive)
        with pytest.raises(Exception, match="the client has gone"):
            await decisions(request, DecisionRequest(**body(0)))
        await asyncio.sleep(0)  # cancelled tasks run once more
        await asyncio.sleep(0)
        return made.open

    assert asyncio.run(ask()) == 0


def test_a_server_without_an_engine_says_so() -> None:
    app, own = FastAPI(), DecisionsPlugin()
    own.attach_router(app)
    asyncio.run(own.init_state(None, app.state, Namespace()))
    with TestClient(app) as client:
        reply = client.post(PATH, json=body(0))
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "not_ready")


def test_the_document_of_the_app_has_the_body_and_the_answer() -> None:
    app = FastAPI()
    DecisionsPlugin().attach_router(app)
    post = app.openapi()["paths"][PATH]["post"]
    assert post["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/DecisionRequest")
    assert post["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("DecisionReply")


REFUSED: dict[str, tuple[dict[str, Any], type[LoraEnsemblesError], str]] = {
    "no adapters": ({"enable_lora": False}, ConfigError, "--enable-lora --max-loras 3"),
    "too few adapters": ({"max_loras": 2}, ConfigError, "--max-loras 2; start vLLM .* --max-loras 3"),
    "too small a rank": ({"max_lora_rank": 1}, ConfigError, "rank 8, and vLLM --max-lora-rank 1"),
    "speculative decoding": ({"speculative_config": object()}, ConfigError, "--speculative-config"),
    "another base": ({"base": "other/base"}, AdapterError, "vLLM serves 'other/base'.*check_base"),
    "no folder": ({"additional_config": {"lora_ensembles": {"folders": []}}}, ConfigError, "folders"),
    "no ensemble": (
        {"additional_config": {"lora_ensembles": {"folders": "nowhere"}}},
        CheckpointError,
        "no folder",
    ),
    "a setting": (
        {"additional_config": {"lora_ensembles": {"folder": "x"}}},
        ConfigError,
        "did you mean 'folders'",
    ),
    "no truth": (
        {"additional_config": {"lora_ensembles": {"folders": "x", "check_base": "no"}}},
        ConfigError,
        "true or false",
    ),
    "no object": ({"additional_config": {"lora_ensembles": 3}}, ConfigError, "is a int"),
    "nothing at all": ({"additional_config": {}}, ConfigError, VARIABLE),
}


@pytest.mark.parametrize("name", REFUSED)
def test_vllm_does_not_start_with_what_cannot_be_served(
    saved: Saved, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    settings, kind, said = REFUSED[name]
    with pytest.raises(kind, match=said):
        start(engine(saved.folder("plain"), **settings))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"labels": ["billing", "bug"]}, "label words"),
        ({"answer": "text"}, "texts of the options"),
        ({"open_ended": True}, "open answers"),
    ],
)
def test_ensembles_that_answer_in_other_ways_are_refused_by_name(
    tmp_path: Path, source: dict[str, Any], said: str
) -> None:
    other = language_model(seed=1)
    remember(other, source)
    save(tmp_path, "other", other)
    with pytest.raises(ConfigError, match=f"other .*{said}.*lora-ensembles serve"):
        start(engine(tmp_path / "other"))


def test_an_ensemble_with_heads_is_refused_by_name(tmp_path: Path) -> None:
    tiny_heads.build_ensemble("llama", "multiple-choice").save_pretrained(tmp_path / "heads")
    with pytest.raises(ConfigError, match="heads has heads of the kind 'multiple-choice'"):
        start(engine(tmp_path / "heads"))


def test_a_tokenizer_that_spells_letters_in_several_tokens_is_refused(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    spelt = Tokenizer(models.WordLevel({"<": 0, "(": 1, "a": 2, "x": 3}, unk_token="<"))
    spelt.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    spelt.normalizer = normalizers.Replace("(a", "(ax")  # behind a bracket the letter is two tokens
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=spelt, unk_token="<")
    monkeypatch.setattr(plugin, "resolve_tokenizer", lambda name, revision: tokenizer)
    with pytest.raises(DataError, match="label 'a' is 2 tokens"):
        start(engine(saved.folder("plain")))


def test_two_folders_of_one_name_are_refused(saved: Saved, tmp_path: Path) -> None:
    save(tmp_path, "plain", language_model(seed=4))
    with pytest.raises(ConfigError, match="two ensembles are called 'plain'"):
        start(engine(saved.folder("plain"), tmp_path / "plain", max_loras=6))


def test_the_name_on_vllms_command_line_counts_where_its_configuration_has_a_folder_of_the_cache(
    saved: Saved, tmp_path: Path
) -> None:
    cached = tmp_path / "snapshots" / "0123abcd"
    cached.parent.mkdir()
    cached.symlink_to(base_folder())
    start(engine(saved.folder("plain"), base=str(cached)), model=base_folder())
    start(engine(saved.folder("plain"), base=str(cached), check_base=False))


def test_folders_come_from_the_environment_where_vllms_configuration_names_none() -> None:
    settings = read_settings({}, {VARIABLE: "runs/a:runs/b"})
    assert settings.folders == (Path("runs/a"), Path("runs/b"))
    assert settings.check_base
    both = read_settings({"lora_ensembles": {"folders": "runs/c"}}, {VARIABLE: "runs/a"})
    assert both.folders == (Path("runs/c"),)


def entry_points(group: str) -> list[importlib.metadata.EntryPoint]:
    """Those of the plugin's project, as they are when it is installed."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    return [
        importlib.metadata.EntryPoint(name, value, group)
        for name, value in project["entry-points"].get(group, {}).items()
    ]


def test_the_entry_point_names_the_plugin() -> None:
    (point,) = entry_points(GROUP)
    assert point.load() is DecisionsPlugin
    assert point.name == DecisionsPlugin.name


@vllm_source.NEEDED
def test_vllms_own_wiring_puts_the_route_in_the_place_of_its_own(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: entry_points(group))
    app, made = FastAPI(), engine(saved.folder("plain"))

    @app.post(PATH)
    async def theirs() -> dict[str, str]:
        return {"from": "vllm"}

    stubs = {
        "vllm.envs": vllm_source.stub(VLLM_PLUGINS=[DecisionsPlugin.name]),
        "vllm.engine.protocol": vllm_source.stub(EngineClient=object),
    }
    with vllm_source.loaded(["vllm.plugins", "vllm.plugins.endpoint_plugins.interface"], stubs) as loaded:
        interface = loaded[1]
        assert isinstance(DecisionsPlugin(), interface.EndpointPlugin)
        interface.attach_endpoint_plugins(app, ("generate", "transcription"))
        assert [type(one) for one in app.state.endpoint_plugins] == [DecisionsPlugin]
        other = FastAPI()
        interface.attach_endpoint_plugins(other, ("render",))
        assert other.state.endpoint_plugins == []
        with fake_vllm.installed():
            asyncio.run(interface.init_endpoint_plugins_state(made, app.state, Namespace()))
    with TestClient(app) as client:
        assert len(client.post(PATH, json=body(0)).json()["answers"]) == 3


def test_the_comparison_with_a_running_server_finds_the_differences(saved: Saved) -> None:
    cases = [case(number) for number in range(3)]
    made = engine(saved.folder("plain"), saved.folder("orders"), max_loras=6)
    with served(made) as client:

        def ask(given: dict[str, Any], model: str) -> Any:
            return client.post(PATH, json={"model": model, **given}).json()

        same = largest_differences(lambda given: ask(given, "orders"), saved.load("orders"), cases)
        other = largest_differences(lambda given: ask(given, "plain"), saved.load("orders"), cases)
    assert same["questions"] == 9
    assert same["members"] < CLOSE
    assert same["ensemble"] < CLOSE
    assert other["members"] > 0.01
