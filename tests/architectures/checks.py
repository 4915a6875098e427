"""The checks of an architecture: each is equal to PEFT, or refused by the library by name, or it failed.

Shapes: M members, N examples, T tokens, V vocabulary, C labels or classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor

from architectures.cases import PROMPTS, Case, classes, encoded, letters, padded_left, phrases
from architectures.peft_side import (
    Recipe,
    answer_loss,
    flat,
    label_log_probs,
    logits_of,
    peft_model,
    scores_of,
    text_loss,
    train_by_peft,
)
from lora_ensembles import LoraEnsemble, TrainConfig, predict, train
from lora_ensembles.errors import LoraEnsemblesError

OUTPUTS = 1e-4
"""Most that outputs may differ by, as a share of the largest: rounding in fp32 through a few layers."""
WEIGHTS = 5e-3
"""Most that trained weights may differ by, as a share of their way: Adam magnifies rounding."""
NOISE = 10
"""How many times PEFT's own difference between two such passes one may be that is beyond these: where a model
breaks ties of exact zeros (Doge), or has gradients that are zero but for rounding (BLT), those decide.
"""
CLOSE = 1e-3  # nats by which greedy decoding's token may be less probable than the best: the two are equal
NEW_TOKENS = 6


@dataclass(frozen=True)
class Outcome:
    """How a check ended: equal to PEFT within `difference`, or refused or failed for a reason."""

    status: Literal["equal", "refused", "failed"]
    difference: float | None = None
    own: float | None = None  # that of PEFT from itself, where the other is large
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """The outcome without what is empty."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


@dataclass(frozen=True)
class Difference:
    """The share by which the library's numbers are off; where it is large, beside that by which PEFT's own
    differ.
    """

    share: float
    own: float | None = None


class Differs(Exception):
    """The library's numbers are not PEFT's."""


def run(case: Case, check: str) -> Outcome:
    """The outcome of one check of `CHECKS[case.kind]`."""
    torch.manual_seed(0)
    try:
        found = CHECKS[case.kind][check](case)
        return Outcome("equal", _rounded(found.share), _rounded(found.own))
    except LoraEnsemblesError as error:
        return Outcome("refused", reason=_line(error))
    except Differs as error:
        return Outcome("failed", reason=str(error))
    except Exception as error:  # whatever a model raises is a failure to count  # noqa: BLE001
        return Outcome("failed", reason=f"{type(error).__name__}: {_line(error)}")


def _rounded(share: float | None) -> float | None:
    return None if share is None else float(f"{share:.2g}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def close(found: Tensor, expected: Callable[[int], Tensor]) -> Difference:
    """The largest difference as a share of the largest expected number.

    Args:
        found: what the library computed.
        expected: what PEFT computes from so many copies of a row in a batch: the same but for rounding and
            ties.

    Raises:
        Differs: it is more than rounding.
    """
    with torch.no_grad():
        reference = expected(1)
        scale = max(1.0, float(reference.abs().max()))
        off = float((found - reference).abs().max()) / scale
        if off <= OUTPUTS:
            return Difference(off)
        own = float((expected(3) - reference).abs().max()) / scale
    return _within(off, own, f"outputs differ by {off:.2g} of the largest")


def _within(off: float, own: float, said: str) -> Difference:
    if not off <= NOISE * own:
        raise Differs(f"{said}, PEFT's from themselves by {own:.2g}")
    return Difference(off, own)


def members_of(case: Case, ensemble: LoraEnsemble) -> list[PeftModel]:
    """The members as PEFT models."""
    return [
        peft_model(case.plain, ensemble.adapter, ensemble.stack.member(index))
        for index in range(ensemble.num_members)
    ]


def forward(case: Case, where: str) -> Difference:
    """Logits of rows padded on the right, against single rows without padding."""
    ensemble = case.ensemble(where)
    models = members_of(case, ensemble)
    length = max(map(len, PROMPTS))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in PROMPTS])
    with torch.no_grad():
        logits = ensemble(ids)
    found = torch.cat([logits[:, row, : len(one)] for row, one in enumerate(PROMPTS)], dim=1)

    def expected(copies: int) -> Tensor:
        rows = [torch.cat([logits_of(model, one, copies=copies) for one in PROMPTS]) for model in models]
        return torch.stack(rows)

    return close(found, expected)


def labels(case: Case, where: str, examples: Callable[[], Any]) -> Difference:
    """`predict` of labels: letters, or labels of several tokens."""
    ensemble = case.ensemble(where)
    ensemble.info = dataclasses.replace(ensemble.info, label_score="sum")
    models = members_of(case, ensemble)
    found = predict(ensemble, examples()).member_log_probs
    rows = encoded(examples())

    def expected(copies: int) -> Tensor:
        all_of = torch.full_like(found, -torch.inf)
        for member, model in enumerate(models):
            for number, row in enumerate(rows):
                all_of[member, number, : len(row.label_ids)] = label_log_probs(model, row, copies=copies)
        return all_of[found.isfinite()]

    return close(found[found.isfinite()], expected)


