"""Checks of the tensors of a `Prediction`.

Shapes: M members, N examples, C options.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import ConfigError, DataError

# Log-softmax in float32 normalises to about 1e-6; a softmax done in bfloat16 (1e-2) or a logit given as a
# log-probability is far outside.
ROW_SUM_TOLERANCE = 1e-4


def checked_log_probs(values: object) -> Tensor:
    """Log-probabilities (M, N, C) in float32 on the CPU, checked to be such.

    Raises:
        ConfigError: another shape or type, no log-probabilities, or members that disagree about what is
            absent.
    """
    log_probs = tensor_of("member_log_probs", values)
    if log_probs.ndim != 3 or 0 in log_probs.shape or log_probs.shape[2] < 2:
        raise ConfigError(
            f"member_log_probs has shape {tuple(log_probs.shape)}; it must be (members, examples, options), "
            "2 or more options"
        )
    if log_probs.dtype not in (torch.float32, torch.float64):
        raise ConfigError(
            f"member_log_probs is {log_probs.dtype}; cast the logits to float32 before the softmax "
            "over the options"
        )
    log_probs = log_probs.detach().to(device="cpu", dtype=torch.float32)
    if bool((log_probs >= 0).all()) and bool(((log_probs.sum(dim=-1) - 1).abs() <= ROW_SUM_TOLERANCE).all()):
        raise ConfigError(
            "member_log_probs holds probabilities; give their logarithms: "
            "member_log_probs.log(), or better log_softmax of the logits"
        )
    sums = log_probs.double().exp().sum(dim=-1)
    wrong = ~(
        (sums - 1.0).abs() <= ROW_SUM_TOLERANCE
    )  # `not within` and not `outside`: a NaN is outside nothing
    if wrong.any():
        member, row = wrong.nonzero()[0].tolist()
        raise ConfigError(
            f"the probabilities of member {member}, row {row} sum to {sums[member, row].item():.6g}, not 1; "
            "give log-probabilities (log_softmax over the options, in float32), not logits"
        )
    absent = log_probs == -math.inf
    if bool((absent != absent[0]).any()):
        row, option = (absent != absent[0]).any(dim=0).nonzero()[0].tolist()
        raise ConfigError(
            f"option {option} of row {row} has log-probability -inf for some members and not for others; "
            "-inf means absent. Where a probability is merely tiny, use log_softmax, not the log of a softmax"
        )
    return log_probs


def tensor_of(name: str, values: object) -> Tensor:
    """A tensor of a tensor, an array or nested lists."""
    if isinstance(values, Tensor):
        return values
    if values is None or isinstance(values, str | Mapping):
        raise ConfigError(
            f"{name} is of type {type(values).__name__}; it is a tensor, or an array of numbers"
        )
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{name} is of type {type(values).__name__} and no array of numbers ({error}); "
            "it is a tensor, or an array of numbers"
        ) from error


def checked_targets(values: object, present: Tensor, ids: tuple[str, ...]) -> Tensor:
    """Targets (N,), int64, checked to be among the options that are there.

    Raises:
        ConfigError: another shape or type.
        DataError: a target that is none of its row's options.
    """
    targets = tensor_of("targets", values)
    num_examples, num_options = present.shape
    if targets.shape != (num_examples,) or targets.is_floating_point() or targets.dtype == torch.bool:
        raise ConfigError(
            f"targets is {targets.dtype} of shape {tuple(targets.shape)}; "
            f"it must be integers of shape ({num_examples},)"
        )
    targets = targets.detach().to(device="cpu", dtype=torch.int64)
    inside = (targets >= 0) & (targets < num_options)
    valid = inside & present.gather(1, targets.clamp(0, num_options - 1)[:, None])[:, 0]
    if not bool(valid.all()):
        row = int((~valid).nonzero()[0])
        raise DataError(
            f"the target of example {ids[row]!r} (row {row}) is {int(targets[row])}, which is none "
            f"of its {int(present[row].sum())} options (absent options have log-probability -inf); "
            "correct the target or the options"
        )
    return targets


def checked_probs(values: object, present: Tensor) -> Tensor:
    """Soft labels (N, C), float64, checked to be probabilities of the options that are there.

    Raises:
        ConfigError: another shape.
        DataError: a row that is no distribution.
    """
    probs = tensor_of("target_probs", values).detach().to(device="cpu", dtype=torch.float64)
    if probs.shape != present.shape:
        raise ConfigError(
            f"target_probs has shape {tuple(probs.shape)}; it must be (examples, options), "
            f"here {tuple(present.shape)}"
        )
    sums = probs.masked_fill(~present, 0.0).sum(dim=-1)
    wrong = ~((sums - 1).abs() <= ROW_SUM_TOLERANCE) | (probs < 0).any(dim=-1) | probs.isnan().any(dim=-1)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise DataError(
            f"the soft labels of row {row} are {[round(p, 6) for p in probs[row].tolist()]}; "
            f"give probabilities of its {int(present[row].sum())} options, which sum to 1"
        )
    return probs.masked_fill(~present, 0.0)
