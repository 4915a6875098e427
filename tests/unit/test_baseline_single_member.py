"""One member of anything that predicts, and what it costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lora_ensembles import ConfigError, FewShot, LoraEnsemble, SingleMember, predict
from lora_ensembles.baselines import num_trained_parameters
from tiny_ensembles import adapter, ensemble, llama, questions, tokenizer

ASKED = questions(5, start=8)


def test_single_member_says_what_that_member_says_in_the_ensemble() -> None:
    made = ensemble(members=3, trained=True)
    whole = predict(made, ASKED)
    for index in range(3):
        one = predict(SingleMember(made, index), ASKED, max_rows=2)
        assert one.num_members == 1
        torch.testing.assert_close(
            one.member_log_probs, whole.member(index).member_log_probs, atol=1e-5, rtol=0
        )
    assert float((whole.member_log_probs[0] - whole.member_log_probs[2]).abs().max()) > 0.1


def test_single_member_of_a_lora_ensemble_costs_one_model() -> None:
    made = ensemble(members=3)
    rows: list[int] = []

    def count(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        rows.append(arguments[0].shape[0])

    made.base.get_input_embeddings().register_forward_pre_hook(count)
    SingleMember(made, 1).member_log_probs(ASKED)
    assert sum(rows) == len(ASKED)


def test_single_member_of_other_predictors_is_one_of_theirs() -> None:
    few_shot = FewShot(llama(window=256), tokenizer(), questions(8), draws=3)
    assert torch.equal(
        predict(SingleMember(few_shot, 2), ASKED).member_log_probs[0], few_shot.member_log_probs(ASKED)[2]
    )


def test_a_member_that_is_not_there_is_refused() -> None:
    made = ensemble(members=3)
    with pytest.raises(ConfigError, match="there is no member 3; name one of 0 to 2"):
        SingleMember(made, 3)
    last = SingleMember(made, 2)
    made.drop_members([0])
    with pytest.raises(ConfigError, match="there is no member 2; name one of 0 to 1"):
        last.member_log_probs(ASKED)
    few_shot = FewShot(llama(window=256), tokenizer(), questions(8), draws=3)
    with pytest.raises(ConfigError, match="there is no member -1; name one of 0 to 2"):
        SingleMember(few_shot, -1).member_log_probs(ASKED)


def test_trained_parameters_are_those_of_the_member_s_own_rank() -> None:
    # q_proj maps 16 to 16 features and v_proj 16 to 8, in the one layer.
    made = LoraEnsemble(llama(), tokenizer(), num_members=2, adapter=adapter(rank=3))
    assert SingleMember(made, 0).num_trained_parameters == 3 * (16 + 16) + 3 * (16 + 8)
    small = LoraEnsemble(llama(), tokenizer(), num_members=1, adapter=adapter(rank=1)).stack.member(0)
    made.stack.set_members([made.stack.member(0), small])
    assert [num_trained_parameters(made, index) for index in (0, 1)] == [3 * 56, 56]
    assert SingleMember(SingleMember(made, 1)).num_trained_parameters == 56


def test_a_predictor_that_does_not_say_its_cost_is_an_error() -> None:
    class Silent:
        def member_log_probs(self, examples: object, *, max_rows: int | None = None) -> Tensor:
            return torch.zeros(1, 1, 2)

    with pytest.raises(
        ConfigError,
        match="Silent does not say how many parameters were trained; give it `num_trained_parameters`",
    ):
        num_trained_parameters(Silent())
