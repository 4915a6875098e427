"""Flags of a plan over several GPUs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ...errors import ConfigError
from ..common import Arguments, above_zero, count

if TYPE_CHECKING:
    from ...planning.split import Gpus

GB = 1e9
ALONE = ("workers", "nodes", "interconnect", "network", "price")  # flags that say nothing without --gpus


def add_gpu_flags(parser: argparse.ArgumentParser) -> None:
    """--gpus, and what it is given with."""
    group = parser.add_argument_group("over several GPUs")
    group.add_argument(
        "--gpus", type=count, metavar="N", help="compare the splits over N GPUs in all, of --gpu-memory each"
    )
    group.add_argument(
        "--workers",
        type=count,
        metavar="N",
        help="slices of the members, as in `train --workers` (default: one for each GPU)",
    )
    group.add_argument("--nodes", type=count, metavar="K", help="with as many GPUs each (default: 1)")
    group.add_argument(
        "--interconnect",
        type=above_zero,
        metavar="GB/s",
        help="what a GPU receives from those of its node (default: 450, NVLink of an H100, one direction)",
    )
    group.add_argument(
        "--network",
        type=above_zero,
        metavar="GB/s",
        help="what a GPU receives from other nodes (default: 50, a card of 400 Gbit/s for each GPU)",
    )
    group.add_argument(
        "--price", type=above_zero, metavar="X", help="of a GPU and hour, in any currency, for the cost"
    )


def gpus_of(args: Arguments) -> Gpus | None:
    """The GPUs that the flags describe; None without --gpus.

    Raises:
        ConfigError: a flag that needs another, or GPUs that the nodes do not share evenly.
    """
    if args.gpus is None:
        given = [name for name in ALONE if getattr(args, name) is not None]
        if given:
            raise ConfigError(f"--{given[0]} without --gpus; give --gpus N, the number of GPUs in all")
        return None
    from ...planning.communication import BETWEEN, WITHIN, Links
    from ...planning.split import Gpus

    if args.memory is None:
        raise ConfigError(f"--gpus {args.gpus} without --gpu-memory; give the memory of each, 80 for example")
    links = Links(
        args.gpus,
        nodes=args.nodes or 1,
        within=WITHIN if args.interconnect is None else args.interconnect * GB,
        between=BETWEEN if args.network is None else args.network * GB,
    )
    return Gpus(links, memory=args.memory * GB, workers=args.workers)
