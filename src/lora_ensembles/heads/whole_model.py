"""A stacked model as a Hugging Face model of the base's own class: B rows outside, M * B rows inside.

Shapes: M members, B rows.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from torch import Tensor
from transformers import PreTrainedModel

from ..errors import ConfigError
from ..passes.stacked_model import StackedModel
from ..stack.lora import fold_members

# The view, the base's own forward, and the arguments of a pass by name -> its outputs.
Run = Callable[[Any, Callable[..., Any], dict[str, Any]], Any]
# A base's class -> the attributes of a view's class beside its forward.
Extra = Callable[[type[Any]], dict[str, Any]]


def view_as_model(
    model: StackedModel, run: Run, *, members: slice = slice(None), extra: Extra | None = None
) -> Any:
    """A model of the base's class that shares the base and the stack, and whose forward is `run`.

    Nothing is copied: what is trained, selected or added later is seen by it. It holds the stacked model as
    `ensemble`, and the members that it asks as `ensemble_members`.

    Raises:
        ConfigError: each rank of the base holds some of the members.
    """
    model.stack.sharding.check_all_here("a Hugging Face model of the ensemble")
    base: Any = model.base
    base_class: Any = type(base)
    made: Any = object.__new__(_class_on(base_class, run, extra))
    made.__dict__ = dict(base.__dict__)
    for name, value in base.__dict__.items():
        if "_hooks" in name and isinstance(
            value, dict
        ):  # a hook on this model shall not run when the base is called
            made.__dict__[name] = copy.copy(value)
    made.__dict__["ensemble"], made.__dict__["ensemble_members"] = model, members
    return made


@functools.cache
def _class_on(base_class: type[Any], run: Run, extra: Extra | None) -> type[Any]:
    """The subclass of a base's class whose rows are an ensemble's."""
    base_forward = base_class.forward
    names = [
        name
        for name, parameter in inspect.signature(base_forward).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ][1:]  # without self

    @functools.wraps(base_forward)  # `generate` reads the names of forward's parameters
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Not Signature.bind, and not `|`: torch.compile of torch 2.6 cannot look into them.
        arguments = {**dict(zip(names[: len(args)], args, strict=True)), **kwargs}
        return run(self, functools.partial(base_forward, self), arguments)

    attributes = {
        "forward": forward,
        "save_pretrained": _refuse_to_save,
        "__doc__": f"An ensemble on a {base_class.__name__}.",
        "__module__": __name__,
        **(extra(base_class) if extra else {}),
    }
    # Under the base's name, by which pipelines know what a model can do.
    return type(base_class.__name__, (base_class,), attributes)


def mean_log_probs(member_log_probs: Tensor) -> Tensor:
    """The log of the members' mean probability: (M, ...) to (...). Source: Eq. 2 of arXiv:2310.00035.

    Example:
        >>> import torch
        >>> mean_log_probs(torch.tensor([[0.9, 0.1], [0.3, 0.7]]).log()).exp()
        tensor([0.6000, 0.4000])
    """
    if (
        member_log_probs.shape[0] == 1
    ):  # exact: a member alone is not rounded by a detour through its exponentials
        return member_log_probs[0]
    return member_log_probs.logsumexp(dim=0) - math.log(member_log_probs.shape[0])


def rows_of(given: Mapping[str, Any]) -> Tensor:
    """The rows of a pass, of its arguments by name: `input_ids` (B, ...), or else `inputs_embeds` (B, ...,
    D).

    Raises:
        ConfigError: there are none.
    """
    for name in ("input_ids", "inputs_embeds"):
        rows: Tensor | None = given.get(name)
        if rows is not None:
            return rows
    raise ConfigError(
        "the ensemble was called without rows; pass input_ids (B, T) or inputs_embeds (B, T, D)"
    )


def for_members(value: Any, rows: int, members: int) -> Any:
    """A tensor of B rows repeated for the members, member-major; anything else as it is."""
    if isinstance(value, Mapping):  # one mask for each kind of attention layer
        return {name: for_members(mask, rows, members) for name, mask in value.items()}
    if isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == rows:
        return fold_members(value.expand(members, *value.shape)).contiguous()
    return value


@functools.wraps(PreTrainedModel.save_pretrained)
def _refuse_to_save(self: Any, *_arguments: Any, **_options: Any) -> NoReturn:
    raise ConfigError(
        "this model is a view of an ensemble; save that one: model.ensemble.save_pretrained(path). "
        "A Trainer would train the members jointly, by the loss of their mean: "
        "set its save_strategy to 'no', or train each by its own loss with lora_ensembles.train"
    )
