"""Each approximate posterior beside the exact one, on a problem where that is known:
`python benchmarks/toy_posterior.py --out results/toy-posterior.json`; then `--page`.

y = x w + noise of a known size, and w has a Gaussian prior, so the posterior of w is a Gaussian in closed
form. w is the update B A of one adapter of rank 1 on a linear layer of zeros, with B held at 1. The stack,
the loop, the optimisers and the posteriors are the library's own; all data sets are trained side by side, as
members of one stack. About two minutes on one core.

Shapes: K data sets, M members of each, N rows of each, B rows of a batch, D features, S samples.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from pages import with_block
from timing import rounded, write_record
from torch import Tensor, nn

from lora_ensembles import TrainConfig
from lora_ensembles.baselines import IVON, SWAG, TFB, BLoB, RankMask, ScalaBL, SnapshotEnsemble
from lora_ensembles.baselines.gauss_newton import gauss_newton
from lora_ensembles.baselines.posterior.base import WeightPosterior
from lora_ensembles.heads.losses import RowLosses
from lora_ensembles.stack.buffers import AdapterStack
from lora_ensembles.stack.info import EnsembleInfo
from lora_ensembles.stack.seeds import member_seeds
from lora_ensembles.stack.sharding.flats import Described
from lora_ensembles.stack.sites import MemberWeights
from lora_ensembles.studies.report.page import Table
from lora_ensembles.training.adapter_trainee import AdapterTrainee
from lora_ensembles.training.loop import run

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE, RECORD = REPOSITORY / "docs" / "methods.md", REPOSITORY / "results" / "toy-posterior.json"
Gaussians = tuple[Tensor, Tensor]  # means (K, D) and covariances (K, D, D)
COLLAPSED = 0.02  # of the exact standard deviation: below it correlations are those of rounding


@dataclass(frozen=True)
class Settings:
    """The size of the problem, and of what is trained on it."""

    data_sets: int = 5
    rows: int = 64
    features: int = 5
    correlation: float = 0.8  # of neighbouring features; of two at a distance d its d-th power
    noise: float = 1.0
    prior: float = 0.5  # standard deviation of an entry of w
    members: int = 150  # of the ensembles whose spread is looked at
    modes: int = 3  # of MultiSWAG
    samples: int = 2000  # of each data set
    epochs: int = 500
    batch_size: int = 16
    learning_rate: float = 0.05

    @property
    def decay(self) -> float:
        """AdamW's decay that is as strong as the prior.

        AdamW divides the gradient of the mean loss by its root mean square, which is that of its noise near
        the optimum, r = sqrt((1 - B / N) / B) / noise for features of variance 1, and does not divide the
        decay. So a decay d holds as the precision N d r of a prior does.
        """
        rms = math.sqrt((1 - self.batch_size / self.rows) / self.batch_size) / self.noise
        return 1 / (self.rows * rms * self.prior**2)


class Problem:
    """K data sets and the exact posterior of each."""

    def __init__(self, settings: Settings):
        self.settings = settings
        size, features = settings.data_sets, settings.features
        places = torch.arange(features)
        spread = torch.tensor(settings.correlation) ** (places[:, None] - places).abs()
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(size, settings.rows, features, generator=generator)
        self.x = drawn @ torch.linalg.cholesky(spread).T
        w = settings.prior * torch.randn(size, features, 1, generator=generator)
        noise = settings.noise * torch.randn(size, settings.rows, generator=generator)
        self.y = (self.x @ w)[..., 0] + noise

    @cached_property
    def of_data(self) -> Tensor:
        """X' X / noise^2 (K, D, D), float64: the precision that the data give."""
        x = self.x.double()
        return x.transpose(1, 2) @ x / self.settings.noise**2

    @cached_property
    def precision(self) -> Tensor:
        """That of the exact posterior (K, D, D)."""
        return self.of_data + torch.eye(self.x.shape[2]).double() / self.settings.prior**2

    @cached_property
    def covariance(self) -> Tensor:
        return torch.linalg.inv(self.precision)

    @cached_property
    def mean(self) -> Tensor:
        """That of the exact posterior (K, D)."""
        told = self.x.double().transpose(1, 2) @ self.y.double()[..., None] / self.settings.noise**2
        return torch.linalg.solve(self.precision, told)[..., 0]


class HeldStack(AdapterStack):
    """An `AdapterStack` whose B stays 1, whoever trains it, so that the model is linear in A."""

    def refresh(self) -> None:
        self.b.fill_(1.0)
        super().refresh()

    def add_gradients(self, loss: Tensor, totals: tuple[Tensor, ...]) -> None:
        super().add_gradients(loss, totals)
        totals[1].zero_()

    def weights_of(self, a: Tensor, b: Tensor, head: Tensor, described: Described) -> MemberWeights:
        return super().weights_of(a, torch.ones_like(b), head, described)


class Line:
    """The part of a `LoraEnsemble` that training and posteriors ask for, on one linear layer of zeros: M
    members of each data set, set by set, which begin at draws of the prior.

    It is its own head, which is asked for the rows, and these rows.
    """

    trained, passes, loss, accuracy_name = False, 1, "labels", "right"

    def __init__(self, problem: Problem, *, members: int = 1, seed: int = 0):
        self.problem, settings = problem, problem.settings
        self.base = nn.Sequential(nn.Linear(settings.features, 1, bias=False))
        self.base.dtype = torch.float32  # type: ignore[assignment]
        nn.init.zeros_(self.base[0].weight)
        count, generator = settings.data_sets * members, torch.Generator().manual_seed(seed)
        begin = settings.prior * torch.randn(count, 1, settings.features, generator=generator)
        first = [MemberWeights({"0": a}, {"0": torch.ones(1, 1)}, {"0": 1.0}) for a in begin]
        self.stack = HeldStack(self.base, first, dtype=torch.float32)
        seeds = tuple(member_seeds(seed, index) for index in range(count))
        self.info = EnsembleInfo(seed=seed, seeds=seeds, next_index=count)
        self.adapter, self.head = SimpleNamespace(lora_dropout=0.0), self
        self.lengths, self.device = torch.ones(settings.rows), torch.device("cpu")
        self.whole_pass = self.base.forward

    @property
    def num_members(self) -> int:
        return self.stack.num_members

    members_in_all = num_members

    def set_members(self, members: Sequence[MemberWeights]) -> None:
        self.stack.set_members(members)

    def training_rows(self, *_: object, **_settings: object) -> Line:
        return self

    def losses(self, indices: Tensor, *, members: slice, row_numbers: Tensor | None = None) -> RowLosses:
        """(y - x w)^2 / (2 noise^2) of the rows (M, B) of the data sets whose members these are."""
        places = torch.arange(self.num_members)[members, None]
        places = places // (self.num_members // len(self.problem.x))
        x, y = self.problem.x[places, indices], self.problem.y[places, indices]
        rows = indices.numel()
        with self.stack.running(rows=rows, tokens=rows, members=members, row_numbers=row_numbers):
            said = self.base(x.flatten(0, 1)).view_as(y)
        loss = (y - said).square() / (2 * self.problem.settings.noise**2)
        return RowLosses(loss, None, torch.zeros_like(loss, dtype=torch.bool))

    @property
    def w(self) -> Tensor:
        """The members' weights (K, M, D)."""
        return self.stack.a.detach().clone().view(len(self.problem.x), -1, self.problem.x.shape[2])


class GaussianTFB(TFB):
    """TFB on this loss, which is 0 where y is met: the constant of the density depends on the unit of y, and
    a relative tolerance with it, so it is left out.
    """

    @torch.no_grad()
    def _losses(self, examples: Sequence[Any], *, per: int) -> Tensor:
        line: Any = self.ensemble
        every = torch.arange(len(line.lengths)).expand(line.num_members, -1)
        row = -line.losses(every, members=slice(None)).loss
        return -(row.view(-1, per, row.shape[1]).logsumexp(dim=1) - math.log(per)).mean(dim=1)


def config_of(settings: Settings, **changed: Any) -> TrainConfig:
    """The settings of training; what every method has, unless it changes it."""
    usual = {
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "schedule": "linear",
        "weight_decay_a": settings.decay,
        "weight_decay_b": 0.0,
        "max_rows": settings.batch_size * settings.data_sets * settings.members,
    }
    return TrainConfig(**{**usual, **changed})


