"""Mistakes that couple the members of an ensemble, each under its name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lora_ensembles import LoraEnsemble, TrainConfig, train
from lora_ensembles.data import encode_examples
from lora_ensembles.errors import AdapterError
from lora_ensembles.stack.lora import unfold_members
from lora_ensembles.training.optim import clip_per_member
from lora_ensembles.training.orders import epoch_order
from tiny_models import (
    adapter_config,
    build,
    build_ensemble,
    letter_examples,
    pad,
    parameters_of,
    random_rows,
    tokenizer,
)

CONFIG = TrainConfig(epochs=3, batch_size=4, learning_rate=2e-3, weight_decay_a=0.0, weight_decay_b=0.0)


def trained(ensemble: LoraEnsemble, config: TrainConfig = CONFIG) -> Tensor:
    """The flat weights (M, P) after training."""
    train(ensemble, letter_examples(), config, progress=False)
    return torch.cat([ensemble.stack.a, ensemble.stack.b], dim=1)


def rows_read(ensemble: LoraEnsemble, config: TrainConfig = CONFIG) -> list[Tensor]:
    """The token ids (M, B, T) that the base really reads in each step."""
    seen: list[Tensor] = []
    hook = ensemble.base.get_input_embeddings().register_forward_pre_hook(
        lambda _module, arguments: seen.append(unfold_members(arguments[0].clone(), ensemble.num_members))
    )
    trained(ensemble, config)
    hook.remove()
    return seen


def as_sets(rows: Tensor) -> list[set[tuple[int, ...]]]:
    return [{tuple(token for token in row if token) for row in member} for member in rows.tolist()]


def test_members_do_not_train_on_the_same_batch() -> None:
    steps = [as_sets(rows) for rows in rows_read(build_ensemble(members=3))]
    assert len(steps) == 9
    assert all(members[0] != members[1] for members in steps[:2])
    for epoch in range(3):  # yet in an epoch each member reads every example once
        of_epoch = steps[3 * epoch : 3 * epoch + 3]
        assert all(
            len(set.union(*(step[m] for step in of_epoch))) == len(letter_examples()) for m in range(3)
        )


def test_members_train_on_the_same_batches_only_where_that_is_asked_for() -> None:
    ensemble = LoraEnsemble(
        build("llama"), tokenizer(), num_members=2, adapter=adapter_config(), vary=["init"]
    )
    assert all(torch.equal(rows[0], rows[1]) for rows in rows_read(ensemble))


def test_a_member_reads_the_examples_in_another_order_in_every_epoch() -> None:
    steps = rows_read(build_ensemble(members=1))
    assert as_sets(steps[0]) != as_sets(steps[3])


@pytest.mark.parametrize("members", [1, 2])
def test_with_rows_shared_out_by_length_a_member_of_a_large_stack_gets_the_weights_of_a_small_one(
    members: int,
) -> None:
    config = replace(CONFIG, length_window=2)
    few, many = trained(build_ensemble(members=members), config), trained(build_ensemble(members=8), config)
    moved = float(
        (few - trained(build_ensemble(members=members), replace(config, learning_rate=0.0))).abs().max()
    )
    assert moved > 1e-2
    torch.testing.assert_close(
        many[:members], few, atol=1e-5, rtol=0
    )  # 9 steps of fp32 products of other sizes
    assert (
        float((trained(build_ensemble(members=members)) - few).abs().max()) > 1e-3
    )  # the plain shuffle is another run


@pytest.mark.parametrize("setting", [{}, {"max_grad_norm": 0.01}, {"kl_weight": 0.5}])
def test_neither_optimiser_nor_clip_spans_members(setting: dict[str, float]) -> None:
    calm = trained(build_ensemble(members=2), replace(CONFIG, **setting))
    wild = trained(build_ensemble(members=2), replace(CONFIG, **setting, learning_rate=[2e-3, 0.3]))
    assert torch.equal(
        wild[0], calm[0]
    )  # bit for bit: the neighbour's size and gradients meet no common number
    assert float((wild[1] - calm[1]).abs().max()) > 0.1


def test_a_gradient_clip_does_not_span_members() -> None:
    gradients = (
        torch.randn(3, 40) * torch.tensor([[0.01], [100.0], [1.0]]),
        torch.randn(3, 20) * torch.tensor([[0.01], [100.0], [1.0]]),
    )
    expected = []
    for m in range(3):
        parameters = [torch.nn.Parameter(torch.zeros_like(part[m])) for part in gradients]
        for parameter, part in zip(parameters, gradients, strict=True):
            parameter.grad = part[m].clone()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 2.0)
        expected.append((norm, *(parameter.grad for parameter in parameters)))
    norms = clip_per_member(gradients, 2.0)
    for m, (norm, *parts) in enumerate(expected):
        torch.testing.assert_close(norms[m], norm)
        for found, part in zip(gradients, parts, strict=True):
            torch.testing.assert_close(found[m], part)


@pytest.mark.parametrize("matrix", ["a", "b"])
def test_weight_decay_reaches_neither_other_members_nor_the_base_nor_the_other_matrix(matrix: str) -> None:
    plain, decayed = build_ensemble(members=2, random_b=True), build_ensemble(members=2, random_b=True)
    before = parameters_of(decayed.unload())
    decayed = build_ensemble(members=2, random_b=True)
    trained(plain, replace(CONFIG, epochs=1, learning_rate=1e-9))
    trained(decayed, replace(CONFIG, epochs=1, learning_rate=1e-9, **{f"weight_decay_{matrix}": [1e8, 0.0]}))
    other = "b" if matrix == "a" else "a"
    # Three steps of decay 1e-9 * 1e8 = 0.1, beside which steps of 1e-9 vanish.
    expected = getattr(plain.stack, matrix)[0] * 0.9**3
    torch.testing.assert_close(getattr(decayed.stack, matrix)[0], expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(getattr(decayed.stack, matrix)[1], getattr(plain.stack, matrix)[1])
    torch.testing.assert_close(getattr(decayed.stack, other), getattr(plain.stack, other), atol=1e-7, rtol=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in parameters_of(decayed.unload()).items())


def test_no_gradient_reaches_the_base() -> None:
    ensemble = build_ensemble(members=2)
    trained(ensemble)
    assert all(parameter.grad is None for parameter in ensemble.unload().parameters())


def test_members_rows_are_not_misaligned() -> None:
    """Rows that differ by member meet that member's adapter: changing one member changes its own
    logits only.
    """
    ensemble = build_ensemble(members=3, random_b=True)
    ids = pad(random_rows([9] * 6))[0].view(3, 2, 9)
    with torch.no_grad():
        before = ensemble(ids)
        ensemble.stack.b[1] += 0.1
        after = ensemble(ids)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1], atol=1e-2)


def test_members_of_a_part_of_the_stack_meet_their_own_adapters() -> None:
    ensemble = build_ensemble(members=4, random_b=True)
    ids = pad(random_rows([9] * 8))[0].view(4, 2, 9)
    positions = torch.full((4, 2, 1), 8)
    with torch.no_grad():
        whole = ensemble.answer_logits(ids, positions)
        for part in (slice(0, 1), slice(1, 3), slice(3, 4)):
            found = ensemble.view(range(4)[part]).answer_logits(ids[part], positions[part])
            torch.testing.assert_close(
                found, whole[part], atol=1e-5, rtol=1e-5
            )  # fp32 products of another size


def test_rows_that_do_not_split_over_members_are_refused() -> None:
    with pytest.raises(AdapterError, match="batch of 7 rows does not split over 3 members"):
        unfold_members(torch.zeros(7, 2), 3)


def test_a_short_last_batch_counts_its_own_rows_only() -> None:
    # Eight examples in batches of 5 and 3: the epoch's mean loss without learning is the mean over all rows.
    ensemble = build_ensemble(members=2, random_b=True)
    examples = letter_examples()[:8]
    config = replace(CONFIG, epochs=1, batch_size=5, learning_rate=0.0)
    history = train(ensemble, examples, config, progress=False).history
    encoded = encode_examples(examples, tokenizer())
    for m, seeds in enumerate(ensemble.info.seeds):
        losses = []
        for n in epoch_order(seeds.order, 0, 8).tolist():
            with torch.no_grad():
                logits = ensemble(torch.tensor([encoded[n].prompt_ids]))[m, 0, -1]
            losses.append(-logits.log_softmax(-1)[encoded[n].label_ids[encoded[n].target or 0][0]])
        expected = torch.stack(losses).mean()
        assert history[0]["train_loss"][m] == pytest.approx(float(expected), abs=1e-5)
