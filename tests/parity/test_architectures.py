"""Some architectures against PEFT, and the committed records of all of them (`make parity`)."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch

from architectures.builds import KINDS, architectures
from architectures.cases import Case
from architectures.checks import CHECKS, Difference, Differs, Outcome, close, run
from architectures.page import FOLDER, PAGE, counted, page, records_of
from breadth import EVERY

# What is refused, and the words that say why; all else is equal.
BARE, CAUSAL = "of which PEFT adapts the bare parameter", "is not causal"
ALL = "all linear layers", "all linear layers, training"
REFUSED: dict[tuple[str, str], dict[str, str]] = {
    ("causal", "bert"): dict.fromkeys(CHECKS["causal"], CAUSAL),
    **{
        ("causal", name): dict.fromkeys(ALL, BARE)
        for name in ("mixtral", "qwen3_next", "deepseek_v3", "minimax")
    },
    ("causal", "mamba"): dict.fromkeys(ALL, "PEFT cannot place the adapter"),
    ("classifier", "xlnet"): dict.fromkeys(CHECKS["classifier"], "mixes the rows of a batch"),
    ("vision-language", "paligemma"): dict.fromkeys(CHECKS["vision-language"], CAUSAL),
}
SOME = {
    "causal": "llama gpt2 gemma3_text opt mixtral qwen3_next mamba rwkv bert bert_(is_decoder)",
    "vision-language": "gemma3 paligemma",
    "classifier": "bert modernbert llama xlnet",
}
MORE = {
    "causal": "gpt_neox bloom phi3 gpt_oss deepseek_v3 minimax bart inkling2_text",
    "vision-language": "qwen2_vl mllama llava",
    "classifier": "deberta-v2 gpt2 convbert",
}
TRIED = [
    (kind, name.replace("_(", " ("))
    for names in ((SOME, MORE) if EVERY else (SOME,))
    for kind in names
    for name in names[kind].split()
]


@functools.cache
def case_of(kind: str, name: str) -> Case:
    return Case(kind, name)


@pytest.mark.filterwarnings("ignore")  # transformers and PEFT warn of tiny models in many ways
@pytest.mark.parametrize(("kind", "name"), TRIED)
def test_an_architecture_is_equal_to_peft_in_every_check_or_refused_by_name(kind: str, name: str) -> None:
    if name not in architectures(kind):
        pytest.skip(f"this transformers has no {name}")
    outcomes = {check: run(case_of(kind, name), check) for check in CHECKS[kind]}
    refused = REFUSED.get((kind, name), {})
    for check, outcome in outcomes.items():
        assert outcome.status == ("refused" if check in refused else "equal"), f"{check}: {outcome}"
        assert refused.get(check, "") in outcome.reason


def test_another_number_differs_and_rounding_does_not() -> None:
    expected = torch.tensor([1.0, -20.0])
    assert close(expected + 1e-4, lambda copies: expected).share == pytest.approx(5e-6, rel=0.1)
    with pytest.raises(
        Differs, match=r"outputs differ by 0\.005 of the largest, PEFT's from themselves by 0"
    ):
        close(expected + 0.1, lambda copies: expected)
    # An architecture that differs from itself by so much that no more can be asked of the stack.
    found = close(expected + 0.1, lambda copies: expected + 0.02 * (copies > 1))
    assert (found.share, found.own) == (pytest.approx(5e-3, rel=1e-4), pytest.approx(1e-3, rel=1e-3))


def test_what_a_check_raises_is_a_failure_and_what_the_library_refuses_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lora_ensembles.errors import ConfigError

    def refuse(_case: Case) -> Difference:
        raise ConfigError("no such\nthing")

    monkeypatch.setitem(CHECKS["causal"], "refusing", refuse)
    monkeypatch.setitem(CHECKS["causal"], "breaking", lambda _case: Difference(1 / 0))
    case = case_of("causal", "llama")
    assert run(case, "refusing") == Outcome("refused", reason="no such thing")
    assert run(case, "breaking") == Outcome("failed", reason="ZeroDivisionError: division by zero")


RECORDS = sorted(FOLDER.glob("transformers-*.json"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_no_check_of_a_record_failed_and_nearly_every_architecture_was_built(path: Path) -> None:
    record = json.loads(path.read_text())
    for kind in KINDS:
        counts = counted(record, kind)
        assert counts["failed"] == 0, kind
        assert counts["not built"] <= 10
        assert counts["equal"] > 4 * counts["refused"]


def test_the_page_of_models_is_made_from_the_records() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text, records_of(RECORDS)) == text
