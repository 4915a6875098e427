"""The arms of the comparisons: how the members of each start and are trained, and many arms in one stacked
run.

A member does not know its neighbours, so the members of every arm of a sweep are trained side by side in one
pass, with the weights each would have had alone.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ensemble import EnsembleInfo, LoraEnsemble
from ..heads import HeadConfig, adapter_for, head_of, resolve_head
from ..passes.trunk_states import KeptStates
from ..stack.adapters import initial_weights
from ..stack.head_config import HeadInit
from ..stack.seeds import member_seeds
from ..stack.sites import MemberWeights
from ..training.adapters import train
from ..training.config import TrainConfig
from ..training.trainee import TrainResult

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..data import Example

PLAIN_DECAY = 0.01  # AdamW's own, on A and B: what the paper calls "None"
KL_WEIGHTS = (0.01, 0.05, 0.1)
# The paper decays B by lr * lambda = 5e-5 * {1e2, 5e2, 1e3} of itself a step.
DECAY_PER_STEP = (0.005, 0.025, 0.05)


@dataclass(frozen=True)
class Arm:
    """The start and the training of the members of one arm, as far as it differs from the run's adapter and
    `TrainConfig`.

    Attributes:
        init: PEFT's `init_lora_weights`; None: the adapter's own.
        start_b: what B starts at, in multiples of what PEFT gives.
        rank: of the adapter, at its scaling; None: the adapter's own.

    Example:
        >>> Arm("KL 0.05", kl_weight=0.05).setting("weight_decay_b")
        0.01
    """

    name: str
    kl_weight: float = 0.0
    weight_decay_a: float = PLAIN_DECAY
    weight_decay_b: float = PLAIN_DECAY
    dropout: float = 0.0
    vary: tuple[str, ...] = ("init", "order")
    init: bool | str | None = None
    start_b: float = 1.0
    rank: int | None = None

    def setting(self, name: str) -> float:
        """A per-member setting of `TrainConfig`."""
        value: float = getattr(self, name)
        return value


def regulariser_arms(
    learning_rate: float, *, decays: Sequence[float] = DECAY_PER_STEP, kl: Sequence[float] = KL_WEIGHTS
) -> list[Arm]:
    """No regulariser, KL to the base, and decay of B, each strength an arm; early stopping is a snapshot of
    the first.

    Example:
        >>> [arm.name for arm in regulariser_arms(2e-3)][-1]
        'decay of B 0.05'
    """
    decayed = [Arm(f"decay of B {share:g}", weight_decay_b=share / learning_rate) for share in decays]
    return [Arm("none"), *(Arm(f"KL {weight:g}", kl_weight=weight) for weight in kl), *decayed]


def decay_arms(learning_rate: float, share: float) -> list[Arm]:
    """Decay of A alone, of B alone and of both, by the same share of the weights a step (Fig. 8 of
    arXiv:2310.00035).
    """
    strong = share / learning_rate
    return [
        Arm("decay of A", weight_decay_a=strong),
        Arm("decay of B", weight_decay_b=strong),
        Arm("decay of A and B", weight_decay_a=strong, weight_decay_b=strong),
    ]


def randomness_arms(learning_rate: float, share: float) -> list[Arm]:
    """Members that differ by initial weights, by data order, or by both, with and without decay of B (Fig. 7
    of arXiv:2310.00035).
    """
    sources = {"init": ("init",), "order": ("order",), "init and order": ("init", "order")}
    return [
        Arm(f"{name}{suffix}", weight_decay_b=decay, vary=vary)
        for suffix, decay in (("", PLAIN_DECAY), (", decay of B", share / learning_rate))
        for name, vary in sources.items()
    ]


@dataclass(frozen=True)
class ArmsRun:
    """Arms that were trained in one stack: members m * M to (m + 1) * M - 1 are those of arm m; `initial`
    holds their weights before.
    """

    ensemble: LoraEnsemble
    arms: tuple[Arm, ...]
    members: int
    trained: TrainResult
    initial: tuple[MemberWeights, ...]

    def rows(self, arm: int) -> list[int]:
        """The indices of an arm's members."""
        return list(range(arm * self.members, (arm + 1) * self.members))


