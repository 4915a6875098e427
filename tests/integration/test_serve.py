"""The server as clients see it: the official client of OpenAI, every kind of model, and each probability
equal to what `lora-ensembles predict` gives for the same case.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from lora_ensembles import predict_rewards
from lora_ensembles.data import encode_examples
from lora_ensembles.serve.asking import case_examples
from served import (
    NAMES,
    TICKETS,
    Process,
    Saved,
    case,
    language_model,
    offline,
    save,
    save_all,
    served,
    served_here,
    text,
)

CLOSE = 1e-5  # batches of other sizes sum in another order
KEY = "secret-1"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save_all(tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def server(saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(f"# who: everybody\nother\n{KEY}\n")
    with served(*map(saved.folder, NAMES), "--api-key-file", keys, "--batch-wait-ms", "5") as made:
        yield made


@pytest.fixture
def client(server: Process) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def post(server: Process, path: str, body: Any, **headers: str) -> httpx.Response:
    given = {"authorization": f"Bearer {KEY}", **headers}
    return httpx.post(f"{server.url}{path}", json=body, headers=given, timeout=30)


def answer_probs(answer: Any) -> list[float]:
    if answer.type == "predicate":
        return [answer.probability, 1 - answer.probability]
    return [one.probability for one in answer.probabilities]


def test_models_are_the_ensembles_and_their_members(client: openai.OpenAI) -> None:
    listed = [model.id for model in client.models.list()]
    assert listed == [
        own for name in NAMES for own in (name, *(f"{name}/member_00{index}" for index in range(3)))
    ]
    assert client.models.retrieve("cases/member_001").model_dump()["parent"] == "cases"


def test_openai_client_gets_every_type_of_answer_as_predict_gives_it(
    client: openai.OpenAI, saved: Saved, tmp_path: Path
) -> None:
    asked = case(0)
    expected = offline(saved.folder("cases"), [asked], tmp_path, "--risk", "0.7", "--coverage", "0.5")
    decision = client.decisions.create(
        model="cases",
        input=asked["state"],
        questions=asked["questions"],
        extra_body={"risk": 0.7, "coverage": 0.5},
    )
    assert [answer.type for answer in decision.answers] == ["predicate", "choice", "score"]
    assert [answer.name for answer in decision.answers] == ["leave", "who", "wet"]
    for answer, row in zip(decision.answers, expected, strict=True):
        assert answer_probs(answer) == pytest.approx(list(row["probs"].values()), abs=CLOSE)
        beside = answer.model_dump()
        uncertainty = beside["uncertainty"]
        assert uncertainty["total"] == pytest.approx(row["total_entropy"], abs=CLOSE)
        assert uncertainty["aleatoric"] == pytest.approx(row["expected_entropy"], abs=CLOSE)
        assert uncertainty["epistemic"] == pytest.approx(row["mutual_information"], abs=CLOSE)
        assert uncertainty["epistemic"] > 0
        assert beside["abstain"] == row["abstain"]
        assert len(beside["prediction_set"]) == len(row["prediction_set"])
        assert len(beside["members"]) == 3
        assert all(sum(own) == pytest.approx(1, abs=1e-6) for own in beside["members"])
    _, choice, score = decision.answers
    assert choice.type == "choice"
    assert choice.confidence == max(one.probability for one in choice.probabilities)
    assert choice.choice == max(choice.probabilities, key=lambda one: one.probability).value
    assert score.type == "score"
    assert score.score == pytest.approx(sum(one.value * one.probability for one in score.probabilities))
    assert [one.label for one in score.probabilities] == ["dry", "damp", "wet"]
    ensemble = saved.load("cases")
    examples = case_examples(ensemble.info, asked["state"], asked["questions"])
    encoded = encode_examples(examples, ensemble.tokenizer)
    tokens = sum(len(one.prompt_ids) for one in encoded)
    assert decision.usage.input_tokens == decision.usage.total_tokens == tokens
    beside = decision.model_dump()
    assert beside["calibration"].startswith("temperature")
    assert beside["confidence_kind"] == "top"


def test_calibration_and_guarantees_are_none_where_nothing_was_held_out(server: Process) -> None:
    asked = case(1)
    body = {"model": "choices", "input": "why", "questions": asked["questions"][1:2], "risk": 0.5}
    answered = post(server, "/v1/decisions", body).json()
    assert answered["calibration"] is None
    assert answered["answers"][0]["abstain"] is answered["answers"][0]["prediction_set"] is None


def test_a_member_answers_as_it_votes_in_the_ensemble(server: Process) -> None:
    asked = case(2)
    body = {"model": "cases", "input": asked["state"], "questions": asked["questions"], "risk": 0.7}
    whole = post(server, "/v1/decisions", body).json()
    for index in range(3):
        one = post(server, "/v1/decisions", {**body, "model": f"cases/member_00{index}"}).json()
        for answer, own in zip(whole["answers"], one["answers"], strict=True):
            (members,) = own["members"]
            assert members == pytest.approx(answer["members"][index], abs=CLOSE)
            assert own["uncertainty"]["epistemic"] == 0
            assert own["abstain"] is None
        assert one["calibration"] is None


def test_chats_json_and_parts_mean_the_state_that_a_file_has(
    server: Process, saved: Saved, tmp_path: Path
) -> None:
    questions = case(3)["questions"]
    states: list[tuple[Any, Any]] = [
        ({"door": "open", "cats": 2}, {"door": "open", "cats": 2}),
        (
            [
                {"role": "user", "content": [{"type": "input_text", "text": "The door"}]},
                {
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "is open"}],
                },
                {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": "rain"},
            ],
            [
                {"role": "user", "content": "The door"},
                {"role": "assistant", "content": "is open"},
                {"role": "assistant", "content": "look({})"},
                {"role": "tool", "content": "rain"},
            ],
        ),
        (
            [{"role": "user", "content": [{"type": "input_json", "data": {"a": [1]}}]}],
            [{"role": "user", "content": '{"a": [1]}'}],
        ),
    ]
    rows = [{"id": f"s{n}", "state": state, "questions": questions} for n, (_, state) in enumerate(states)]
    expected = iter(offline(saved.folder("cases"), rows, tmp_path))
    for given, _ in states:
        answered = post(
            server, "/v1/decisions", {"model": "cases", "input": given, "questions": questions}
        ).json()
        assert answered["answers"][0]["probability"] == pytest.approx(next(expected)["probs"]["a"], abs=CLOSE)
        for answer in answered["answers"][1:]:
            probs = [one["probability"] for one in answer["probabilities"]]
            assert probs == pytest.approx(list(next(expected)["probs"].values()), abs=CLOSE)


def test_systemone_gives_what_decisions_gives_in_the_shape_of_transformers(
    server: Process, saved: Saved, tmp_path: Path
) -> None:
    questions: dict[str, dict[str, Any]] = {
        "leave": {"type": "noul", "instructions": "May the cat leave?", "criteria": {"true": "yes, it may"}},
        "who": {
            "type": "choice",
            "instructions": "Who?",
            "criteria": {"cat": None, "river": "the old one", "rain": None},
        },
        "wet": {"type": "score", "instructions": "How wet?", "criteria": ["dry", "damp", "wet"]},
    }
    state = {"door": "open"}
    expected = offline(saved.folder("cases"), [{"state": state, "questions": questions}], tmp_path)
    body = {"model": "cases", "state": state, "questions": questions}
    answered = post(server, "/v1/systemone", body)
    assert answered.status_code == 200, answered.text
    answers = answered.json()["answers"]
    assert list(answers) == list(questions)
    rows = [list(row["probs"].values()) for row in expected]
    assert answers["leave"]["noul"] == pytest.approx(rows[0][0], abs=CLOSE)
    assert list(answers["who"]["probabilities"]) == ["cat", "river", "rain"]
    assert list(answers["who"]["probabilities"].values()) == pytest.approx(rows[1], abs=CLOSE)
    assert list(answers["wet"]["probabilities"].values()) == pytest.approx(rows[2], abs=CLOSE)
    assert answers["wet"]["legend"] == {"0": "dry", "1": "damp", "2": "wet"}
    assert answers["who"]["confidence"] == max(answers["who"]["probabilities"].values())
    assert answered.json()["usage"]["output_tokens"] == 0


def test_a_choice_is_scored_by_members_with_heads_of_their_own(
    server: Process, saved: Saved, tmp_path: Path
) -> None:
    asked = {**case(4, questions=2), "state": "the red fox saw a bird"}
    expected = offline(saved.folder("choices"), [asked], tmp_path)
    body = {"model": "choices", "input": asked["state"], "questions": asked["questions"]}
    answered = post(server, "/v1/decisions", body).json()["answers"]
    assert answered[0]["probability"] == pytest.approx(expected[0]["probs"]["a"], abs=CLOSE)
    probs = [one["probability"] for one in answered[1]["probabilities"]]
    assert probs == pytest.approx(list(expected[1]["probs"].values()), abs=CLOSE)


def test_answers_in_words_and_means_over_orders_are_those_of_predict(saved: Saved, tmp_path: Path) -> None:
    asked = [case(number) for number in range(20, 23)]
    for name, source, orders in (("words", {"answer": "text"}, 1), ("orders", {}, 3)):
        ensemble = language_model(seed=4)
        ensemble.info = dataclasses.replace(ensemble.info, task={"source": source})
        save(tmp_path, name, ensemble, calibrated_on=60, order_passes=orders)
        rows = iter(offline(tmp_path / name, asked, tmp_path))
        with served_here({name: ensemble}) as client:
            for one in asked:
                body = {"model": name, "input": one["state"], "questions": one["questions"], "id": one["id"]}
                for answer in client.post("/v1/decisions", json=body).json()["answers"]:
                    expected = list(next(rows)["probs"].values())
                    probs = [part["probability"] for part in answer.get("probabilities", [answer])]
                    assert probs == pytest.approx(expected[: len(probs)], abs=CLOSE)


@pytest.mark.parametrize(("name", "labels"), [("tickets", TICKETS), ("classes", ["one", "two", "three"])])
def test_classify_gives_the_classes_of_texts_as_predict_does(
    server: Process, saved: Saved, tmp_path: Path, name: str, labels: list[str]
) -> None:
    texts = [text(number) for number in range(5)]
    expected = offline(saved.folder(name), [{"text": one} for one in texts], tmp_path)
    answered = post(server, "/classify", {"model": name, "input": texts}).json()
    assert (answered["object"], answered["model"]) == ("list", name)
    assert answered["usage"]["prompt_tokens"] > 0
    for number, (data, row) in enumerate(zip(answered["data"], expected, strict=True)):
        assert (data["index"], data["label"], data["num_classes"]) == (number, row["prediction"], 3)
        assert dict(zip(data["labels"], data["probs"], strict=True)) == pytest.approx(row["probs"], abs=CLOSE)
        assert data["labels"] == labels
    single = post(server, "/classify", {"model": name, "input": texts[0]}).json()
    assert single["data"][0]["probs"] == pytest.approx(answered["data"][0]["probs"], abs=CLOSE)


def test_score_and_rerank_give_mean_spread_and_lower_bound(server: Process, saved: Saved) -> None:
    prompt, answers = text(1), [f" {text(number)}" for number in range(2, 7)]
    expected = predict_rewards(saved.load("rewards"), [prompt + answer for answer in answers])
    for names in (("queries", "documents"), ("text_1", "text_2"), ("data_1", "data_2")):
        body = {"model": "rewards", names[0]: prompt, names[1]: answers, "k": 2.0}
        data = post(server, "/score", body).json()["data"]
        assert [one["score"] for one in data] == pytest.approx(expected.mean.tolist(), abs=CLOSE)
        assert [one["std"] for one in data] == pytest.approx(expected.std.tolist(), abs=CLOSE)
        assert [one["lower_bound"] for one in data] == pytest.approx(
            expected.lower_bound(2.0).tolist(), abs=CLOSE
        )
    for rank_by, values in (("mean", expected.mean), ("lower_bound", expected.lower_bound(2.0))):
        body = {"model": "rewards", "query": prompt, "documents": answers, "k": 2.0, "rank_by": rank_by}
        ranked = post(server, "/v1/rerank", {**body, "top_n": 3}).json()["results"]
        order = values.argsort(descending=True).tolist()[:3]
        assert [one["index"] for one in ranked] == order
        assert [one["document"]["text"] for one in ranked] == [answers[number] for number in order]
        assert [one["relevance_score"] for one in ranked] == pytest.approx(values[order].tolist(), abs=CLOSE)


def test_sixteen_clients_at_once_get_their_own_answers(server: Process, saved: Saved, tmp_path: Path) -> None:
    cases = [case(number, questions=1 + number % 3) for number in range(100, 164)]
    expected: dict[str, list[list[float]]] = {}
    for row in offline(saved.folder("cases"), cases, tmp_path):
        expected.setdefault(row["id"].split(":")[0], []).append(list(row["probs"].values()))

    def ask(part: int) -> int:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as own:
            for asked in cases[part::16]:
                made = own.decisions.create(model="cases", input=asked["state"], questions=asked["questions"])
                for answer, probs in zip(made.answers, expected[asked["id"]], strict=True):
                    assert answer_probs(answer) == pytest.approx(probs, abs=CLOSE)
        return len(cases[part::16])

    different = {round(probs[0][0], 4) for probs in expected.values()}
    assert len(different) > 32  # so that an answer to another case would be seen
    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(ask, range(16))) == 64


def test_errors_reach_the_client_as_those_of_openai(client: openai.OpenAI) -> None:
    question: Any = {"type": "predicate", "instructions": "Is it?"}
    with pytest.raises(openai.NotFoundError, match="did you mean 'cases'") as lost:
        client.decisions.create(model="case", input="x", questions=[question])
    assert lost.value.code == "model_not_found"
    assert lost.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="401 questions; a request has at most 400"):
        client.decisions.create(model="cases", input="x", questions=[question] * 401)
    with pytest.raises(openai.BadRequestError, match="at least 1 item"):
        client.decisions.create(model="cases", input="x", questions=[])
    with pytest.raises(openai.BadRequestError, match="cases answers /v1/decisions") as other:
        client.post("/../classify", body={"model": "cases", "input": "x"}, cast_to=object)
    assert other.value.code == "model_not_supported"
    image: Any = [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]
    with pytest.raises(openai.BadRequestError, match="reads texts and JSON"):
        client.decisions.create(model="cases", input=image, questions=[question])
    wrong = client.with_options(api_key="secret-2")
    with pytest.raises(openai.AuthenticationError, match="a key of this server is needed") as refused:
        wrong.decisions.create(model="cases", input="x", questions=[question])
    assert refused.value.code == "invalid_api_key"


def classified(server: Process) -> list[dict[str, Any]]:
    """The lines of the log about /classify."""
    return [line for line in server.log if line["path"] == "/classify"]


def test_the_log_names_requests_and_never_prompts(server: Process) -> None:
    word = "unmistakable"
    body = {"model": "tickets", "input": [word, word]}
    before = len(classified(server))
    assert post(server, "/classify", body).status_code == 200
    for _ in range(100):  # another thread reads the lines
        if len(classified(server)) > before:
            break
        time.sleep(0.05)
    line = classified(server)[-1]
    assert {"time", "method", "path", "status", "ms", "model", "questions"} == line.keys()
    assert (line["method"], line["status"], line["model"], line["questions"]) == ("POST", 200, "tickets", 2)
    assert word not in json.dumps(server.log)


def test_probes_need_no_key_and_the_rest_does(server: Process) -> None:
    for path in ("/health", "/ready"):
        assert httpx.get(f"{server.url}{path}").status_code == 200
    for path in ("/v1/models", "/metrics", "/openapi.json", "/anything"):
        refused = httpx.get(f"{server.url}{path}")
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert refused.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{server.url}/metrics", headers={"authorization": "bearer other"}).status_code == 200


def test_the_page_loads_nothing_from_elsewhere_and_runs_no_other_script(server: Process) -> None:
    answer = httpx.get(f"{server.url}/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert not re.findall(r"""(?:src|href)\s*=\s*.(?!data:)|https?://|@import|url\(""", answer.text)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    for element in ("script", "style"):
        (text,) = re.findall(rf"<{element}>(.*?)</{element}>", answer.text, re.S)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy
