"""The paper's other comparisons: sources of randomness, ensemble sizes, few-shot prompting and last-layer
ensembles.

Shapes: M members an arm, N questions.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ...baselines import FewShot
from ..arms import KL_WEIGHTS, Arm, randomness_arms
from ..predictions import Sheet, name_of
from ..setting import Bench, measure_run

# A step of AdamW and its decay balance where an element of B is 1 / lambda at most, so lambda says how far an
# update may grow beside the base's weights, which are drawn as 1 / sqrt(width). The embedded base is 128 wide
# and LLaMA-13B is 5,120: the paper's lambda of 1e2, 5e2 and 1e3 over sqrt(40) is 16, 80 and 160, which at a
# learning rate of 2e-3 takes these shares of B a step.
EMBEDDED_DECAY_PER_STEP = (0.032, 0.16, 0.32)
EMBEDDED_KL = (*KL_WEIGHTS, 1.0)  # the paper's hardly move its members


@dataclass(frozen=True)
class PaperConfig:
    """The settings of the paper's comparisons, the sweep of its regularisers among them.

    Attributes:
        decays: shares of B that one step takes away.
        decay: that of the arms that have one strength.
        pool: members of the ensemble-size study.
        subsets: of each size, at random.
        folds: of the validation questions, each scaled by the temperature of the others.
        shots, draws: demonstrations of a few-shot prompt, and how often they are drawn.
    """

    kl: tuple[float, ...] = KL_WEIGHTS
    decays: tuple[float, ...] = EMBEDDED_DECAY_PER_STEP
    decay: float = EMBEDDED_DECAY_PER_STEP[1]
    pool: int = 20
    subsets: int = 5
    folds: int = 5
    shots: int = 3
    draws: int = 10


def randomness(config: PaperConfig, bench: Bench, sheet: Sheet, *, seed: int) -> dict[str, Any]:
    """Members that differ by initial weights, by data order or by both, with and without decay of B."""
    arms = randomness_arms(bench.shared.learning_rate, config.decay)
    run = bench.train(arms, seed=seed)
    return measure_run(run, bench, sheet, epochs=bench.shared.snapshots[-1:])


def pool(config: PaperConfig, bench: Bench, sheet: Sheet, *, seed: int) -> dict[str, Any]:
    """Ensembles of 1 to the pool's size, each size over random subsets, with and without decay of B."""
    arms = [Arm("none"), Arm("decay of B", weight_decay_b=config.decay / bench.shared.learning_rate)]
    run = bench.train(arms, members=config.pool, seed=seed)
    prediction, _ = bench.ask(run.ensemble)
    sizes = [size for size in (1, 2, 3, 5, 10, 15, 20) if size <= config.pool]
    settings = {"sizes": sizes, "subsets": config.subsets, "seed": seed}
    for index, arm in enumerate(arms):
        sheet.keep(arm.name, prediction.select(run.rows(index)))
    return {arm.name: sheet.compute((arm.name,), "by_size", arm.name, settings=settings) for arm in arms}


def few_shot(config: PaperConfig, bench: Bench, sheet: Sheet, *, seed: int) -> dict[str, Any]:
    """The untouched base with demonstrations, every draw one member of the prediction; and without any
    (`zero_shot`).
    """
    asked = FewShot(*bench.model, bench.task.train, shots=config.shots, draws=config.draws, seed=seed)
    bare, path = dataclasses.replace(asked, shots=0), ("zero_shot",)
    return {
        **sheet.measured((), *bench.ask(asked)),
        **sheet.compute((), "wrong_confidence", ""),
        "zero_shot": sheet.measured(path, *bench.ask(bare))
        | sheet.compute(path, "wrong_confidence", name_of(path)),
    }
