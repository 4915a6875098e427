"""The flag for a base over several GPUs, and a verb that runs in a process for each of them."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from ...errors import ConfigError
from ..common import Arguments
from ..screen.streams import send_nowhere

if TYPE_CHECKING:
    from ...distributed.ranks import Ranks


Result = TypeVar("Result")


def add_shard_flag(parser: argparse.ArgumentParser) -> None:
    """--shard-base."""
    group = parser.add_argument_group(
        "several GPUs",
        "torchrun --nproc-per-node N -m lora_ensembles train ... starts a process for each GPU, which loads "
        "the base and trains some of the members",
    )
    group.add_argument(
        "--shard-base",
        choices=("replicate", "fsdp", "tp"),
        help="replicate (the default) gives each GPU the whole base; the others spread a base that is too "
        "large for one GPU: fsdp cuts every weight over the GPUs and gathers it for a pass; tp has all GPUs "
        "compute each layer together, for all members",
    )


class Alone:
    """The only process of a verb, which is known before torch is imported."""

    def on_first(self, function: Callable[[], Result]) -> Result:
        """The result of `function`; see `Ranks.on_first`."""
        return function()


@contextlib.contextmanager
def in_ranks(args: Arguments) -> Iterator[Ranks | Alone]:
    """Context in which a verb runs as one of the processes that torchrun started, of which the first alone
    writes and speaks; where torchrun did not start several, as the only one.

    Raises:
        ConfigError: torchrun did not start it, or started no other; or --device names a device for all.
    """
    if args.shard_base is None and int(os.environ.get("WORLD_SIZE") or 1) > 1 and args.on is None:
        args.shard_base = "replicate"
    if args.shard_base is None:
        yield Alone()
        return
    from ...distributed.ranks import join_ranks, leave_ranks
    from ...embedded.sharded import check_shard

    if args.device != "auto":
        raise ConfigError(
            f"--device {args.device}: with several processes each takes the GPU of its number, "
            "or the CPU where there is none; leave it out"
        )
    check_shard(args.shard_base)
    ranks = join_ranks()
    if ranks.first:
        yield ranks
    else:
        send_nowhere(sys.stdout)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            yield ranks
    leave_ranks()  # not after an error, in which others may wait for this rank
