"""Records of made-up predictions in the shape of a study's, for tests of figures, tables and the report.

What is measured of the predictions is measured by the studies' own functions, so that the shape is that of
real records. How sure the made-up members are of themselves grows over the epochs, more slowly in a
regularised arm, so that arms differ in a picture.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch

from lora_ensembles.prediction.prediction import Prediction
from lora_ensembles.studies.arms import decay_arms, randomness_arms, regulariser_arms
from lora_ensembles.studies.grid import Grid, settings_of
from lora_ensembles.studies.kinds.initialisation import initialisation_arms
from lora_ensembles.studies.kinds.methods import MethodsConfig
from lora_ensembles.studies.kinds.paper import PaperConfig
from lora_ensembles.studies.kinds.rank import RankConfig
from lora_ensembles.studies.kinds.strength import StrengthConfig
from lora_ensembles.studies.measures import by_size, described, measured
from lora_ensembles.studies.report.figures.methods import KEYS
from lora_ensembles.studies.shared import Shared

SMALL = Grid(
    "small",
    tasks=("world-cqa", "world-mmlu-stem"),
    seeds=(0, 1),
    few_tasks=("world-cqa",),
    open_tasks=("world-cqa",),
    shared=Shared(members=3, snapshots=(1, 2, 3, 4), limit=(40, 60, 30)),
    paper=PaperConfig(kl=(0.05,), decays=(0.025,), pool=5, draws=2),
    methods=MethodsConfig(draws=2),
    rank=RankConfig((1, 8, 64)),
    strength=StrengthConfig((0.01, 0.1), (0.01, 0.1)),
)
WITH_OOD = ("world-cqa", "world-mmlu-ss", "world-mmlu-stem")
ENVIRONMENT = {
    "versions": {"torch": "2.0"},
    "python": "3.11",
    "platform": "Linux",
    "device": "cpu",
    "threads": 1,
    "commit": "0123456789ab",
}


def made_up(
    key: int, *, members: int, sharpness: float, knowledge: float, questions: int = 80, options: int = 4
) -> Prediction:
    """Members that lean towards the right option by `knowledge`, each with errors of its own, at a given
    sharpness.
    """
    generator = torch.Generator().manual_seed(key)
    shared = torch.randn(1, questions, options, generator=generator)
    own = torch.randn(members, questions, options, generator=generator)
    targets = torch.randint(options, (questions,), generator=generator)
    logits = shared + 0.8 * own + knowledge * torch.nn.functional.one_hot(targets, options)
    return Prediction((sharpness * logits).log_softmax(-1), targets)


def arm_names(grid: Grid) -> list[str]:
    arms = regulariser_arms(grid.shared.learning_rate, decays=grid.paper.decays, kl=grid.paper.kl)
    arms += [
        arm for arm in decay_arms(grid.shared.learning_rate, grid.paper.decay) if arm.name != "decay of B"
    ]
    return [*(arm.name for arm in arms), "dropout"]


def calmness(arm: str) -> float:
    """How slowly the arm's members grow sure: less than 1 with KL and with decay, and less the stronger."""
    kind, _, strength = arm.rpartition(" ")
    if kind == "KL":
        return 1 - 5 * float(strength)
    if arm.startswith("decay of B "):
        return 0.6 - 8 * float(strength)
    return 0.2 if arm.endswith(("and B", ", decay of B")) else 1.0


def _arm(name: str, key: int, grid: Grid, epochs: tuple[int, ...], *, ood: bool) -> dict[str, Any]:
    calm = calmness(name)
    row: dict[str, Any] = {"epochs": {}, "train_accuracy": [1.0] * grid.shared.members}
    for epoch in epochs:
        sharp, knows = 1 + calm * epoch / 3, 1.2 + 0.2 * min(epoch, 3) - 0.3 * (1 - calm)
        own = made_up(key, members=grid.shared.members, sharpness=sharp, knowledge=knows)
        other = (
            made_up(key + 1, members=grid.shared.members, sharpness=0.8 * sharp, knowledge=0.6)
            if ood
            else None
        )
        row["epochs"][str(epoch)] = measured(own, other)
    return row | described(own)


def _record(kind: str, task: str, seed: int, grid: Grid, result: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": f"{kind}-{task}",
        "settings": settings_of(grid, kind, task, seed),
        "result": result,
        "environment": ENVIRONMENT,
    }


def _sweep(grid: Grid, task: str, key: int) -> dict[str, Any]:
    arms = {
        name: _arm(name, key, grid, grid.shared.snapshots, ood=task in WITH_OOD) for name in arm_names(grid)
    }
    other = made_up(key + 9, members=2, sharpness=2, knowledge=0.6) if task in WITH_OOD else None
    passes = [
        measured(made_up(key + 2 + one, members=2, sharpness=2, knowledge=1.6), other)["ensemble"]
        for one in range(grid.shared.members)
    ]
    beside = {
        name: measured(made_up(key + 20 + place, members=1, sharpness=1.2, knowledge=1.5))["ensemble"]
        for place, name in enumerate(("snapshots", "scaled", "scaled_members"))
    }
    sizes = {"train": 40, "validation": 60, "options": [4]}
    return {"arms": {**arms, "MC dropout": {"passes": passes}}, **beside, "sizes": sizes}


