"""Conformal sets: they hold the right option as often as promised over many draws, are those of MAPIE, and
what cannot be promised is refused.
"""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy
import pytest
import torch
from scipy import stats

from lora_ensembles import ConfigError, DataError, Prediction
from lora_ensembles.calibration.conformal import Method, conformal_sets, option_scores

DRAWS = 500
METHODS = get_args(Method)


def population(size: int, seed: int, *, options: int = 5) -> Prediction:
    """A model that is too sure of itself: the right option comes from a flatter distribution than it says."""
    rng = numpy.random.default_rng(seed)
    said = rng.dirichlet(numpy.full(options, 0.3), size=size) + 1e-6
    said /= said.sum(axis=1, keepdims=True)
    true = said**0.5 / (said**0.5).sum(axis=1, keepdims=True)
    targets = (rng.random((size, 1)) > true.cumsum(axis=1)).sum(axis=1).clip(max=options - 1)
    return Prediction(torch.tensor(said).log()[None], torch.tensor(targets))


def covered(prediction: Prediction, sets: torch.Tensor) -> float:
    return float(sets.gather(1, prediction.labelled_targets("")[:, None]).double().mean())


@pytest.mark.parametrize("method", METHODS)
def test_coverage_over_many_draws_is_what_theory_says(method: Method) -> None:
    count, coverage = 99, 0.9
    seen, moved = [], []
    for seed in range(DRAWS):
        held_out, new = population(count, seed), population(400, 10_000 + seed)
        rule = conformal_sets(held_out, coverage=coverage, method=method)
        seen.append(covered(new, rule.sets(new)))
        nearer = option_scores(new, method) <= 0.95 * rule.threshold
        moved.append(covered(new, nearer))
    # Without ties the coverage of one threshold is Beta(k, n + 1 - k) over the draws,
    # with k = ceil((n + 1) 0.9).
    rank = math.ceil((count + 1) * coverage)
    beta = stats.beta(rank, count + 1 - rank)
    deviation = math.sqrt(beta.var() + coverage * (1 - coverage) / 400)
    error = 3 * deviation / math.sqrt(DRAWS)
    mean = numpy.mean(seen)
    assert mean >= coverage - error
    if method == "lac":  # the others' scores are bounded by 1, where many examples tie
        assert mean <= coverage + 1 / (count + 1) + error
        assert numpy.std(seen) == pytest.approx(deviation, rel=0.1)
        assert numpy.mean(moved) < coverage - error  # a threshold that is 5 % smaller does not hold
    assert numpy.mean(moved) < mean


def test_sets_of_lac_are_those_of_mapie() -> None:
    from mapie.classification import SplitConformalClassifier
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Given(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        """A classifier whose inputs are its probabilities."""

        def fit(self, X: Any, y: Any = None) -> Any:
            self.classes_ = numpy.arange(X.shape[1])
            return self

        def predict_proba(self, X: Any) -> Any:
            return X

        def predict(self, X: Any) -> Any:
            return X.argmax(axis=1)

    held_out, new = population(250, 1), population(300, 2)
    probs = held_out.probs.double().numpy()
    estimator = Given().fit(probs)
    theirs = SplitConformalClassifier(estimator, confidence_level=0.9, conformity_score="lac", prefit=True)
    theirs.conformalize(probs, held_out.labelled_targets("").numpy())
    _, sets = theirs.predict_set(new.probs.double().numpy())
    ours = conformal_sets(held_out, coverage=0.9).sets(new)
    assert torch.equal(ours, torch.from_numpy(sets[:, :, 0]))


@pytest.mark.parametrize("method", METHODS)
def test_absent_options_are_in_no_set(method: Method) -> None:
    held_out = population(200, 3)
    rows = Prediction(torch.tensor([[[0.6, 0.4, 0.0], [0.4, 0.3, 0.3]]]).log())
    sets = conformal_sets(held_out, coverage=0.99, method=method).sets(rows)
    assert not bool(sets[0, 2])
    assert bool(sets[1].any())


def test_raps_adds_its_penalty_to_aps_from_the_third_option_on() -> None:
    prediction = Prediction(torch.tensor([[[0.1, 0.4, 0.2, 0.3]]]).log())
    added = option_scores(prediction, "raps") - option_scores(prediction, "aps")
    torch.testing.assert_close(added[0], torch.tensor([0.02, 0.0, 0.01, 0.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("count", "settings", "kind", "message"),
    [
        (8, {"coverage": 0.9}, DataError, "8 held-out examples are too few .* that takes 9 at least"),
        (20, {"coverage": 1.0}, ConfigError, "coverage=1.0; it is a number between 0 and 1"),
        (20, {"method": "lacs"}, ConfigError, "unknown method 'lacs'"),
    ],
)
def test_what_cannot_be_promised_is_refused(
    count: int, settings: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        conformal_sets(population(count, 4), **settings)
    assert conformal_sets(population(9, 4), coverage=0.9).num_examples == 9


def test_the_smallest_coverage_takes_the_smallest_score() -> None:
    held_out = population(40, 1)
    tiny, small = (conformal_sets(held_out, coverage=coverage).threshold for coverage in (1e-12, 0.5))
    assert tiny <= small
