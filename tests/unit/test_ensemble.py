"""LoraEnsemble: counts, seeds, growing and shrinking, what it refuses, and the base it gives back."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from peft import LoraConfig, get_peft_model

from lora_ensembles.data import Example
from lora_ensembles.ensemble import LoraEnsemble
from lora_ensembles.errors import AdapterError, ConfigError, DataError
from lora_ensembles.passes.shared_prefix import context_window
from lora_ensembles.prediction.prediction import predict
from lora_ensembles.stack.seeds import member_seeds
from lora_ensembles.stack.sites import MemberWeights
from tiny_ensembles import WINDOW, adapter, ensemble, llama, questions, same_state, state, tokenizer

IDS = torch.tensor([[1, 5, 7, 9], [1, 8, 4, 0]])


def same_member(one: MemberWeights, other: MemberWeights) -> bool:
    """Whether two members have exactly the same adapter."""
    return one.scaling == other.scaling and all(
        left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
        for left, right in ((one.a, other.a), (one.b, other.b))
    )


@pytest.mark.parametrize("members", [0, -1, True, 1.5, "3", None])
def test_number_of_members_that_is_no_positive_whole_number_is_refused(members: object) -> None:
    with pytest.raises(ConfigError, match=rf"num_members={members!r}; an ensemble has at least 1 member"):
        LoraEnsemble(llama(), tokenizer(), num_members=members, adapter=adapter())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=rf"num_members={members!r}"):
        ensemble().add_members(members)  # type: ignore[arg-type]


def test_untrained_members_answer_exactly_as_the_base() -> None:
    base = llama()
    with torch.no_grad():
        expected = base(IDS).logits
        logits = ensemble(members=3, base=base)(IDS)

    assert logits.shape == (3, 2, 4, len(tokenizer()))
    torch.testing.assert_close(
        logits, expected.expand(3, -1, -1, -1), rtol=0, atol=1e-5
    )  # fp32 sums in another order


@torch.no_grad()
def test_members_read_the_same_rows_or_rows_of_their_own() -> None:
    made = ensemble(members=3, trained=True)
    own = torch.stack([IDS, IDS.flip(0), IDS])

    logits = made(own)

    torch.testing.assert_close(logits[0], made(IDS)[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits[1], made(IDS.flip(0))[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(4,), (2, 2, 4), (4, 2, 4), (1, 3, 2, 4)])
def test_ids_of_another_shape_are_refused_with_the_shapes_that_work(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ConfigError, match=r"input_ids is \(.*pass \(B, T\) or \(M, B, T\) with M = 3 members"
    ):
        ensemble(members=3)(torch.ones(shape, dtype=torch.int64))


def test_members_differ_in_initial_weights_and_in_order_by_default() -> None:
    made = ensemble(members=4)

    assert (
        len({seeds.init for seeds in made.info.seeds}) == len({seeds.order for seeds in made.info.seeds}) == 4
    )
    assert not same_member(made.stack.member(0), made.stack.member(1))


@pytest.mark.parametrize(("vary", "inits", "orders"), [(["order"], 1, 4), (["init"], 4, 1), ([], 1, 1)])
def test_a_source_of_randomness_that_is_fixed_is_member_0s_in_every_member(
    vary: list[str], inits: int, orders: int
) -> None:
    made = LoraEnsemble(llama(), tokenizer(), num_members=4, adapter=adapter(), vary=vary)
    first = member_seeds(0, 0)

    assert len({seeds.init for seeds in made.info.seeds}) == inits
    assert len({seeds.order for seeds in made.info.seeds}) == orders
    assert made.info.seeds[0] == first
    assert same_member(made.stack.member(0), made.stack.member(3)) == ("init" not in vary)


def test_unknown_source_of_randomness_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"vary holds \['data'\]; what can vary between members is 'init' and 'order'"
    ):
        LoraEnsemble(llama(), tokenizer(), adapter=adapter(), vary=["init", "data"])


def test_ensembles_of_other_seeds_share_no_member() -> None:
    one, other = ensemble(members=3, seed=0), ensemble(members=3, seed=1)

    assert not {seeds.init for seeds in one.info.seeds} & {seeds.init for seeds in other.info.seeds}
    assert same_member(one.stack.member(1), ensemble(members=3, seed=0).stack.member(1))


@pytest.mark.parametrize("vary", [["init", "order"], ["order"]])
def test_members_added_later_are_those_of_a_larger_ensemble_from_the_start(vary: list[str]) -> None:
    grown = LoraEnsemble(llama(), tokenizer(), num_members=2, adapter=adapter(), seed=3, vary=vary)
    whole = LoraEnsemble(llama(), tokenizer(), num_members=5, adapter=adapter(), seed=3, vary=vary)

    grown.add_members(1)
    grown.add_members(2)

    assert grown.info == whole.info
    assert all(same_member(grown.stack.member(m), whole.stack.member(m)) for m in range(5))


def test_growing_leaves_trained_members_as_they_are() -> None:
    made = ensemble(members=2, trained=True)
    before = [made.stack.member(m) for m in range(2)]

    made.add_members(2)

    assert all(same_member(made.stack.member(m), before[m]) for m in range(2))
    assert made.stack.member(2).b["model.layers.0.self_attn.q_proj"].abs().sum() == 0


def test_members_added_after_some_were_dropped_are_new_ones() -> None:
    made, whole = ensemble(members=3), ensemble(members=4)
    made.drop_members([1])

    made.add_members(1)

    assert [seeds.init for seeds in made.info.seeds] == [whole.info.seeds[m].init for m in (0, 2, 3)]
    assert same_member(made.stack.member(2), whole.stack.member(3))


@torch.no_grad()
def test_selected_members_keep_their_answers_in_the_order_asked_for() -> None:
    made = ensemble(members=4, trained=True)
    logits, seeds = made(IDS), list(made.info.seeds)

    made.keep_members([3, 1])

    assert made.num_members == 2
    assert made.info.seeds == (seeds[3], seeds[1])
    torch.testing.assert_close(made(IDS), logits[[3, 1]], rtol=0, atol=1e-5)


def test_dropped_members_are_gone_and_the_others_stay_in_order() -> None:
    made = ensemble(members=4)
    kept = [made.stack.member(m) for m in (0, 3)]

    made.drop_members([2, 1])
    made.drop_members([])

    assert made.num_members == 2
    assert all(same_member(made.stack.member(m), kept[m]) for m in range(2))


@pytest.mark.parametrize("indices", [[0, 0], [3], [-1], [0.5], ["0"]])
def test_members_that_are_not_there_or_come_twice_cannot_be_selected_or_dropped(
    indices: list[object],
) -> None:
    made = ensemble(members=3)

    for method in (made.keep_members, made.drop_members):
        with pytest.raises(ConfigError, match=r"member indices .*; pass different numbers from 0 to 2"):
            method(indices)  # type: ignore[arg-type]


def test_at_least_one_member_stays() -> None:
    made = ensemble(members=2)

    for method, indices in ((made.keep_members, []), (made.drop_members, [0, 1])):
        with pytest.raises(ConfigError, match="no members would be left"):
            method(indices)
    assert made.num_members == 2


def test_to_moves_base_and_members_and_gives_the_ensemble_itself() -> None:
    made = ensemble(members=2)
    before = made(IDS)
    assert made.to("cpu") is made
    assert torch.equal(made(IDS), before)
    assert made.device == made.stack.a.device == torch.device("cpu")


@torch.no_grad()
def test_a_view_of_some_members_gives_their_logits_alone() -> None:
    made = ensemble(members=4)
    made.stack.b.normal_()
    whole = made(IDS)
    view = made.view(range(1, 3))
    assert view.num_members == 2
    torch.testing.assert_close(view(IDS), whole[1:3])
    assert not torch.allclose(whole[1:3], whole[:2])
    dropped = made.repeated(1, passes=2, dropout=0.5, seed=0)
    with pytest.raises(ConfigError, match="asked by member_log_probs alone"):
        dropped(IDS)


def test_base_called_by_itself_is_refused_because_its_rows_have_no_member() -> None:
    made = ensemble()

    with pytest.raises(
        AdapterError,
        match=r"base model of an ensemble was called by itself.*call the ensemble, or .*base_only",
    ):
        made.base(IDS)


@torch.no_grad()
def test_base_inside_base_only_answers_as_before() -> None:
    base = llama()
    expected = base(IDS).logits
    made = ensemble(base=base, trained=True)

    with made.base_only() as plain:
        assert torch.equal(plain(IDS).logits, expected)


def test_second_ensemble_on_one_base_is_refused_until_the_first_is_unloaded() -> None:
    base = llama()
    first = ensemble(base=base)

    with pytest.raises(AdapterError, match="the base carries another ensemble; call `unload"):
        ensemble(base=base)
    first.unload()
    ensemble(base=base)


def test_base_wrapped_by_peft_is_refused() -> None:
    wrapped = get_peft_model(llama(), adapter())

    with pytest.raises(AdapterError, match=r"wrapped by PEFT already.*from_adapters"):
        LoraEnsemble(wrapped, tokenizer(), adapter=adapter())  # type: ignore[arg-type]


@torch.no_grad()
def test_unloaded_base_is_the_one_that_was_given_bit_for_bit() -> None:
    base = llama(layers=2)
    before, logits, modules = state(base), base(IDS).logits, [type(module) for module in base.modules()]
    made = ensemble(base=base, trained=True)
    made(IDS)
    made.add_members(1)

    assert made.unload() is base
    assert same_state(base, before)
    assert [type(module) for module in base.modules()] == modules
    assert torch.equal(base(IDS).logits, logits)


def test_unloaded_ensemble_says_so_rather_than_answer_as_the_base() -> None:
    made = ensemble(trained=True)
    made.unload()

    with pytest.raises(AdapterError, match="this ensemble was unloaded"):
        made(IDS)
    with pytest.raises(AdapterError, match="this ensemble was unloaded"):
        predict(made, questions(2))


def test_base_is_frozen_and_its_weights_untouched_by_a_backward_pass() -> None:
    base = llama()
    before = state(base)
    made = ensemble(base=base, trained=True)

    made(IDS).sum().backward()

    assert all(parameter.grad is None for name, parameter in base.named_parameters() if "lora_" not in name)
    made.unload()
    assert same_state(base, before)


def test_refused_adapter_leaves_the_base_as_it_was() -> None:
    base = llama()
    before = state(base)
    for targets in (
        ["q_proj", "input_layernorm"],
        ["q_proj", "embed_tokens"],
        ["q_proj", "lm_head"],
        ["nothing"],
    ):
        with pytest.raises(AdapterError):
            LoraEnsemble(base, tokenizer(), adapter=LoraConfig(r=2, target_modules=targets))
        assert same_state(base, before)

    ensemble(base=base)


def test_global_random_state_is_not_moved_by_making_members() -> None:
    base = llama()
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    ensemble(members=3, base=base)

    assert torch.equal(torch.rand(3), expected)


def test_prompt_longer_than_the_window_is_refused_or_cut_from_the_left_by_choice() -> None:
    made = ensemble()
    assert context_window(made.base) == WINDOW
    prompt, labels = questions(1)[0].prompt, ("a", "b", "c", "d")
    room = WINDOW - len(tokenizer()(prompt)["input_ids"]) - 1  # one token is the label's
    long, fitting = (Example("long", "otter " * count + prompt, labels, 0) for count in (WINDOW, room))

    with pytest.raises(DataError, match=rf"example 'long': .* the window is {WINDOW}.*overlong='left'"):
        predict(made, [long])
    expected = predict(made, [fitting]).probs
    made.info = dataclasses.replace(made.info, overlong="left")
    torch.testing.assert_close(predict(made, [long]).probs, expected, rtol=0, atol=1e-6)


def test_smaller_limit_of_rows_gives_the_same_prediction() -> None:
    made, examples = ensemble(members=3, trained=True), [*questions(7), *questions(2, options=3, start=7)]
    whole = predict(made, examples).member_log_probs

    for rows in (1, 4, 1000):
        torch.testing.assert_close(
            predict(made, examples, max_rows=rows).member_log_probs, whole, rtol=0, atol=1e-5
        )
