"""The time of the parts of a training step, from torch's profiler.

Modules of the base and a few functions of the loop are marked; an operator counts for the innermost mark
around it. One of the backward pass counts for the mark of the forward operator that it belongs to, by
autograd's sequence numbers. The profiler slows small operators down, so the parts are shares of a profiled
step, given in milliseconds of one that was not profiled.
"""

from __future__ import annotations

import functools
import importlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from timing import interleaved
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function
from training_rows import Place, Profile, Setting, prepare

from lora_ensembles.stack.lora import StackedLoraLinear

MARK = "part: "
BACKWARD = "autograd::engine::evaluate_function"
STEP = "embedding"  # the mark that begins a pass
# Parts of the loop outside the base, by where they are; one that is not there (any more) is named in the
# record.
FUNCTIONS = {
    "lora_ensembles.training.orders.MemberOrders.batch": "data",
    "lora_ensembles.heads.lm.table.TokenTable.gather": "data",
    "lora_ensembles.heads.lm.table.Batch.answer_tokens": "data",
    "lora_ensembles.heads.lm.losses._terms": "loss",
    "lora_ensembles.stack.buffers.AdapterStack.add_gradients": "gradients",
    "lora_ensembles.training.trainee.gradient_norms": "optimiser",
    "lora_ensembles.training.loop.clip_per_member": "optimiser",
    "lora_ensembles.training.optim.StackedAdamW.step": "optimiser",
    "lora_ensembles.stack.buffers.AdapterStack.refresh": "optimiser",
    "lora_ensembles.training.loop._check_finite": "logging",
    "lora_ensembles.training.reporting.Reporter.step": "logging",
}


def measure(name: str, described: Profile, *, windows: int, data: Path | None = None) -> dict[str, Any]:
    """Milliseconds a step of each part, forward and backward, of the library's own training loop."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    place = Place(device, torch.float32, small=False, windows=windows, data=data)
    setting = prepare(name, described, place, batch=described.batch[0], members=described.members)
    seconds = interleaved({"step": setting.stacked}, windows=windows, device=device)["step"]
    parts, missing = _profiled(setting)
    whole = sum(sum(times.values()) for times in parts.values())
    rows = {
        name: {way: 1000 * seconds * value / whole for way, value in times.items()}
        for name, times in sorted(parts.items(), key=lambda item: -sum(item[1].values()))
    }
    return {
        "id": "breakdown",
        "profile": name,
        "task": setting.task,
        "members": described.members,
        "batch": described.batch[0],
        "milliseconds_a_step": 1000 * seconds,
        "parts": rows,
        "not_found": missing,
    }


def _profiled(setting: Setting) -> tuple[dict[str, dict[str, float]], list[str]]:
    with (
        _marked(setting.ensemble.base) as missing,
        profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler,
    ):
        setting.stacked()
    return attribute(list(profiler.events())), missing  # type: ignore[arg-type]


def attribute(events: list[Any]) -> dict[str, dict[str, float]]:
    """Microseconds of each part, forward and backward, from the second pass on; "between parts" is what no
    mark holds.
    """
    marks = sorted(event.time_range.start for event in events if event.name == MARK + STEP)
    begin = marks[1]
    counted = [event for event in events if event.time_range.start >= begin]
    part_of_sequence = {
        event.sequence_nr: _part(event)
        for event in events
        if event.sequence_nr >= 0 and _backward(event) is None and _part(event)
    }
    parts: dict[str, dict[str, float]] = defaultdict(lambda: {"forward": 0.0, "backward": 0.0})
    for event in counted:
        behind = _backward(event)
        part = _part(event) if behind is None else part_of_sequence.get(behind.sequence_nr) or _part(behind)
        if part is not None:
            parts[part]["forward" if behind is None else "backward"] += event.self_cpu_time_total
    marked = sum(sum(times.values()) for times in parts.values())
    ends = [event.time_range.end for event in counted]
    parts["between parts"]["forward"] = max(0.0, max(ends) - begin - marked)
    return dict(parts)


def _ancestors(event: Any) -> Iterator[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent


def _part(event: Any) -> str | None:
    return next((one.name.removeprefix(MARK) for one in _ancestors(event) if one.name.startswith(MARK)), None)


def _backward(event: Any) -> Any:
    return next((one for one in _ancestors(event) if one.name.startswith(BACKWARD)), None)


@contextmanager
def _marked(base: nn.Module) -> Iterator[list[str]]:
    """While modules and functions are marked; yields the names of functions that are not there."""
    with ExitStack() as stack:
        for module, part in _modules(base):
            for handle in _hook(module, part):
                stack.callback(handle.remove)
        missing = []
        for name, part in FUNCTIONS.items():
            owner, attribute_name = _find(name)
            if owner is None:
                missing.append(name)
            else:
                stack.enter_context(
                    mock.patch.object(owner, attribute_name, _recorded(getattr(owner, attribute_name), part))
                )
        yield missing


def _modules(base: nn.Module) -> Iterable[tuple[nn.Module, str]]:
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()  # type: ignore[operator]
    for name, module in base.named_modules():
        if module is embedding:
            yield module, STEP
        elif module is head:
            yield module, "head"
        elif isinstance(module, StackedLoraLinear):
            yield module, "LoRA"
        elif isinstance(module, nn.Linear):
            yield module, "base linears"
        elif name.endswith("self_attn"):
            yield module, "attention"
        elif name.rpartition(".")[0].endswith("layers") or name in ("model.norm", "model.rotary_emb"):
            yield module, "norms, activations, residuals"


def _hook(module: nn.Module, part: str) -> list[Any]:
    open_marks: list[Any] = []

    def enter(*_: Any) -> None:
        open_marks.append(record_function(MARK + part))
        open_marks[-1].__enter__()

    def leave(*_: Any) -> None:
        open_marks.pop().__exit__(None, None, None)

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]


def _find(name: str) -> tuple[Any, str]:
    """The module or class that holds a dotted name, and the name in it; None where there is none."""
    parts = name.split(".")
    owner: Any = importlib.import_module(".".join(parts[:2]))
    for part in parts[2:-1]:
        owner = getattr(owner, part, None)
    return (owner, parts[-1]) if hasattr(owner, parts[-1]) else (None, parts[-1])


def _recorded(function: Callable[..., Any], part: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with record_function(MARK + part):
            return function(*args, **kwargs)

    return run


def shown(record: dict[str, Any]) -> str:
    """The breakdown for a reader."""
    lines = [f"{'ms a step':<32} {'forward':>9} {'backward':>9} {'share':>7}"]
    for name, times in record["parts"].items():
        share = sum(times.values()) / record["milliseconds_a_step"]
        lines.append(f"{name:<32} {times['forward']:9.2f} {times['backward']:9.2f} {share:7.1%}")
    missing = [f"not found, so not a part of its own: {name}" for name in record["not_found"]]
    return "\n".join([*lines, f"{'whole step':<32} {record['milliseconds_a_step']:9.2f}", *missing])
