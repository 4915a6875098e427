"""Decisions: from the body of a request to that of its answer, with vLLM's engine in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from lora_ensembles.data import EncodedExample, Example, encode_examples
from lora_ensembles.errors import unknown_name
from lora_ensembles.prediction.orders import in_orders
from lora_ensembles.prediction.prediction import predict
from lora_ensembles.serve.asking import case_examples, state_of
from lora_ensembles.serve.http.bodies import DecisionRequest, as_row
from lora_ensembles.serve.http.failures import ApiError
from lora_ensembles.serve.http.replies import decision_usage, reply_to, whole_reply
from lora_ensembles.serve.jobs import Answered
from lora_ensembles.serve.rules import Rules
from lora_ensembles.serve.scoring import answers_of
from lora_ensembles.serve.settings import MOST_QUESTIONS, Guarantees

from .engine import Engine
from .ensembles import Adapter, ServedEnsemble
from .reads import Asked, Reads, asked_by, read_members

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Result = TypeVar("Result")
PROBE = {"type": "predicate", "instructions": "It is."}


def _one_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="lora-ensembles")


@dataclass(frozen=True)
class Decisions:
    """Everything that a request is answered with.

    Texts are tokenised and probabilities averaged on one thread beside the event loop: a tokenizer serves one
    thread at a time, and so do the rules that are kept.

    Attributes:
        engine: vLLM's client.
        tokenizer: of the base, as the members were trained with it; not vLLM's own copy.
        ensembles: by name.
        requests: vLLM's `LoRARequest` of each member.
    """

    engine: Engine
    tokenizer: PreTrainedTokenizerBase
    ensembles: Mapping[str, ServedEnsemble]
    requests: Mapping[Adapter, Any]
    rules: Rules = field(default_factory=Rules)
    worker: ThreadPoolExecutor = field(default_factory=_one_thread)

    async def reply(self, body: DecisionRequest) -> dict[str, Any]:
        """The fields of `DecisionReply`.

        Raises:
            ApiError: no such model, too many questions, or a read that failed.
            LoraEnsemblesError: a question that cannot be read or asked.
        """
        ensemble = self._ensemble(body.model)
        if len(body.questions) > MOST_QUESTIONS:
            raise ApiError(
                400,
                f"{len(body.questions)} questions; a request has at most {MOST_QUESTIONS}",
                code="too_many_questions",
            )
        examples = await self._aside(lambda: _examples(ensemble, body))
        asked = await self._aside(lambda: self.encoded(ensemble, examples))
        members = [self.requests[adapter] for adapter in ensemble.adapters]
        values = await read_members(self.engine, members, list(asked.values()))
        log_probs = dict(zip(asked, values, strict=True))
        guarantees = Guarantees(body.risk, body.coverage)
        answers = await self._aside(lambda: self._answers(ensemble, examples, log_probs, guarantees))
        return whole_reply(
            body.model,
            [reply_to(question, answer) for question, answer in zip(body.questions, answers, strict=True)],
            decision_usage(sum(len(asked[asked_by(example)].prompt_ids) for example in examples)),
            calibration=ensemble.calibration,
        )

    def _ensemble(self, name: str) -> ServedEnsemble:
        if name not in self.ensembles:
            message = unknown_name("model", name[:200], self.ensembles)
            raise ApiError(404, message, param="model", code="model_not_found")
        return self.ensembles[name]

    def encoded(self, ensemble: ServedEnsemble, examples: Sequence[Example]) -> dict[Asked, EncodedExample]:
        """The token ids of what the engine is asked: each example, in as many orders of its options as the
        calibration averages over.

        Raises:
            DataError: a prompt that is too long, or a label that is not one token.
        """
        passes = 1 if ensemble.calibrated is None else ensemble.calibrated.order_passes
        asked = {asked_by(one): one for one in in_orders(examples, passes, kind=ensemble.info.head.kind)}
        encoded = encode_examples(
            list(asked.values()),
            self.tokenizer,
            max_length=self.engine.model_config.max_model_len,
            overlong=ensemble.info.overlong,
            single_token=True,
        )
        return dict(zip(asked, encoded, strict=True))

    def check(self) -> None:
        """Refuse a tokenizer to which the letters of options are not one token each.

        Raises:
            DataError: they are not.
        """
        for ensemble in self.ensembles.values():
            self.encoded(ensemble, case_examples(ensemble.info, "", [PROBE]))

    def _answers(
        self,
        ensemble: ServedEnsemble,
        examples: Sequence[Example],
        log_probs: Mapping[Asked, Tensor],
        guarantees: Guarantees,
    ) -> list[Answered]:
        """The answers of the members' mean, Eq. 2 of arXiv:2310.00035, calibrated where the ensemble is."""
        prediction = predict(Reads(ensemble.info, ensemble.calibrated, log_probs), examples)
        abstain, inside = self.rules.of(ensemble, prediction, guarantees)
        return answers_of(prediction, examples, abstain=abstain, inside=inside)

    async def _aside(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self.worker, work)


def _examples(ensemble: ServedEnsemble, body: DecisionRequest) -> tuple[Example, ...]:
    rows = [as_row(question, number) for number, question in enumerate(body.questions)]
    return case_examples(ensemble.info, state_of(body.input), rows, case=body.id)
