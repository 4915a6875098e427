"""Write to a prompt, or to the prompts of a file, and show which tokens the members do not agree about."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .common import (
    NOT_GIVEN,
    Arguments,
    add_ensemble_flags,
    count,
    load_ensemble,
    number,
    read_standard_input,
    say,
    some_text,
    whole,
    whole_text,
)
from .screen.outputs import check_output, open_output

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from ..data import Completion
    from ..ensemble import LoraEnsemble
    from ..generation.text import GeneratedText
    from ..generation.uncertainty import TokenUncertainty

SUMMARY = "write text, with the uncertainty of every token"
EXAMPLES = """examples:
  lora-ensembles generate runs/mine --prompt 'Otters live in'
  lora-ensembles generate runs/mine --prompt 'Where do otters live?' --chat --max-new-tokens 200
  lora-ensembles generate runs/mine --prompt 'Once' --do-sample --temperature 0.7 --top-p 0.9\
 --num-return-sequences 3
  lora-ensembles generate runs/mine --prompt 'Once' --num-beams 4 --json
  lora-ensembles generate runs/mine --in prompts.jsonl --out texts.jsonl"""

# Fields of transformers' GenerationConfig: the type of the value (None: a switch) and what it does.
FIELDS: dict[str, tuple[Callable[[str], Any] | None, str]] = {
    "max_new_tokens": (count, "most tokens to write (default: 64)"),
    "min_new_tokens": (count, "fewest tokens to write"),
    "do_sample": (None, "draw tokens from the ensemble's probabilities (default: take the most probable)"),
    "temperature": (number, "divides the log-probabilities before drawing; below 1 is more cautious"),
    "top_k": (whole, "draw among the K most probable tokens"),
    "top_p": (number, "draw among the most probable tokens that together have probability P"),
    "min_p": (number, "draw among tokens with at least P times the highest probability"),
    "typical_p": (number, "draw among locally typical tokens of together probability P"),
    "repetition_penalty": (number, "above 1: tokens that were there already become less probable"),
    "no_repeat_ngram_size": (count, "no run of N tokens comes twice"),
    "num_beams": (count, "beam search with N beams"),
    "length_penalty": (number, "of beam search: above 0 prefers longer texts"),
    "early_stopping": (None, "beam search stops as soon as there are as many finished texts as beams"),
    "num_return_sequences": (count, "texts a prompt"),
    "prompt_lookup_num_tokens": (
        count,
        "guess N tokens at a time by looking them up in the prompt; the same text, faster",
    ),
    "cache_implementation": (str, "kind of key-value cache, such as static"),
}
SAMPLING_ONLY = ("temperature", "top_k", "top_p", "min_p", "typical_p")
BEAMS_ONLY = ("length_penalty", "early_stopping")

# Shades of mutual information in nats, each from its bound on, as 256-colour backgrounds that also differ in
# lightness.
SHADES = ((0.02, 230), (0.1, 222), (0.3, 214), (0.6, 203))
BLACK_ON, RESET = "\x1b[38;5;16;48;5;{}m", "\x1b[0m"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_ensemble_flags(parser)
    data = parser.add_argument_group("prompts")
    data.add_argument(
        "--prompt",
        type=whole_text,
        metavar="TEXT",
        help="what to write after, taken as it is; in bash, $'...' can hold line breaks as \\n",
    )
    data.add_argument(
        "--chat",
        action="store_true",
        help="send --prompt as a user's message through the tokenizer's chat template",
    )
    data.add_argument(
        "--in",
        dest="source",
        metavar="FILE",
        help=".jsonl or .csv with the column prompt or messages, hub:owner/name:split, or '-'",
    )
    data.add_argument(
        "--out",
        default="-",
        metavar="FILE",
        help="with --in: where the .jsonl goes (default: standard output)",
    )
    data.add_argument("--overwrite", action="store_true", help="replace --out where it exists")
    decoding = parser.add_argument_group("decoding", "fields of transformers' GenerationConfig")
    for name, (kind, meaning) in FIELDS.items():
        flag, help = f"--{name.replace('_', '-')}", meaning.replace("%", "%%")
        if kind is None:
            decoding.add_argument(flag, action="store_true", default=NOT_GIVEN, help=help)
        else:
            metavar = "X" if kind is number else "NAME" if kind is str else "N"
            decoding.add_argument(flag, type=kind, default=NOT_GIVEN, metavar=metavar, help=help)
    decoding.add_argument(
        "--stop",
        type=some_text,
        action="append",
        default=[],
        metavar="TEXT",
        help="end a text behind this; may be given several times",
    )
    decoding.add_argument("--seed", type=whole, default=0, metavar="N", help="of --do-sample (default: 0)")
    shown = parser.add_argument_group("display")
    shown.add_argument("--no-stream", action="store_true", help="show the text when it is finished")
    shown.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="auto: on a terminal, unless NO_COLOR is set",
    )


def run(args: Arguments) -> dict[str, Any]:
    """Read the prompts, write the texts; returns everything about them."""
    begin = time.monotonic()
    config = _config(args)
    _check(args, config)
    ensemble = load_ensemble(args)
    if args.source is None:
        texts = _show(ensemble, args, config)
        records = [text.to_dict() | {"prompt": args.prompt} for text in texts]
    else:
        records = _write(ensemble, args, config)
    seconds = round(time.monotonic() - begin, 1)
    tokens = sum(len(record["tokens"]) for record in records)
    say(f"{len(records)} texts, {tokens} tokens by {ensemble.num_members} members in {seconds} s")
    summary = {
        "members": ensemble.num_members,
        "out": args.out,
        "count": len(records),
        "num_tokens": tokens,
        "seconds": seconds,
    }
    return summary if args.out != "-" else {**summary, "texts": records}


def _config(args: Arguments) -> GenerationConfig:
    settings = args.given(FIELDS)
    for names, needed in ((SAMPLING_ONLY, "do_sample"), (BEAMS_ONLY, "num_beams")):
        useless = [f"--{name.replace('_', '-')}" for name in names if name in settings]
        if useless and needed not in settings:
            raise ConfigError(
                f"{', '.join(useless)}: without --{needed.replace('_', '-')} it changes nothing; "
                "add that, or leave it out"
            )
    from transformers import GenerationConfig

    from ..generation.text import DEFAULT_NEW_TOKENS

    try:
        return GenerationConfig(
            **{"max_new_tokens": DEFAULT_NEW_TOKENS}
            | settings
            | ({"stop_strings": args.stop} if args.stop else {})
        )
    except ValueError as error:
        raise ConfigError(f"these flags do not fit each other: {error}") from error


def _check(args: Arguments, config: GenerationConfig) -> None:
    if (args.prompt is None) == (args.source is None):
        raise ConfigError(
            "give --prompt TEXT for one text, or --in FILE for a file of prompts; one of the two"
        )
    if args.source is not None and args.chat:
        raise ConfigError("--chat is for --prompt; in a file, a chat is a row with the column 'messages'")
    if args.source is None and args.out != "-":
        raise ConfigError(
            "--out is for --in FILE; the text of --prompt goes to standard output, "
            "with everything about it by --json"
        )
    check_output(args, formats=("jsonl",))


def _batch_size(args: Arguments, config: GenerationConfig, members: int) -> int | None:
    each = members * max(config.num_beams or 1, config.num_return_sequences or 1)
    return None if args.max_rows is None else max(1, args.max_rows // each)


def _show(ensemble: LoraEnsemble, args: Arguments, config: GenerationConfig) -> list[GeneratedText]:
    from ..data import Message
    from ..generation.text import generate_text

    prompt = (Message("user", args.prompt),) if args.chat and args.prompt.strip() else args.prompt
    colour = args.color == "always" or (
        args.color == "auto"
        and sys.stdout.isatty()
        and "NO_COLOR" not in os.environ
        and os.environ.get("TERM") != "dumb"
    )
    single = (config.num_beams or 1) * (config.num_return_sequences or 1) == 1
    stream = single and not args.no_stream

    def on_token(text: str, split: TokenUncertainty) -> None:
        print(shaded(text, split.mutual_information.item()) if colour else text, end="", flush=True)

    texts = generate_text(ensemble, [prompt], config, seed=args.seed, on_token=on_token if stream else None)
    if stream:
        print()
    else:
        _print_texts(texts, colour=colour)
    for text in texts:
        if text.token_ids:
            say(_in_words(text))
    if colour:
        say(_legend())
    return texts


def _print_texts(texts: Sequence[GeneratedText], *, colour: bool) -> None:
    for place, text in enumerate(texts, start=1):
        shown = text.text
        if colour:
            shown = "".join(map(shaded, text.tokens, text.uncertainty.mutual_information.tolist()))
        print(shown if len(texts) == 1 else f"[{place}] {shown}")


def _in_words(text: GeneratedText) -> str:
    sums = text.uncertainty.summary()
    return (
        f"{len(text.token_ids)} tokens: log-probability {sums['log_prob']:.2f}, "
        f"entropy {sums['total_entropy']:.3f} nats a token, mutual information "
        f"{sums['mutual_information']:.3f} nats a token (largest {sums['largest_mutual_information']:.3f}), "
        f"agreement {100 * sums['agreement']:.0f} %"
    )


def shaded(text: str, mutual_information: float) -> str:
    """The text on a background for its mutual information (nats), none below the first bound; line ends stay
    plain.
    """
    shade = next((colour for bound, colour in reversed(SHADES) if mutual_information >= bound), None)
    words = text.rstrip("\n")
    return (
        text if shade is None or not words else f"{BLACK_ON.format(shade)}{words}{RESET}{text[len(words) :]}"
    )


def _legend() -> str:
    bounds = [bound for bound, _ in SHADES]
    ranges = [*(f"{low} to {high}" for low, high in itertools.pairwise(bounds)), f"{bounds[-1]} and more"]
    marks = "  ".join(shaded(f" {words} ", bound) for words, bound in zip(ranges, bounds, strict=True))
    return f"mutual information between token and member, nats: below {bounds[0]}  {marks}"


def _write(ensemble: LoraEnsemble, args: Arguments, config: GenerationConfig) -> list[dict[str, Any]]:
    from ..generation.text import ROWS_PER_BATCH, generate_text

    rows = _prompts(args)
    size = _batch_size(args, config, ensemble.num_members) or ROWS_PER_BATCH
    texts = generate_text(ensemble, [row.prompt for row in rows], config, seed=args.seed, batch_size=size)
    records = [_record(rows[text.prompt], text) for text in texts]
    with open_output(args.out, overwrite=args.overwrite) as stream:
        stream.writelines(f"{json.dumps(record)}\n" for record in records)
    return records


def _prompts(args: Arguments) -> tuple[Completion, ...]:
    from ..data import load_completions, read_completions

    if args.source == "-":
        return read_completions(read_standard_input(), labelled=False)
    return load_completions(args.source, labelled=False)


def _record(row: Completion, text: GeneratedText) -> dict[str, Any]:
    prompt = row.prompt if isinstance(row.prompt, str) else [vars(message) for message in row.prompt]
    return {"id": row.id, **text.to_dict(), "prompt": prompt} | (
        {} if row.completion is None else {"completion": row.completion}
    )
