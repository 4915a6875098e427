"""What rows share is read once, with the result of reading it anew for each row, on every architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from breadth import crossed
from lora_ensembles import LastLayerEnsemble, TrainConfig
from lora_ensembles.baselines import FewShot
from lora_ensembles.data import EncodedExample, Example
from lora_ensembles.heads.lm import scores as scoring
from lora_ensembles.passes.answer_positions import answer_logits, read_prefix
from lora_ensembles.passes.probe import probe_language_model
from lora_ensembles.passes.shortcuts import shortcuts_of
from tiny_models import (
    TRIED,
    adapter_config,
    build,
    build_ensemble,
    letter_examples,
    pad,
    phrase_examples,
    random_rows,
    tokenizer,
)

# fp32 sums of some dozen terms in another order, in attention too: with keys that are there already it takes
# another kernel.
TOLERANCE = dict(atol=1e-5, rtol=1e-5)
every_architecture = pytest.mark.parametrize("name", TRIED)


def tokens_read(
    model: nn.Module, run: Callable[[], Tensor], *, by: nn.Module | None = None
) -> tuple[Tensor, int]:
    """What a call returns, and how many tokens the model embeds for it, or one of its layers reads."""
    counted: list[int] = []
    embeddings: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    handle = (embeddings if by is None else by).register_forward_hook(
        lambda _module, _arguments, result: counted.append(result[..., 0].numel())
    )
    result = run()
    handle.remove()
    return result, sum(counted)


def logits_of(model: nn.Module) -> scoring.AnswerLogits:
    return lambda ids, positions: answer_logits(model, ids, positions)[None]


def without_sharing(run: Callable[[], Tensor]) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "WORTH_SHARING", float("inf"))
        return run()


def held_to_unshared(model: nn.Module, run: Callable[[], Tensor]) -> float:
    """How many times as many tokens a model reads without sharing, for the same result."""
    found, few = tokens_read(model, run)
    expected, many = tokens_read(model, lambda: without_sharing(run))
    torch.testing.assert_close(found, expected, **TOLERANCE)
    return many / few


@every_architecture
@torch.no_grad()
def test_rows_after_a_prefix_that_was_read_have_the_logits_of_whole_rows(name: str) -> None:
    model, beginnings = build(name), random_rows([11, 11])
    ends = random_rows([5, 3, 4, 6], seed=1)
    whole = [[*beginnings[n // 2], *end] for n, end in enumerate(ends)]
    positions = torch.tensor([[4, 0], [2, 1], [3, 3], [5, 2]])
    expected = answer_logits(model, pad(whole)[0], positions + 11)
    assert probe_language_model(model).prefix
    prefix = read_prefix(model, torch.tensor(beginnings))
    assert prefix is not None
    for _ in range(2):  # a prefix is not used up
        torch.testing.assert_close(
            answer_logits(model, pad(ends)[0], positions, after=prefix), expected, **TOLERANCE
        )


@every_architecture
def test_an_ensemble_reads_the_prompt_of_several_labels_once(name: str) -> None:
    ensemble = build_ensemble(name, members=3, random_b=True)
    examples = phrase_examples()
    assert held_to_unshared(ensemble.base, lambda: ensemble.member_log_probs(examples)) > 1.9


@pytest.mark.parametrize("rows", [3, 64])
@pytest.mark.parametrize("layers", [None, [1]])
def test_labels_in_the_row_of_their_prompt_have_the_scores_of_rows_of_their_own(
    layers: list[int] | None, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = adapter_config()
    adapter.layers_to_transform = layers
    ensemble = build_ensemble(members=3, random_b=True, adapter=adapter)
    three = Example("three", "Q: is the fox red?\nA:", (" yes", " no", " not at all"), 0)
    examples = [*phrase_examples(), three]

    def scored() -> Tensor:
        return ensemble.member_log_probs(examples, max_rows=rows)

    base: Any = ensemble.base
    lowest = base.model.layers[0].mlp
    found, few = tokens_read(base, scored, by=lowest)
    whole = without_sharing(scored)
    monkeypatch.setattr(scoring, "_score_groups", lambda *_: None)
    after_prefix, more = tokens_read(base, scored, by=lowest)
    torch.testing.assert_close(found, whole, **TOLERANCE)
    torch.testing.assert_close(found, after_prefix, **TOLERANCE)
    assert found.isinf().sum() == 3  # of the last question, a label fewer for each of three members
    # Below the adapters one row for each question is read for all three members; after a prefix one for each.
    assert few < (1.05 if layers is None else 0.4) * more


def about_states(*, words: bool) -> list[Example]:
    """Four questions about each of three states, mixed, and one that has nothing in common with them; labels
    are letters, or words of one to three tokens.
    """
    fillers = "the red fox saw a small bird near an old river and went home".split()
    states = [
        " ".join(fillers[(start + k * (start + 2)) % len(fillers)] for k in range(14)) for start in range(3)
    ]
    asked = ["is the fox home", "saw the bird a river", "is a small bird near", "went the fox"]
    labels = (" yes", " no", " not at all") if words else (" yes", " no")
    made = [
        Example(f"{s}{q}", f"Q: {states[s]} {asked[q]}?\nA:", labels, (s + q) % 2)
        for q in range(len(asked))
        for s in range(len(states))
    ]
    return [*made, Example("lone", "home?", labels, 0), made[0]]  # and one that comes twice


@pytest.mark.parametrize(("name", "words"), crossed(TRIED, [False, True], usual=True))
def test_questions_about_one_state_read_it_once(name: str, words: bool) -> None:
    ensemble, examples = build_ensemble(name, members=2, random_b=True), about_states(words=words)
    for rows in (1, 64):
        times = held_to_unshared(
            ensemble.base, lambda rows=rows: ensemble.member_log_probs(examples, max_rows=rows)
        )
        if shortcuts_of(ensemble.base).branches:
            assert times > 1.5


@pytest.mark.parametrize("words", [False, True])
def test_a_last_layer_ensemble_reads_a_question_once_for_all_its_labels(words: bool) -> None:
    baseline, examples = (
        LastLayerEnsemble(build("llama"), tokenizer(), num_members=2),
        about_states(words=words),
    )
    baseline.fit(examples, TrainConfig(epochs=3, batch_size=4, learning_rate=1e-2))
    for rows in (1, 64):
        times = held_to_unshared(
            baseline.base, lambda rows=rows: baseline.member_log_probs(examples, max_rows=rows)
        )
        assert times > 1.5
    one, other = baseline.member_log_probs(examples)
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("rows", [1, 6, 64])
def test_demonstrations_are_read_once_for_all_questions(rows: int) -> None:
    model = build("llama")
    examples = letter_examples() * 5
    baseline = FewShot(model, tokenizer(), letter_examples()[:4], shots=1, draws=2)
    assert held_to_unshared(model, lambda: baseline.member_log_probs(examples, max_rows=rows)) > 1.3


@pytest.mark.parametrize("beginning", [0, 9, 20])
def test_examples_with_a_common_beginning_and_long_labels_are_scored_as_whole_rows(beginning: int) -> None:
    ensemble = build_ensemble(members=2, random_b=True)
    common = " the red fox" * (beginning // 3)
    examples = [
        Example(one.id, f"Q:{common} {one.prompt[3:]}", one.labels, one.target) for one in phrase_examples()
    ]
    examples += [Example("three", f"Q:{common} is it?\nA:", (" yes", " no", " not at all"), 0)]
    found = ensemble.member_log_probs(examples, max_rows=8)
    torch.testing.assert_close(
        found, without_sharing(lambda: ensemble.member_log_probs(examples, max_rows=8)), **TOLERANCE
    )


def test_a_prompt_of_one_token_is_its_own_prefix_and_nothing_is_shared() -> None:
    model = build("llama")
    encoded = [EncodedExample((5,), ((6, 7), (8, 9, 4)), 0)] * 4

    class Refusing(scoring.PlainPasses):
        def read_prefix(self, _ids: Tensor) -> None:
            raise AssertionError("there is no token to share")

    with torch.no_grad():
        scoring.score_labels(encoded, Refusing(logits_of(model), 8), pad_id=0)


@torch.no_grad()
def test_a_model_that_cannot_be_read_in_parts_is_read_whole() -> None:
    model = build("llama")
    encoded = [EncodedExample((5, *range(6, 30), 4 + n), ((6, 7), (8, 9, 4)), 0) for n in range(4)]

    def scored() -> Tensor:
        return scoring.score_labels(encoded, scoring.PlainPasses(logits_of(model), 8), pad_id=0)

    assert torch.equal(scored(), without_sharing(scored))


@torch.no_grad()
def test_what_a_state_space_model_keeps_is_no_prefix() -> None:
    config = transformers.MambaConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2, state_size=4)
    model = transformers.MambaForCausalLM(config).eval()
    assert not probe_language_model(model).prefix
    assert read_prefix(model, torch.tensor([[5, 6, 7, 8]])) is None