def generation(case: Case, rows: list[list[int]]) -> Difference:
    """Greedy decoding, prompts padded on the left: each token is the most probable one of the members' mean.

    That mean is read without a cache. Where transformers' own cached pass differs from its whole one, each
    member must decode as PEFT itself does.
    """
    ensemble = case.ensemble("usual")
    models = members_of(case, ensemble)
    ids, mask = padded_left(rows)
    greedy = dict(max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, eos_token_id=2)

    def decoded(model: Any) -> Tensor:
        with torch.no_grad():
            out: Tensor = model.generate(input_ids=ids, attention_mask=mask, **greedy)
        return out[:, ids.shape[1] :]

    try:
        found = decoded(ensemble.as_causal_lm())
    except Exception as error:
        _raise_if_peft_fails(lambda: decoded(models[0]), error)
        raise
    missed = max(_missed(models, row, new.tolist()) for row, new in zip(rows, found, strict=True))
    if missed <= CLOSE:
        return Difference(missed)
    for index, model in enumerate(models):
        if not torch.equal(decoded(ensemble.member(index)), decoded(model)):
            raise Differs(f"a decoded token is {missed:.2g} nats less probable than the best one")
    return Difference(0.0)


def _raise_if_peft_fails(attempt: Callable[[], object], error: Exception) -> None:
    """A refusal where PEFT's own model fails in the same way as the library's."""
    try:
        attempt()
    except type(error) as own:
        raise LoraEnsemblesError(f"transformers' own generate fails ({type(own).__name__}: {own})") from own


@torch.no_grad()
def _missed(models: list[PeftModel], row: list[int], new: list[int]) -> float:
    """By how many nats the least probable of the decoded tokens falls short of the most probable one."""
    most, text = 0.0, list(row)
    for token in new:
        mean = torch.stack([logits_of(model, text)[-1].softmax(dim=-1) for model in models]).mean(dim=0).log()
        most = max(most, float(mean.max() - mean[token]))
        text.append(token)
        if token == 2:
            break
    return most


def training(case: Case, where: str, *, kl_weight: float = 0.0) -> Difference:
    """Weights of the second member after six steps of AdamW, as a share of the way that they went."""
    ensemble, recipe = case.ensemble(where), Recipe(kl_weight=kl_weight, loss="vocabulary")
    return _trained(case, ensemble, phrases(), encoded(phrases()), answer_loss, recipe)


def text_training(case: Case, where: str, *, kl_weight: float = 0.0) -> Difference:
    """The same for a classifier and its head, which is the base's own where a divergence from it counts."""
    ensemble = case.ensemble(where, init="base" if kl_weight else "fresh")
    return _trained(case, ensemble, classes(), case.texts(ensemble), text_loss, Recipe(kl_weight=kl_weight))


def _trained(
    case: Case, ensemble: LoraEnsemble, examples: Any, rows: Any, loss: Callable[..., Tensor], recipe: Recipe
) -> Difference:
    member, start = ensemble.num_members - 1, ensemble.stack.member(ensemble.num_members - 1)
    train(ensemble, examples, TrainConfig(**asdict(recipe)), progress=False)
    seed, after = ensemble.info.seeds[member].order, ensemble.stack.member(member)

    def by_peft(copies: int) -> tuple[Tensor, Tensor]:
        model = peft_model(case.plain, ensemble.adapter, start)
        train_by_peft(model, rows, loss, order_seed=seed, recipe=recipe, copies=copies)
        return flat(model), flat(model, after)

    expected, found = by_peft(1)
    way = float((expected - _start(case, ensemble, start)).norm())
    off = float((found - expected).norm()) / way
    if off <= WEIGHTS:
        return Difference(off)
    own = float((by_peft(3)[0] - expected).norm()) / way
    return _within(off, own, f"weights differ by {off:.2g} of their way")


def _start(case: Case, ensemble: LoraEnsemble, start: Any) -> Tensor:
    return flat(peft_model(case.plain, ensemble.adapter, start))


def text_forward(case: Case, where: str) -> Difference:
    """`predict` of a classifier: texts of several lengths in padded batches, against single ones."""
    ensemble = case.ensemble(where)
    models, texts = members_of(case, ensemble), case.texts(ensemble)
    found = predict(ensemble, classes()).member_log_probs

    def expected(copies: int) -> Tensor:
        rows = [[scores_of(model, text, copies=copies) for text in texts] for model in models]
        return torch.stack([torch.stack(row) for row in rows]).log_softmax(dim=-1)

    return close(found, expected)


_LANGUAGE_MODEL: dict[str, Callable[[Case], Difference]] = {
    "forward": lambda case: forward(case, "usual"),
    "letters": lambda case: labels(case, "usual", letters),
    "labels of several tokens": lambda case: labels(case, "usual", phrases),
    "generation": lambda case: generation(case, PROMPTS[1:2]),
    "generation of a padded batch": lambda case: generation(case, PROMPTS),
    "training": lambda case: training(case, "usual"),
    "training with KL": lambda case: training(case, "usual", kl_weight=0.3),
    "all linear layers": lambda case: forward(case, "all"),
    "all linear layers, training": lambda case: training(case, "all"),
    "top layer": lambda case: labels(case, "top", phrases),
    "top layer, training": lambda case: training(case, "top"),
    "top layer, training with KL": lambda case: training(case, "top", kl_weight=0.3),
}
CHECKS: dict[str, dict[str, Callable[[Case], Difference]]] = {
    "causal": _LANGUAGE_MODEL,
    "vision-language": _LANGUAGE_MODEL,
    "classifier": {
        "forward": lambda case: text_forward(case, "usual"),
        "training": lambda case: text_training(case, "usual"),
        "training with KL": lambda case: text_training(case, "usual", kl_weight=0.3),
        "all linear layers": lambda case: text_forward(case, "all"),
        "all linear layers, training": lambda case: text_training(case, "all"),
        "top layer": lambda case: text_forward(case, "top"),
        "top layer, training": lambda case: text_training(case, "top"),
    },
}
