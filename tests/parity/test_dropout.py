"""Adapter dropout: a member's own random stream, whatever its neighbours, the padding and the split of a
batch are.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from lora_ensembles import LoraEnsemble, TrainConfig, predict, train
from lora_ensembles.stack.dropout import dropout_factors, stream_key
from tiny_models import adapter_config, build, build_ensemble, letter_examples, pad, random_rows, tokenizer

CONFIG = TrainConfig(epochs=3, batch_size=4, learning_rate=3e-3, dropout=0.3)
FLATTENED = "qwen2_moe_shared_expert"  # its shared expert sees tokens of all rows in one axis


def trained(ensemble: LoraEnsemble, config: TrainConfig = CONFIG, *, validated: bool = False) -> LoraEnsemble:
    train(
        ensemble, letter_examples(), config, validation=letter_examples() if validated else (), progress=False
    )
    return ensemble


def factors(
    probability: list[float],
    *,
    keys: list[int],
    shape: tuple[int, int, int],
    row_numbers: torch.Tensor | None = None,
) -> torch.Tensor:
    return dropout_factors(
        torch.tensor(keys), torch.tensor(probability), shape=shape, row_numbers=row_numbers
    )


def test_dropout_drops_its_share_and_keeps_the_expected_input() -> None:
    shape = (8, 20, 100)
    count = 8 * 20 * 100
    found = factors([0.1, 0.5, 0.0], keys=[11, 12, 13], shape=shape)
    for m, p in enumerate([0.1, 0.5, 0.0]):
        # A factor is 1 / (1 - p) with probability 1 - p: mean 1, variance p / (1 - p). Five standard
        # deviations of the mean.
        bound = 5 * (p / (1 - p) / count) ** 0.5 + 1e-6
        assert float(found[m].mean()) == pytest.approx(1.0, abs=bound)
        assert set(found[m].unique().tolist()) <= {0.0, float(1 / (1 - torch.tensor(p)))}
        for axis in range(3):  # nor is a row, a token or a feature favoured
            means = found[m].view(shape).mean(dim=tuple(other for other in range(3) if other != axis))
            assert float((means - 1).abs().max()) <= 5 * (p / (1 - p) * len(means) / count) ** 0.5 + 1e-6


def test_dropout_in_expectation_is_no_dropout() -> None:
    # One layer is linear in its input, so the mean over many masks is the output without them.
    ensemble = build_ensemble(members=1, random_b=True)
    layer, x = ensemble.stack.layers[0], torch.randn(1, 1, 32)
    with torch.no_grad(), ensemble.stack.running(rows=1, tokens=1):
        expected = layer(x)
        draws = []
        for key in range(1000):
            with ensemble.stack.dropout(torch.tensor([0.3]), [key]):
                draws.append(layer(x))
    drawn = torch.stack(draws)
    bound = 5 * drawn.std(dim=0) / len(draws) ** 0.5
    assert bool(((drawn.mean(dim=0) - expected).abs() < bound).all())
    assert float(drawn.std(dim=0).mean()) > 0.01


def test_masks_of_members_rows_tokens_and_steps_are_not_related() -> None:
    keys = [stream_key(seed, "dropout", step) for seed in (1, 2) for step in (0, 1)]
    flat = factors([0.5] * 4, keys=keys, shape=(6, 10, 64)).view(-1, 64) - 1
    correlation = (flat @ flat.T / 64).fill_diagonal_(0)
    # 240 masks of 64 fair coins, 28680 pairs: the mean product of two has deviation 1 / 8; six of these.
    assert float(correlation.abs().max()) < 6 / 8


def test_a_mask_does_not_depend_on_padding_neighbours_or_the_split_of_rows() -> None:
    whole = factors([0.3, 0.4], keys=[5, 6], shape=(4, 9, 16)).view(2, 4, 9, 16)
    short = factors([0.4], keys=[6], shape=(4, 7, 16)).view(4, 7, 16)
    later = factors([0.4], keys=[6], shape=(2, 9, 16), row_numbers=torch.tensor([[2, 3]])).view(2, 9, 16)
    assert torch.equal(whole[1, :, :7], short)
    assert torch.equal(whole[1, 2:], later)


@pytest.mark.parametrize("name", ["llama", "gpt2", FLATTENED])
def test_logits_under_dropout_do_not_depend_on_padding(name: str) -> None:
    ensemble = build_ensemble(name, members=2, random_b=True)
    rows = random_rows([9, 9])
    positions = torch.tensor([[[8], [8]], [[8], [8]]])
    with torch.no_grad(), ensemble.stack.dropout(torch.tensor([0.3, 0.3]), [1, 2]):
        short = ensemble.answer_logits(pad(rows)[0].expand(2, -1, -1), positions)
        long = ensemble.answer_logits(pad(rows, length=14)[0].expand(2, -1, -1), positions)
    with torch.no_grad():
        without = ensemble.answer_logits(pad(rows)[0].expand(2, -1, -1), positions)
    torch.testing.assert_close(short, long, atol=1e-5, rtol=1e-5)  # fp32 products of other sizes
    assert not torch.allclose(short, without, atol=1e-2)


@pytest.mark.parametrize("name", ["llama", FLATTENED])
@pytest.mark.parametrize("max_rows", [4, 3])
def test_splitting_a_batch_gives_the_same_masks(name: str, max_rows: int) -> None:
    whole = trained(build_ensemble(name, members=2)).stack
    split = trained(build_ensemble(name, members=2), replace(CONFIG, max_rows=max_rows)).stack
    # One learning rate is what a single differing mask changes at the least; fp32 sums in another order stay
    # far below.
    assert float((whole.b - split.b).abs().max()) < 1e-4


def test_dropout_comes_from_the_adapter_config_unless_the_run_says_otherwise() -> None:
    adapter = adapter_config(dropout=0.3)
    from_adapter = trained(build_ensemble(adapter=adapter), replace(CONFIG, dropout=None))
    assert torch.equal(from_adapter.stack.b, trained(build_ensemble()).stack.b)
    assert torch.equal(
        trained(build_ensemble(adapter=adapter), replace(CONFIG, dropout=0.0)).stack.b,
        trained(build_ensemble(), replace(CONFIG, dropout=None)).stack.b,
    )


def test_evaluation_does_not_leave_dropout_off_for_the_rest_of_training() -> None:
    assert torch.equal(trained(build_ensemble(), validated=True).stack.b, trained(build_ensemble()).stack.b)
    assert not torch.allclose(
        trained(build_ensemble(), replace(CONFIG, dropout=0.0)).stack.b,
        trained(build_ensemble()).stack.b,
        atol=1e-3,
    )


def test_evaluation_is_without_dropout() -> None:
    ensemble = trained(build_ensemble(adapter=adapter_config(dropout=0.5)), replace(CONFIG, dropout=None))
    plain = build_ensemble()
    plain.stack.set_members([ensemble.stack.member(m) for m in range(3)])
    examples = letter_examples()
    assert torch.equal(
        predict(ensemble, examples).member_log_probs, predict(plain, examples).member_log_probs
    )


def test_a_saved_ensemble_trains_on_with_the_masks_of_the_one_in_memory(tmp_path: Path) -> None:
    # The MLP comes behind the attention in the model, and before it in the alphabet.
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    ensemble = trained(build_ensemble(adapter=adapter))
    ensemble.save_pretrained(tmp_path / "saved")
    loaded = LoraEnsemble.from_pretrained(tmp_path / "saved", base=build("llama"), tokenizer=tokenizer())
    assert [site.name for site in loaded.stack.sites] == [site.name for site in ensemble.stack.sites]
    assert torch.equal(trained(loaded).stack.b, trained(ensemble).stack.b)
