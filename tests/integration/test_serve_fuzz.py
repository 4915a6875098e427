"""Requests drawn at random: by schemathesis from the OpenAPI document, and by hypothesis from fields that
come near right ones. None ends in a fault of the server, or in an answer that the document does not name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings, strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from breadth import LONG
from lora_ensembles.serve.settings import Limits, Settings
from served import Saved, case, save_all, served_here, text

EXAMPLES = 25  # of each operation
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
TEXT = ("/v1/completions", "/v1/chat/completions")
MODELS = {"decisions": ("cases", "choices"), "classify": ("tickets", "classes"), "rewards": ("rewards",)}
QUIET = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    saved: Saved = save_all(tmp_path_factory.mktemp("saved"))
    every = {name: saved.load(name) for group in MODELS.values() for name in group}
    every["cases"].tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    limits = Limits(body_bytes=50_000, questions=40, new_tokens=8)
    with served_here(every, Settings(limits), raising=False) as made:
        yield made


def models_for(path: str) -> tuple[str, ...]:
    if path in TEXT:
        return ("cases",)
    if path in ("/v1/decisions", "/v1/systemone"):
        return MODELS["decisions"]
    return MODELS["classify"] if path == "/classify" else MODELS["rewards"]


@pytest.mark.parametrize("known", [True, pytest.param(False, marks=LONG)])
def test_drawn_requests_get_documented_answers(client: TestClient, known: bool) -> None:
    """With a model's name put into the bodies, so that many reach the models, and as they are drawn."""
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    statuses: list[int] = []
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(QUIET, max_examples=EXAMPLES)
        @given(drawn=operation.as_strategy())
        def check(drawn: Any) -> None:
            if known and isinstance(drawn.body, dict) and "model" in drawn.body:
                names = models_for(drawn.operation.path)
                drawn.body["model"] = names[len(json.dumps(drawn.body)) % len(names)]
            sent = drawn.as_transport_kwargs()
            answer = client.request(
                sent["method"],
                sent["url"],
                params=sent.get("params"),
                headers=dict(sent["headers"] or {}),
                **{key: sent[key] for key in ("json", "data") if key in sent},
            )
            statuses.append(answer.status_code)
            drawn.validate_response(_as_response(drawn, answer), checks=CHECKS)

        check()
    assert 200 in statuses
    assert 400 in statuses or known


def _as_response(drawn: Any, answer: Any) -> Any:
    from schemathesis import Response

    return Response(
        status_code=answer.status_code,
        headers={name.lower(): [value] for name, value in answer.headers.items()},
        content=answer.content,
        request=_request_of(answer),
        elapsed=0.01,
        verify=False,
    )


def _request_of(answer: Any) -> Any:
    import requests

    made = requests.Request(answer.request.method, str(answer.request.url)).prepare()
    made.body = answer.request.content
    return made


NEAR = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=30),
    st.sampled_from(["", " ", "[]", "{}", "[" * 3000, '{"a": 1}', "\x00", "é", "\U0001f98a", "<pad>"]),
    st.lists(st.text(max_size=5), max_size=3),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)
PATHS = ["/v1/decisions", "/v1/systemone", "/classify", "/score", "/rerank", *TEXT]


def right_body(path: str) -> dict[str, Any]:
    asked = case(7)
    written = {
        "max_tokens": 3,
        "temperature": 0.5,
        "top_p": 0.9,
        "n": 2,
        "seed": 1,
        "stop": ["x"],
        "stream": False,
    }
    body: dict[str, dict[str, Any]] = {
        "/v1/decisions": {
            "input": [{"role": "user", "content": [{"type": "input_text", "text": asked["state"]}]}],
            "questions": asked["questions"],
            "id": "7",
            "coverage": 0.5,
        },
        "/v1/systemone": {
            "state": {"door": ["open"]},
            "questions": {"a": {"type": "score", "instructions": "wet", "criteria": ["no", "yes"]}},
            "risk": 0.7,
        },
        "/classify": {"input": [text(1), text(2)]},
        "/score": {"queries": text(1), "documents": [text(2)], "k": 0.5},
        "/rerank": {"query": text(1), "documents": [text(2), {"text": text(3)}], "top_n": 1},
        "/v1/completions": {"prompt": [text(1), text(2)], "logprobs": 2, **written},
        "/v1/chat/completions": {
            "messages": [{"role": "user", "content": [{"type": "text", "text": text(1)}]}],
            "logprobs": True,
            "top_logprobs": 1,
            **written,
        },
    }
    return {"model": models_for(path)[0], **body[path]}


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value within a body."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield (*here, key)
        yield from places(part, (*here, key))


@pytest.mark.parametrize("path", PATHS)
def test_right_requests_with_one_field_changed_are_answered_or_refused(client: TestClient, path: str) -> None:
    assert client.post(path, json=right_body(path)).status_code == 200

    @QUIET
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        body = right_body(path)
        way = data.draw(st.sampled_from(list(places(body))))
        holder: Any = body
        for key in way[:-1]:
            holder = holder[key]
        if data.draw(st.booleans(), label="leave it out"):
            del holder[way[-1]]
        else:
            holder[way[-1]] = data.draw(NEAR)
        answer = client.post(path, json=body)
        assert answer.status_code in (200, 400, 404), (body, answer.text)
        check_shape(answer)

    check()


def check_shape(answer: Any) -> None:
    if answer.headers["content-type"].startswith("text/event-stream"):
        assert answer.text.endswith("data: [DONE]\n\n")
        return
    content = answer.json()
    if answer.status_code != 200:
        assert content.keys() == {"error"}
        assert content["error"].keys() == {"message", "type", "param", "code"}
        return
    assert all(math.isfinite(value) for value in _floats(content))


def _floats(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        yield from _floats(part)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/classify", {"input": []}),  # these were once faults of the server
        ("/v1/decisions", {"risk": 5e-324}),
        ("/v1/decisions", {"coverage": 5e-324}),
        ("/v1/decisions", {"risk": 1 - 2**-53}),
    ],
)
def test_values_at_the_edge_are_refused(client: TestClient, path: str, fields: dict[str, Any]) -> None:
    answer = client.post(path, json={**right_body(path), **fields})
    assert answer.status_code == 400
    check_shape(answer)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"model": NaN}',
        b'{"model": "\\ud83d"}',
        b'{"model": ' + b"9" * 5000 + b"}",
        b"[" * 20_000,
        b'{"model": "cases", "input": "' + b"[" * 20_000 + b'", "questions": []}',
        b'{"model": "cases", "input": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b', "questions": [{"type": '
        b'"predicate", "instructions": "x"}]}',
    ],
)
@pytest.mark.parametrize("path", ["/v1/decisions", "/classify"])
def test_bodies_that_are_no_json_or_no_request_are_400(client: TestClient, path: str, body: bytes) -> None:
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    check_shape(answer)


def test_a_request_without_the_type_of_its_body_or_to_nowhere_is_told_so(client: TestClient) -> None:
    body = json.dumps(right_body("/classify")).encode()
    assert client.post("/classify", content=body).status_code == 400
    for answer, status in ((client.get("/classify"), 405), (client.get("/v2/nothing"), 404)):
        assert answer.status_code == status
        check_shape(answer)


def test_documented_paths_are_those_that_docs_describe(client: TestClient) -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    paths = client.get("/openapi.json").json()["paths"]
    assert [path for path in paths if f"`{path}`" not in page] == []
