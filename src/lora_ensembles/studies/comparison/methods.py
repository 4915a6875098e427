"""The methods of the comparison: how each is trained with the settings of a trial, and what answers a
question then.

A method's own setting is what its paper leaves to be tuned: a prior, a tolerance, a strength of decay. It is
drawn from a range of its own on a scale of logarithms.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ...baselines import (
    IVON,
    SWAG,
    TFB,
    BatchEnsemble,
    BLoB,
    FewShot,
    LastLayerLaplace,
    MCDropout,
    RankMask,
    ScalaBL,
    SnapshotEnsemble,
    Soup,
    num_trained_parameters,
)
from ...baselines.posterior.base import WeightPosterior
from ...data import Example
from ...ensemble import LoraEnsemble
from ...prediction.prediction import Predictor
from ...training.adapters import train
from ...training.config import TrainConfig
from ..arms import PLAIN_DECAY, Arm, stacked_members
from ..setting import Bench
from .budget import RATES, Budget, Settings, between, epochs_at

FACTORS_RATE = 2.5  # multiple of the step size of BatchEnsemble, whose parameters are factors and no weights
HEADS_RATE = 10.0  # that of output heads
WARMUP = 0.06  # of the steps, where these are given: as in Wang-ML-Lab/bayesian-peft @bc6a4a7, scripts/


@dataclass(frozen=True)
class Place:
    """The questions, the model and the budget, and the seed of what is trained.

    Attributes:
        members: of an ensemble; None: as many as a question may take rows.
        steps: of each member, in place of a trial's epochs, with a step size that rises linearly and falls
            again; None: those of the epochs, at one step size.
        carried: what is on the base.
    """

    bench: Bench
    budget: Budget
    seed: int
    members: int | None = None
    steps: int | None = None
    carried: list[LoraEnsemble | BatchEnsemble] = field(default_factory=list)

    @property
    def num_members(self) -> int:
        """Members of an ensemble."""
        return self.members or self.budget.rows

    @contextmanager
    def fitted(self, method: Method, settings: Settings, examples: Sequence[Example]) -> Iterator[Fitted]:
        """Context with a method trained on examples; the base is itself again afterwards, also after an
        error.
        """
        settings, share = self.lasting(settings, examples)
        try:
            fitted = method.fit(self, settings, examples)
            yield dataclasses.replace(fitted, passes=round(share * fitted.passes, 2)) if share < 1 else fitted
        finally:
            while self.carried:
                self.carried.pop().unload()

    def untrained(self, members: int, *, vary: tuple[str, ...] = ("init", "order")) -> LoraEnsemble:
        """Members of an ensemble, which the base carries until they are unloaded."""
        bench = self.bench
        ensemble = stacked_members(
            bench.model,
            [Arm("untrained", vary=vary)],
            members=members,
            seed=self.seed,
            adapter=bench.adapter,
            head=bench.head,
            kept_states=bench.kept_states,
        )
        self.carried.append(ensemble)
        return ensemble

    def lasting(self, settings: Settings, examples: Sequence[Example]) -> tuple[Settings, float]:
        """The settings with as many epochs as the steps take, and the share of these that is trained."""
        if self.steps is None:
            return settings, 1.0
        in_epoch = math.ceil(len(examples) / self.bench.config.batch_size)
        epochs = math.ceil(self.steps / in_epoch)
        return dataclasses.replace(settings, epochs=epochs), self.steps / (epochs * in_epoch)

    def config(self, settings: Settings, changes: Mapping[str, Any] | None = None) -> TrainConfig:
        """The training of a trial: plain AdamW, but for what a method changes."""
        plain = {
            "snapshot_epochs": (),
            "learning_rate": settings.learning_rate,
            "epochs": settings.epochs,
            "weight_decay_a": PLAIN_DECAY,
            "weight_decay_b": PLAIN_DECAY,
        }
        if self.steps is not None:
            warmup = round(WARMUP * self.steps)
            plain |= {"max_steps": self.steps, "schedule": "linear", "warmup_steps": warmup}
        return dataclasses.replace(self.bench.config, **{**plain, **(changes or {})})


@dataclass(frozen=True)
class Fitted:
    """A method after training.

    Attributes:
        predictor: what answers.
        parameters: that were trained in all.
        passes: of one member over the training questions, as it was trained.
        rows: of the base that a question takes.
    """

    predictor: Predictor
    parameters: int
    passes: float
    rows: int


Fit = Callable[[Place, Settings, Sequence[Example]], Fitted]


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        own: the name of its own setting.
        range: of that setting.
        fit: trains it.
        several: whether members share the budget: as many as a question may take rows.
        rate: multiple of the step size.
        cycles: whether epochs are a multiple of the rows of a question.
        needs_labels: whether a label has to be one token of the base's own vocabulary.
        needs_lm: whether the base has to answer with its own output layer.
        trained: whether there is a step size and epochs.
    """

    own: str
    range: tuple[float, float]
    fit: Fit
    several: bool = False
    rate: float = 1.0
    cycles: bool = False
    needs_labels: bool = False
    needs_lm: bool = False
    trained: bool = True

    def settings(self, place: tuple[float, float, float], base_rate: float, budget: Budget) -> Settings:
        """The settings at a place of the unit cube."""
        rate, share, own = place
        low, high = (self.rate * base_rate * factor for factor in RATES)
        most = budget.passes // budget.rows if self.several else budget.passes
        epochs = epochs_at(share, most)
        if self.cycles:
            epochs = max(1, epochs // budget.rows) * budget.rows
        return Settings(between(low, high, rate), epochs if self.trained else 0, between(*self.range, own))

    def missing(self, bench: Bench) -> str:
        """The reason why the method cannot be used on a task; empty where it can."""
        if self.needs_lm and bench.owned_heads:
            return "the base has no output layer of its own for the answers"
        if self.needs_labels and bench.asking.answer != "letter":
            return "answers in words are several tokens, and the method needs labels of one"
        return ""


def _ensemble(
    place: Place, settings: Settings, examples: Sequence[Example], changes: Mapping[str, Any]
) -> LoraEnsemble:
    one_a = changes.get("shared_a", False)  # members can share an A that they begin with
    ensemble = place.untrained(place.num_members, vary=("order",) if one_a else ("init", "order"))
    train(ensemble, examples, place.config(settings, changes), progress=False)
    return ensemble


def _of_members(changes: Callable[[Settings, int], Mapping[str, Any]]) -> Fit:
    """An ensemble by settings of `TrainConfig`, from those of a trial and the number of members."""

    def fit(place: Place, settings: Settings, examples: Sequence[Example]) -> Fitted:
        count = place.num_members
        ensemble = _ensemble(place, settings, examples, changes(settings, count))
        parameters = count * num_trained_parameters(ensemble)
        return Fitted(ensemble, parameters, count * settings.epochs, count)

    return fit


def _decayed(settings: Settings) -> dict[str, float]:
    return {"weight_decay_b": settings.own / settings.learning_rate}


def _single(place: Place, settings: Settings, examples: Sequence[Example]) -> Fitted:
    ensemble = place.untrained(1)
    train(ensemble, examples, place.config(settings, _decayed(settings)), progress=False)
    return Fitted(ensemble, num_trained_parameters(ensemble), settings.epochs, 1)


def _soup(place: Place, settings: Settings, examples: Sequence[Example]) -> Fitted:
    ensemble = _ensemble(place, settings, examples, _decayed(settings))
    passes = place.num_members * settings.epochs
    soup = Soup(ensemble)
    return Fitted(soup, soup.num_trained_parameters, passes, 1)


def _mc_dropout(place: Place, settings: Settings, examples: Sequence[Example]) -> Fitted:
    ensemble, rows = place.untrained(1), place.budget.rows
    train(ensemble, examples, place.config(settings, {"dropout": settings.own}), progress=False)
    passes = MCDropout(ensemble, passes=rows, dropout=settings.own, seed=place.seed)
    return Fitted(passes, passes.num_trained_parameters, settings.epochs, rows)


def _tfb(place: Place, settings: Settings, examples: Sequence[Example]) -> Fitted:
    ensemble, rows = place.untrained(1), place.budget.rows
    train(ensemble, examples, place.config(settings), progress=False)
    parameters = num_trained_parameters(ensemble)
    tfb = TFB(ensemble, samples=rows, seed=place.seed, tolerance=settings.own)
    tfb.fit(examples)
    return Fitted(tfb, parameters, settings.epochs, rows)


def _laplace(place: Place, settings: Settings, examples: Sequence[Example]) -> Fitted:
    ensemble = place.untrained(1)
    train(ensemble, examples, place.config(settings), progress=False)
    laplace = LastLayerLaplace(
        ensemble,
        samples=place.budget.rows,
        seed=place.seed,
        prior_precision=settings.own or None,  # 0: by the evidence
    )
    laplace.fit(examples)
    return Fitted(laplace, num_trained_parameters(ensemble), settings.epochs, 1)


def _posterior(kind: type[WeightPosterior], own: str, *, several: bool = False) -> Fit:
    """A distribution over adapters: one mode with as many samples as a question may take rows, or a sample
    around each of so many modes.
    """

    def fit(place: Place, settings: Settings, examples: Sequence[Example]) -> Fitted:
        rows = place.budget.rows
        modes = place.num_members if several else 1
        ensemble = place.untrained(modes)
        named = {own: settings.own} if own else {}
        posterior = kind(ensemble, samples=rows // modes, seed=place.seed, **named)
        changes = _decayed(settings) if kind is SnapshotEnsemble else {}
        posterior.fit(examples, posterior.adapted(place.config(settings, changes)))
        parameters = modes * posterior.num_trained_parameters
        return Fitted(posterior, parameters, modes * settings.epochs, rows)

    return fit


def _last_layer(place: Place, settings: Settings, examples: Sequence[Example]) -> Fitted:
    heads = place.bench.last_layer(seed=place.seed, members=place.num_members)
    # They have no loss over labels.
    heads.fit(examples, place.config(settings, {"loss": "auto", **_decayed(settings)}))
    parameters = heads.num_members * heads.num_trained_parameters
    return Fitted(heads, parameters, heads.num_members * settings.epochs, 1)


def _batch_ensemble(place: Place, settings: Settings, examples: Sequence[Example]) -> Fitted:
    rows, bench = place.num_members, place.bench
    factors = BatchEnsemble(
        *bench.model, num_members=rows, adapter=bench.adapter, sigma=settings.own, seed=place.seed
    )
    place.carried.append(factors)
    factors.fit(examples, place.config(settings, {"loss": "auto"}))
    parameters = rows * factors.num_trained_parameters
    return Fitted(factors, parameters, rows * settings.epochs, rows)


def _few_shot(place: Place, settings: Settings, examples: Sequence[Example]) -> Fitted:
    shots, rows = round(settings.own), place.budget.rows
    draws = FewShot(*place.bench.model, examples, shots=shots, draws=rows, seed=place.seed)
    return Fitted(draws, 0, 0, rows)


def _dropouts(settings: Settings, count: int) -> dict[str, list[float]]:
    """From none to the largest, evenly."""
    return {"dropout": [settings.own * index / max(1, count - 1) for index in range(count)]}


DECAY = ("decay of B per step", (0.001, 0.3))
METHODS: dict[str, Method] = {
    "few-shot": Method("shots", (1.0, 8.0), _few_shot, needs_lm=True, trained=False),
    "single member": Method(*DECAY, _single),
    "ensemble": Method(*DECAY, _of_members(lambda own, _: _decayed(own)), several=True),
    "ensemble, bagged": Method(
        "share of the questions",
        (0.5, 1.0),
        _of_members(lambda own, _: {"data_share": own.own}),
        several=True,
    ),
    "ensemble, anchored": Method(
        "decay to the start per step",
        DECAY[1],
        _of_members(
            lambda own, _: {
                "weight_decay_a": own.own / own.learning_rate,
                "weight_decay_b": own.own / own.learning_rate,
                "anchored": True,
            }
        ),
        several=True,
    ),
    "ensemble, shared A": Method(
        *DECAY, _of_members(lambda own, _: _decayed(own) | {"shared_a": True}), several=True
    ),
    "ensemble, dropouts": Method("largest dropout", (0.02, 0.4), _of_members(_dropouts), several=True),
    "soup": Method(*DECAY, _soup, several=True),
    "snapshots": Method(*DECAY, _posterior(SnapshotEnsemble, ""), cycles=True),
    "MC dropout": Method("dropout", (0.02, 0.4), _mc_dropout),
    "BatchEnsemble": Method(
        "spread of the factors", (0.01, 0.3), _batch_ensemble, several=True, rate=FACTORS_RATE, needs_lm=True
    ),
    "last-layer ensemble": Method(*DECAY, _last_layer, several=True, rate=HEADS_RATE),
    "last-layer Laplace": Method("prior precision", (0.1, 1e4), _laplace, needs_labels=True),
    "TFB": Method("tolerance", (0.001, 0.1), _tfb),
    "SWAG": Method("scale of the spread", (0.1, 3.0), _posterior(SWAG, "scale")),
    "MultiSWAG": Method(
        "scale of the spread", (0.1, 3.0), _posterior(SWAG, "scale", several=True), several=True
    ),
    "IVON": Method("effective sample size", (1e6, 1e9), _posterior(IVON, "ess")),
    "BLoB": Method("standard deviation of the prior", (0.02, 1.0), _posterior(BLoB, "prior")),
    "ScalaBL": Method("standard deviation of the prior", (0.1, 10.0), _posterior(ScalaBL, "prior")),
    "rank mask": Method("probability under the prior", (0.2, 0.95), _posterior(RankMask, "prior")),
}
# Rows of a protocol beside the methods: a method at another setting.
VARIANTS = {
    "single member, decay of B": "single member",
    "ensemble, decay of B": "ensemble",
}
