"""A member in transformers' decision pipeline gives the probabilities that it gives here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_heads
from lora_ensembles import ConfigError, LoraEnsemble, calibrate, load_base, predict
from lora_ensembles.calibration.temperature import best_temperature
from lora_ensembles.data.inputs import as_examples
from lora_ensembles.integrations.decision import export_decision

STATES: list[Any] = [
    "  Otters live in rivers.  ",
    {"ticket": "The invoice shows 12 €.", "plan": None, "open": True},
    [{"role": "user", "content": "It crashes."}, {"role": "assistant", "content": "When?"}],
]
ASKED: dict[str, dict[str, Any]] = {
    "queue": {
        "type": "choice",
        "instructions": "Which queue?",
        "criteria": {"billing": "Money and invoices.", "bug": "Something is broken.", "other": None},
    },
    "reply": {
        "type": "noul",
        "instructions": "A person waits.",
        "criteria": {"true": "Waits.", "false": "Does not."},
    },
    "late": {"type": "noul", "instructions": "It is late."},
    "urgency": {
        "type": "score",
        "instructions": "How urgent?",
        "criteria": ["can wait", "this week", "today"],
    },
}


def ensemble() -> LoraEnsemble:
    made = LoraEnsemble(*load_base(), num_members=3)
    made.stack.b.copy_(0.05 * torch.randn(made.stack.b.shape, generator=torch.Generator().manual_seed(0)))
    return made


def cases() -> list[dict[str, Any]]:
    """The same questions in the columns that files have."""
    return [{"id": str(n), "state": state, "questions": ASKED} for n, state in enumerate(STATES)]


def by_pipeline(path: Path) -> list[dict[str, Any]]:
    from transformers import pipeline

    base, tokenizer = load_base()
    tokenizer.chat_template = "unused"
    decide = pipeline("decision", model=base, tokenizer=tokenizer, decision_config=str(path))
    return [decide({"state": state, "questions": ASKED}) for state in STATES]


def has_pipeline() -> bool:
    import transformers

    return hasattr(transformers, "DecisionPipeline")


@pytest.mark.skipif(not has_pipeline(), reason="this transformers has no decision pipeline yet")
@pytest.mark.parametrize("calibrated", [False, True])
def test_the_pipeline_gives_the_probabilities_of_the_member(tmp_path: Path, calibrated: bool) -> None:
    made = ensemble()
    examples = as_examples(cases(), made.info)
    if calibrated:
        held_out = [
            dataclasses.replace(
                one, id=f"h{one.id}", prompt=f"{one.prompt[:-4]}.\nA: (", group=None, target=row % 2
            )
            for row, one in enumerate(examples)
        ]
        calibrate(made, held_out, kind="temperature")
    export_decision(made, tmp_path / "one", member=1)
    expected = predict(made, examples).member(1)
    kept = made.calibrated
    made.unload()
    answers = [answer for answered in by_pipeline(tmp_path / "one") for answer in answered.values()]
    for row, (answer, example) in enumerate(zip(answers, examples, strict=True)):
        log_probs = expected.log_probs[row, : len(example.labels)]
        if kept is not None:
            own = kept.prediction.member(1)
            same = [n for n, kind in enumerate(own.types) if kind == example.type]
            log_probs = (log_probs / best_temperature(own.take(torch.tensor(same)))).log_softmax(dim=-1)
        probs = log_probs.exp().tolist()
        if answer["type"] == "noul":
            assert answer["noul"] == pytest.approx(probs[0], abs=1e-5)
        elif answer["type"] == "choice":
            assert list(answer["probabilities"].values()) == pytest.approx(probs, abs=1e-5)
        else:
            assert answer["score"] == pytest.approx(sum(level * p for level, p in enumerate(probs)), abs=1e-5)


def test_the_files_say_what_the_pipeline_needs(tmp_path: Path) -> None:
    export_decision(ensemble(), tmp_path / "one", member=2)
    content = json.loads((tmp_path / "one" / "decision.json").read_text())
    assert content["adapter"] == "member_002"
    assert content["labels"]["noul"] == ["a", "b"]
    assert (tmp_path / "one" / "member_002" / "adapter_model.safetensors").is_file()


def test_members_that_answer_in_another_way_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="answer in another way"):
        export_decision(tiny_heads.build_ensemble(), tmp_path / "x")
    made = ensemble()
    made.info = dataclasses.replace(made.info, task={"source": {"answer": "text"}})
    with pytest.raises(ConfigError, match="answer in another way"):
        export_decision(made, tmp_path / "x")
    with pytest.raises(ConfigError, match="member"):
        export_decision(ensemble(), tmp_path / "x", member=7)
    assert not (tmp_path / "x").exists()
