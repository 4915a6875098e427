"""Scores of open answers: against PEFT models asked row by row, and against the formulas."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from lora_ensembles import LoraEnsemble, TrainConfig, bootstrap_interval, train
from lora_ensembles.data import Completion, encode_completions
from lora_ensembles.errors import ConfigError, DataError
from lora_ensembles.heads.lm.completions import score_completions
from lora_ensembles.prediction.completions import (
    CompletionScores,
    evaluate_completion_members,
    evaluate_completions,
)
from tiny_ensembles import no_memory_left
from tiny_models import build, build_ensemble, open_examples, tokenizer

MEMBERS = 3
# fp32 logits of size 1 to 5, summed in another order (a batched product, other padding), and sums of up to
# ten of their logarithms
TOLERANCE = dict(atol=1e-5, rtol=1e-5)


@torch.no_grad()
def by_peft(model: torch.nn.Module) -> list[list[float]]:
    """log p of each answer token of each example, one row at a time, over full logits."""
    found = []
    for example in encode_completions(open_examples(), tokenizer()):
        answer = example.label_ids[0]
        logits = model(input_ids=torch.tensor([[*example.prompt_ids, *answer]]), use_cache=False).logits[0]
        log_probs = logits.log_softmax(dim=-1)
        found.append(
            [
                log_probs[len(example.prompt_ids) - 1 + place, token].item()
                for place, token in enumerate(answer)
            ]
        )
    return found


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("max_rows", [None, 1, 7])
def test_scores_are_those_of_peft_models_opened_from_the_member_folders(
    name: str, max_rows: int | None, tmp_path: Path
) -> None:
    ensemble = build_ensemble(name, members=MEMBERS, random_b=True)
    ensemble.save_pretrained(tmp_path / "saved")
    scores = score_completions(ensemble, open_examples(), max_rows=max_rows)
    expected = [
        by_peft(PeftModel.from_pretrained(build(name), str(tmp_path / "saved" / f"member_{m:03d}")))
        for m in range(MEMBERS)
    ]

    assert scores.ids == tuple(example.id for example in open_examples())
    for row in range(len(open_examples())):
        count = len(expected[0][row])
        assert scores.counted[row].tolist() == [place < count for place in range(scores.counted.shape[1])]
        rows = torch.tensor([member[row] for member in expected])
        torch.testing.assert_close(scores.member_log_probs[:, row, :count], rows, **TOLERANCE)
        assert not scores.member_log_probs[:, row, count:].any()
        torch.testing.assert_close(scores.log_probs[row, :count], rows.exp().mean(dim=0).log(), **TOLERANCE)


def small() -> CompletionScores:
    """Two members, two answers: of two tokens, and of one."""
    probabilities = torch.tensor([[[0.5, 0.2], [0.9, 1.0]], [[0.1, 0.6], [0.3, 1.0]]])
    return CompletionScores(probabilities.log(), torch.tensor([[True, True], [True, False]]), ("a", "b"))


def test_metrics_are_the_formulas() -> None:
    metrics = evaluate_completions(small())
    total = -(math.log(0.3) + math.log(0.4) + math.log(0.6))

    assert (metrics.num_members, metrics.num_examples, metrics.num_tokens) == (2, 2, 3)
    assert metrics.nll == pytest.approx(total / 2, rel=1e-6)
    assert metrics.nll_per_token == pytest.approx(total / 3, rel=1e-6)
    assert metrics.perplexity == pytest.approx((0.3 * 0.4 * 0.6) ** (-1 / 3), rel=1e-6)


def test_members_metrics_are_their_own_and_not_the_ensembles() -> None:
    spread = evaluate_completion_members(small())
    first, second = (-math.log(one) / 2 for one in (0.5 * 0.2 * 0.9, 0.1 * 0.6 * 0.3))

    assert spread["nll"].values == pytest.approx((first, second), rel=1e-6)
    assert spread["nll"].std == pytest.approx(abs(first - second) / math.sqrt(2), rel=1e-5)
    assert spread["perplexity"].values[0] == pytest.approx((0.5 * 0.2 * 0.9) ** (-1 / 3), rel=1e-6)
    assert evaluate_completions(small()).nll < spread["nll"].mean  # Jensen's inequality


def test_an_answer_that_is_all_but_impossible_has_a_finite_nll() -> None:
    scores = CompletionScores(torch.tensor([[[-900.0]], [[-1000.0]]]), torch.tensor([[True]]))

    assert evaluate_completions(scores).nll == pytest.approx(900 + math.log(2), rel=1e-6)
    assert evaluate_completions(scores).perplexity == math.inf


def test_taken_rows_are_those_rows_and_the_bootstrap_draws_them() -> None:
    taken = small().take(torch.tensor([1, 1, 0]))

    assert taken.ids == ("b", "b", "a")
    assert evaluate_completions(taken).nll == pytest.approx(
        -(2 * math.log(0.6) + math.log(0.3 * 0.4)) / 3, rel=1e-6
    )
    interval = bootstrap_interval(lambda scores: evaluate_completions(scores).nll, small(), samples=200)
    assert interval.estimate == pytest.approx(evaluate_completions(small()).nll)
    assert interval.low == pytest.approx(
        -math.log(0.6), rel=1e-6
    )  # a quarter of all draws are of one row twice
    assert interval.high == pytest.approx(-math.log(0.3 * 0.4), rel=1e-6)


def test_history_has_the_metrics_of_the_validation_rows_after_every_epoch() -> None:
    ensemble = build_ensemble(members=2)
    result = train(
        ensemble,
        open_examples()[2:],
        TrainConfig(epochs=2, batch_size=4),
        validation=open_examples()[:2],
        progress=False,
    )
    scores = score_completions(ensemble, open_examples()[:2])

    assert [row["epoch"] for row in result.history] == [1, 2]
    assert result.history[-1]["ensemble"] == evaluate_completions(scores).to_dict()
    assert result.history[-1]["members"]["perplexity"] == list(
        evaluate_completion_members(scores)["perplexity"].values
    )
    assert result.history[1]["train_loss"] < result.history[0]["train_loss"]


def test_a_saved_ensemble_scores_as_before(tmp_path: Path) -> None:
    ensemble = build_ensemble(members=2, random_b=True)
    ensemble.save_pretrained(tmp_path / "saved")
    loaded = LoraEnsemble.from_pretrained(tmp_path / "saved", base=build("llama"), tokenizer=tokenizer())

    assert torch.equal(
        score_completions(loaded, open_examples()).member_log_probs,
        score_completions(ensemble, open_examples()).member_log_probs,
    )


def test_what_cannot_be_scored_is_refused() -> None:
    ensemble = build_ensemble(members=2)
    with pytest.raises(DataError, match="no examples to score"):
        score_completions(ensemble, [])
    with pytest.raises(DataError, match="example 'x' has no completion; every example needs one here"):
        score_completions(ensemble, [Completion("x", "Q: the fox?\nA:", None)])
    with pytest.raises(ConfigError, match="max_rows is 0"):
        score_completions(ensemble, open_examples(), max_rows=0)
    with pytest.raises(ConfigError, match="no member 2; there are members 0 to 1"):
        small().member(2)
    with pytest.raises(ConfigError, match="memory ran out with a single row in flight"), no_memory_left():
        score_completions(ensemble, open_examples(), max_rows=8)
