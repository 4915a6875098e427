"""A pass of a model, and the hooks by which it is given something at a module, or something is taken from it:
named context managers over PyTorch's hooks.

Shapes: B rows, T tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn

from ..stack.onednn import frozen_products

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Change = Callable[[Tensor], Tensor]
HIDDEN = "hidden_states"  # by which name some layers are given what enters them


class _Ended(Exception):
    """Ends a pass when all that was wanted of it is there."""


def one_pass(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """The output of a model's own forward, whose frozen products are done where they are fastest."""
    with frozen_products():
        return model(**inputs)


@contextmanager
def rewritten(
    module: nn.Module,
    *,
    before: Callable[[tuple[Any, ...], dict[str, Any]], Arguments] | None = None,
    after: Callable[[Any], Any] | None = None,
) -> Iterator[None]:
    """Context in which a module's arguments, by place and by name, go through `before`, and its result
    through `after`.
    """
    handles = []
    if before is not None:
        handles.append(
            module.register_forward_pre_hook(lambda _, args, named: before(args, named), with_kwargs=True)
        )
    if after is not None:
        handles.append(module.register_forward_hook(lambda _module, _given, result: after(result)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def changed(
    module: nn.Module, *, before: Change | None = None, after: Change | None = None
) -> Iterator[None]:
    """Context in which what enters a module goes through `before`, and what leaves it through `after`: its
    first tensor, the rest stays.
    """

    def enter(arguments: tuple[Any, ...], named: dict[str, Any]) -> Arguments:
        assert before is not None
        if arguments:
            return (before(arguments[0]), *arguments[1:]), named
        return arguments, named | {HIDDEN: before(named[HIDDEN])}

    def leave(result: Any) -> Any:
        assert after is not None
        return (after(result[0]), *result[1:]) if isinstance(result, tuple) else after(result)

    with rewritten(module, before=None if before is None else enter, after=None if after is None else leave):
        yield


def read_at(module: nn.Module, run: Callable[[], object], *, side: Literal["before", "after"]) -> Tensor:
    """The tensor that enters a module, or leaves it, in the pass that `run` begins; the pass ends there."""
    caught: list[Tensor] = []

    def end(value: Tensor) -> Tensor:
        caught.append(value)
        raise _Ended

    with changed(module, before=end if side == "before" else None, after=end if side == "after" else None):
        try:
            run()
        except _Ended:
            return caught[0]
    raise AssertionError(f"the pass did not run the {type(module).__name__} that was to be read")


@contextmanager
def replaced(module: nn.Module, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Context in which a module runs what `around` makes of its forward, for what no hook does: not to
    compute, or to compute twice.

    Replacements may stand in each other; each gives back what it found.
    """
    own_forward = vars(module).get("forward")
    forward: Callable[..., Any] = module.forward
    layer: Any = module
    layer.forward = around(forward)
    try:
        yield
    finally:
        if own_forward is None:
            del layer.forward
        else:
            layer.forward = own_forward
