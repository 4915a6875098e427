"""Shared parts of the verbs: the parser, groups of flags, and how base, data and results are asked for and
shown.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from ..embedded.quantised import QUANTIZE
from ..errors import ConfigError
from ..studies.report.page import Table

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..ensemble import LoraEnsemble
    from ..prediction.completions import CompletionMetrics
    from ..prediction.evaluation import Metrics
    from ..prediction.metrics import MemberSpread

SHOWN = ("accuracy", "nll", "ece", "brier", "kl_from_targets", "ood_auroc")
SHOWN_OF_COMPLETIONS = ("nll_per_token", "perplexity")  # beside the nll, which is that of a whole answer
NOT_GIVEN = argparse.SUPPRESS  # a flag with this default is in the namespace only if it was given


class Arguments(argparse.Namespace):
    """The values of a verb's flags, and the parser that has them."""

    parser: argparse.ArgumentParser

    def given(self, names: Iterable[str]) -> dict[str, Any]:
        """The flags of these that were given."""
        return {name: vars(self)[name] for name in names if name in vars(self)}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are the library's own.

    `origins` says of a flag that --config gave under which name and in which file it stands.
    """

    origins: Mapping[str, str] = MappingProxyType({})

    def error(self, message: str) -> NoReturn:
        raise ConfigError(
            f"{self.prog.removeprefix('lora-ensembles').strip() or 'command line'}: {message}; "
            "--help shows what fits"
        )

    def print_help(self, file: Any = None) -> None:
        """The help on standard output; one that cannot be written is an error, which argparse passes over."""
        (file or sys.stdout).write(self.format_help())


def flags_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Every flag "--name" of a parser and its action."""
    return {name: action for name, action in parser._option_string_actions.items() if name.startswith("--")}


def words(text: str) -> list[str]:
    """Comma-separated words.

    Example:
        >>> words("q_proj, v_proj")
        ['q_proj', 'v_proj']
    """
    return [word.strip() for word in text.split(",") if word.strip()]


def whole_text(text: str) -> str:
    """A text of a flag that can be encoded: bytes that are no UTF-8 reach Python as halves of characters.

    Raises:
        argparse.ArgumentTypeError: it cannot.
    """
    from ..data.formats import half_character

    if half_character(text):
        shown = text.encode("ascii", "backslashreplace").decode()
        raise argparse.ArgumentTypeError(f"'{shown}' is not UTF-8; write it in UTF-8, or put it in a file")
    return text


def text_words(text: str) -> list[str]:
    """Comma-separated words that can be encoded.

    Raises:
        argparse.ArgumentTypeError: one cannot.
    """
    return words(whole_text(text))


def numbers(text: str) -> list[int]:
    """Comma-separated whole numbers."""
    if not words(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} holds no number; write whole numbers with commas between, such as 0,1"
        )
    return [whole(word) for word in words(text)]


def whole(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def count(text: str) -> int:
    """A whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return number


def number(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no finite number")
    return value


def above_zero(text: str) -> float:
    """A finite number above 0; a whole one as an int."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value if value % 1 else int(value)


def probability_below_one(text: str) -> float:
    """A probability that is not 1."""
    value = number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no probability below 1")
    return value


def share(text: str) -> float:
    """A number between 0 and 1."""
    value = number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return value


def some_text(text: str) -> str:
    """A text that is not empty."""
    if not text:
        raise argparse.ArgumentTypeError("an empty text; give one, or leave the flag out")
    return whole_text(text)


def model_name(text: str) -> str:
    """The name of a base."""
    if not text.strip():
        raise argparse.ArgumentTypeError(
            "an empty name; give 'embedded', 'smollm2', a folder, a GGUF file, or a name on the hub"
        )
    return text


def add_model_flags(parser: argparse.ArgumentParser, *, base: str | None) -> None:
    """--base, --dtype, --device."""
    group = parser.add_argument_group("model")
    meaning = "'embedded', 'smollm2', a folder, a GGUF file, or a name on the hub"
    group.add_argument(
        "--base",
        type=model_name,
        default=base,
        metavar="NAME",
        help=f"{meaning} (default: {base or 'the one it was trained on'})",
    )
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help=f"load the base so (default: as {'stored' if base else 'in training'})",
    )
    group.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto takes the GPU where there is one",
    )


def add_quantize_flag(parser: argparse._ActionsContainer, meaning: str) -> None:
    """--quantize."""
    parser.add_argument("--quantize", choices=tuple(QUANTIZE), help=f"{meaning} (default: as stored)")


def add_ensemble_flags(parser: argparse.ArgumentParser, *, needed: bool = True) -> None:
    """The saved ensemble, which of its members, and how it is loaded."""
    parser.add_argument(
        "ensemble",
        metavar="DIR",
        type=Path,
        nargs=None if needed else "?",
        help="folder that `lora-ensembles train` or save_pretrained wrote, or owner/name of one on the hub",
    )
    parser.add_argument(
        "--only", dest="members", type=numbers, metavar="0,1", help="only these members (default: all)"
    )
    add_rows_flag(parser)
    add_model_flags(parser, base=None)


