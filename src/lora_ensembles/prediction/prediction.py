"""Predictions of a model or an ensemble about a list of examples, and the protocol of everything that can say
it.

Shapes: M members, N examples, C options (the largest number of options in the list; shorter rows end in
absent options).
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..data.inputs import as_examples, known_to
from ..errors import ConfigError, DataError
from .checked import checked_log_probs, checked_probs, checked_targets
from .orders import averaged_over_orders
from .predictor import Predictor as Predictor
from .soft_labels import soft_targets

if TYPE_CHECKING:
    from ..data import Example


@dataclass(frozen=True, eq=False)
class Prediction:
    """The members' task distributions for N examples, kept on the CPU in float32.

    Attributes:
        member_log_probs: (M, N, C) natural log-probabilities over the options, -inf exactly where an option
            is absent. Each row's probabilities sum to 1.
        targets: (N,) int64 index of the right option, or None when the examples are unlabelled.
        ids: the N examples' identifiers, in row order; empty means "0", "1", ...
        target_probs: (N, C) soft labels q of the options, each row's sum 1, where examples have such: NLL and
            Brier score are then taken against them.
        order_choices: (K, N) option that the ensemble chooses in each of K orders of the options, where these
            were averaged over (`predict`).
        types: the N examples' types of decision; empty where they have none.
        groups: the N examples' groups, which intervals draw in place of examples; empty where they have none.
        calibrated: (N, C) log-probabilities of the ensemble after calibration, which then stand for the mean
            of the members; None: not calibrated.

    Raises:
        ConfigError: a tensor of the wrong shape or type, rows that are not log-probabilities (logits, for
            instance), or members that disagree about which options are absent.
        DataError: a target that is not one of its row's options.

    Example:
        >>> members = torch.tensor([[[0.9, 0.1]], [[0.3, 0.7]]]).log()
        >>> prediction = Prediction(members, targets=torch.tensor([0]), ids=("q1",))
        >>> prediction.num_members, prediction.num_examples, prediction.num_options
        (2, 1, 2)
        >>> [round(p, 4) for p in prediction.probs[0].tolist()]
        [0.6, 0.4]
    """

    member_log_probs: Tensor
    targets: Tensor | None = None
    ids: tuple[str, ...] = field(default=())
    calibrated: Tensor | None = None
    target_probs: Tensor | None = None
    order_choices: Tensor | None = None
    types: tuple[str | None, ...] = field(default=())
    groups: tuple[str | None, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "member_log_probs", checked_log_probs(self.member_log_probs))
        ids = tuple(self.ids) or tuple(str(row) for row in range(self.num_examples))
        if len(ids) != self.num_examples:
            raise ConfigError(
                f"{len(ids)} ids for {self.num_examples} examples; give one id an example, in row order"
            )
        object.__setattr__(self, "ids", ids)
        for name, values in (("types", self.types), ("groups", self.groups)):
            if len(values) not in (0, len(ids)):
                raise ConfigError(f"{len(values)} {name} for {len(ids)} examples; give each one, or none")
        if self.targets is not None:
            object.__setattr__(self, "targets", checked_targets(self.targets, self.present, ids))
        if self.target_probs is not None:
            probs = checked_probs(self.target_probs, self.present)
            object.__setattr__(self, "target_probs", probs)
            if self.targets is None:
                object.__setattr__(self, "targets", probs.argmax(dim=-1))
        if self.calibrated is not None:
            checked = checked_log_probs(self.calibrated[None])[0]
            if bool(((checked > -math.inf) != self.present).any()):
                raise ConfigError("calibrated and member_log_probs disagree about which options are absent")
            object.__setattr__(self, "calibrated", checked)

    def __repr__(self) -> str:
        shape = f"{self.num_members} members, {self.num_examples} examples, {self.num_options} options"
        if self.targets is None:
            return f"Prediction({shape}, without targets)"
        right = int((self.choices == self.targets).sum())
        return f"Prediction({shape}, accuracy {right / self.num_examples:.4f})"

    @property
    def num_members(self) -> int:
        """M, the number of members."""
        return self.member_log_probs.shape[0]

    @property
    def num_examples(self) -> int:
        """N, the number of examples."""
        return self.member_log_probs.shape[1]

    @property
    def num_options(self) -> int:
        """C, the largest number of options of any example."""
        return self.member_log_probs.shape[2]

    @property
    def present(self) -> Tensor:
        """(N, C) bool: which options exist in each row."""
        return self.member_log_probs[0] > -math.inf

    @property
    def log_probs(self) -> Tensor:
        """(N, C) float32 log-probabilities of the ensemble: the calibrated ones, or else the log of the
        members' mean.
        """
        return self.members_log_probs if self.calibrated is None else self.calibrated

    @cached_property
    def members_log_probs(self) -> Tensor:
        """(N, C) float32 log of the mean of the members' probabilities, logsumexp_m log p_m - log M (Eq. 2 of
        arXiv:2310.00035).

        Never the mean of logits or of log-probabilities. Summed in float64 because log p of a near-certain
        option, -1e-9 say, is lost against log M in float32. Clamped at 0: a probability of 1.0000001 would
        make torchmetrics take all rows for logits.
        """
        mean = self.member_log_probs.double().logsumexp(dim=0) - math.log(self.num_members)
        return mean.clamp_max(0.0).float()

    @cached_property
    def probs(self) -> Tensor:
        """(N, C) float32 probabilities of the ensemble, exactly 0 where an option is absent."""
        return self.log_probs.exp()

    @property
    def choices(self) -> Tensor:
        """(N,) int64 index of the most probable option; the first of them on a tie."""
        return self.probs.argmax(dim=-1)

    @property
    def confidence(self) -> Tensor:
        """(N,) float32 probability of the most probable option."""
        return self.probs.amax(dim=-1)

    @property
    def member_choices(self) -> Tensor:
        """(M, N) int64 index of each member's most probable option; the first of them on a tie."""
        return self.member_log_probs.exp().argmax(
            dim=-1
        )  # exp first, so that a lone member ties where `probs` ties

    def member(self, index: int) -> Prediction:
        """The prediction of one member alone (M = 1).

        Raises:
            ConfigError: no such member.
        """
        return self.select([index])

    def select(self, members: Sequence[int]) -> Prediction:
        """The prediction of the ensemble of these members alone.

        Raises:
            ConfigError: no members, a member that does not exist, or a member named twice (it would count
                double in the mean).
        """
        indices = range(self.num_members)
        if not members or len(set(members)) != len(members) or any(m not in indices for m in members):
            raise ConfigError(
                f"cannot select members {list(members)}; name one or more of 0 to {self.num_members - 1}, "
                "each once"
            )
        return Prediction(
            self.member_log_probs[list(members)],
            self.targets,
            self.ids,
            target_probs=self.target_probs,
            types=self.types,
            groups=self.groups,
        )

    def take(self, rows: Tensor) -> Prediction:
        """The prediction for some of the examples, in the order of `rows`, an int64 tensor of row numbers
        that may repeat.
        """
        taken = copy.copy(self)
        # Filled in past the constructor, with the mean of the rows taken along: a bootstrap does this a
        # thousand times, and the checks and the mean of rows that were checked and averaged before would be
        # most of its time.
        vars(taken).update(
            member_log_probs=self.member_log_probs[:, rows],
            targets=None if self.targets is None else self.targets[rows],
            target_probs=None if self.target_probs is None else self.target_probs[rows],
            order_choices=None if self.order_choices is None else self.order_choices[:, rows],
            ids=tuple(map(self.ids.__getitem__, rows.tolist())),
            types=tuple(map(self.types.__getitem__, rows.tolist())) if self.types else (),
            groups=tuple(map(self.groups.__getitem__, rows.tolist())) if self.groups else (),
            members_log_probs=self.members_log_probs[rows],
            calibrated=None if self.calibrated is None else self.calibrated[rows],
            probs=self.probs[rows],
        )
        return taken

    @property
    def uncalibrated(self) -> Prediction:
        """The prediction with the members' mean as the ensemble's probabilities."""
        if self.calibrated is None:
            return self
        return dataclasses.replace(self, calibrated=None)

    def labelled_targets(self, what: str) -> Tensor:
        """The (N,) targets; `what` names the quantity that needs them.

        Raises:
            DataError: the examples are unlabelled.
        """
        if self.targets is None:
            raise DataError(
                f"{what} needs targets, and these {self.num_examples} examples have none; "
                "give every example a target"
            )
        return self.targets

    def labelled_probs(self, what: str) -> Tensor:
        """The (N, C) float64 soft labels; of examples with one right answer alone, 1 for that; `what` as
        above.

        Raises:
            DataError: the examples are unlabelled.
        """
        if self.target_probs is not None:
            return self.target_probs
        return one_hot(self.labelled_targets(what), self.num_options).double()