def _methods(grid: Grid, key: int) -> dict[str, Any]:
    rows = {}
    for place, name in enumerate(KEYS):
        many = "nsemble" in name
        sharp = 1.0 if name.endswith(("scaled", "decay of B")) else 2.0
        own = measured(
            made_up(key + place, members=grid.shared.members if many else 1, sharpness=sharp, knowledge=1.4)
        )["ensemble"]
        rows[name] = {**own, "ood_auroc": 0.5, "trained_parameters": 1000 * (3 if many else 1)}
        rows[name] |= {"training_seconds": 10.0 + 5 * many, "seconds_per_1000": 2.0 + 3 * many}
    rows["ensemble, scaled"]["temperature"] = 1.5
    return {"methods": rows, "sizes": {"train": 40, "validation": 60}, "clock": "process"}


def _open_kinds(grid: Grid, key: int) -> dict[str, dict[str, Any]]:
    last = grid.shared.snapshots[-1:]
    starts = {
        arm.name: _arm(arm.name, key + place, grid, last, ood=False)
        for place, arm in enumerate(initialisation_arms())
    }
    for name, row in starts.items():
        if "order" not in name:
            row["start"] = measured(made_up(key, members=grid.shared.members, sharpness=1.0, knowledge=0.8))
    ranks = {
        f"rank {size}": _arm(f"rank {size}", key + size, grid, last, ood=False) for size in grid.rank.ranks
    }
    for name, row in ranks.items():
        row |= {"rank": int(name.split()[1]), "parameters": 56 * int(name.split()[1])}
    wide = [
        arm.name
        for arm in regulariser_arms(
            grid.shared.learning_rate, decays=grid.strength.wide_decays, kl=grid.strength.wide_kl
        )
    ]
    strengths = {
        name: _arm(name, key, grid, tuple(range(1, last[0] + 1)) if name == "none" else last, ood=False)
        for name in wide
    }
    return {
        "methods": _methods(grid, key),
        "initialisation": {"arms": starts},
        "rank": {"arms": ranks},
        "strength": {"arms": strengths},
    }


def study_records(grid: Grid = SMALL, *, without: tuple[str, ...] = ()) -> dict[str, list[dict[str, Any]]]:
    """The records of a grid by kind, but for the kinds `without`; the caller's own, to change."""
    return {kind: copy.deepcopy(rows) for kind, rows in _made(grid).items() if kind not in without}


@functools.cache
def _made(grid: Grid) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for number, task in enumerate(grid.tasks):
        for seed in grid.seeds:
            key = 1000 * number + 100 * seed
            few = made_up(key + 5, members=grid.paper.draws, sharpness=0.8, knowledge=0.8)
            few_ood, last_ood = (
                made_up(key + 8, members=members, sharpness=0.7, knowledge=0.4) if task in WITH_OOD else None
                for members in (grid.paper.draws, grid.shared.members)
            )
            arms = [arm.name for arm in randomness_arms(grid.shared.learning_rate, grid.paper.decay)]
            last = grid.shared.snapshots[-1:]
            results: dict[str, dict[str, Any]] = {
                "sweep": _sweep(grid, task, key),
                "randomness": {"arms": {name: _arm(name, key + 7, grid, last, ood=False) for name in arms}},
                "few_shot": {
                    **measured(few, few_ood),
                    "wrong_confidence": described(few)["wrong_confidence"],
                    "zero_shot": measured(made_up(key + 11, members=1, sharpness=0.8, knowledge=0.9)),
                },
                "last_layer": {
                    **measured(
                        made_up(key + 6, members=grid.shared.members, sharpness=0.7, knowledge=0.5), last_ood
                    ),
                    "train_accuracy": 0.6,
                },
            }
            if task in grid.few_tasks:
                sizes = [size for size in (1, 2, 3, 5, 10, 15, 20) if size <= grid.paper.pool]
                results["pool"] = {
                    arm: by_size(
                        made_up(key, members=grid.paper.pool, sharpness=sharp, knowledge=1.5),
                        sizes,
                        subsets=5,
                        seed=seed,
                    )
                    for arm, sharp in (("none", 3.0), ("decay of B", 1.2))
                }
                results |= _open_kinds(grid, key)
            for kind, result in results.items():
                found.setdefault(kind, []).append(_record(kind, task, seed, grid, result))
    return found


def wide(grid: Grid = SMALL) -> Grid:
    """The full grid's shape with the small one's cost: six tasks, three seeds, five members,
    every strength.
    """
    full = Grid("wide")
    return full.having(shared={"snapshots": (1, 2, 3, 5, 10, 15)}, paper={"draws": grid.paper.draws})