def add_rows_flag(parser: argparse._ActionsContainer) -> None:
    """--max-rows."""
    parser.add_argument(
        "--max-rows",
        type=count,
        metavar="N",
        help="most rows (members * questions) at once; lower it when memory runs out",
    )


def add_order_flag(parser: argparse._ActionsContainer) -> None:
    """--order-passes."""
    parser.add_argument(
        "--order-passes",
        type=count,
        metavar="K",
        help="read the options of each question in K orders and average over them "
        "(default: 1, or as in lora-ensembles calibrate)",
    )


def load_model(
    name: str,
    *,
    dtype: str | None,
    device: str,
    revision: str | None = None,
    head: str = "causal-lm",
    num_labels: int | None = None,
    quantization: Mapping[str, Any] | None = None,
    shard: Any = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A base by name, on a device, and its tokenizer; `head` and what follows as in `load_base`."""
    from ..embedded import device_named, load_base, move

    place = device_named(device)
    base, tokenizer = load_base(
        name,
        revision=revision,
        dtype=dtype,
        head=head,
        num_labels=num_labels,
        quantization=quantization,
        shard=shard,
    )
    if shard is None:  # else each rank has its part where it belongs
        move(base, place)
    return base, tokenizer


def load_ensemble(args: Arguments) -> LoraEnsemble:
    """The ensemble that a verb's arguments name, on its base."""
    from ..ensemble import LoraEnsemble
    from ..storage.folder import base_source, read_ensemble

    saved = read_ensemble(args.ensemble, members=args.members)
    revision = None if args.base else saved.base_revision
    dtype = args.dtype or saved.dtype
    base, tokenizer = load_model(
        args.base or base_source(args.ensemble, saved),
        dtype=dtype,
        device=args.device,
        revision=revision,
        head=saved.base_kind,
        num_labels=saved.num_labels,
        quantization=None if args.base else saved.quantization,
    )
    return LoraEnsemble.from_pretrained(args.ensemble, base=base, tokenizer=tokenizer, members=args.members)


def read_standard_input() -> TextIO:
    """Standard input as UTF-8 without translated line ends: as files are read, whatever the terminal's own
    encoding is.

    Raises:
        ConfigError: it is closed.
    """
    if sys.stdin is None:
        raise ConfigError("--in -: standard input is closed; pipe the rows in, or name a file")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", newline="")
    return sys.stdin


def say(text: str) -> None:
    """A line for the reader, on standard error."""
    print(text, file=sys.stderr, flush=True)


def spread_to_dict(spread: dict[str, MemberSpread]) -> dict[str, Any]:
    """Single members' metrics: the mean by name, and the standard deviations under "std"."""
    return {
        **{name: metric.mean for name, metric in spread.items()},
        "std": {name: metric.std for name, metric in spread.items()},
    }


def metrics_table(
    spread: dict[str, MemberSpread],
    ensemble: Metrics | CompletionMetrics,
    *,
    intervals: dict[str, Any] | None = None,
    baseline: str | None = None,
) -> Table:
    """Single member (mean and spread) beside ensemble, or one pass of a baseline beside all of them.

    A column for each metric, and one for the number of rows that were measured.
    """
    names = [
        name
        for name in (*SHOWN, *SHOWN_OF_COMPLETIONS)
        if name in spread and getattr(ensemble, name, None) is not None
    ]
    rows = [
        (
            "one of them" if baseline else "single member",
            *(str(spread[name]) for name in names),
            str(ensemble.num_examples),
        ),
        (
            f"{baseline or 'ensemble'} of {ensemble.num_members}",
            *(f"{getattr(ensemble, name):.4f}" for name in names),
            str(ensemble.num_examples),
        ),
    ]
    if intervals:
        rows.append(
            (
                "  95 % interval",
                *(
                    f"{intervals[name].low:.4f} to {intervals[name].high:.4f}"
                    for name in names
                    if name in intervals
                ),
            )
        )
    return Table(("", *(name.replace("_", " ") for name in names), "rows"), tuple(tuple(row) for row in rows))


def show_table(table: Table) -> None:
    """A table on standard output, in signs that it can show: an escape in place of one would shift the
    columns.
    """
    try:
        "±".encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        rows = tuple(tuple(cell.replace("±", "+/-") for cell in row) for row in table.rows)
        table = dataclasses.replace(table, rows=rows)
    print(table)


def some(examples: Sequence[Any], limit: int | None) -> Sequence[Any]:
    """A sample of at most `limit` examples; where they have classes, with each in its share."""
    from ..data.splits import sample

    return sample(examples, limit, seed=0)