def trained(problem: Problem, *, members: int = 1, **changed: Any) -> Any:
    """Members trained as the members of an ensemble are."""
    line, rows = Line(problem, members=members), cast(Any, range(problem.settings.rows))
    config = config_of(problem.settings, **changed)
    run(AdapterTrainee(line, rows, config), config, progress=False)
    return line


def drawn(
    posterior: WeightPosterior, problem: Problem, *, samples: int | None = None, **changed: Any
) -> Tensor:
    """Samples (K, S, D) of a posterior, fitted as `fit` does it to examples that are texts."""
    rows: Any = range(problem.settings.rows)
    config = posterior.settings(config_of(problem.settings, **changed), len(rows))
    trainee = posterior.trainee(rows, config)
    posterior._fitted = True
    if trainee is None:
        posterior.take(None, rows)  # type: ignore[arg-type]
    else:
        result = run(trainee, config, progress=False)
        posterior.trained = {name: flat.clone() for name, flat in trainee.buffers.items()}
        posterior.take(result, rows)
    members = posterior.draw(samples or problem.settings.samples * len(problem.x) // posterior.num_modes)
    return torch.stack([(one.b["0"] @ one.a["0"])[0] for one in members]).view(
        len(problem.x), -1, problem.x.shape[2]
    )


def ivon(problem: Problem) -> Tensor:
    """ess and delta of the posterior itself; no step is clipped, and the rate is that of Newton's steps."""
    settings = problem.settings
    posterior = IVON(
        Line(problem),
        ess=settings.rows,
        delta=1 / (settings.rows * settings.prior**2),
        hess_init=0.1,
        clip=10.0,
        betas=(0.9, 0.998),
    )
    return drawn(posterior, problem, learning_rate=0.05)


def blob(problem: Problem) -> Tensor:
    """The prior is the problem's, and AdamW decays nothing."""
    posterior = BLoB(Line(problem), prior=problem.settings.prior, spread=0.3)
    return drawn(posterior, problem, weight_decay_a=0.0)


def swag(problem: Problem, *, rate: float, modes: int = 1) -> Tensor:
    return drawn(SWAG(Line(problem, members=modes)), problem, learning_rate=rate, schedule="constant")


def ensemble(problem: Problem, *, members: int | None = None, **changed: Any) -> Tensor:
    return trained(problem, members=members or problem.settings.members, **changed).w


def exact_draws(problem: Problem) -> Tensor:
    """As many draws of the exact posterior as ensembles have members: what their number alone costs."""
    settings = problem.settings
    noise = torch.randn(
        settings.data_sets, settings.members, settings.features, generator=torch.Generator().manual_seed(0)
    )
    return problem.mean[:, None] + noise.double() @ torch.linalg.cholesky(problem.covariance).mT


def without_correlations(problem: Problem) -> Gaussians:
    """The Gaussian of independent entries with the least KL to the posterior: it has its precisions."""
    return problem.mean, torch.diag_embed(1 / problem.precision.diagonal(dim1=1, dim2=2))


def anchored_formula(problem: Problem) -> Gaussians:
    """Optima (told + w_0 / prior^2) / precision, told = X' y / noise^2, over anchors w_0 of the prior."""
    return problem.mean, problem.covariance @ problem.covariance / problem.settings.prior**2


def laplace(problem: Problem) -> Gaussians:
    """The library's own curvature, of this likelihood, and its inverse beside the prior."""
    settings = problem.settings
    hessians = torch.full((settings.rows, 1, 1), settings.noise**-2, dtype=torch.float64)
    every = torch.eye(settings.features, dtype=torch.float64)[:, None]  # D directions, one output
    found = [gauss_newton(x.double(), hessians, structure="full") for x in problem.x]
    spreads = [one.times(every, (one.values + settings.prior**-2).reciprocal())[:, 0] for one in found]
    return problem.mean, torch.stack(spreads)


METHODS: dict[str, Callable[[Problem], Tensor | Gaussians]] = {
    "Laplace, exact curvature *": laplace,
    "draws of the exact posterior *": exact_draws,
    "best Gaussian without correlations *": without_correlations,
    "IVON": ivon,
    "BLoB": blob,
    "ScalaBL, rank 1": lambda problem: drawn(ScalaBL(Line(problem)), problem, weight_decay_a=0.0),
    "rank mask, rank 1": lambda problem: drawn(RankMask(Line(problem)), problem),
    "TFB, tolerance 1 %": lambda problem: drawn(
        GaussianTFB(trained(problem), samples=100, steps=12), problem
    ),
    "SWAG, step size 0.02": lambda problem: swag(problem, rate=0.02),
    "SWAG, step size 0.2": lambda problem: swag(problem, rate=0.2),
    "MultiSWAG of 3, step size 0.2": lambda problem: swag(problem, rate=0.2, modes=problem.settings.modes),
    "snapshots of 10 cycles": lambda problem: drawn(
        SnapshotEnsemble(Line(problem), samples=10), problem, samples=10
    ),
    "plain ensemble": lambda problem: ensemble(problem, members=20),
    "bagged ensemble": lambda problem: ensemble(problem, data_share=1.0),
    "anchored ensemble, formula *": anchored_formula,
    "anchored ensemble": lambda problem: ensemble(problem, anchored=True),
    "anchored and bagged ensemble": lambda problem: ensemble(problem, anchored=True, data_share=1.0),
}


def moments(found: Tensor | Gaussians) -> Gaussians:
    """Means and covariances of samples (K, S, D), or those that are given."""
    if isinstance(found, tuple):
        return found
    draws = found.double()
    return draws.mean(dim=1), torch.stack([torch.cov(one.T) for one in draws])


def correlations(covariance: Tensor) -> Tensor:
    sd = covariance.diagonal().sqrt()
    return covariance / sd / sd[:, None]


def compared(mean: Tensor, covariance: Tensor, exact: Gaussians) -> dict[str, float | None]:
    """One data set's approximation (D,), (D, D) beside the exact posterior, in its standard deviations."""
    sd = exact[1].diagonal().sqrt()
    ratios = covariance.diagonal().sqrt() / sd
    middle = ratios.log().mean().exp()
    off = (correlations(covariance) - correlations(exact[1])).abs().max()
    return {
        "mean_error": float(((mean - exact[0]) / sd).square().mean().sqrt()),
        "sd_ratio": float(middle),
        "sd_ratio_least": float(ratios.min()),
        "sd_ratio_most": float(ratios.max()),
        "correlation_error": float(off) if middle > COLLAPSED else None,
    }


def row_of(method: str, problem: Problem) -> dict[str, Any]:
    """The measures of a method: their mean over the data sets and their standard deviation."""
    found = zip(*moments(METHODS[method](problem)), problem.mean, problem.covariance, strict=True)
    rows = [compared(mean, covariance, (exact, spread)) for mean, covariance, exact, spread in found]
    row: dict[str, Any] = {"method": method}
    for name in rows[0]:
        values = [one[name] for one in rows]
        known = [value for value in values if value is not None]
        whole = len(known) == len(values)
        row[name] = {"mean": statistics.fmean(known), "sd": statistics.stdev(known)} if whole else None
    return row


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """One row per method."""

    def cell(value: dict[str, float] | None) -> str:
        return "" if value is None else f"{value['mean']:.2f} ± {value['sd']:.2f}"

    header = ("method", "mean is off by", "sd over exact sd", "smallest", "largest", "correlations off by")
    return Table(header, tuple((row["method"], *map(cell, list(row.values())[1:])) for row in rows))


def page(text: str, record: dict[str, Any]) -> str:
    """The page with the table of the record between its marks."""
    return with_block(text, "toy posterior", table(record["rows"]).to_markdown().strip())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="write the record there")
    parser.add_argument("--page", action="store_true", help="write the table into docs/methods.md and stop")
    arguments = parser.parse_args()
    if arguments.page:
        record = json.loads(RECORD.read_text())
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), record), encoding="utf-8")
        return
    torch.set_num_threads(1)  # tensors of some thousand numbers
    settings = Settings()
    problem = Problem(settings)
    rows = [rounded(row_of(method, problem)) for method in METHODS]
    record = {"settings": vars(settings) | {"decay": rounded(settings.decay)}, "rows": rows}
    print(table(rows))
    print(json.dumps(write_record(arguments.out, record)))


if __name__ == "__main__":
    main()