def predict(
    predictor: Predictor,
    examples: Sequence[Example],
    *,
    max_rows: int | None = None,
    order_passes: int | None = None,
) -> Prediction:
    """The `Prediction` of a predictor for labelled or unlabelled examples.

    Targets are kept only if every example has one; a mixture of labelled and unlabelled examples is an
    unlabelled prediction. An ensemble that was calibrated (`calibrate`) gives calibrated probabilities.

    Args:
        predictor: an ensemble, a baseline or a wrapper.
        examples: N of them, with as many labels each as they have options.
        max_rows: the most rows (member and example pairs) in one forward; None leaves it to the predictor.
        order_passes: read the options of each question in so many orders, and average each member's
            probabilities over them; None: as many as the ensemble was calibrated with, else 1.

    Returns:
        (M, N, C) member log-probabilities with targets and ids.

    Raises:
        DataError: no examples; or labelled ones that the ensemble was calibrated on.
        ConfigError: `max_rows` or `order_passes` below 1, or another number of orders than the ensemble was
            calibrated with; prompts that list no options; or a predictor whose result does not fit the
            examples.

    Example:
        >>> from types import SimpleNamespace
        >>> class Coin:
        ...     def member_log_probs(self, examples, *, max_rows=None):
        ...         return torch.full((1, len(examples), 2), 0.5).log()
        >>> question = SimpleNamespace(id="q1", labels=("a", "b"), target=1)
        >>> predict(Coin(), [question]).probs
        tensor([[0.5000, 0.5000]])
    """
    examples = as_examples(examples, known_to(predictor))
    if not examples:
        raise DataError("no examples to predict; give at least one")
    if max_rows is not None and max_rows < 1:
        raise ConfigError(f"max_rows is {max_rows}; use at least 1, or None for the predictor's own choice")
    kept: Any = getattr(predictor, "calibrated", None)  # of an ensemble that was calibrated
    passes = _order_passes(order_passes, kept)
    order_choices = None
    if passes == 1:
        log_probs = predictor.member_log_probs(examples, max_rows=max_rows)
    else:
        log_probs, order_choices = averaged_over_orders(predictor, examples, passes=passes, max_rows=max_rows)
    labelled = [example.target for example in examples if example.target is not None]
    targets = torch.tensor(labelled) if len(labelled) == len(examples) else None
    soft = None if targets is None else soft_targets(examples, [len(example.labels) for example in examples])
    ids = tuple(example.id for example in examples)
    types, groups = (tuple(getattr(one, name, None) for one in examples) for name in ("type", "group"))
    prediction = Prediction(
        log_probs,
        targets,
        ids,
        target_probs=soft,
        order_choices=order_choices,
        types=types if any(types) else (),
        groups=groups if any(groups) else (),
    )
    for row, (example, present) in enumerate(zip(examples, prediction.present.tolist(), strict=True)):
        if present != [option < len(example.labels) for option in range(prediction.num_options)]:
            raise ConfigError(
                f"the predictor gives probabilities to {sum(present)} options of example "
                f"{example.id!r} (row {row}), which has {len(example.labels)} labels; "
                "it must give -inf exactly to the options after the last label"
            )
    if kept is None:
        return prediction
    if prediction.targets is not None:
        kept.refuse_scored(examples)
    return cast(Prediction, kept.calibration(prediction))


def _order_passes(given: int | None, kept: Any) -> int:
    calibrated = None if kept is None else kept.order_passes
    if calibrated is not None and given not in (None, calibrated):
        raise ConfigError(
            f"order_passes={given}: the ensemble was calibrated with {calibrated}; "
            "leave it out, or calibrate again"
        )
    return given if given is not None else calibrated or 1
