"""Distributions over adapters: each formula derived again in another way, and members that do not know each
other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

from lora_ensembles import LoraEnsemble, TrainConfig, evaluate, predict, train
from lora_ensembles.baselines import IVON, SWAG, TFB, BLoB, RankMask, ScalaBL, SnapshotEnsemble, Soup
from lora_ensembles.baselines.posterior.base import WeightPosterior
from lora_ensembles.baselines.posterior.blob import gaussian_kl
from lora_ensembles.baselines.posterior.flat import normal_rows, uniform_rows
from lora_ensembles.baselines.posterior.flipout import perturbed
from lora_ensembles.baselines.posterior.ivon import StackedIVON
from lora_ensembles.baselines.posterior.rank_mask import bernoulli_kl
from lora_ensembles.baselines.posterior.swag import Moments
from lora_ensembles.baselines.posterior.tfb import split_by_singular_values
from lora_ensembles.baselines.soup import mean_of_members
from lora_ensembles.errors import CheckpointError, ConfigError
from lora_ensembles.training.config import schedule_factor
from lora_ensembles.training.optim import AdamState
from tiny_ensembles import ensemble, files_below, llama, questions, tokenizer

CONFIG = TrainConfig(epochs=4, batch_size=4, learning_rate=1e-2, loss="labels")
KINDS: dict[str, Callable[[LoraEnsemble], WeightPosterior]] = {
    "SWAG": lambda made: SWAG(made, samples=3),
    "IVON": lambda made: IVON(made, samples=3),
    "ScalaBL": lambda made: ScalaBL(made, samples=3),
    "RankMask": lambda made: RankMask(made, samples=3),
    "BLoB": lambda made: BLoB(made, samples=3),
    "snapshots": lambda made: SnapshotEnsemble(made, samples=2),
}


def fitted(kind: str, *, members: int = 1, **settings: Any) -> WeightPosterior:
    posterior = KINDS[kind](ensemble(members=members))
    rate = 1e-2 / 1e-3 if kind == "IVON" else 1e-2  # IVON's is multiplied by its clip
    config = TrainConfig(**{**CONFIG.to_dict(), "learning_rate": rate, **settings})
    posterior.fit(questions(8), config)
    return posterior


@pytest.mark.parametrize("kind", KINDS)
def test_a_mode_trained_beside_another_is_the_mode_trained_alone(kind: str) -> None:
    alone = fitted(kind, members=1)
    both = fitted(kind, members=2)
    first = both.draw()[: len(alone.draw())]
    for one, other in zip(alone.draw(), first, strict=True):
        for name in one.a:
            # Rows of both members are in one product, which sums them in another order.
            torch.testing.assert_close(one.a[name], other.a[name], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(one.b[name], other.b[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_members_that_are_saved_loaded_and_drawn_again(kind: str, tmp_path: Path) -> None:
    posterior = fitted(kind)
    prediction = predict(posterior, questions(4))
    assert prediction.num_members == posterior.samples
    posterior.save_pretrained(tmp_path / "saved")
    assert f"member_{posterior.samples - 1:03d}/adapter_model.safetensors" in files_below(tmp_path / "saved")
    loaded = LoraEnsemble.from_pretrained(tmp_path / "saved", base=llama(), tokenizer=tokenizer())
    torch.testing.assert_close(loaded.member_log_probs(questions(4)), prediction.member_log_probs)
    posterior.resample(2)
    torch.testing.assert_close(posterior.member_log_probs(questions(4))[:1], prediction.member_log_probs[:1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_resumed_gives_the_same_samples(kind: str, tmp_path: Path) -> None:
    rate = 10.0 if kind == "IVON" else 1e-2
    config = TrainConfig(**{**CONFIG.to_dict(), "learning_rate": rate, "dropout": 0.1})
    drawn = []
    for resume in (False, True):
        posterior = KINDS[kind](ensemble(members=1))
        posterior.fit(questions(8), config, out=tmp_path / "run", resume=resume)
        drawn.append(posterior.draw())
    for first, again in zip(*drawn, strict=True):
        assert all(torch.equal(first.a[name], again.a[name]) for name in first.a)
        assert all(torch.equal(first.b[name], again.b[name]) for name in first.b)


@pytest.mark.parametrize(
    ("one", "other", "named"),
    [
        (lambda made: BLoB(made), lambda made: BLoB(made, prior=1.0), r"prior was 0\.2, is 1\.0"),
        (lambda made: BLoB(made), lambda made: ScalaBL(made), "method was 'BLoB', is 'ScalaBL'; prior"),
        (lambda made: IVON(made), lambda made: IVON(made, ess=1e5), r"ess was 10000000\.0, is 100000\.0"),
        (lambda made: ScalaBL(made), lambda made: ScalaBL(made, spread=0.1), r"spread was 0\.05, is 0\.1"),
        (lambda made: RankMask(made), lambda made: RankMask(made, keep=0.5), r"keep was 0\.9, is 0\.5"),
        (lambda made: SWAG(made), lambda made: SWAG(made, share=1.0), r"share was 0\.5, is 1\.0"),
    ],
)
def test_a_run_is_not_resumed_as_that_of_another_distribution(
    one: Callable[[LoraEnsemble], WeightPosterior],
    other: Callable[[LoraEnsemble], WeightPosterior],
    named: str,
    tmp_path: Path,
) -> None:
    one(ensemble(members=1)).fit(questions(8), CONFIG, out=tmp_path)
    with pytest.raises(CheckpointError, match=f"other settings, so it cannot be resumed: {named}"):
        other(ensemble(members=1)).fit(questions(8), CONFIG, out=tmp_path, resume=True)


def test_nothing_is_drawn_before_fit() -> None:
    with pytest.raises(ConfigError, match="SWAG has no samples before `fit`"):
        SWAG(ensemble(members=1)).draw()
    with pytest.raises(ConfigError, match="TFB trains nothing; leave `out` and `validation` out"):
        TFB(ensemble(members=1)).fit(questions(8), out="runs/none")
    with pytest.raises(ConfigError, match="0 weights would be taken in, and 2 are needed"):
        SWAG(ensemble(members=1), every=50).fit(questions(8), CONFIG)
    with pytest.raises(ConfigError, match="epochs=4 do not split into samples=3 cycles"):
        SnapshotEnsemble(ensemble(members=1), samples=3).fit(questions(8), CONFIG)


def test_swag_moments_are_those_of_the_trajectory() -> None:
    path = torch.randn(7, 2, 5, generator=torch.Generator().manual_seed(0))
    moments = Moments.like(path[0], rank=3)
    for weights in path:
        moments.add(weights)
    recorded = path.numpy().astype(np.float64)
    np.testing.assert_allclose(moments.mean, recorded.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(moments.variance, recorded.var(axis=0), atol=1e-6)
    means = np.stack([recorded[: count + 1].mean(axis=0) for count in range(7)])
    last = {count % 3: recorded[count] - means[count] for count in (4, 5, 6)}
    np.testing.assert_allclose(moments.deviations, np.stack([last[row] for row in range(3)]), atol=1e-6)


def test_swag_samples_have_the_covariance_of_the_formula() -> None:
    moments = Moments.like(torch.zeros(1, 3), rank=4)
    for weights in torch.randn(9, 1, 3, generator=torch.Generator().manual_seed(1)):
        moments.add(weights)
    generator = torch.Generator().manual_seed(2)
    draws = torch.stack([moments.sample(0, generator) for _ in range(20_000)]).double()
    deviations = moments.deviations[:, 0].double()
    expected = moments.variance[0].double().diag() / 2 + deviations.T @ deviations / (2 * 3)
    # A covariance of 20,000 draws has a standard error of about sqrt(2 / 20,000) = 0.01 of its size.
    np.testing.assert_allclose(torch.cov(draws.T), expected, atol=0.05 * float(expected.diagonal().max()))
    np.testing.assert_allclose(draws.mean(dim=0), moments.mean[0], atol=0.05)


def test_ivon_makes_the_published_update_on_a_quadratic() -> None:
    """The update in scalars, from Alg. 1 of arXiv:2402.17641, on 0.5 c (theta - 1)^2."""
    ess, delta, h0, clip, (beta1, beta2), rate = 50.0, 0.01, 0.1, 0.7, (0.9, 0.95), 0.03
    curvature = [0.5, 4.0]
    mean = torch.zeros(1, 2)
    state = AdamState(torch.zeros(1, 2), torch.full((1, 2), h0))
    noise = torch.zeros(1, 2)
    optimizer = StackedIVON(
        torch.tensor([[rate]]),
        [noise],
        (state,),
        ess=ess,
        delta=delta,
        clip=clip,
        betas=(beta1, beta2),
    )
    generator = torch.Generator().manual_seed(0)
    own = [(0.0, 0.0, h0), (0.0, 0.0, h0)]  # m, u, h
    for step in range(1, 31):
        drawn = torch.randn(2, generator=generator).tolist()
        gradients, after = [], []
        for (m, u, h), c, z in zip(own, curvature, drawn, strict=True):
            e = z / math.sqrt(ess * (h + delta))
            g = c * (m + e - 1)
            f = ess * (h + delta) * e * g
            new_h = beta2 * h + (1 - beta2) * f + 0.5 * (1 - beta2) ** 2 * (h - f) ** 2 / (h + delta)
            u = beta1 * u + (1 - beta1) * g
            direction = (u / (1 - beta1**step) + delta * m) / (new_h + delta)
            m -= rate * min(clip, max(-clip, direction))
            gradients.append(g)
            after.append((m, u, new_h))
        noise.copy_(torch.tensor(drawn) / (ess * (state.second + delta)).sqrt())
        optimizer.step([mean], [torch.tensor([gradients])])
        own = after
    np.testing.assert_allclose(mean[0], [m for m, _, _ in own], rtol=1e-4)
    np.testing.assert_allclose(state.second[0], [h for _, _, h in own], rtol=1e-4)


def test_ivon_leaves_columns_without_a_gradient() -> None:
    state = AdamState(torch.zeros(1, 2), torch.ones(1, 2))
    mean, noise = torch.ones(1, 2), torch.ones(1, 2)
    optimizer = StackedIVON(
        torch.ones(1, 1), [noise], (state,), ess=1.0, delta=0.1, clip=math.inf, betas=(0.9, 0.9)
    )
    optimizer.step([mean], [torch.ones(1, 2)], unreached=[[slice(1, 2)]])
    assert mean[0, 1] == 1
    assert state.second[0, 1] == 1
    assert mean[0, 0] < 1


def trained_member() -> LoraEnsemble:
    made = ensemble(members=1)
    train(made, questions(8), CONFIG, progress=False)
    return made


def test_tfb_splits_a_member_into_an_equal_one_with_orthogonal_columns() -> None:
    member = trained_member().stack.member(0)
    split, values = split_by_singular_values(member)
    for name in member.a:
        torch.testing.assert_close(
            split.b[name] @ split.a[name], member.b[name] @ member.a[name], atol=1e-6, rtol=1e-5
        )
        columns = split.b[name].T @ split.b[name]
        torch.testing.assert_close(columns, values[name].square().diag(), atol=1e-6, rtol=1e-5)


def test_tfb_noise_has_one_variance_in_every_direction_of_b() -> None:
    """Var(U' dW) = s_i^2 (beta / s_i)^2 = beta^2, whatever the singular value."""
    tfb = TFB(trained_member(), samples=4)
    tfb.fit(questions(8))
    member, values = tfb._split[0]
    name = next(iter(values))
    generator = torch.Generator().manual_seed(0)
    centre = member.b[name] @ member.a[name]
    left = member.b[name] / values[name]
    noises = []
    for _ in range(3000):
        drawn = tfb.sample(0, generator)
        noises.append(left.T @ (drawn.b[name] @ drawn.a[name] - centre))
    spread = torch.stack(noises).std(dim=0)  # (R, D), 3000 draws: to 1 / sqrt(6000) = 1.3 %
    torch.testing.assert_close(spread, torch.full_like(spread, tfb.betas[0]), rtol=0.08, atol=0.0)


def test_tfb_takes_the_largest_spread_within_the_tolerance() -> None:
    tfb = TFB(trained_member(), samples=6, tolerance=0.05, steps=7)
    tfb.fit(questions(8))
    beta, step = tfb.betas[0], tfb.largest / 2**7
    assert 0 < beta < tfb.largest - step

    def loss(value: float) -> float:
        tfb.betas = [value]
        tfb.resample()
        return evaluate(predict(tfb, questions(8))).nll

    allowed = 1.05 * loss(0.0)
    assert loss(beta) <= allowed
    assert loss(beta + step) > allowed


def test_the_divergence_of_blob_is_that_of_torch() -> None:
    mean, spread = torch.randn(3, 4), torch.rand(3, 4) + 0.1
    expected = kl_divergence(Normal(mean, spread), Normal(0.0, 0.2)).sum(dim=-1)
    torch.testing.assert_close(gaussian_kl(mean, spread, 0.2), expected)


@pytest.mark.parametrize("kind", [BLoB, ScalaBL, RankMask])
def test_the_gradients_of_the_divergences_are_those_of_autograd(kind: type[Any]) -> None:
    posterior = kind(ensemble(members=2, trained=True), samples=1, kl_weight=3.0)
    family = posterior.family(4)
    zeros = [torch.zeros_like(posterior.ensemble.stack.a)]
    family.place([zeros[0].clone()], [1, 2])
    totals = [torch.zeros_like(flat) for flat in family.buffers.values()]
    family.carry_over(zeros, totals)
    leaves = {name: flat.clone().requires_grad_() for name, flat in family.buffers.items()}
    if kind is RankMask:
        prior = Bernoulli(torch.tensor(posterior.prior))
        kl = kl_divergence(Bernoulli(logits=leaves["logits"]), prior)
        torch.testing.assert_close(kl.sum(dim=-1), bernoulli_kl(leaves["logits"], posterior.prior))
    elif kind is BLoB:
        kl = gaussian_kl(leaves["mean"], leaves["rho"].square(), posterior.prior)
    else:
        kl = gaussian_kl(leaves["log_mean"].exp(), leaves["log_spread"].exp(), posterior.prior)
    (posterior.kl_weight / 4 * kl.sum()).backward()
    for (name, leaf), total in zip(leaves.items(), totals, strict=True):
        expected = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-5, msg=name)


