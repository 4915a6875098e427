"""The part of vLLM that the plugin sees, without vLLM: its classes with the fields that the plugin sets, and
an engine that reads with the adapter folders that it is given, by PEFT.

`test_vllm_source.py` holds these classes to the source of vLLM where an unpacked wheel is at hand.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from lora_ensembles import load_base


@dataclass
class LoRARequest:
    """`vllm.lora.request.LoRARequest`."""

    lora_name: str
    lora_int_id: int
    lora_path: str = ""

    def __post_init__(self) -> None:
        assert self.lora_int_id >= 1
        assert self.lora_path


@dataclass
class SamplingParams:
    """`vllm.sampling_params.SamplingParams`."""

    max_tokens: int | None = 16
    temperature: float = 1.0
    logprob_token_ids: list[int] | None = None


def tokens_input(prompt_token_ids: list[int]) -> dict[str, Any]:
    """`vllm.inputs.tokens_input`."""
    return {"type": "token", "prompt_token_ids": prompt_token_ids}


@dataclass
class Logprob:
    """`vllm.logprobs.Logprob`."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@contextmanager
def installed() -> Iterator[None]:
    """While these classes can be imported from where vLLM has them."""
    made = {name: ModuleType(name) for name in ("vllm", "vllm.lora")}
    for name, thing in (
        ("vllm.lora.request", LoRARequest),
        ("vllm.sampling_params", SamplingParams),
        ("vllm.inputs", tokens_input),
    ):
        made[name] = ModuleType(name)
        setattr(made[name], thing.__name__, thing)
    before = {name: sys.modules.get(name) for name in made}
    sys.modules.update(made)
    try:
        yield
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


@dataclass
class Asked:
    """One call of `generate`."""

    ids: list[int]
    params: SamplingParams
    request_id: str
    lora: LoRARequest


@dataclass
class Engine:
    """`vllm.engine.protocol.EngineClient`, as far as it is called.

    Attributes:
        base: the folder of the model.
        logits: whether `--logprobs-mode` gives logits in place of log-probabilities.
        asked: every call of `generate`.
        open: reads that have begun and not ended.
        forgets: label tokens that the engine gives no log-probability of.
        fails: with what `generate` fails.
        waits: whether `generate` never comes to an end.
    """

    base: str
    additional_config: dict[str, Any] = field(default_factory=dict)
    max_loras: int = 3
    max_lora_rank: int = 16
    max_model_len: int = 512
    enable_lora: bool = True
    speculative_config: Any = None
    logits: bool = False
    forgets: tuple[int, ...] = ()
    fails: Exception | None = None
    waits: bool = False
    asked: list[Asked] = field(default_factory=list)
    admitted: list[int] = field(default_factory=list)
    open: int = 0

    def __post_init__(self) -> None:
        lora = SimpleNamespace(max_loras=self.max_loras, max_lora_rank=self.max_lora_rank)
        self.vllm_config = SimpleNamespace(
            lora_config=lora if self.enable_lora else None,
            additional_config=self.additional_config,
            speculative_config=self.speculative_config,
        )
        self.model_config = SimpleNamespace(
            model=self.base,
            tokenizer=self.base,
            tokenizer_revision=None,
            max_model_len=self.max_model_len,
        )
        self._model: Any = None
        self._names: dict[int, str] = {}

    async def add_lora(self, lora_request: LoRARequest) -> bool:
        """Open an adapter folder by PEFT."""
        name = f"adapter_{lora_request.lora_int_id}"
        assert lora_request.lora_int_id not in self._names
        self._names[lora_request.lora_int_id] = name
        if self._model is None:
            model, _ = load_base(self.base)
            self._model = PeftModel.from_pretrained(model, lora_request.lora_path, adapter_name=name).eval()
        else:
            self._model.load_adapter(lora_request.lora_path, adapter_name=name)
        assert Path(lora_request.lora_path).is_absolute()
        return True

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        self.admitted.append(n)

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, *, lora_request: LoRARequest
    ) -> AsyncIterator[Any]:
        """One token by one adapter."""
        assert prompt["type"] == "token"
        ids = prompt["prompt_token_ids"]
        assert len(ids) + 1 <= self.max_model_len, "vLLM refuses a prompt with no room for a token"
        assert request_id not in [one.request_id for one in self.asked]
        self.asked.append(Asked(ids, sampling_params, request_id, lora_request))
        if self.fails is not None:
            raise self.fails
        self.open += 1
        try:
            if self.waits:
                await asyncio.Event().wait()
            scores = self._scores(ids, self._names[lora_request.lora_int_id])
            yield _output(ids, scores, sampling_params, self.forgets)
        finally:
            self.open -= 1

    @torch.no_grad()
    def _scores(self, ids: list[int], adapter: str) -> Tensor:
        self._model.set_adapter(adapter)
        logits: Tensor = self._model(torch.tensor([ids])).logits[0, -1].float()
        return logits if self.logits else logits.log_softmax(dim=-1)


def _output(ids: list[int], scores: Tensor, params: SamplingParams, forgets: tuple[int, ...]) -> Any:
    """`vllm.outputs.RequestOutput`: the chosen token's log-probability, and those of the tokens asked for."""
    assert params.max_tokens == 1
    assert params.temperature == 0
    assert params.logprob_token_ids is not None
    assert len(set(params.logprob_token_ids)) == len(params.logprob_token_ids)
    chosen = int(scores.argmax())
    wanted = [token for token in (chosen, *params.logprob_token_ids) if token not in forgets]
    logprobs = {token: Logprob(float(scores[token])) for token in wanted}
    completion = SimpleNamespace(token_ids=[chosen], logprobs=[logprobs], finish_reason="length")
    return SimpleNamespace(prompt_token_ids=ids, outputs=[completion], finished=True)
