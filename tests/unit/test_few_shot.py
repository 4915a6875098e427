"""The few-shot base: what stands in front of a question, how draws differ, and that the score is that of the
whole text.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lora_ensembles.baselines import FewShot
from lora_ensembles.baselines.few_shot import render_demonstration
from lora_ensembles.data import Example
from lora_ensembles.errors import AdapterError, ConfigError, DataError
from lora_ensembles.prediction.prediction import predict
from tiny_ensembles import ensemble, llama, questions, same_state, state, tokenizer

WINDOW = 256
DEMONSTRATIONS = questions(8)
ASKED = questions(3, start=8)


def few_shot(
    *, shots: int = 3, draws: int = 4, seed: int = 0, demonstrations: list[Example] = DEMONSTRATIONS
) -> FewShot:
    return FewShot(llama(window=WINDOW), tokenizer(), demonstrations, shots=shots, draws=draws, seed=seed)


def test_paper_s_numbers_are_the_defaults() -> None:
    made = FewShot(llama(), tokenizer(), DEMONSTRATIONS)

    assert (made.shots, made.draws) == (3, 10)
    assert len(made.prompts()) == 10


def test_every_draw_shows_three_different_answered_demonstrations() -> None:
    texts = {render_demonstration(example): example for example in DEMONSTRATIONS}
    assert len(texts) == len(DEMONSTRATIONS)

    for prompt in few_shot(draws=10).prompts():
        shown = [text for text in texts if text in prompt]
        assert len(shown) == 3
        assert len(prompt) == sum(map(len, shown))
        for text in shown:
            example = texts[text]
            assert text == f"{example.prompt}{example.labels[example.target]})\n"


def test_draws_differ_from_each_other_and_repeat_with_the_seed() -> None:
    prompts = few_shot(draws=6).prompts()

    assert len(set(prompts)) == 6
    assert few_shot(draws=6).prompts() == prompts
    assert few_shot(draws=6, seed=1).prompts() != prompts


def test_demonstration_in_words_ends_with_its_label_and_a_line_break() -> None:
    assert render_demonstration(Example("1", "Q: Is it?\nA:", (" yes", " no"), 1)) == "Q: Is it?\nA: no\n"


def test_demonstrations_without_an_answer_are_never_drawn() -> None:
    unlabelled = [dataclasses.replace(example, target=None) for example in questions(20, start=8)]
    prompts = few_shot(draws=8, demonstrations=[*unlabelled, *DEMONSTRATIONS]).prompts()

    assert not any(example.prompt in prompt for example in unlabelled for prompt in prompts)
    with pytest.raises(DataError, match="example 'q8' has no answer, so it cannot be a demonstration"):
        render_demonstration(unlabelled[0])


@torch.no_grad()
def test_probabilities_are_those_of_the_text_written_by_hand() -> None:
    made = few_shot(draws=2)
    prediction = predict(made, ASKED)
    assert prediction.num_members == 2
    for member, prefix in enumerate(made.prompts()):
        for row, example in enumerate(ASKED):
            ids = torch.tensor([tokenizer()(prefix + example.prompt)["input_ids"]])
            letters = torch.tensor(tokenizer().convert_tokens_to_ids(list(example.labels)))
            expected = made.base(ids).logits[0, -1, letters].log_softmax(dim=0)
            torch.testing.assert_close(prediction.member_log_probs[member, row], expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_no_shots_ask_the_bare_question_once() -> None:
    made = few_shot(shots=0, draws=10)
    prediction = predict(made, ASKED)

    assert made.prompts() == [""]
    assert prediction.num_members == 1
    ids = torch.tensor([tokenizer()(ASKED[0].prompt)["input_ids"]])
    letters = torch.tensor(tokenizer().convert_tokens_to_ids(list("abcd")))
    torch.testing.assert_close(
        prediction.member_log_probs[0, 0],
        made.base(ids).logits[0, -1, letters].log_softmax(0),
        rtol=0,
        atol=1e-5,
    )
    assert predict(few_shot(shots=0, demonstrations=[]), ASKED).num_members == 1


def test_limit_of_rows_changes_nothing_and_the_base_stays_as_it_is() -> None:
    made = few_shot(draws=2)
    before = state(made.base)
    whole = predict(made, ASKED).member_log_probs

    torch.testing.assert_close(predict(made, ASKED, max_rows=1).member_log_probs, whole, rtol=0, atol=1e-5)
    assert same_state(made.base, before)


@pytest.mark.parametrize(("shots", "draws"), [(-1, 2), (9, 2), (3, 0)])
def test_settings_that_cannot_work_are_refused(shots: int, draws: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"shots={shots}, draws={draws}, 8 answered demonstrations; shots is at least 0"
    ):
        few_shot(shots=shots, draws=draws)


def test_demonstrations_that_do_not_fit_the_window_are_refused() -> None:
    short = FewShot(llama(window=64), tokenizer(), DEMONSTRATIONS)

    with pytest.raises(
        DataError, match=r"example 'q8': prompt and longest label are .* tokens, and the window is 64"
    ):
        predict(short, ASKED)


def test_base_that_carries_an_ensemble_is_refused_outside_base_only() -> None:
    made = ensemble(base=llama(window=WINDOW), trained=True)
    shown = FewShot(made.base, tokenizer(), DEMONSTRATIONS, draws=2)

    with pytest.raises(AdapterError, match=r"inside `with ensemble.base_only"):
        predict(shown, ASKED)
    with made.base_only():
        inside = predict(shown, ASKED).member_log_probs
    torch.testing.assert_close(
        inside, predict(few_shot(draws=2), ASKED).member_log_probs, rtol=0, atol=1e-5
    )  # some roundings of 4e-7
