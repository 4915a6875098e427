"""Laplace's approximation of the last layer: its curvature by autograd and by laplace-torch, and its
predictions by those of the members.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import Gemma2Config, Gemma2ForCausalLM, GPTJConfig, GPTJForCausalLM

from lora_ensembles import LoraEnsemble, SingleMember, TrainConfig, evaluate, predict, train
from lora_ensembles.baselines import LastLayerLaplace
from lora_ensembles.baselines.gauss_newton import (
    PRIOR_PRECISIONS,
    LayerPosterior,
    best_prior_precision,
    gauss_newton,
    log_evidence,
    softmax_hessians,
)
from lora_ensembles.data import Example
from lora_ensembles.errors import AdapterError, ConfigError, DataError
from tiny_ensembles import adapter, ensemble, questions, tokenizer
from tiny_heads import build_ensemble, examples_for

N, H, L = 40, 4, 3
CONFIG = TrainConfig(epochs=4, batch_size=4, learning_rate=1e-2, loss="labels")
SURE = 1e12  # a prior precision that leaves no spread


def toy(*, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features (N, H), weights (L, H) and answers (N,)."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(N, H, generator=generator, dtype=torch.float64)
    weights = torch.randn(L, H, generator=generator, dtype=torch.float64)
    return features, weights, torch.randint(L, (N,), generator=generator)


def posterior(structure: Any, tau: float) -> LayerPosterior:
    features, weights, _ = toy()
    curvature = gauss_newton(features, softmax_hessians(features @ weights.T), structure=structure)
    return LayerPosterior(weights, curvature, tau)


def matrix(made: LayerPosterior) -> Tensor:
    """The covariance (P, P), from the outputs of each unit of the weights."""
    eye = torch.eye(L * H, dtype=torch.float64)
    variances = (made.curvature.values + made.prior_precision).reciprocal()
    return made.curvature.times(eye.view(-1, L, H), variances).flatten(1)


def likelihood(features: Tensor, weights: Tensor, answers: Tensor) -> Tensor:
    return -nn.functional.cross_entropy(features @ weights.T, answers, reduction="sum")


def test_the_full_curvature_is_the_hessian_of_autograd() -> None:
    features, weights, answers = toy()
    gradient = torch.func.grad(lambda own: -likelihood(features, own, answers))
    hessian = torch.func.jacrev(gradient)(weights)
    precision = torch.linalg.inv(matrix(posterior("full", 0.5)))
    eye = torch.eye(L * H, dtype=torch.float64)
    torch.testing.assert_close(precision, hessian.reshape(L * H, L * H) + 0.5 * eye)


def test_the_kronecker_curvature_is_that_of_its_factors() -> None:
    features, weights, _ = toy()
    hessians = softmax_hessians(features @ weights.T)
    expected = torch.kron(hessians.sum(dim=0), features.T @ features / N)
    precision = torch.linalg.inv(matrix(posterior("kron", 0.5)))
    torch.testing.assert_close(precision, expected + 0.5 * torch.eye(L * H, dtype=torch.float64))


def test_the_kronecker_curvature_is_exact_where_all_hessians_are_equal() -> None:
    """A Gaussian likelihood of spread 0.5: the posterior is Bayes' own for linear regression."""
    features, _, _ = toy()
    hessians = torch.eye(1, dtype=torch.float64).expand(N, 1, 1) / 0.25
    made = [gauss_newton(features, hessians, structure=name) for name in ("kron", "full")]
    mean = torch.zeros(1, H, dtype=torch.float64)
    exact = torch.linalg.inv(features.T @ features / 0.25 + 2.0 * torch.eye(H, dtype=torch.float64))
    for curvature in made:
        variance = LayerPosterior(mean, curvature, 2.0).output_covariance(features)[:, 0, 0]
        torch.testing.assert_close(variance, torch.einsum("nh,hk,nk->n", features, exact, features))


