"""Flags of a verb that can run over the workers of a cluster."""

from __future__ import annotations

import argparse

from ...distributed.cluster import ENGINES, check_engine
from ...errors import ConfigError
from ..common import Arguments, count


def add_worker_flags(group: argparse._ActionsContainer, *, what: str) -> None:
    """--on and --workers."""
    group.add_argument(
        "--on",
        choices=ENGINES,
        help=f"{what} on the workers of a Ray cluster: that of RAY_ADDRESS, or this machine "
        "(default: in this process)",
    )
    group.add_argument(
        "--workers",
        type=count,
        metavar="N",
        help="with --on (default: one for each GPU of the cluster, or for each node without any)",
    )


def check_worker_flags(args: Arguments) -> None:
    """Refuse flags that contradict each other.

    Raises:
        ConfigError: --workers or --device that does not fit --on.
        MissingExtraError: the engine is not installed.
    """
    if args.workers is not None and args.on is None:
        raise ConfigError(f"--workers {args.workers} without --on; give --on ray as well")
    check_engine(args.on, args.workers)
    if args.on is not None and args.device != "auto":
        raise ConfigError(f"--device {args.device} beside --on {args.on}, which gives workers their devices")
