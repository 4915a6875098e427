"""The parts of vLLM that the plugin calls, and the checks that its engine can serve the ensembles.

Nothing of vLLM is imported before it is called: the package can be read, and tested, without it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from lora_ensembles.errors import ConfigError

from .ensembles import Adapter, ServedEnsemble

FIRST_ID = 1_000_000  # vLLM numbers the adapters of --lora-modules from 1


class Engine(Protocol):
    """The parts of `vllm.engine.protocol.EngineClient` that are called."""

    vllm_config: Any
    model_config: Any

    def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, *, lora_request: Any = None
    ) -> AsyncIterator[Any]: ...

    async def add_lora(self, lora_request: Any) -> bool: ...

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None: ...


def check_engine(engine: Engine, ensembles: Sequence[ServedEnsemble]) -> None:
    """Refuse an engine that cannot read with all members of all ensembles.

    Raises:
        ConfigError: no adapters, too few, of too small a rank, or speculative decoding.
    """
    config, members = engine.vllm_config.lora_config, sum(len(one.adapters) for one in ensembles)
    if config is None or config.max_loras < members:
        given = "no --enable-lora" if config is None else f"--max-loras {config.max_loras}"
        raise ConfigError(
            f"{members} members to serve and {given}; start vLLM with --enable-lora --max-loras {members}"
        )
    for ensemble in ensembles:
        if ensemble.rank > config.max_lora_rank:
            raise ConfigError(
                f"{ensemble.name} has adapters of rank {ensemble.rank}, and vLLM --max-lora-rank "
                f"{config.max_lora_rank}; start it with {ensemble.rank} or more"
            )
    if getattr(engine.vllm_config, "speculative_config", None) is not None:
        raise ConfigError(
            "decisions are read from log-probabilities of chosen tokens, and speculative decoding may "
            "leave these out; start vLLM without --speculative-config"
        )


async def add_members(engine: Engine, ensembles: Sequence[ServedEnsemble]) -> dict[Adapter, Any]:
    """Hand every member to the engine, which loads it; returns vLLM's `LoRARequest` of each."""
    from vllm.lora.request import LoRARequest

    adapters = [adapter for ensemble in ensembles for adapter in ensemble.adapters]
    requests = {
        adapter: LoRARequest(
            lora_name=adapter.name, lora_int_id=FIRST_ID + number, lora_path=str(adapter.folder)
        )
        for number, adapter in enumerate(adapters)
    }
    for request in requests.values():
        await engine.add_lora(request)
    return requests


def one_token(label_ids: Sequence[int]) -> Any:
    """vLLM's sampling parameters of a read: one token, with the log-probabilities of these."""
    from vllm.sampling_params import SamplingParams

    return SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=list(label_ids))


def prompt_of(ids: Sequence[int]) -> Any:
    """vLLM's input of token ids."""
    from vllm.inputs import tokens_input

    return tokens_input(list(ids))