def laplace_torch(structure: str, tau: float, size: int) -> Any:
    """The same by laplace-torch, on batches of `size`."""
    from laplace import Laplace

    features, weights, answers = toy()
    layer = nn.Linear(H, L, bias=False).double()
    layer.weight.data = weights.clone()
    made = Laplace(
        nn.Sequential(nn.Identity(), layer),
        "classification",
        subset_of_weights="last_layer",
        hessian_structure=structure,
        prior_precision=torch.tensor([tau], dtype=torch.float64),
    )
    made.fit(DataLoader(TensorDataset(features, answers), batch_size=size))
    return made


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # what it imports calls that
@pytest.mark.parametrize("structure", ["kron", "full"])
@pytest.mark.parametrize("size", [N, 7])
def test_posterior_and_evidence_are_those_of_laplace_torch(structure: str, size: int) -> None:
    theirs, ours = laplace_torch(structure, 0.7, size), posterior(structure, 0.7)
    # It multiplies the exact matrix with an identity in float32, which leaves 1e-7 of rounding.
    close = {"rtol": 1e-6, "atol": 1e-6}
    if structure == "full":
        torch.testing.assert_close(torch.linalg.inv(matrix(ours)), theirs.posterior_precision, **close)
    else:
        ((outer, inner),) = theirs.posterior_precision.eigenvalues
        torch.testing.assert_close(
            ours.curvature.values.flatten().sort().values, torch.outer(outer, inner).flatten().sort().values
        )
        precision = torch.linalg.inv(matrix(ours))
        torch.testing.assert_close(precision, theirs.posterior_precision.to_matrix(), **close)
    asked, weights, _ = toy(seed=1)
    mean, variance = theirs._glm_predictive_distribution(asked)
    torch.testing.assert_close(asked @ toy()[1].T, mean)
    torch.testing.assert_close(ours.output_covariance(asked), variance, **close)
    features, weights, answers = toy()
    taus = torch.tensor([0.01, 0.7, 30.0], dtype=torch.float64)
    evidence = log_evidence(likelihood(features, weights, answers), weights, ours.curvature, taus)
    for tau, own in zip(taus, evidence, strict=True):
        torch.testing.assert_close(own, theirs.log_marginal_likelihood(tau[None]).squeeze(), **close)


