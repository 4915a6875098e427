"""The setting of every kind of record: a task's questions with the model that is asked, and arms measured
after chosen epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ..baselines import LastLayerEnsemble, LastLayerHeads, held_out_split
from ..data import Example, Task, load_ood, load_task
from ..data.splits import sample
from ..ensemble import LoraEnsemble
from ..heads import HeadConfig, adapter_for, head_of, member_log_probs, resolve_head
from ..passes.trunk_states import KeptStates
from ..prediction.prediction import Prediction, Predictor, predict
from ..training.config import PAPER_BATCH_SIZES, TrainConfig
from .arms import Arm, ArmsRun, stacked_members, train_members
from .predictions import Sheet, name_of
from .shared import Asking, Heads, Shared
from .under_way import UnderWay

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Bench:
    """A task's questions, its out-of-distribution set, the model that is asked, and the settings of all
    records about it; `elsewhere` are further sets with answers, of other distributions, by name.
    """

    task: Task
    ood: tuple[Example, ...]
    model: tuple[PreTrainedModel, PreTrainedTokenizerBase] = field(repr=False)
    shared: Shared = field(default_factory=Shared)
    heads: Heads = field(default_factory=Heads)
    asking: Asking = field(default_factory=Asking)
    kept_states: KeptStates = field(default_factory=dict, repr=False)  # many runs are asked the questions
    under_way: UnderWay | None = None  # where runs leave checkpoints
    elsewhere: Mapping[str, tuple[Example, ...]] = field(default_factory=dict, repr=False)

    @property
    def config(self) -> TrainConfig:
        """The settings of training that all arms share; the paper's batch size for one of its tasks."""
        shared, heads = self.shared, self.heads
        return TrainConfig(
            loss=self.asking.loss,
            epochs=shared.snapshots[-1],
            batch_size=self.asking.batch_size or PAPER_BATCH_SIZES.get(self.task.name, shared.batch_size),
            learning_rate=shared.learning_rate,
            snapshot_epochs=list(shared.snapshots),
            length_window=heads.length_window,
            overlong="error" if heads.max_length is None else "left",
        )

    @property
    def head(self) -> HeadConfig | None:
        """The members' head; None: the base's own."""
        return None if self.heads.of_base else HeadConfig(self.heads.head, max_length=self.heads.max_length)

    @property
    def adapter(self) -> LoraConfig:
        """The members' adapter: the paper's, with another alpha or on some of the base's layers only where
        the grid says so.
        """
        base = self.model[0]
        config = adapter_for(base, resolve_head(base, self.head), None)
        layers = self.heads.layers or self.asking.layers
        if layers:
            config.layers_to_transform = list(layers)
        if self.asking.alpha is not None:
            config.lora_alpha = self.asking.alpha
        return config

    @property
    def owned_heads(self) -> bool:
        """Whether members have heads of their own, so that the base itself says nothing about the answers."""
        return head_of(resolve_head(self.model[0], self.head)).trained

    def held_out(self, *, share: float, seed: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
        """A part of the training questions to choose or fit something on, and the rest; no question of the
        first is scored anywhere.

        Some questions of the paper's tasks are in their training and in their validation part: those stay
        with the rest.
        """
        return held_out_split(
            self.task.train, share=share, seed=seed, trained_on=(*self.task.validation, *self.ood)
        )

    def last_layer(self, *, seed: int, members: int | None = None) -> LastLayerEnsemble | LastLayerHeads:
        """An untrained ensemble of output heads on the frozen base, by default as large as the others."""
        members = self.shared.members if members is None else members
        if self.owned_heads:
            return LastLayerHeads(*self.model, num_members=members, seed=seed, head=self.head)
        return LastLayerEnsemble(*self.model, num_members=members, seed=seed)

    def train(
        self,
        arms: Sequence[Arm],
        *,
        seed: int,
        config: TrainConfig | None = None,
        members: int | None = None,
        examples: Sequence[Example] | None = None,
    ) -> ArmsRun:
        """`members` members of every arm (by default those of an ensemble), trained on the task's questions
        or `examples`; the base carries them until unloaded.
        """
        members = self.shared.members if members is None else members
        examples = self.task.train if examples is None else examples
        config = self.config if config is None else config
        ensemble = stacked_members(
            self.model,
            arms,
            members=members,
            seed=seed,
            adapter=self.adapter,
            head=self.head,
            kept_states=self.kept_states,
        )
        settings = (arms, members, seed, config, len(examples))
        out = self.under_way.run(*settings) if self.under_way else None
        return train_members(ensemble, arms, examples, config, out=out)

    def ask(self, predictor: Predictor) -> tuple[Prediction, Prediction | None]:
        """The predictions in and out of distribution; the latter is None where the task has no such set."""
        return predict(predictor, self.task.validation), predict(predictor, self.ood) if self.ood else None


class Asked(Protocol):
    """The parts of a grid that decide how a task is asked."""

    @property
    def data(self) -> str | None: ...
    @property
    def shared(self) -> Shared: ...
    @property
    def heads(self) -> Heads: ...
    @property
    def asking(self) -> Asking: ...
    @property
    def ood(self) -> tuple[tuple[str, str], ...]: ...
    @property
    def elsewhere(self) -> tuple[tuple[str, tuple[str, ...]], ...]: ...


def load_bench(
    name: str,
    grid: Asked,
    load_model: Callable[[], tuple[Any, Any]],
    *,
    ood: bool = True,
    under_way: UnderWay | None = None,
) -> Bench:
    """A sample of a task's questions, as many as there may be, and with `ood` of its out-of-distribution set
    and of those `elsewhere`; the same for every seed of members. Runs leave checkpoints where the record is
    `under_way`.
    """
    data, answer, seed = grid.data, grid.asking.answer, grid.shared.sample_seed
    full, (train, validation, most) = load_task(name, data=data, answer=answer), grid.shared.limit

    def outside(other: str) -> tuple[Example, ...]:
        return sample(load_ood(other, data=data, answer=answer), most, seed=seed)

    pair = outside(dict(grid.ood)[name]) if ood and name in dict(grid.ood) else ()
    further = {other: outside(other) for other in (dict(grid.elsewhere).get(name, ()) if ood else ())}
    task = Task(name, sample(full.train, train, seed=seed), sample(full.validation, validation, seed=seed))
    shown = grid.shared, grid.heads, grid.asking
    return Bench(task, pair, load_model(), *shown, under_way=under_way, elsewhere=further)


@dataclass(frozen=True)
class FirstMembers:
    """A `Predictor` that is the first members of an ensemble, computed without the others."""

    ensemble: LoraEnsemble
    count: int

    @torch.no_grad()
    def member_log_probs(self, examples: Sequence[Example], *, max_rows: int | None = None) -> Tensor:
        """log p of each label for each of these members (count, N, C); see `Predictor`."""
        return member_log_probs(self.ensemble.view(range(self.count)), examples, max_rows=max_rows)


def measure_run(
    run: ArmsRun,
    bench: Bench,
    sheet: Sheet,
    *,
    epochs: Sequence[int],
    every: int | None = None,
    outside: int | None = None,
) -> dict[str, Any]:
    """The first `every` arms of a run (by default all) after `epochs`, and all after the last of them, where
    they are described as well; the run's members are left at the last. Out of distribution are measured the
    first `outside` arms (by default all).
    """
    arms: dict[str, Any] = {arm.name: {"epochs": {}} for arm in run.arms}
    for epoch in epochs:
        run.ensemble.stack.set_members(run.trained.snapshots[epoch])
        shown = run.arms if epoch == epochs[-1] else run.arms[:every]
        prediction = predict(FirstMembers(run.ensemble, len(shown) * run.members), bench.task.validation)
        asked = run.arms[:outside] if bench.ood else ()
        other = predict(FirstMembers(run.ensemble, len(asked) * run.members), bench.ood) if asked else None
        for index, arm in enumerate(shown):
            rows, path = run.rows(index), ("arms", arm.name, "epochs", str(epoch))
            ood = None if other is None or index >= len(asked) else other.select(rows)
            arms[arm.name]["epochs"][str(epoch)] = sheet.measured(path, prediction.select(rows), ood)
            if epoch == epochs[-1]:
                arms[arm.name] |= sheet.compute(("arms", arm.name), "described", name_of(path))
    for index, arm in enumerate(run.arms):
        history = run.trained.history[-1]
        arms[arm.name]["train_accuracy"] = [history["train_accuracy"][row] for row in run.rows(index)]
    return {"arms": arms}
