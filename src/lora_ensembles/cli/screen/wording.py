"""The library's errors in the words of the command line: flags for fields, and the file that gave a flag its
value.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import LoraEnsemblesError
from ...training.signals import Interrupted
from ..common import Parser, flags_of

# Flags of other programs, and what says the same here.
HINTS = {
    "--lr": "--learning-rate",
    "--model": "--base",
    "--model-name": "--base",
    "--model-name-or-path": "--base",
    "--output": "--out",
    "--output-dir": "--out",
    "--output-file": "--out",
    "--input": "--in",
    "--input-file": "--in",
    "--batch": "--batch-size",
    "--batch-size": "--max-rows",
    "--per-device-train-batch-size": "--batch-size",
    "--num-epochs": "--epochs",
    "--num-train-epochs": "--epochs",
    "--num-members": "--members",
    "--ensemble-size": "--members",
    "--lora-r": "--rank",
    "--lora-rank": "--rank",
    "--lora-alpha": "--alpha",
    "--weight-decay": "--weight-decay-a or --weight-decay-b",
    "--beta": "--kl-weight",
    "--warmup": "--warmup-steps",
    "--dataset": "--task, or your own file by --train",
    "--train-file": "--train",
    "--validation-file": "--validation",
    "--text": "--question-column",
    "--max-tokens": "--max-new-tokens",
    "--beams": "--num-beams",
}
NO_THRESHOLD = (
    "no answer is left out; each row has its probabilities, so keep those that are sure enough for you"
)
NOT_THERE = {
    "--threshold": NO_THRESHOLD,
    "--abstain": NO_THRESHOLD,
    "--members": (
        "it is the number of members in train; to take some members of a saved ensemble, write --only 0,1"
    ),
}
# What a Python program would do, and a command cannot.
PHRASES = {
    "pass check_base=False if they are meant to differ": "another one by --base",
    "pass check_base=False if it is the same model under another name": "another one by --base",
    "pass base= and tokenizer=": "give a folder or a name on the hub by --base",
    "in the column mapping": "by its flag",
    "batch_size (--max-rows)": "--max-rows",
}
OTHER_NAMES = {
    "num_members": "members",
    "shard": "shard_base",
}  # arguments of the library whose flag has another name
_QUOTED = r"""(?<!\w)'[^']*'(?!\w)|(?<!\w)"[^"]*"(?!\w)"""


@contextmanager
def in_words_of(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Context in which errors of the library are said in the flags of a verb."""
    try:
        yield
    except LoraEnsemblesError as error:
        raise type(error)(in_flags(str(error), parser)) from error
    except Interrupted as error:
        raise Interrupted(in_flags(str(error), parser), error.number) from error


def in_flags(message: str, parser: argparse.ArgumentParser) -> str:
    """An error with flags where the library names fields: `kl_weight=-0.1` becomes `--kl-weight -0.1`; quoted
    text stays as it is.

    A flag that --config gave is followed by its name in that file.

    Example:
        >>> parser = Parser("lora-ensembles train")
        >>> _ = parser.add_argument("--overlong"), parser.add_argument("--resume", action="store_true")
        >>> in_flags("cut its beginning with overlong='left', or pass resume=True", parser)
        'cut its beginning with --overlong left, or pass --resume'
    """
    for python, words in PHRASES.items():
        message = message.replace(python, words)
    flags = {action.dest: (name, action.nargs == 0) for name, action in flags_of(parser).items()}
    flags |= {python: flags[dest] for python, dest in OTHER_NAMES.items() if dest in flags}
    names = "|".join(sorted(map(re.escape, flags), key=len, reverse=True)) or "(?!)"
    value = r"'[^']*'|\[[^\]]*\]|\([^)]*\)|[^\s;,)]+"
    pattern = (
        rf"(?:\w+Config\()(?P<inner>{names})=(?P<inner_value>{value})\)"
        rf"|(?<![\w.\[?&/-])(?P<given>{names})=(?P<given_value>{value})"
        rf"|(?P<quoted>{_QUOTED})"
        rf"|(?<![\w./\[-])(?P<bare>{names})(?![\w./=\[-])"
    )

    def replaced(match: re.Match[str]) -> str:
        parts = match.groupdict()
        if parts["quoted"] is not None or (parts["bare"] is not None and "_" not in parts["bare"]):
            return match[0]
        name, switch = flags[parts["inner"] or parts["given"] or str(parts["bare"])]
        shown = parts["inner_value"] or parts["given_value"]
        return name if shown is None or switch else f"{name} {_as_typed(shown)}"

    return _with_origins(re.sub(pattern, replaced, message), parser)


def unknown_flag(parser: argparse.ArgumentParser, name: str) -> str:
    """The error for a flag that a verb does not have."""
    verb, flags = parser.prog.split()[-1], flags_of(parser)
    if name in NOT_THERE:
        return f"{verb}: unknown flag {name!r}; {NOT_THERE[name]}"
    hint = HINTS.get(name, "")
    if hint.split(",")[0].split()[0:1] and hint.split(",")[0].split()[0] in flags:
        return f"{verb}: unknown flag {name!r}; it is called {hint} here"
    near = difflib.get_close_matches(name, set(flags) - {"--help"}, n=1, cutoff=0.6)
    near_words = f"did you mean {near[0]!r}? " if near else ""
    return f"{verb}: unknown flag {name!r}; {near_words}--help lists them all"


def _as_typed(value: str) -> str:
    """A value of Python as a shell takes it: no quotes around a word, lists with commas."""
    if value[:1] in "[(" and value[-1:] in "])":
        return ",".join(part.strip().strip("'\"") for part in value[1:-1].split(",") if part.strip())
    plain = value.strip("'\"")
    return "none" if value == "None" else plain if re.fullmatch(r"[\w.+,-]+", plain) else value


def _with_origins(message: str, parser: argparse.ArgumentParser) -> str:
    origins = parser.origins if isinstance(parser, Parser) else {}
    named = [flag for flag in re.findall(r"--[a-z][\w-]*", message) if flag in origins]
    where = ", ".join(dict.fromkeys(origins[flag] for flag in named))
    return f"{message} ({where})" if where else message
