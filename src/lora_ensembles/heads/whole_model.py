"""A stacked model as a Hugging Face model of the base's own class: B rows outside, M * B rows inside.

Shapes: M members, B rows.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from torch import Tensor
from transformers import PreTrainedModel

from ..errors import ConfigError
from ..passes.stacked_model import StackedModel
from ..stack.lora import fold_members

# The view, the base's own forward, and the arguments of a pass by name -> its outputs.
Run = Callable[[Any, Callable[..., Any], dict[str, Any]], Any]
Extra = Callable[
    [type[Any]], dict[str, Any]
]  # what a view's class has beside its forward, of the base's class


def nothing_more(_base_class: type[Any]) -> dict[str, Any]:
    """No further attributes of a view's class."""
    return {}


def view_as_model(
    model: StackedModel, run: Run, *, members: slice = slice(None), extra: Extra = nothing_more
) -> Any:
    """A model of the base's class that shares the base and the stack, and whose forward is `run`.

    Nothing is copied: what is trained, selected or added later is seen by it. It holds the stacked model as
    `ensemble`, and the members that it asks as `ensemble_members`.
    """
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
def _class_on(base_class: type[Any], run: Run, extra: Extra) -> type[Any]:
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
        given = {**dict(zip(names[: len(args)], args, strict=True)), **kwargs}
        return run(self, functools.partial(base_forward, self), given)

    attributes = {
        "forward": forward,
        "save_pretrained": _refuse_to_save,
        "__doc__": f"An ensemble on a {base_class.__name__}.",
        "__module__": __name__,
        **extra(base_class),
    }
    # Under the base's name, by which pipelines know what a model can do.
    return type(base_class.__name__, (base_class,), attributes)


def for_members(value: Any, rows: int, members: int) -> Any:
    """A tensor of B rows repeated for the members, member-major; anything else as it is."""
    if isinstance(value, Mapping):  # one mask for each kind of attention layer
        return {name: for_members(one, rows, members) for name, one in value.items()}
    if isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == rows:
        return fold_members(value.expand(members, *value.shape)).contiguous()
    return value


@functools.wraps(PreTrainedModel.save_pretrained)
def _refuse_to_save(self: Any, *_arguments: Any, **_options: Any) -> NoReturn:
    raise ConfigError(
        "this model is a view of an ensemble; save that one: model.ensemble.save_pretrained(path). A Trainer would train the members "
        "jointly, by the loss of their mean: set its save_strategy to 'no', or train each by its own loss with lora_ensembles.train"
    )
