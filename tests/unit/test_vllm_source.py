"""vLLM's source has what the endpoint plugin calls, and wants what it has: names, parameters and fields.

The tests read the unpacked wheel that the environment variable LORA_ENSEMBLES_VLLM names.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect

import pytest

import fake_vllm
import vllm_source
from lora_ensembles.data import LETTERS
from lora_ensembles_vllm import DecisionsPlugin
from lora_ensembles_vllm.engine import Engine

pytestmark = vllm_source.NEEDED
GROUP = "vllm.endpoint_plugins"


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    return [one.arg for one in (*function.args.posonlyargs, *function.args.args)]


def keywords(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    return [one.arg for one in function.args.kwonlyargs]


def test_vllms_entry_point_group_and_protocol_are_those_of_the_plugin() -> None:
    assert vllm_source.value("vllm.plugins", "ENDPOINT_PLUGINS_GROUP") == repr(GROUP)
    module = "vllm.plugins.endpoint_plugins.interface"
    assert list(vllm_source.fields(module, "EndpointPlugin")) == ["name", "required_tasks"]
    methods = vllm_source.methods(module, "EndpointPlugin")
    assert sorted(methods) == ["attach_router", "init_state"]
    for name, method in methods.items():
        own = getattr(DecisionsPlugin, name)
        assert list(inspect.signature(own).parameters) == parameters(method)
        assert inspect.iscoroutinefunction(own) == isinstance(method, ast.AsyncFunctionDef)
    tasks = vllm_source.value("vllm.tasks", "GenerationTask")
    assert all(repr(task) in tasks for task in DecisionsPlugin.required_tasks)


def test_vllms_engine_has_what_the_plugin_calls() -> None:
    module = "vllm.engine.protocol"
    real = vllm_source.methods(module, "EngineClient")
    assert {"vllm_config", "model_config"} <= set(vllm_source.fields(module, "EngineClient"))
    for name in ("generate", "add_lora", "check_admission"):
        own = inspect.signature(getattr(Engine, name)).parameters.values()
        plain = [one.name for one in own if one.kind is not inspect.Parameter.KEYWORD_ONLY]
        assert plain == parameters(real[name])
        assert {one.name for one in own} - set(plain) <= set(keywords(real[name]))
    for module, name, used in (
        ("vllm.config.vllm", "VllmConfig", {"additional_config", "lora_config", "speculative_config"}),
        ("vllm.config.model", "ModelConfig", {"model", "tokenizer", "tokenizer_revision", "max_model_len"}),
        ("vllm.config.lora", "LoRAConfig", {"max_loras", "max_lora_rank"}),
        ("vllm.outputs", "CompletionOutput", {"logprobs"}),
        ("vllm.logprobs", "Logprob", {"logprob"}),
    ):
        assert used <= set(vllm_source.fields(module, name)), name
    output = vllm_source.methods("vllm.outputs", "RequestOutput")["__init__"]
    assert "outputs" in parameters(output)


@pytest.mark.parametrize(
    ("module", "fake"),
    [
        ("vllm.lora.request", fake_vllm.LoRARequest),
        ("vllm.sampling_params", fake_vllm.SamplingParams),
        ("vllm.logprobs", fake_vllm.Logprob),
    ],
)
def test_the_classes_of_the_tests_are_vllms(module: str, fake: type) -> None:
    real = vllm_source.fields(module, fake.__name__)
    for own in dataclasses.fields(fake):
        found = real[own.name]
        assert ast.unparse(found.annotation) == own.type
        if own.default is dataclasses.MISSING:
            assert found.value is None
        else:
            assert found.value is not None
            assert ast.literal_eval(found.value) == own.default
    needed = [name for name, field in real.items() if field.value is None]
    assert needed == [own.name for own in dataclasses.fields(fake) if own.default is dataclasses.MISSING]


def test_vllm_takes_as_many_label_tokens_as_a_question_has_options() -> None:
    assert int(vllm_source.value("vllm.sampling_params", "MAX_LOGPROB_TOKEN_IDS")) >= len(LETTERS)
    real = vllm_source.function("vllm.inputs.engine", "tokens_input")
    assert parameters(real) == list(inspect.signature(fake_vllm.tokens_input).parameters)
    assert all(default is not None for default in real.args.kw_defaults)
    assert "tokens_input" in vllm_source.path("vllm.inputs").read_text()
