"""Flags about the members' heads, and the base that is loaded for them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...embedded.quantised import QUANTIZE, method_of, same_method
from ...errors import ConfigError
from ...stack.head_config import HEAD_KINDS, HeadConfig
from ..common import Arguments, count, load_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ...data.formats import Row
    from ...ensemble import LoraEnsemble


def add_head_flags(
    parser: argparse.ArgumentParser,
    what: str = "what members say about an example; see docs/heads.md",
    *,
    default: str | None = "causal-lm",
) -> None:
    """--head, --head-init, --max-length; `what` they are about; without a default, the head follows from the
    file.
    """
    group = parser.add_argument_group("head", what)
    group.add_argument(
        "--head",
        choices=HEAD_KINDS,
        default=default,
        help="the label's tokens (default, but for a file of texts and their classes), a class of each text, "
        "one option of several, or a score learnt from chosen and rejected texts",
    )
    group.add_argument(
        "--head-init",
        choices=("fresh", "base"),
        default="fresh",
        help="draw each member's head anew (default), or copy the base's trained one",
    )
    group.add_argument(
        "--max-length",
        type=count,
        metavar="N",
        help="most tokens of a text, or pair of texts (default: the base's window)",
    )


def check_head_flags(args: Arguments) -> None:
    """Refuse a setting of members' own heads for a causal language model, before anything is loaded.

    Raises:
        ConfigError: there is one.
    """
    if args.head == "causal-lm" and (args.head_init != "fresh" or args.max_length):
        flag = "--max-length" if args.max_length else "--head-init"
        raise ConfigError(
            f"{flag}: for members with heads of their own; choose one by --head, or leave it out"
        )


def head_config(args: Arguments) -> HeadConfig:
    """The head that the flags describe.

    Raises:
        ConfigError: as `check_head_flags`.
    """
    check_head_flags(args)
    return HeadConfig(args.head, init=args.head_init, max_length=args.max_length)


def load_base(
    args: Arguments, head: HeadConfig, labels: Sequence[str] | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base of a new ensemble, loaded as its head needs it and quantised as --quantize says.

    Raises:
        ConfigError: the checkpoint is quantised in another way.
    """
    kind, num_labels = str(head.kind), None
    if kind == "reward":
        kind, num_labels = "sequence-classification", 1
    elif kind == "sequence-classification" and head.init == "fresh":
        assert labels is not None  # a source for classification has them
        num_labels = len(labels)
    asked = None if args.quantize is None else QUANTIZE[args.quantize]
    base, tokenizer = load_model(
        args.base,
        dtype=args.dtype,
        device=args.device,
        head=kind,
        num_labels=num_labels,
        quantization=asked,
        shard=getattr(args, "shard_base", None),
    )
    if asked is not None and not same_method(base.config, asked):
        raise ConfigError(
            f"--quantize {args.quantize}: {args.base!r} is quantised by {method_of(base.config, None)} "
            "already, in another way; leave the flag out"
        )
    return base, tokenizer


def reward_text(row: Row) -> str:
    """The text of a row that a reward model scores: the column `text`, or `prompt` with `completion` behind
    it.

    Raises:
        DataError: a row without a text.
    """
    from ...data.cells import MISSING, find_value

    if row.problem is not None:
        raise row.error(row.problem)
    text, prompt, completion = (find_value(row.values, name) for name in ("text", "prompt", "completion"))
    parts = [text] if text is not MISSING else [prompt, "" if completion is MISSING else completion]
    if not all(isinstance(part, str) for part in parts):
        raise row.error("no text to score; needed is the column text, or prompt with completion behind it")
    return "".join(map(str, parts))


def reward_records(ensemble: LoraEnsemble, rows: Sequence[Row], args: Arguments) -> list[dict[str, Any]]:
    """Mean, spread and lower bound of each row's text.

    Raises:
        DataError: a row without a text.
    """
    from ...data.cells import row_id
    from ...heads import predict_rewards

    rewards = predict_rewards(ensemble, [reward_text(row) for row in rows], max_rows=args.max_rows)
    lower = rewards.lower_bound(args.k).tolist()
    return [
        {
            "id": row_id(row),
            "reward": rewards.mean[number].item(),
            "std": rewards.std[number].item(),
            "lower_bound": lower[number],
            "member_rewards": rewards.member_scores[:, number].tolist(),
        }
        for number, row in enumerate(rows)
    ]


def refuse_pairs_from(source: str) -> None:
    """Refuse pairs on standard input, which was read to see what it holds.

    Raises:
        ConfigError: as it says.
    """
    if source == "-":
        raise ConfigError(
            "--in -: pairs of chosen and rejected texts are read from a file; "
            "texts to score can come from standard input"
        )


def check_head_source(head: str, *, task: str | None, train: str | Path | None) -> None:
    """Refuse a named task for a head that it has no texts for.

    Raises:
        ConfigError: as it says.
    """
    if task is not None and train is None and head in ("sequence-classification", "reward"):
        needed = (
            "texts and their classes" if head == "sequence-classification" else "chosen and rejected texts"
        )
        raise ConfigError(
            f"--head {head}: --task {task} has questions with options; give your own {needed} by --train FILE"
        )