def train_arms(
    model: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    arms: Sequence[Arm],
    examples: Sequence[Example],
    config: TrainConfig,
    *,
    members: int,
    seed: int,
    adapter: LoraConfig | None = None,
    head: HeadConfig | None = None,
) -> ArmsRun:
    """Train `members` members of every arm in one stacked run; `adapter` and `head` as for `LoraEnsemble`.

    Member m of every arm has the same seeds, so that two arms differ by their settings alone.

    Raises:
        ConfigError: a setting of an arm cannot work.
    """
    ensemble = stacked_members(model, arms, members=members, seed=seed, adapter=adapter, head=head)
    return train_members(ensemble, arms, examples, config)


def train_members(
    ensemble: LoraEnsemble,
    arms: Sequence[Arm],
    examples: Sequence[Example],
    config: TrainConfig,
    *,
    out: Path | None = None,
) -> ArmsRun:
    """Train what `stacked_members` made of the same arms; in the folder `out`, where there is one, from the
    checkpoint that a run before has left.

    Raises:
        ConfigError: a setting of an arm cannot work.
    """
    members = ensemble.num_members // len(arms)
    initial = tuple(ensemble.stack.member(index) for index in range(ensemble.num_members))
    vectors: dict[str, Any] = {
        name: [arm.setting(name) for arm in arms for _ in range(members)]
        for name in ("kl_weight", "weight_decay_a", "weight_decay_b", "dropout")
    }
    result = train(
        ensemble,
        examples,
        dataclasses.replace(config, **vectors),
        out=out,
        resume=out is not None,
        progress=False,
    )
    return ArmsRun(ensemble, tuple(arms), members, result, initial)


def stacked_members(
    model: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    arms: Sequence[Arm],
    *,
    members: int,
    seed: int,
    adapter: LoraConfig | None = None,
    head: HeadConfig | None = None,
    kept_states: KeptStates | None = None,
) -> LoraEnsemble:
    """The untrained members of every arm as one ensemble; smaller ranks are padded with zeros, which change
    nothing and stay zero.

    A zero column of B gives no gradient to A's row, and that row none to the column; so decay, moments and
    clip do not see them either.
    """
    base, tokenizer = model
    own = resolve_head(base, head)
    config = adapter_for(base, own, adapter)
    init = head_of(own).init
    starts = [(arm, member_seeds(seed, index, vary=arm.vary)) for arm in arms for index in range(members)]
    made = {
        _start(arm, seeds.init): _initial(base, arm, adapter=config, seed=seeds.init, head_init=init)
        for arm, seeds in starts
    }
    info = EnsembleInfo(
        seed=seed, next_index=len(starts), seeds=tuple(seeds for _, seeds in starts), head=own
    )
    weights = [made[_start(arm, seeds.init)] for arm, seeds in starts]
    return LoraEnsemble.from_weights(
        base, tokenizer, adapter=config, weights=weights, info=info, kept_states=kept_states
    )


def _start(arm: Arm, seed: int) -> tuple[object, ...]:
    return arm.init, arm.start_b, arm.rank, seed


def _initial(
    base: PreTrainedModel, arm: Arm, *, adapter: LoraConfig, seed: int, head_init: HeadInit | None
) -> MemberWeights:
    own = copy.deepcopy(adapter)
    if arm.init is not None:
        own.init_lora_weights = arm.init  # type: ignore[assignment]
    if arm.rank is not None:
        ratio = arm.rank / adapter.r
        own.r, own.lora_alpha = (
            arm.rank,
            adapter.lora_alpha * (ratio**0.5 if adapter.use_rslora else ratio),  # type: ignore[assignment]
        )
    weights = initial_weights(base, own, seed=seed, head_init=head_init)
    return dataclasses.replace(weights, b={name: arm.start_b * matrix for name, matrix in weights.b.items()})