def carried_over(posterior: WeightPosterior) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """A family's buffers as leaves, what it carries over of random gradients of A, and these."""
    family, a = posterior.family(4), posterior.ensemble.stack.a
    assert family is not None
    family.place([a.clone()], [1, 2])
    gradient = torch.randn(a.shape, generator=torch.Generator().manual_seed(3))
    totals = {name: torch.zeros_like(flat) for name, flat in family.buffers.items()}
    family.carry_over([gradient], list(totals.values()))
    return {name: flat.clone().requires_grad_() for name, flat in family.buffers.items()}, totals, gradient


def of_rows(a: Tensor, scales: Tensor, gradient: Tensor, made: LoraEnsemble) -> Tensor:
    """The loss whose gradient is that of A, where each row of A is scaled."""
    first, loss = 0, torch.zeros(())
    for site in made.stack.sites:
        own = scales[:, first : first + site.rank, None] * site.view_a(a)
        loss = loss + (own * site.view_a(gradient)).sum()
        first += site.rank
    return loss


def test_scales_carry_the_gradient_of_a_over_as_autograd_does() -> None:
    posterior = ScalaBL(ensemble(members=2, trained=True), samples=1, kl_weight=0.0)
    leaves, totals, gradient = carried_over(posterior)
    noise = normal_rows([1, 2], leaves["log_mean"], name="scales")
    scales = leaves["log_mean"].exp() + leaves["log_spread"].exp() * noise
    of_rows(leaves["directions"], scales, gradient, posterior.ensemble).backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(totals[name], leaf.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_masks_carry_the_gradient_of_a_over_as_autograd_does() -> None:
    posterior = RankMask(ensemble(members=2, trained=True), samples=1, kl_weight=0.0)
    leaves, totals, gradient = carried_over(posterior)
    uniform = uniform_rows([1, 2], leaves["logits"], name="mask")
    mask = ((leaves["logits"] + uniform.log() - (1 - uniform).log()) / posterior.temperature).sigmoid()
    of_rows(leaves["masked"], mask, gradient, posterior.ensemble).backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(totals[name], leaf.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_a_draw_of_blob_is_trained_by_the_gradient_of_its_perturbation() -> None:
    """One row of one token has one sign a feature and rank: then the perturbation is a plain change of A."""
    posterior = BLoB(ensemble(members=1, trained=True), samples=1, kl_weight=0.0)
    family, stack = posterior.family(4), posterior.ensemble.stack
    stack_a = stack.a.clone()
    family.place([stack_a], [5])
    layer, site = stack.layers[0], stack.sites[0]
    x = torch.randn(1, 1, layer.in_features, generator=torch.Generator().manual_seed(0))
    totals = stack.zero_gradients()
    with stack.running(rows=1, tokens=1), family.around():
        loss = layer(x).square().sum()
        stack.add_gradients(loss, totals)
        into, out = layer._signs(x, x.shape[-1], "in"), layer._signs(x, site.rank, "out")
    rho = site.view_a(family.buffers["rho"])[0].clone().requires_grad_()
    noise = out[0, 0][:, None] * site.view_a(family._noise)[0] * into[0, 0]
    a = site.view_a(stack.a)[0] + rho.square() * noise
    update = stack.scaling[0][0] * site.view_b(stack.b)[0] @ a @ x[0, 0]
    (layer.base_layer(x)[0, 0] + update).square().sum().backward()
    carried = [torch.zeros_like(flat) for flat in family.buffers.values()]
    family.carry_over([totals[0]], carried)
    torch.testing.assert_close(site.view_a(carried[1])[0], rho.grad, rtol=1e-4, atol=1e-5)


def test_training_of_blob_carries_the_gradient_of_the_rows_over_to_the_spreads() -> None:
    """Without the divergence nothing else changes them."""
    posterior = BLoB(ensemble(members=1), samples=1, kl_weight=0.0)
    family = posterior.family(8)
    assert family is not None
    begin = family.buffers["rho"].clone()
    posterior.fit(questions(8), CONFIG)
    assert not torch.equal(posterior.trained["rho"], begin)


def test_flipout_has_no_bias_and_rows_of_their_own_noise() -> None:
    """Signs that are drawn again and again average the perturbation away; each row has others."""
    made = ensemble(members=2, trained=True)
    layer, stack = made.stack.layers[0], made.stack
    x = torch.randn(2 * 3, 5, layer.in_features, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(stack.a.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), stack.running(rows=6, tokens=30):
        plain = layer(x)
        total, squares, draws = torch.zeros_like(plain), torch.zeros_like(plain), 400
        for draw in range(draws):
            with perturbed(stack, noise, [draw, draw + draws]):
                shift = layer(x) - plain
            total, squares = total + shift, squares + shift.square()
    error = (squares / draws).sqrt() / math.sqrt(draws)
    assert ((total / draws).abs() <= 5 * error + 1e-6).all()
    same = x[:1].expand_as(x).contiguous()
    with torch.no_grad(), stack.running(rows=6, tokens=30), perturbed(stack, noise, [1, 2]):
        shifted = layer(same)
    assert not torch.allclose(shifted[0], shifted[1])


def test_a_perturbation_with_signs_is_the_low_rank_update_of_each_token() -> None:
    made = ensemble(members=1, trained=True)
    layer, stack = made.stack.layers[0], made.stack
    site = stack.sites[0]
    x = torch.randn(2, 3, layer.in_features, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(stack.a.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), stack.running(rows=2, tokens=6):
        plain = layer(x)
        with perturbed(stack, noise, [7]):
            shift = layer(x) - plain
            into, out = layer._signs(x, x.shape[-1], "in"), layer._signs(x, site.rank, "out")
    assert set(into.unique().tolist()) == set(out.unique().tolist()) == {-1.0, 1.0}
    matrix, b = site.view_a(noise)[0], site.view_b(stack.b)[0]
    for token in range(6):
        signed = out[0, token][:, None] * matrix * into[0, token]
        expected = stack.scaling[0][0] * b @ signed @ x.view(6, -1)[token]
        torch.testing.assert_close(shift.view(6, -1)[token], expected, rtol=1e-4, atol=1e-5)


def test_snapshots_end_cycles_of_half_a_cosine() -> None:
    config = TrainConfig(epochs=6, schedule="cosine", cycles=3)
    # Eq. 2 of arXiv:1704.00109 with T = 12 steps and 3 cycles, t counted from 1.
    expected = [(math.cos(math.pi * ((t - 1) % 4) / 4) + 1) / 2 for t in range(1, 13)]
    assert [schedule_factor(config, step, 12) for step in range(12)] == pytest.approx(expected)


@pytest.mark.parametrize("rank", [None, 3])
def test_a_soup_is_the_mean_of_the_members_updates(rank: int | None) -> None:
    made = ensemble(members=3, trained=True)
    members = [made.stack.member(index) for index in range(3)]
    mixed = mean_of_members(members, rank=rank)
    for name in members[0].a:
        direct = sum(one.scaling[name] * one.b[name] @ one.a[name] for one in members) / 3
        if rank is not None:
            left, values, right = torch.linalg.svd(direct)
            direct = left[:, :rank] * values[:rank] @ right[:rank]
            assert mixed.a[name].shape[0] == rank
        torch.testing.assert_close(mixed.b[name] @ mixed.a[name], direct, rtol=1e-4, atol=1e-5)


def test_a_soup_is_asked_as_one_model_with_the_mean_of_the_weights() -> None:
    made = ensemble(members=2, trained=True)
    merged = llama()
    for site in made.stack.sites:
        update = sum(
            scaling * b @ a
            for scaling, b, a in zip(
                made.stack.scaling[made.stack.sites.index(site)],
                site.view_b(made.stack.b),
                site.view_a(made.stack.a),
                strict=True,
            )
        )
        merged.get_submodule(site.name).weight.data += update / 2
    plain = LoraEnsemble(merged, tokenizer(), num_members=1, adapter=made.adapter)
    expected = plain.member_log_probs(questions(4))
    torch.testing.assert_close(Soup(made).member_log_probs(questions(4)), expected, rtol=1e-4, atol=1e-5)
