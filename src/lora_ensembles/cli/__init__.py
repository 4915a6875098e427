"""The command line: one thin module a verb, each a few calls of the library that a Python program could make as well.

Nothing heavy is imported before a verb runs, so that help and mistakes answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from ..errors import ConfigError, LoraEnsemblesError, unknown_name
from . import demo, evaluate, generate, plan, predict, report, study, tasks, train
from .common import Arguments, Parser, flags_of

VERBS = {
    "demo": demo,
    "tasks": tasks,
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "generate": generate,
    "study": study,
    "report": report,
    "plan": plan,
}
OK, MISTAKE, INTERRUPTED, PIPE_CLOSED = 0, 2, 130, 141

EXAMPLES = """examples:
  lora-ensembles demo --out runs/demo
  lora-ensembles train --task world-cqa --out runs/cqa
  lora-ensembles evaluate runs/cqa
  lora-ensembles predict runs/cqa --in questions.jsonl --out answers.jsonl
  lora-ensembles generate runs/cqa --prompt 'Otters live in'

exit codes: 0 done, 2 a mistake in the call or its data (one line on standard error), 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. Errors that are not the user's own keep their traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # a terminal that cannot show a character gets its escape, not a traceback
    summary = None
    try:
        with contextlib.suppress(SystemExit):  # argparse exits after --help and --version, and only then
            summary = _run(list(sys.argv[1:] if argv is None else argv))
        if summary is not None:
            print(json.dumps(summary))
        sys.stdout.flush()
    except LoraEnsemblesError as error:
        print(f"lora-ensembles: error: {' '.join(str(error).split())}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("lora-ensembles: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`| head`). What is still buffered would fail again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return OK


def _run(argv: list[str]) -> dict[str, Any] | None:
    parser, verbs = _parsers()
    verb = argv[0] if argv else ""
    if verb.startswith("-"):
        parser.parse_args(argv)
    if verb not in verbs:
        raise ConfigError(
            unknown_name("verb", verb, VERBS) if verb else f"a verb is needed: {', '.join(VERBS)}; try --help"
        )
    _check_flags(verbs[verb], argv[1:])
    expand = getattr(VERBS[verb], "expand", None)
    argv = expand(verbs[verb], argv) if expand else argv
    args = Arguments()
    parser.parse_args(argv, namespace=args)
    summary: dict[str, Any] = VERBS[verb].run(args)
    return summary if args.json else None


def _parsers() -> tuple[Parser, dict[str, Parser]]:
    # No abbreviations: in a script they would break on the day another flag begins alike.
    style: dict[str, Any] = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = Parser(
        "lora-ensembles",
        description="Fine-tune a language model into an ensemble of LoRA adapters.",
        epilog=EXAMPLES,
        **style,
    )
    parser.add_argument("--version", action="version", version=version("lora-ensembles"))
    subparsers = parser.add_subparsers(metavar="VERB", dest="verb", required=True, parser_class=Parser)
    verbs = {}
    for name, module in VERBS.items():
        verbs[name] = subparsers.add_parser(
            name, help=module.SUMMARY, description=module.__doc__, epilog=module.EXAMPLES, **style
        )
        module.add_arguments(verbs[name])
        verbs[name].add_argument(
            "--json", action="store_true", help="end standard output with one line that is a JSON object"
        )
    return parser, verbs


def _check_flags(parser: Parser, argv: Sequence[str]) -> None:
    for token in argv:
        name = token.partition("=")[0]
        if token == "--":
            return
        if name.startswith("--") and name not in flags_of(parser):
            near = difflib.get_close_matches(name, flags_of(parser), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(
                f"{parser.prog.split()[-1]}: unknown flag {name!r}; {hint}--help lists them all"
            )
