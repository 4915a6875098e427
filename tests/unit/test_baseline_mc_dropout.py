"""MC dropout: passes that are a function of the seed and the question alone, and an ensemble that is left as
it was.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lora_ensembles import ConfigError, LoraEnsemble, MCDropout, SingleMember, TrainConfig, predict, train
from tiny_models import adapter_config, build, build_ensemble, letter_examples, phrase_examples, tokenizer

TOLERANCE = dict(atol=1e-5, rtol=0)  # the same numbers summed in another order


def passes(
    ensemble: LoraEnsemble | None = None,
    *,
    count: int = 4,
    dropout: float = 0.3,
    seed: int = 0,
    member: int = 0,
) -> MCDropout:
    ensemble = ensemble or build_ensemble(members=2, random_b=True)
    return MCDropout(ensemble, member=member, passes=count, dropout=dropout, seed=seed)


def test_passes_repeat_with_the_seed_and_differ_between_passes_and_seeds() -> None:
    found = predict(passes(), letter_examples()).member_log_probs
    assert found.shape == (4, 10, 3)
    assert torch.equal(predict(passes(), letter_examples()).member_log_probs, found)
    probs, others = found.exp(), predict(passes(seed=1), letter_examples()).member_log_probs.exp()
    assert all(float((probs[i] - probs[j]).abs().max()) > 1e-2 for i in range(4) for j in range(i))
    assert all(float((probs[i] - others[j]).abs().max()) > 1e-2 for i in range(4) for j in range(4))


@pytest.mark.parametrize("examples", [letter_examples(), phrase_examples()], ids=["letters", "phrases"])
@pytest.mark.parametrize("max_rows", [1, 4, 12, None])
def test_a_question_gets_the_same_whatever_the_batch_its_neighbours_and_their_order(
    examples: list, max_rows: int | None
) -> None:
    whole = predict(passes(), examples).member_log_probs.exp()
    torch.testing.assert_close(
        predict(passes(), examples, max_rows=max_rows).member_log_probs.exp(), whole, **TOLERANCE
    )
    some = [4, 0, 3]
    found = predict(passes(), [examples[n] for n in some], max_rows=max_rows).member_log_probs.exp()
    torch.testing.assert_close(found, whole[:, some, : found.shape[-1]], **TOLERANCE)


def test_questions_of_equal_length_get_different_masks() -> None:
    # If rows shared a mask, the effect of a tiny change of dropout would be shared too: compare the masks
    # that the first layer draws.
    ensemble = build_ensemble(members=1, random_b=True)
    layer, seen = ensemble.stack.layers[0], []
    draw = layer._dropout_factors
    layer._dropout_factors = (  # type: ignore[method-assign]
        lambda x: seen.append(draw(x)) or seen[-1]
    )
    passes(ensemble, count=2).member_log_probs(letter_examples(), max_rows=20)
    (masks,) = seen
    firsts = masks[
        :, 0
    ]  # (passes * examples, D): the mask of each row's first token, the same token everywhere
    assert len({tuple(mask.tolist()) for mask in firsts}) == 20


def test_fewer_passes_are_the_first_of_more() -> None:
    torch.testing.assert_close(
        predict(passes(count=2), letter_examples()).probs,
        predict(passes(count=5), letter_examples()).select([0, 1]).probs,
        **TOLERANCE,
    )


def test_almost_no_dropout_is_the_member_itself() -> None:
    ensemble = build_ensemble(members=3, random_b=True)
    for member in range(3):
        found = predict(
            passes(ensemble, dropout=1e-9, member=member), letter_examples()
        ).member_log_probs.exp()
        expected = predict(SingleMember(ensemble, member), letter_examples()).member_log_probs.exp()
        torch.testing.assert_close(found, expected.expand(4, -1, -1), **TOLERANCE)


def test_the_member_s_weights_are_viewed_and_the_ensemble_is_left_as_it_was() -> None:
    ensemble = build_ensemble(members=2, random_b=True)
    layer, seen = ensemble.stack.layers[0], []
    before = predict(ensemble, letter_examples()).member_log_probs

    def look(_layer: nn.Module, _arguments: object) -> None:
        seen.append(
            (layer.lora_a.untyped_storage().data_ptr(), layer.lora_a.stride(0), layer.lora_b.stride(0))
        )

    handle = layer.register_forward_pre_hook(look)
    passes(ensemble, member=1).member_log_probs(letter_examples())
    handle.remove()
    assert set(seen) == {(ensemble.stack.working_a.untyped_storage().data_ptr(), 0, 0)}
    assert torch.equal(predict(ensemble, letter_examples()).member_log_probs, before)
    config = TrainConfig(epochs=2, batch_size=4, learning_rate=3e-3)
    train(ensemble, letter_examples(), config, progress=False)
    fresh = build_ensemble(members=2, random_b=True)
    train(fresh, letter_examples(), config, progress=False)
    assert torch.equal(ensemble.stack.b, fresh.stack.b)


def test_the_ensemble_is_left_as_it_was_after_an_error() -> None:
    ensemble = build_ensemble(members=2, random_b=True)
    before = predict(ensemble, letter_examples()).member_log_probs

    def fail(*_arguments: object) -> None:
        raise KeyboardInterrupt

    handle = ensemble.stack.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        passes(ensemble).member_log_probs(letter_examples())
    handle.remove()
    assert torch.equal(predict(ensemble, letter_examples()).member_log_probs, before)


def test_passes_follow_training_that_comes_later_and_work_in_bf16() -> None:
    ensemble = LoraEnsemble(
        build("llama", dtype=torch.bfloat16), tokenizer(), num_members=2, adapter=adapter_config()
    )
    made = passes(ensemble, count=3)
    untrained = predict(made, letter_examples()).member_log_probs
    assert torch.equal(untrained[0], untrained[2])  # B is zero: nothing to drop
    train(
        ensemble, letter_examples(), TrainConfig(epochs=3, batch_size=4, learning_rate=1e-2), progress=False
    )
    trained = predict(made, letter_examples()).member_log_probs
    assert not torch.equal(trained[0], trained[2])


def test_the_adapter_s_own_dropout_is_the_default() -> None:
    ensemble = build_ensemble(members=1, random_b=True, adapter=adapter_config(dropout=0.25))
    made = MCDropout(ensemble)
    assert (made.dropout, made.passes) == (0.25, 5)
    assert made.num_trained_parameters == ensemble.stack.a.shape[1] + ensemble.stack.b.shape[1]
    with pytest.raises(
        ConfigError,
        match=r"dropout=0.0; pass the probability that the member was trained with, above 0 and below 1",
    ):
        MCDropout(build_ensemble(members=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(member=2), "there is no member 2; name one of 0 to 1"),
        (dict(count=0), "passes=0; it is a whole number of at least 1"),
        (dict(dropout=1.0), "dropout=1.0; pass the probability"),
        (dict(dropout=-0.1), "dropout=-0.1; pass the probability"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        passes(**settings)
