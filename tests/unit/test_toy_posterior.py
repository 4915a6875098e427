"""Approximate posteriors beside the exact one of a linear model, and the page that shows them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("toy_posterior")


@pytest.fixture
def problem(toy: Any) -> Any:
    return toy.Problem(toy.Settings(data_sets=2, epochs=250, members=60, samples=1000))


def test_the_exact_posterior_is_that_of_the_rows_as_a_gaussian_process(problem: Any) -> None:
    """w = s^2 X' (s^2 X X' + noise^2)^-1 y, and the covariance by the same inverse of N by N."""
    x, y = problem.x.double(), problem.y.double()
    noise, prior = problem.settings.noise**2, problem.settings.prior**2
    rows = torch.linalg.inv(prior * x @ x.mT + noise * torch.eye(x.shape[1]).double())
    torch.testing.assert_close(problem.mean, (prior * x.mT @ rows @ y[..., None])[..., 0])
    expected = prior * torch.eye(x.shape[2]).double() - prior**2 * x.mT @ rows @ x
    torch.testing.assert_close(problem.covariance, expected)


@pytest.mark.parametrize("name", ["IVON", "BLoB"])
def test_a_diagonal_gaussian_comes_to_the_best_one(toy: Any, problem: Any, name: str) -> None:
    """Its mean is the exact one, and its variances are one over the diagonal of the precision."""
    mean, covariance = toy.moments(toy.METHODS[name](problem))
    sd = problem.covariance.diagonal(dim1=1, dim2=2).sqrt()
    assert ((mean - problem.mean) / sd).abs().max() < 0.2
    ratios = covariance.diagonal(dim1=1, dim2=2) * problem.precision.diagonal(dim1=1, dim2=2)
    # A variance is learnt from one draw a step, with a memory of some hundred steps.
    assert 0.85 < ratios.sqrt().log().mean().exp() < 1.15


def test_anchored_members_have_the_covariance_of_the_formula(toy: Any, problem: Any) -> None:
    mean, covariance = toy.moments(toy.METHODS["anchored ensemble"](problem))
    sd = problem.covariance.diagonal(dim1=1, dim2=2).sqrt()
    assert ((mean - problem.mean) / sd).abs().max() < 0.4
    _, expected = toy.anchored_formula(problem)
    ratios = covariance.diagonal(dim1=1, dim2=2) / expected.diagonal(dim1=1, dim2=2)
    # 60 members leave 9 % of a standard deviation open, and a gradient of 16 rows as much of the decay.
    assert 0.8 < ratios.sqrt().log().mean().exp() < 1.25
    for one, other in zip(covariance, expected, strict=True):
        assert (toy.correlations(one) - toy.correlations(other)).abs().max() < 0.35


def test_the_page_is_made_from_its_record_and_says_what_it_says(toy: Any) -> None:
    record, text = json.loads(toy.RECORD.read_text()), toy.PAGE.read_text(encoding="utf-8")
    assert toy.page(text, record) == text
    assert {**vars(toy.Settings()), "decay": record["settings"]["decay"]} == record["settings"]
    assert [row["method"] for row in record["rows"]] == list(toy.METHODS)
    ratio = {row["method"].rstrip(" *"): row["sd_ratio"]["mean"] for row in record["rows"]}
    best = ratio["best Gaussian without correlations"]
    assert ratio["IVON"] == pytest.approx(best, rel=0.05)
    assert ratio["BLoB"] == pytest.approx(best, rel=0.05)
    assert ratio["anchored and bagged ensemble"] == pytest.approx(1, abs=0.05)
    assert ratio["anchored ensemble"] == pytest.approx(ratio["anchored ensemble, formula"], rel=0.15)
    assert max(ratio["plain ensemble"], ratio["snapshots of 10 cycles"]) < 0.05
