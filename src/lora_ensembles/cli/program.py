"""The program behind `main`: the verbs, their flags, and every way in which one can end.

Nothing heavy is imported before a verb runs, so that help and mistakes answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from ..errors import ConfigError, LoraEnsemblesError, unknown_name
from ..training.signals import ending_raised, exit_code
from . import calibrate, demo, distill, evaluate, generate, plan, predict, report, serve, study, tasks, train
from .common import Arguments, Parser, flags_of
from .screen.quiet import hush
from .screen.streams import open_streams, report_failure, send_nowhere, system_error
from .screen.wording import in_words_of, unknown_flag

VERBS = {
    "demo": demo,
    "tasks": tasks,
    "train": train,
    "evaluate": evaluate,
    "calibrate": calibrate,
    "predict": predict,
    "generate": generate,
    "serve": serve,
    "distill": distill,
    "study": study,
    "report": report,
    "plan": plan,
}
OK, MISTAKE, PIPE_CLOSED = 0, 2, 141

EXAMPLES = """examples:
  lora-ensembles demo --out runs/demo
  lora-ensembles train --task world-cqa --out runs/cqa
  lora-ensembles evaluate runs/cqa
  lora-ensembles predict runs/cqa --in questions.jsonl --out answers.jsonl
  lora-ensembles generate runs/cqa --prompt 'Otters live in'

exit codes: 0 done, 2 a mistake in the call or its data (one line on standard error),\
 130 interrupted, 143 terminated"""


def run(argv: list[str]) -> int:
    """Run one verb; returns the exit code. Errors that are not the user's own keep their traceback.

    A file, folder, stream or disk that the system refuses is the user's, wherever it was met; so is text that
    is no Unicode.
    """
    as_json, label, code = "--json" in argv, "error: ", MISTAKE
    try:
        open_streams()
        with (
            ending_raised(),
            contextlib.suppress(SystemExit),
        ):  # argparse exits after --help and --version only
            args = parse(argv)
            as_json = args.json
            hush()
            with in_words_of(args.parser):
                summary = VERBS[args.verb].run(args)
            if as_json:
                print(json.dumps(summary))
        sys.stdout.flush()
    except LoraEnsemblesError as error:
        message = str(error)
    except KeyboardInterrupt as error:
        message, label, code = str(error) or "interrupted", "", exit_code(error)
    except BrokenPipeError:  # the reader has gone (`| head`)
        send_nowhere(sys.stdout)
        return PIPE_CLOSED
    except OSError as error:
        message = system_error(error)
    except UnicodeError as error:
        message = f"text that is no valid Unicode: {error}; correct it, or save its file as UTF-8"
    else:
        return OK
    report_failure(message, label=label, as_json=as_json)
    return code


def parse(argv: list[str]) -> Arguments:
    """The values of a call's flags, with those of a --config file; `verb` names the module that runs it.

    Raises:
        ConfigError: an unknown verb or flag, or a value that cannot be.
    """
    parser, verbs = parsers()
    verb = argv[0] if argv else ""
    if verb.startswith("-"):
        parser.parse_args(argv)
    if verb not in verbs:
        raise ConfigError(
            unknown_name("verb", verb, VERBS) if verb else f"a verb is needed: {', '.join(VERBS)}; try --help"
        )
    with in_words_of(verbs[verb]):
        _check_flags(verbs[verb], argv[1:])
        expand = getattr(VERBS[verb], "expand", None)
        argv = expand(verbs[verb], argv) if expand else argv
        args = parser.parse_args(argv, namespace=Arguments())
    args.parser = verbs[verb]
    return args


def parsers() -> tuple[Parser, dict[str, Parser]]:
    """The program's parser, and that of each verb by its name."""
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
            raise ConfigError(unknown_flag(parser, name))
