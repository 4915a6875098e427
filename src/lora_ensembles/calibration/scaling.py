"""Calibration of an ensemble's probabilities: a few numbers fitted on held-out examples, that travel with it.

Shapes: M members, N examples, C options.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..errors import ConfigError, DataError, unknown_name
from ..prediction.metrics import nll
from ..prediction.prediction import Prediction
from ..prediction.soft_labels import cross_entropy
from .kinds import BOUNDS, FEWEST, FOLDS, KEEP_CHOICES, Kind
from .temperature import best_temperature, scaled_log_probs, warn_at_bound

LEAST_OF_A_COUNT = 100
"""Examples of one number of options, or of one type with such a number, from which on they get a temperature
of their own."""
GRID = 41  # temperatures between the bounds, on a logarithmic scale, between which the best is searched
STEPS = 200  # of L-BFGS
WEIGHT_DECAY = 1e-3
"""Of vector scaling, towards no change: without it options that are never right go to -inf."""


@dataclass(frozen=True)
class Calibration:
    """A map from an ensemble's probabilities to calibrated ones, of one of four kinds.

    - "none": p, the mean of the members' probabilities.
    - "temperature": p^(1/T), normalised over the options (Guo et al. 2017, arXiv:1706.04599), with the mean p
      and one T for each type of decision, and each number of options, that has examples enough, and one for
      all others.
    - "member-temperature": the mean of the members' p_m^(1/T), with the T at which the *mean* is best.
      Members that are calibrated one by one average to an ensemble that is not sure enough (Rahaman & Thiery
      2021, arXiv:2007.08792).
    - "vector": softmax_c(w_c log p(c) + b_c), a weight and a bias for each option (vector scaling of
      Guo et al.).

    Attributes:
        kind: one of the four.
        temperatures: of "temperature" and "member-temperature", by number of options; 0: of all examples, for
            numbers of options without one of their own.
        of_types: the same by type of decision and number of options, such as "score of 4"; they go before
            those of the number alone.
        weights: w of "vector", one for each of C options.
        biases: b of "vector".
        num_examples: the examples it was fitted on.
        nll: of each kind that was compared, in nats, on folds that it was not fitted on.
    """

    kind: Kind = "none"
    temperatures: Mapping[int, float] = field(default_factory=dict)
    weights: tuple[float, ...] = ()
    biases: tuple[float, ...] = ()
    num_examples: int = 0
    nll: Mapping[str, float] = field(default_factory=dict)
    of_types: Mapping[str, float] = field(default_factory=dict)

    @property
    def keeps_choices(self) -> bool:
        """True if the most probable option is always the one before calibration."""
        return self.kind in KEEP_CHOICES

    def log_probs(self, prediction: Prediction) -> Tensor:
        """(N, C) float32 calibrated log-probabilities, -inf at absent options.

        Raises:
            DataError: "vector", and the examples have other options than those it was fitted on.
        """
        prediction = prediction.uncalibrated
        if self.kind == "none":
            return prediction.log_probs
        if self.kind == "vector":
            if prediction.num_options != len(self.weights) or not bool(prediction.present.all()):
                raise DataError(
                    f"vector scaling was fitted on {len(self.weights)} options, and an example has another "
                    "number of them; calibrate by temperature, or answer examples with the same options"
                )
            return vector_scaled(prediction, torch.tensor([self.weights, self.biases]).double())
        out = torch.empty_like(prediction.log_probs)
        for name, count, rows in _strata(prediction):
            temperature = self.of_types.get(name, self.temperatures.get(count, self.temperatures[0]))
            part = prediction.take(rows)
            if self.kind == "temperature":
                out[rows] = scaled_log_probs(part, temperature)
            else:
                out[rows] = member_scaled(part, temperature).log_probs
        return out

    def __call__(self, prediction: Prediction) -> Prediction:
        """The prediction with calibrated probabilities in place of the members' mean; the members themselves,
        and with them the uncertainties, stay as they are.
        """
        if self.kind == "none":
            return prediction
        return dataclasses.replace(prediction, calibrated=self.log_probs(prediction))

    def __str__(self) -> str:
        if self.kind == "vector":
            how = f"vector scaling of {len(self.weights)} options"
        elif self.kind == "none":
            how = "none"
        else:
            many = len(self.temperatures) > 1 or self.of_types
            own = [
                f"{value:.3g}" + (f" for {count or 'other numbers of'} options" if many else "")
                for count, value in sorted(self.temperatures.items())
            ] + [f"{value:.3g} for {name} options" for name, value in self.of_types.items()]
            how = f"{self.kind} {', '.join(own)}"
        return f"{how}, from {self.num_examples} held-out examples"

    def to_dict(self) -> dict[str, Any]:
        """The fields in JSON's types, for `from_dict`."""
        fields = dataclasses.asdict(self)
        return fields | {
            "temperatures": {str(count): value for count, value in self.temperatures.items()},
            "weights": list(self.weights),
            "biases": list(self.biases),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Calibration:
        """The calibration that `to_dict` wrote."""
        return cls(
            kind=content["kind"],
            temperatures={int(count): float(value) for count, value in content["temperatures"].items()},
            weights=tuple(content["weights"]),
            biases=tuple(content["biases"]),
            num_examples=content["num_examples"],
            nll=dict(content["nll"]),
            of_types=dict(content.get("of_types", {})),
        )


def fit_calibration(
    held_out: Prediction, *, kind: Kind | Literal["auto"] = "auto", among: Sequence[Kind] = get_args(Kind)
) -> Calibration:
    """The calibration of least NLL on held-out examples.

    With "auto" each kind is fitted on four fifths of the examples and scored on the last fifth, five times
    over; the kind with the lowest NLL is fitted again on all. Of equal ones the first of "none",
    "temperature", "member-temperature" and "vector" is taken; "vector" takes part where all examples have the
    same number of options, and at least ten times as many examples as it has numbers.

    Args:
        held_out: a labelled prediction of examples that the predictor was not trained on.
        kind: of `Calibration`, or "auto".
        among: the kinds that "auto" compares.

    Raises:
        ConfigError: no such kind.
        DataError: the prediction is unlabelled; too few examples to compare kinds; or "vector" on examples
            whose numbers of options differ.

    Example:
        >>> sure = torch.tensor([[0.9, 0.1]]).log().expand(1, 40, 2)
        >>> calibration = fit_calibration(
        ...     Prediction(sure, torch.tensor([0, 0, 0, 1] * 10)), kind="temperature"
        ... )
        >>> calibration(Prediction(sure)).probs[0].round(decimals=3).tolist()  # right three times in four
        [0.75, 0.25]
    """
    if kind not in ("auto", *get_args(Kind)):
        raise ConfigError(unknown_name("kind", kind, ("auto", *get_args(Kind))))
    held_out.labelled_targets("calibration")
    held_out = held_out.uncalibrated
    if kind != "auto":
        return _warned(_fit(held_out, kind))
    if held_out.num_examples < FEWEST:
        raise DataError(
            f"{held_out.num_examples} held-out examples are too few to choose a calibration by; "
            f"give {FEWEST} or more, or name its kind"
        )
    scores = {kind: _score_on_folds(held_out, kind) for kind in among if _fits(held_out, kind)}
    best = min(scores, key=lambda name: round(scores[name], 6))
    return _warned(
        dataclasses.replace(_fit(held_out, best), nll={str(name): value for name, value in scores.items()})
    )


def vector_scaled(prediction: Prediction, numbers: Tensor) -> Tensor:
    """log softmax(w log p + b) (N, C), float32, of weights and biases (2, C)."""
    # Where a probability underflows, -inf has no gradient, and a weight of 0 would make it NaN.
    logits = prediction.log_probs.double().clamp_min(-100.0)
    return (logits * numbers[0] + numbers[1]).log_softmax(dim=-1).float()


def member_scaled(prediction: Prediction, temperature: float) -> Prediction:
    """The prediction with each member's p_m^(1/T), normalised over the options."""
    members = (prediction.member_log_probs.double() / temperature).log_softmax(dim=-1).float()
    return dataclasses.replace(prediction, member_log_probs=members, calibrated=None)


def _fits(prediction: Prediction, kind: Kind) -> bool:
    numbers = 2 * prediction.num_options
    alike = bool(prediction.present.all())
    return kind != "vector" or (alike and prediction.num_examples >= 10 * numbers)


def _score_on_folds(prediction: Prediction, kind: Kind) -> float:
    fold = torch.randperm(prediction.num_examples, generator=torch.Generator().manual_seed(0)) % FOLDS
    total = 0.0
    for number in range(FOLDS):
        fitted = _fit(prediction.take((fold != number).nonzero()[:, 0]), kind)
        rest = prediction.take((fold == number).nonzero()[:, 0])
        total += nll(fitted(rest)) * rest.num_examples
    return total / prediction.num_examples


def _fit(prediction: Prediction, kind: Kind) -> Calibration:
    made = Calibration(kind, num_examples=prediction.num_examples)
    if kind == "none":
        return made
    if kind == "vector":
        weights, biases = _best_vector(prediction).tolist()
        return dataclasses.replace(made, weights=tuple(weights), biases=tuple(biases))
    best = best_temperature if kind == "temperature" else _best_member_temperature
    temperatures, of_types = {0: best(prediction)}, {}
    counts = prediction.present.sum(dim=-1)
    values, sizes = counts.unique(return_counts=True)
    if len(values) > 1:
        for count, size in zip(values.tolist(), sizes.tolist(), strict=True):
            if size >= LEAST_OF_A_COUNT:
                temperatures[count] = best(prediction.take((counts == count).nonzero()[:, 0]))
    if len(set(prediction.types)) > 1:
        of_types = {
            name: best(prediction.take(rows))
            for name, _, rows in _strata(prediction)
            if name and len(rows) >= LEAST_OF_A_COUNT
        }
    return dataclasses.replace(made, temperatures=temperatures, of_types=of_types)


def _strata(prediction: Prediction) -> list[tuple[str, int, Tensor]]:
    """The rows (n,) of each type of decision and number of options, with its name, which is empty where there
    is no type, and that number.
    """
    counts = prediction.present.sum(dim=-1).tolist()
    rows: dict[tuple[str, int], list[int]] = {}
    for row, (kind, count) in enumerate(zip(prediction.types or [None] * len(counts), counts, strict=True)):
        rows.setdefault(("" if kind is None else f"{kind} of {count}", count), []).append(row)
    return [(name, count, torch.tensor(own)) for (name, count), own in sorted(rows.items())]


def _best_member_temperature(prediction: Prediction) -> float:
    """The T of least NLL of the mean of scaled members, within `BOUNDS`: the best of a grid, and around it by
    thirds. The NLL need not be convex in T.
    """

    def loss(log_temperature: float) -> float:
        return nll(member_scaled(prediction, math.exp(log_temperature)))

    low, high = (math.log(bound) for bound in BOUNDS)
    grid = [low + (high - low) * step / (GRID - 1) for step in range(GRID)]
    best = min(range(GRID), key=lambda step: loss(grid[step]))
    low, high = grid[max(0, best - 1)], grid[min(GRID - 1, best + 1)]
    while high - low > 1e-7:
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if loss(left) <= loss(right):
            high = right
        else:
            low = left
    found = math.exp((low + high) / 2)
    return next((bound for bound in BOUNDS if math.isclose(found, bound, rel_tol=1e-6)), found)


def _best_vector(prediction: Prediction) -> Tensor:
    """Weights and biases (2, C) of least NLL plus `WEIGHT_DECAY` times their squared distance from no change;
    convex, by L-BFGS.
    """
    if not bool(prediction.present.all()):
        raise DataError("vector scaling needs examples with the same options; here their numbers differ")
    truth = prediction.labelled_probs("calibration")
    logits = prediction.log_probs.double().clamp_min(-100.0)
    start = torch.stack([torch.ones(prediction.num_options), torch.zeros(prediction.num_options)]).double()
    numbers = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [numbers], max_iter=STEPS, line_search_fn="strong_wolfe", tolerance_grad=1e-9
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        scaled = (logits * numbers[0] + numbers[1]).log_softmax(dim=-1)
        loss = cross_entropy(scaled, truth).mean() + WEIGHT_DECAY * (numbers - start).square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return numbers.detach()


def _warned(calibration: Calibration) -> Calibration:
    for count, value in calibration.temperatures.items():
        warn_at_bound(value, of=f" for {count} options" if count else "")
    for name, value in calibration.of_types.items():
        warn_at_bound(value, of=f" for {name} options")
    return calibration
