"""A LoRA ensemble in training: its adapters, and its members' heads.

Shapes: M members, B rows of a member, N examples, P parameters of a member.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import Completion, Example
from ..disk.atomic import added_to
from ..disk.layout import ENSEMBLE_FILE
from ..ensemble import LoraEnsemble
from ..errors import ConfigError
from ..passes.decoder import recomputed
from ..passes.probe import check_gradients
from ..prediction.orders import in_orders
from ..stack.dropout import stream_key
from ..stack.sites import MemberWeights
from ..storage.folder import precision, read_ensemble, write_ensemble, write_members
from .config import TrainConfig
from .optim import Optimizer, StackedAdamW
from .trainee import Observer, Trainee
from .validation import answers, keep_answers, measured

BUFFERS = ("a", "b", "head")  # of the stack; a causal language model's members have no head
DECAYS = ("weight_decay_a", "weight_decay_b", "weight_decay_head")


class AdapterTrainee(Trainee):
    """The adapters and heads of a LoRA ensemble in training.

    With `kept_answers`, members that are a slice of an ensemble: what they answer to the validation examples
    is kept in that folder for who has the answers of all.
    """

    can_recompute = True

    def __init__(
        self,
        ensemble: LoraEnsemble,
        examples: Sequence[Example] | Sequence[Completion],
        config: TrainConfig,
        *,
        kept_answers: Path | None = None,
        observer: Observer | None = None,
    ):
        self.ensemble, self.kept_answers, self.observer = ensemble, kept_answers, observer
        members, stack = ensemble.members_in_all, ensemble.stack
        self.ranks = stack.sharding.ranks
        ensemble.base.eval()
        kl_weight = config.per_member("kl_weight", members)
        dropout = config.per_member("dropout", members, default=ensemble.adapter.lora_dropout)
        self.decays = DECAYS[: len(stack.buffers)]
        self._anchors = [flat.detach().clone() for flat in stack.buffers] if config.anchored else None
        self._shared_a = config.shared_a
        if config.shared_a:
            stack.sharding.check_all_here("shared_a=True")
        if config.shared_a and not bool((stack.a == stack.a[:1]).all()):
            raise ConfigError(
                "shared_a=True, and the members begin with an A each; make the ensemble with vary=['order']"
            )
        for name in ("learning_rate", *self.decays):
            config.per_member(name, members)  # refused before the base is read
        if ensemble.head.trained:
            config.check_decay("weight_decay_head")
        check_gradients(ensemble.base, stack, ensemble.whole_pass)
        self.variants = config.option_orders
        self.rows = ensemble.head.training_rows(
            ensemble,
            in_orders(examples, config.option_orders, kind=ensemble.info.head.kind),
            loss=config.loss,
            label_score=config.label_score,
            overlong=config.overlong,
            rows=config.max_rows or config.batch_size * ensemble.num_members,
            with_kl=bool((kl_weight > 0).any()),
            with_dropout=bool((dropout > 0).any()),
        )
        # (M,); for all members or for none, so that all ranks make the same passes.
        self.dropout: Tensor | None = self.own(dropout).to(ensemble.device) if (dropout > 0).any() else None
        self.order_seeds = [seeds.order for seeds in stack.sharding.own(ensemble.info.seeds)]
        self.dtype: torch.dtype = ensemble.base.dtype
        self.tokens_a_row = self.rows.lengths.float().mean().item()

    @property
    def buffers(self) -> dict[str, Tensor]:
        return dict(zip(BUFFERS, self.ensemble.stack.buffers, strict=False))

    @property
    def device(self) -> torch.device:
        return self.ensemble.device

    @property
    def pass_tokens(self) -> int | None:  # where heads read padding, passes hold texts of one length anyway
        alone = self.ensemble.head.trained and self.ensemble.padding_is_read
        return None if alone else super().pass_tokens

    @property
    def members_in_all(self) -> int:
        return self.ensemble.members_in_all

    def own(self, values: Tensor) -> Tensor:
        own = self.ensemble.stack.sharding.own_members(len(values))
        return values[own.start : own.stop]

    def of_all(self, values: Tensor) -> Tensor:
        return self.ensemble.stack.sharding.of_all(values.T).T

    def whole(self, name: str, flat: Tensor) -> Tensor:
        return self.ensemble.stack.whole(BUFFERS.index(name), flat)

    def part(self, name: str, whole: Tensor) -> Tensor:
        return self.ensemble.stack.own(BUFFERS.index(name), whole)

    def gradient_norms(self, gradients: Sequence[Tensor]) -> Tensor:
        if self.ensemble.stack.sharding.kind != "tp":
            return super().gradient_norms(gradients)
        return self.ensemble.stack.gradient_norms(gradients)

    def begin_step(self, gradients: Sequence[Tensor], step: int) -> None:
        self.ensemble.stack.begin_step(gradients)

    def add_gradients(self, loss: Tensor, totals: tuple[Tensor, ...]) -> None:
        self.ensemble.stack.add_gradients(loss, totals)

    @property
    def kept(self) -> dict[str, Tensor]:
        anchors = dict(zip(BUFFERS, self._anchors or (), strict=False))
        observed = {} if self.observer is None else self.observer.kept
        return {f"{name}.anchor": flat for name, flat in anchors.items()} | observed

    def optimizer(self, *, learning_rate: Tensor, decays: Sequence[Tensor]) -> Optimizer:
        flats = self.ensemble.stack.buffers
        return StackedAdamW.over(flats, learning_rate=learning_rate, decays=decays, anchors=self._anchors)

    def end_gradients(self, gradients: Sequence[Tensor]) -> None:
        if self._shared_a:  # of the sum of the members' losses
            gradients[0].copy_(gradients[0].sum(dim=0).expand_as(gradients[0]))

    def stepped(self, step: int, total: int) -> None:
        if self.observer is not None:
            self.observer.stepped(self.buffers, step)

    def unreached(self) -> list[list[slice]]:
        return self.ensemble.stack.unreached()

    def refresh(self) -> None:
        self.ensemble.stack.refresh()

    def in_step(self, step: int) -> AbstractContextManager[None]:
        if self.dropout is None:
            return nullcontext()
        keys = [stream_key(seed, "dropout", step) for seed in self.order_seeds]
        return self.ensemble.stack.dropout(self.dropout, keys)

    def recomputed(self) -> AbstractContextManager[None]:
        return recomputed(self.ensemble.base, self.ensemble.stack.remembered)

    def settings(self, config: TrainConfig) -> dict[str, Any]:
        settings, ensemble = config.to_dict(), self.ensemble
        stack = ensemble.stack
        del settings["log_every"], settings["checkpoint_every"], settings["max_rows"]  # they change no result
        settings = ensemble.head.run_settings(settings, self.rows.loss)
        seeds = [[seeds.init, seeds.order] for seeds in ensemble.info.seeds]
        settings["adapter"] = {
            "targets": sorted({site.name.rpartition(".")[2] for site in stack.sites}),
            **stack.ranks_and_scalings(),
            "dropout": ensemble.adapter.lora_dropout,
        }
        return {
            **settings,
            "member_seeds": seeds,
            "base": ensemble.fingerprint,
            "base_precision": precision(ensemble.base),
            "data": self.rows.fingerprint(),
        }

    def validate(
        self,
        examples: Sequence[Example] | Sequence[Completion],
        *,
        epoch: int,
        max_rows: int | None,
        last: bool,
    ) -> dict[str, Any]:
        result = answers(self.ensemble, examples, max_rows=max_rows)
        if self.kept_answers is None:
            return measured(result, examples, last=last)
        keep_answers(result, self.kept_answers, epoch=epoch)
        return {}

    def members(self) -> list[MemberWeights]:
        return [self.ensemble.stack.member(index) for index in range(self.num_members)]

    def save(self, path: Path) -> None:
        write_ensemble(self.ensemble, path)

    def load(self, path: Path) -> list[MemberWeights]:
        return read_ensemble(path).weights

    def finish(self, out: Path) -> None:
        finish(self.ensemble, out)


def finish(ensemble: LoraEnsemble, out: Path) -> None:
    """Put an ensemble's files beside its run; `ensemble.json` comes last, so a folder that has it is
    complete, and stays as it is.
    """
    stack = ensemble.stack
    members = stack.every_member()

    def write() -> None:
        if not (out / ENSEMBLE_FILE).exists():
            with added_to(out, last=ENSEMBLE_FILE) as aside:
                write_members(ensemble, aside, home=out, members=members)

    stack.sharding.ranks.on_first(write)
