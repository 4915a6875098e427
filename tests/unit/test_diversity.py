"""Members that differ by their data, that are held near their beginning, or that share their A."""

from __future__ import annotations

import pytest
import torch

from lora_ensembles import LoraEnsemble, TrainConfig, train
from lora_ensembles.baselines import SWAG, LastLayerEnsemble
from lora_ensembles.errors import ConfigError
from lora_ensembles.training.optim import StackedAdamW
from lora_ensembles.training.orders import MemberOrders, own_rows
from tiny_ensembles import adapter, ensemble, llama, questions, tokenizer

CONFIG = TrainConfig(epochs=3, batch_size=4, learning_rate=1e-2, loss="labels")


def trained(
    config: TrainConfig, *, members: int = 2, vary: tuple[str, ...] = ("init", "order")
) -> LoraEnsemble:
    made = LoraEnsemble(llama(), tokenizer(), num_members=members, adapter=adapter(), vary=vary)
    train(made, questions(8), config, progress=False)
    return made


@pytest.mark.parametrize(("share", "rows", "different"), [(0.5, 5, 5), (1.0, 10, 7)])
def test_a_member_reads_its_own_rows_in_every_epoch(share: float, rows: int, different: int) -> None:
    lengths = torch.ones(10, dtype=torch.int64)
    orders = MemberOrders([3, 4], lengths, batch_size=2, data_share=share)
    assert orders.steps_per_epoch == (rows + 1) // 2
    for member, seed in enumerate((3, 4)):
        own = sorted(own_rows(seed, 10, share).tolist())
        assert len(set(own)) <= different
        for epoch in range(3):
            steps = range(epoch * orders.steps_per_epoch, (epoch + 1) * orders.steps_per_epoch)
            read = torch.cat([orders.batch(step)[member] for step in steps])
            assert sorted(read.tolist()) == own
    assert own_rows(3, 10, share).tolist() != own_rows(4, 10, share).tolist()


@pytest.mark.parametrize("changed", [{"data_share": 0.5}, {"data_share": 1.0}, {"anchored": True}])
def test_a_member_is_the_same_alone_and_beside_others(changed: dict[str, object]) -> None:
    config = TrainConfig(**{**CONFIG.to_dict(), **changed})
    alone, both = trained(config, members=1), trained(config, members=2)
    torch.testing.assert_close(alone.stack.b[0], both.stack.b[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both.stack.b[0], trained(CONFIG).stack.b[0])


def test_anchored_decay_leads_back_to_the_beginning() -> None:
    """theta <- theta - lr * decay * (theta - theta_0), where the gradient is zero."""
    begin, theta = torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 0.0]])
    optimizer = StackedAdamW.over(
        [theta], learning_rate=torch.tensor([0.1]), decays=[torch.tensor([2.0])], anchors=[begin]
    )
    optimizer.step([theta], [torch.zeros(1, 2)])
    torch.testing.assert_close(theta, torch.tensor([[3.0 - 0.2 * 2.0, 0.0 - 0.2 * 2.0]]))


def test_a_shared_a_is_trained_by_the_sum_of_the_members_losses() -> None:
    """One step of plain gradients: with equal members, A moves by the sign of the sum (Adam's first step)."""
    config = TrainConfig(**{**CONFIG.to_dict(), "shared_a": True})
    made = trained(config, vary=("order",))
    assert torch.equal(made.stack.a[0], made.stack.a[1])
    assert not torch.equal(made.stack.b[0], made.stack.b[1])
    apart = trained(CONFIG, vary=("order",))
    assert not torch.equal(apart.stack.a[0], apart.stack.a[1])
    assert not torch.allclose(made.stack.a[0], apart.stack.a[0])


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="shared_a=True, and the members begin with an A each"):
        trained(TrainConfig(**{**CONFIG.to_dict(), "shared_a": True}))
    with pytest.raises(ConfigError, match=r"data_share=1\.5; it is a number above 0 and at most 1"):
        TrainConfig(data_share=1.5)
    with pytest.raises(ConfigError, match="anchored='yes'; it is True or False"):
        TrainConfig(anchored="yes")  # type: ignore[arg-type]
    anchored = TrainConfig(**{**CONFIG.to_dict(), "loss": "vocabulary", "anchored": True})
    with pytest.raises(ConfigError, match="anchored=True: a last-layer ensemble has no such setting"):
        LastLayerEnsemble(llama(), tokenizer(), num_members=2).fit(questions(8), anchored)
    from lora_ensembles.baselines import IVON

    with pytest.raises(ConfigError, match="anchored=True: a posterior has no such setting"):
        IVON(ensemble(members=1)).fit(questions(8), anchored)
    SWAG(ensemble(members=1), samples=2).fit(questions(8), anchored)  # which is trained as an ensemble is
