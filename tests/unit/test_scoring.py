"""From tokens to label probabilities: by hand, in any order, in batches of any size."""

from __future__ import annotations

import math

import pytest
import torch

from lora_ensembles.data import EncodedExample, encode_examples
from lora_ensembles.heads.lm.scores import PlainPasses, score_labels
from lora_ensembles.passes.answer_positions import answer_logits
from lora_ensembles.passes.texts import pad_rows
from lora_ensembles.stack.head_config import LabelScore
from tiny_ensembles import llama, questions, tokenizer

SINGLE = [
    EncodedExample((1, 5, 6, 7), ((3,), (4,), (5,)), 0),
    EncodedExample((1, 8), ((4,), (3,)), 1),
    EncodedExample((1, 9, 2), ((6,), (7,), (8,), (9,)), 2),
]
SEVERAL = [
    EncodedExample((1, 5, 6, 7), ((3,), (4, 9)), 0),
    EncodedExample((1, 8), ((4, 4, 10), (3,), (4, 5)), 1),
    EncodedExample((1, 9, 2), ((6, 2), (6, 3)), 2),
]


@torch.no_grad()
def by_hand(
    encoded: list[EncodedExample], model: torch.nn.Module, *, score: LabelScore = "sum"
) -> list[list[float]]:
    """Probabilities of each example's labels: one unpadded forward pass for every prompt and label."""
    rows = []
    for example in encoded:
        sums = []
        for label in example.label_ids:
            log_probs = model(torch.tensor([[*example.prompt_ids, *label]])).logits[0].log_softmax(dim=-1)
            start = len(example.prompt_ids) - 1
            sums.append(sum(float(log_probs[start + step, token]) for step, token in enumerate(label)))
        if score == "mean":
            sums = [value / len(label) for value, label in zip(sums, example.label_ids, strict=True)]
        total = sum(map(math.exp, sums))
        rows.append([math.exp(value) / total for value in sums])
    return rows


@torch.no_grad()
def scored(
    encoded: list[EncodedExample],
    model: torch.nn.Module,
    *,
    rows: int = 100,
    score: LabelScore = "sum",
) -> torch.Tensor:
    return score_labels(
        encoded,
        PlainPasses(lambda ids, places: answer_logits(model, ids, places)[None], rows),
        pad_id=0,
        label_score=score,
    )


@pytest.mark.parametrize("encoded", [SINGLE, SEVERAL], ids=["one token", "several tokens"])
@pytest.mark.parametrize("rows", [1, 2, 3, 100])
@pytest.mark.parametrize("score", ["sum", "mean"])
def test_probabilities_are_those_of_single_unpadded_passes_in_the_order_given(
    encoded: list[EncodedExample], rows: int, score: LabelScore
) -> None:
    model = llama()
    probs = scored(encoded, model, rows=rows, score=score)[0].exp()

    for given, expected in zip(probs, by_hand(encoded, model, score=score), strict=True):
        assert given[: len(expected)].tolist() == pytest.approx(
            expected, abs=1e-5
        )  # fp32 sums over padded rows


@pytest.mark.parametrize("encoded", [SINGLE, SEVERAL], ids=["one token", "several tokens"])
def test_absent_options_have_probability_exactly_zero_and_the_others_sum_to_one(
    encoded: list[EncodedExample],
) -> None:
    scores = scored(encoded, llama())

    assert scores.dtype == torch.float32
    for row, example in zip(scores[0], encoded, strict=True):
        count = len(example.label_ids)
        assert (row[count:] == -math.inf).all()
        assert (row[count:].exp() == 0).all()
        assert row[:count].isfinite().all()
        assert row.exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_one_label_of_two_tokens_makes_every_label_count_with_its_sum() -> None:
    """The same example gets the same score whether or not its neighbours have long labels."""
    model = llama()
    alone = scored(SINGLE, model)
    among = scored([*SINGLE, *SEVERAL], model)[:, : len(SINGLE)]

    torch.testing.assert_close(among, alone, rtol=0, atol=1e-5)


def test_rows_are_scored_longest_first_so_that_little_is_padded_and_a_lack_of_memory_shows_at_once() -> None:
    lengths = []
    model = llama()

    def counted(ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        lengths.append(ids.shape[1])
        return answer_logits(model, ids, places)[None]

    with torch.no_grad():
        score_labels(SINGLE, PlainPasses(counted, 1), pad_id=0)

    assert lengths == sorted((len(example.prompt_ids) for example in SINGLE), reverse=True)


def test_every_member_is_scored_by_its_own_logits() -> None:
    models = [llama(seed=seed) for seed in range(3)]

    def stacked(ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return torch.stack([answer_logits(model, ids, places) for model in models])

    for encoded in (SINGLE, SEVERAL):
        with torch.no_grad():
            scores = score_labels(encoded, PlainPasses(stacked, 2), pad_id=0)
        for member, model in enumerate(models):
            torch.testing.assert_close(scores[member], scored(encoded, model, rows=2)[0], rtol=0, atol=1e-6)


def test_text_of_questions_is_scored_at_the_letter_after_the_bracket() -> None:
    model, examples = llama(), questions(3)
    probs = scored(encode_examples(examples, tokenizer()), model)[0].exp()

    for row, example in zip(probs, examples, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer()(example.prompt)["input_ids"]])).logits[0, -1]
        letters = torch.tensor(tokenizer().convert_tokens_to_ids(list(example.labels)))
        torch.testing.assert_close(row, logits[letters].softmax(dim=0), rtol=0, atol=1e-5)


def test_rows_are_padded_on_the_right() -> None:
    assert pad_rows([[1], [2, 3]], 9).tolist() == [[1, 9], [2, 3]]
