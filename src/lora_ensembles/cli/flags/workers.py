"""Flags of a verb that can run over the workers of a cluster."""

from __future__ import annotations

import argparse
from pathlib import Path

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
    if args.on is not None and getattr(args, "shard_base", None) is not None:
        raise ConfigError(f"--shard-base {args.shard_base} beside --on {args.on}; give one of them")
    if args.on is not None and args.device != "auto":
        raise ConfigError(f"--device {args.device} beside --on {args.on}, which gives workers their devices")


def base_for_workers(name: str | None) -> str | None:
    """The name of a base in any folder that a worker may stand in: of a folder or a file its whole path."""
    from ...embedded import is_embedded
    from ...embedded.gguf import SMOLLM2

    if name is None or is_embedded(name) or name == SMOLLM2 or not Path(name).exists():
        return name
    return str(Path(name).absolute())