def test_the_evidence_of_a_gaussian_likelihood_is_the_marginal_likelihood() -> None:
    """Linear regression at its maximum a posteriori, where the approximation is exact: y ~ N(0, F F' / tau +
    I).
    """
    features, _, _ = toy()
    tau, y = 0.4, torch.randn(N, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    eye = torch.eye(H, dtype=torch.float64)
    mean = torch.linalg.solve(features.T @ features + tau * eye, features.T @ y)[None]
    curvature = gauss_newton(features, torch.ones(N, 1, 1, dtype=torch.float64), structure="full")
    fit = torch.distributions.Normal(features @ mean[0], 1.0).log_prob(y).sum()
    found = log_evidence(fit, mean, curvature, torch.tensor([tau], dtype=torch.float64))
    spread = features @ features.T / tau + torch.eye(N, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(torch.zeros(N).double(), spread).log_prob(y)
    torch.testing.assert_close(found[0], exact)


@pytest.mark.parametrize("structure", ["kron", "full"])
def test_the_prior_precision_is_the_maximum_of_the_evidence(structure: Any) -> None:
    features, weights, answers = toy()
    made = gauss_newton(features, softmax_hessians(features @ weights.T), structure=structure)
    fit = likelihood(features, weights, answers)
    tau = best_prior_precision(fit, weights, made)
    low, high, _ = PRIOR_PRECISIONS
    assert low < tau < high
    log_tau = torch.tensor(tau).double().log().requires_grad_()
    slope = [
        torch.autograd.grad(log_evidence(fit, weights, made, (log_tau + step).exp()[None])[0], log_tau)[0]
        for step in (-math.log(10) / 20, math.log(10) / 20)
    ]
    assert slope[0] > 0 > slope[1]  # one step of the grid below it still rises, one above falls


@pytest.mark.parametrize("structure", ["kron", "full"])
def test_samples_have_the_covariance_of_the_posterior(structure: Any) -> None:
    made = posterior(structure, 0.7)
    draws = made.samples(
        torch.randn(20_000, L, H, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    )
    expected = matrix(made)
    # A covariance of 20,000 draws has a standard error of about sqrt(2 / 20,000) = 0.01 of its size.
    torch.testing.assert_close(
        torch.cov(draws.flatten(1).T), expected, rtol=0, atol=0.05 * float(expected.diagonal().max())
    )
    torch.testing.assert_close(draws.mean(dim=0), made.mean, rtol=0, atol=0.05)


def trained(members: int = 1) -> LoraEnsemble:
    made = ensemble(members=members)
    train(made, questions(8), CONFIG, progress=False)
    return made


def trained_classifiers(name: str, members: int = 2) -> tuple[LoraEnsemble, list[Example]]:
    made, examples = build_ensemble(name, "sequence-classification", members=members), class_examples()
    train(made, examples, TrainConfig(epochs=2, batch_size=4, learning_rate=1e-2), progress=False)
    return made, examples


def class_examples() -> list[Example]:
    return examples_for("sequence-classification")


@pytest.mark.parametrize("structure", ["kron", "full"])
def test_without_spread_the_samples_predict_what_the_members_do(structure: Any) -> None:
    members = trained(2)
    laplace = LastLayerLaplace(members, samples=2, structure=structure, prior_precision=SURE)
    laplace.fit(questions(8))
    asked = [*questions(3, start=8), *questions(2, options=3, start=11)]
    own = predict(members, asked).member_log_probs.repeat_interleave(2, dim=0)
    torch.testing.assert_close(laplace.member_log_probs(asked), own, rtol=0, atol=1e-4)
    assert laplace.member_log_probs(asked).dtype == torch.float32
    assert laplace.num_trained_parameters == SingleMember(members).num_trained_parameters


@pytest.mark.parametrize("name", ["bert", "roberta", "llama"])
def test_without_spread_the_samples_of_a_classifier_predict_what_the_members_do(name: str) -> None:
    members, examples = trained_classifiers(name)
    laplace = LastLayerLaplace(members, samples=2, prior_precision=SURE).fit(examples)
    own = predict(members, examples).member_log_probs.repeat_interleave(2, dim=0)
    torch.testing.assert_close(laplace.member_log_probs(examples), own, rtol=0, atol=1e-4)
    spread = LastLayerLaplace(members, samples=2, prior_precision=1.0).fit(examples)
    assert float((spread.member_log_probs(examples) - own).abs().max()) > 1e-2


def test_a_bias_of_the_head_is_a_weight_of_a_constant_feature() -> None:
    torch.manual_seed(0)
    config = GPTJConfig(
        vocab_size=len(tokenizer()),
        n_positions=64,
        n_embd=16,
        n_layer=1,
        n_head=2,
        rotary_dim=4,
        n_inner=32,
        bos_token_id=0,
        eos_token_id=0,
    )
    base = GPTJForCausalLM(config).eval()
    nn.init.normal_(base.lm_head.bias)
    members = LoraEnsemble(base, tokenizer(), num_members=1, adapter=adapter())
    laplace = LastLayerLaplace(members, samples=1, prior_precision=SURE).fit(questions(8))
    assert laplace.posteriors[0].mean.shape == (4, 17)
    own = predict(members, questions(4)).member_log_probs
    torch.testing.assert_close(laplace.member_log_probs(questions(4)), own, rtol=0, atol=1e-4)


def test_the_posterior_is_of_the_softmax_over_the_labels() -> None:
    members = trained()
    laplace = LastLayerLaplace(members, structure="full", prior_precision=3.0).fit(questions(8))
    made, caught = laplace.posteriors[0], []
    hook = members.base.lm_head.register_forward_pre_hook(lambda _, given: caught.append(given[0][0, -1]))
    probs = []
    for question in questions(8):
        ids = torch.tensor([tokenizer()(question.prompt)["input_ids"]])
        probs.append(members(ids)[0, 0, -1, tokenizer().convert_tokens_to_ids(list("abcd"))].softmax(dim=-1))
    hook.remove()
    features, probs = torch.stack(caught).double().detach(), torch.stack(probs).double().detach()
    matrices = [
        torch.kron(p.diag() - torch.outer(p, p), torch.outer(f, f))
        for p, f in zip(probs, features, strict=True)
    ]
    values = torch.linalg.eigvalsh(torch.stack(matrices).sum(dim=0))
    found = made.curvature.values.flatten()
    torch.testing.assert_close(found, values.clamp(min=0), rtol=1e-4, atol=1e-4 * float(values.max()))


def test_a_mode_beside_another_is_the_mode_alone_and_first_samples_stay() -> None:
    both = trained(2)
    one = LastLayerLaplace(trained(1), samples=2).fit(questions(8)).member_log_probs(questions(4))
    two = LastLayerLaplace(both, samples=3).fit(questions(8)).member_log_probs(questions(4))
    assert two.shape == (6, 4, 4)
    # Rows of both members are in one product, which sums them in another order.
    torch.testing.assert_close(two[:2], one, rtol=1e-3, atol=1e-3)
    assert float((two[0] - two[1]).abs().max()) > 1e-3
    other = LastLayerLaplace(both, samples=3, seed=1).fit(questions(8)).member_log_probs(questions(4))
    assert float((two - other).abs().max()) > 1e-3


def test_the_body_reads_an_example_once_for_all_samples() -> None:
    members = trained(2)
    laplace = LastLayerLaplace(members, samples=50).fit(questions(8))
    rows: list[int] = []
    counting = members.base.get_input_embeddings().register_forward_pre_hook(
        lambda _, given: rows.append(len(given[0]))
    )
    many = laplace.member_log_probs(questions(6))
    counting.remove()
    assert sum(rows) == 2 * 6
    torch.testing.assert_close(laplace.member_log_probs(questions(6), max_rows=2), many, rtol=0, atol=1e-4)


def test_the_members_stay_as_they_are() -> None:
    members = trained(2)
    before = [flat.clone() for flat in members.stack.buffers]
    laplace = LastLayerLaplace(members, samples=3).fit(questions(8))
    laplace.member_log_probs(questions(4))
    assert members.num_members == 2
    assert all(torch.equal(old, new) for old, new in zip(before, members.stack.buffers, strict=True))
    assert math.isfinite(evaluate(predict(laplace, questions(8))).nll)


def test_soft_labels_enter_the_evidence_alone() -> None:
    members = trained()
    soft = [dataclasses.replace(one, target_probs=(0.25,) * 4) for one in questions(8)]
    hard = LastLayerLaplace(members, prior_precision=1.0).fit(questions(8))
    even = LastLayerLaplace(members, prior_precision=1.0).fit(soft)
    torch.testing.assert_close(hard.posteriors[0].curvature.values, even.posteriors[0].curvature.values)
    log_probs = members.member_log_probs(questions(8))[0].double()
    rows = torch.arange(8)
    difference = log_probs.mean(dim=1).sum() - log_probs[rows, rows % 4].sum()
    assert even.log_evidences[0] - hard.log_evidences[0] == pytest.approx(float(difference), abs=1e-3)


def test_a_model_that_caps_its_logits_is_refused() -> None:
    config = Gemma2Config(
        vocab_size=len(tokenizer()),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=5.0,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    base = Gemma2ForCausalLM(config).eval()
    made = LoraEnsemble(base, tokenizer(), num_members=1, adapter=adapter())
    with pytest.raises(AdapterError, match="changes the logits behind its head"):
        LastLayerLaplace(made).fit(questions(8))


def test_a_head_that_does_more_than_its_last_layer_is_refused() -> None:
    members, examples = trained_classifiers("bert", 1)
    hook = members.base.classifier.register_forward_hook(lambda _module, _given, scores: scores.tanh())
    with pytest.raises(AdapterError, match="not those of its last layer alone"):
        LastLayerLaplace(members).fit(examples)
    hook.remove()


@pytest.mark.parametrize("kind", ["multiple-choice", "reward"])
def test_heads_of_several_texts_an_example_are_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"a {kind} head scores the text of each option by itself"):
        LastLayerLaplace(build_ensemble("bert", kind))


def test_settings_that_cannot_work_are_refused() -> None:
    made = ensemble(members=1)
    with pytest.raises(ConfigError, match="unknown structure 'kronn'; did you mean 'kron'"):
        LastLayerLaplace(made, structure="kronn")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="prior_precision=0; it is a finite number above 0"):
        LastLayerLaplace(made, prior_precision=0)
    with pytest.raises(ConfigError, match="samples=0"):
        LastLayerLaplace(made, samples=0)
    with pytest.raises(ConfigError, match="no samples before `fit`"):
        LastLayerLaplace(made).member_log_probs(questions(2))
    with pytest.raises(ConfigError, match=r"20,480 weights is a matrix of 3\.4 GB.*use structure='kron'"):
        gauss_newton(torch.zeros(2, 4096), torch.zeros(2, 5, 5), structure="full")
    laplace = LastLayerLaplace(made).fit(questions(8))
    laplace.ensemble = ensemble(members=2)
    with pytest.raises(ConfigError, match="fitted to 1 members, and the ensemble has 2 now"):
        laplace.member_log_probs(questions(2))


def test_labels_that_cannot_be_used_are_refused() -> None:
    made = ensemble(members=1)
    words = [dataclasses.replace(one, labels=("a", "not sure", "c", "d")) for one in questions(4)]
    with pytest.raises(DataError, match=r"'not sure' is 2 tokens.*labels of one token"):
        LastLayerLaplace(made).fit(words)
    with pytest.raises(DataError, match="no training examples were given"):
        LastLayerLaplace(made).fit([])
    with pytest.raises(DataError, match="number 2 has no answer"):
        LastLayerLaplace(made).fit([questions(1)[0], dataclasses.replace(questions(1)[0], target=None)])
    laplace = LastLayerLaplace(made).fit(questions(8, options=3))
    with pytest.raises(DataError, match=r"'q0': the label 'd' is none of those .*\(a, b, c\)"):
        laplace.member_log_probs(questions(4))
    assert laplace.member_log_probs(questions(4, options=2)).shape == (10, 4, 2)
