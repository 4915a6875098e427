"""Ranks: processes that compute one thing together, and what they tell each other.

Nothing is pickled: what is no tensor travels as JSON, in a tensor of bytes.

Shapes: S ranks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .. import errors
from ..errors import CheckpointError, ConfigError, LoraEnsemblesError

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
START = "torchrun --nproc-per-node N -m lora_ensembles train ..."


@dataclass(frozen=True)
class Ranks:
    """S processes of which this is one. All of them must call each method, in the same order.

    Attributes:
        rank: the number of this one, from 0.
        size: S.
        device: where tensors must be for the ranks to exchange them.
        group: of torch.distributed; None: all of its processes, or no others where `size` is 1.

    Example:
        >>> ALONE.first, ALONE.gathered(torch.arange(2)).tolist(), ALONE.told({"step": 3})
        (True, [[0, 1]], {'step': 3})
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a constant
    group: Any = None

    @property
    def first(self) -> bool:
        """Whether this rank writes the files and speaks to the reader."""
        return self.rank == 0

    def gathered(self, tensor: Tensor) -> Tensor:
        """The tensors (S, ...) of all ranks, of one shape; on the device of `tensor`."""
        if self.size == 1:
            return tensor[None]
        sent = tensor.detach().to(self.device).contiguous()
        received = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(received, sent, group=self.group)
        return torch.stack(received).to(tensor.device)

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum of the ranks' tensors, of one shape; on the device of `tensor`."""
        if self.size == 1:
            return tensor
        total = tensor.detach().to(self.device).clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self.group)
        return total.to(tensor.device)

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        return int(self.gathered(torch.tensor(number)).max())

    def from_first(self, tensor: Tensor) -> Tensor:
        """The first rank's tensor; the others pass one of that shape and type, which is not read."""
        if self.size == 1:
            return tensor
        sent = tensor.detach().to(self.device).clone(memory_format=torch.contiguous_format)
        dist.broadcast(sent, src=self._first_of_world(), group=self.group)
        return sent.to(tensor.device)

    def told(self, value: Any) -> Any:
        """The first rank's value, of those that JSON knows; what the others pass is not read."""
        if self.size == 1:
            return value
        text = json.dumps(value).encode() if self.first else b""
        size = int(self.from_first(torch.tensor(len(text))))
        return json.loads(_text(self.from_first(_bytes(text.ljust(size)))))

    def told_by_each(self, value: Any) -> list[Any]:
        """The ranks' values, of those that JSON knows, in their order."""
        if self.size == 1:
            return [value]
        text = json.dumps(value).encode()
        size = self.largest(len(text))
        return [json.loads(_text(row)) for row in self.gathered(_bytes(text.ljust(size)))]

    def on_first(self, function: Callable[[], Any]) -> Any:
        """The result of `function`, called by the first rank alone, of those that JSON knows; an error of the
        library, or of the system, is raised by all ranks.

        The others wait for it, so that what it writes is there when they go on.
        """
        if self.size == 1:
            return function()
        outcome: dict[str, Any] = {}
        raised: BaseException | None = None
        if self.first:
            try:
                outcome = {"result": function()}
            except (LoraEnsemblesError, OSError) as error:
                raised, outcome = error, {"error": type(error).__name__, "message": str(error)}
        outcome = self.told(outcome)
        if raised is not None:
            raise raised
        if "error" in outcome:
            raise getattr(errors, outcome["error"], CheckpointError)(outcome["message"])
        return outcome["result"]

    def _first_of_world(self) -> int:
        return 0 if self.group is None else dist.get_global_rank(self.group, 0)


ALONE = Ranks()
"""The one process of a program that no other takes part in."""


def _bytes(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text or b" "), dtype=torch.uint8)


def _text(values: Tensor) -> str:
    return bytes(values.tolist()).decode()


def join_ranks() -> Ranks:
    """The ranks that torchrun started, with this process among them.

    A GPU is taken where there is one, by its number on the machine (LOCAL_RANK).

    Raises:
        ConfigError: torchrun did not start this process, or started no other; or the ranks do not find each
            other.
    """
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if missing and not is_joined():
        raise ConfigError(
            f"a base over several GPUs needs a process for each, and this one was not started by torchrun "
            f"({', '.join(missing)} not set); start it by `{START}`"
        )
    device = _own_device()
    if not is_joined():
        size = os.environ["WORLD_SIZE"]
        if size == "1":
            raise ConfigError(
                "a base over several GPUs needs a process for each, and WORLD_SIZE is 1: start 2 or more by "
                f"`{START}`, or load the base whole"
            )
        try:
            dist.init_process_group(
                BACKENDS.get(device.type), device_id=device if device.type == "cuda" else None
            )
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"rank {os.environ['RANK']} of {size} does not find the others: "
                f"{str(error).splitlines()[0]}; start all by `{START}`"
            ) from error
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def is_joined() -> bool:
    """Whether this process is one of several ranks already."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def leave_ranks() -> None:
    """Leave the ranks that `join_ranks` joined; nothing where there are none."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _own_device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device
