"""Records of the kind `initialisation`: does it matter how A and B start?

Four of PEFT's starts, and one that is smaller, each with own and with equal data orders, all in one stacked
run. Left out is what cannot be drawn without data or would change the base that the members share: EVA takes
A from the activations of training data, PiSSA, OLoRA, CorDA and LoftQ rewrite the base's weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..arms import Arm
from ..predictions import Sheet
from ..setting import Bench, measure_run

# Name of a start: PEFT's `init_lora_weights`, and the multiple of the B that it gives. True starts B at 0 and
# A as a linear layer does; "gaussian" takes a normal A of deviation 1 / r. "orthogonal" starts both away from
# 0, with B A = 0; False does so too, with B A not 0.
STARTS: dict[str, tuple[bool | str, float]] = {
    "Kaiming": (True, 1.0),
    "Gaussian": ("gaussian", 1.0),
    "orthogonal": ("orthogonal", 1.0),
    "random B": (False, 1.0),
    "random B / 10": (False, 0.1),
}
REGIMES = {"": ("init", "order"), ", same order": ("init",)}


@dataclass(frozen=True)
class InitialisationConfig:
    """Nothing beside the settings that all kinds share: the starts are `STARTS`."""


def initialisation_arms() -> list[Arm]:
    """Every start, with an order of the data in every member of its own and with the same order in all, where
    only the start differs.

    Example:
        >>> [arm.name for arm in initialisation_arms()][::5]
        ['Kaiming', 'Kaiming, same order']
    """
    return [
        Arm(f"{name}{suffix}", vary=vary, init=init, start_b=start)
        for suffix, vary in REGIMES.items()
        for name, (init, start) in STARTS.items()
    ]


def initialisation(config: InitialisationConfig, bench: Bench, sheet: Sheet, *, seed: int) -> dict[str, Any]:
    """Single member and ensemble of every start and order after the last epoch, and untrained (`start`)."""
    arms = initialisation_arms()
    run = bench.train(arms, seed=seed)
    result = measure_run(run, bench, sheet, epochs=bench.shared.snapshots[-1:])
    run.ensemble.stack.set_members(run.initial)
    prediction, _ = bench.ask(run.ensemble)
    for index, arm in enumerate(
        arms[: len(STARTS)]
    ):  # an order of the data changes nothing before the first step
        path = ("arms", arm.name, "start")
        result["arms"][arm.name]["start"] = sheet.measured(path, prediction.select(run.rows(index)))
    return result
