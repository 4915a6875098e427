"""Serve ensembles over HTTP: decisions and text in the shape of OpenAI's API, classes and rewards in that of
vLLM's, all with uncertainty; see docs/serving.md.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..serve.extra import check_installed
from ..serve.settings import Batching, Guarantees, Limits, Settings, read_keys
from .common import (
    Arguments,
    above_zero,
    add_model_flags,
    add_rows_flag,
    count,
    load_ensemble,
    number,
    say,
    share,
    some_text,
)

if TYPE_CHECKING:
    from ..ensemble import LoraEnsemble

SUMMARY = "serve ensembles over HTTP"
EXAMPLES = """examples:
  lora-ensembles serve runs/decisions                              on http://127.0.0.1:8000
  lora-ensembles serve runs/decisions runs/tickets --port 9000     each under its folder's name
  lora-ensembles serve runs/tickets --host 0.0.0.0 --api-key-file keys.txt --risk 0.05"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "ensembles", metavar="DIR", nargs="+", type=Path, help="folders that `lora-ensembles train` wrote"
    )
    add_model_flags(parser, base=None)
    server = parser.add_argument_group("server")
    server.add_argument("--host", type=some_text, default="127.0.0.1", help="address (default: 127.0.0.1)")
    server.add_argument(
        "--port", type=port, default=8000, metavar="N", help="port; 0 takes a free one (default: 8000)"
    )
    server.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="keys that clients need, one a line; also from LORA_ENSEMBLES_API_KEYS, with commas between",
    )
    server.add_argument(
        "--allow-origin",
        dest="origins",
        action="append",
        default=[],
        type=some_text,
        metavar="URL",
        help="let pages of this origin call the server from a browser; may be given several times",
    )
    server.add_argument(
        "--log-prompts", action="store_true", help="put what was asked into the log of requests"
    )
    _add_limits(parser)
    _add_batching(parser)
    guarantees = parser.add_argument_group(
        "guarantees, where a request asks for none; after lora-ensembles calibrate"
    )
    guarantees.add_argument("--risk", type=share, metavar="X", help="as in lora-ensembles predict")
    guarantees.add_argument("--coverage", type=share, metavar="X", help="as in lora-ensembles predict")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group, usual = parser.add_argument_group("limits of a request"), Limits()
    group.add_argument(
        "--max-body-mb",
        type=above_zero,
        default=usual.body_bytes / 2**20,
        metavar="X",
        help="size of its body (default: %(default)g)",
    )
    for flag, default, meaning in (
        ("--max-questions", usual.questions, "questions, texts or documents"),
        ("--max-prompt-chars", usual.prompt_chars, "characters of one question with its state"),
        ("--max-new-tokens", usual.new_tokens, "tokens of a text that is written"),
        ("--max-waiting", usual.waiting, "requests that may wait; the next is turned away with 429"),
    ):
        group.add_argument(
            flag, type=count, default=default, metavar="N", help=f"{meaning} (default: {default})"
        )
    group.add_argument(
        "--timeout",
        type=above_zero,
        default=usual.seconds,
        metavar="S",
        help="seconds until an answer (default: %(default)g)",
    )


def _add_batching(parser: argparse.ArgumentParser) -> None:
    group, usual = parser.add_argument_group("batching"), Batching()
    group.add_argument(
        "--batch-questions",
        type=count,
        default=usual.questions,
        metavar="N",
        help="predicted together (default: %(default)s)",
    )
    group.add_argument(
        "--batch-wait-ms",
        type=number,
        default=1000 * usual.wait,
        metavar="X",
        help="milliseconds that a request waits for others (default: %(default)g)",
    )
    add_rows_flag(group)
    group.add_argument(
        "--cached-tokens",
        type=count,
        metavar="N",
        help="tokens of prompts and texts whose keys and values are kept (default: a tenth of the memory)",
    )


def port(text: str) -> int:
    """A port number."""
    value = int(text) if text.isdigit() and len(text) < 6 else -1
    if not 0 <= value < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; give a number from 0 to 65535")
    return value


def run(args: Arguments) -> dict[str, Any]:
    """Load, serve until a signal comes, and return the summary."""
    check_installed()
    settings, batching = _settings(args)
    names = _names(args.ensembles)
    from ..serve.catalogue import Catalogue
    from ..serve.completions.engines import CompletionEngines
    from ..serve.engine import Engine
    from ..serve.http.app import build_app
    from ..serve.http.reload import Reload
    from ..serve.http.server import listen, run as serve

    with listen(args.host, args.port) as listener:  # before the models are loaded, since it may be taken

        def load() -> Catalogue:
            return Catalogue({name: _loaded(args, path) for name, path in names.items()})

        catalogue, reload = load(), Reload(load)
        completions = CompletionEngines(catalogue, most=args.max_waiting, cached_tokens=args.cached_tokens)
        app = build_app(catalogue, Engine(batching, waiting=args.max_waiting), completions, settings, reload)
        for model in catalogue:
            if model.member is None:
                kept = f"; calibration: {model.calibration}" if model.calibration else ""
                writes = "completions" in model.tasks
                text = f"; batches of text: {completions.of(model).batching}" if writes else ""
                say(f"{model.name}: {model.ensemble.num_members} members{kept}{text}")
        host = f"[{args.host}]" if ":" in args.host else args.host  # of IPv6
        place = f"http://{host}:{listener.getsockname()[1]}"
        say(f"serving on {place}; Ctrl-C or SIGTERM ends it, SIGHUP reloads the folders")
        serve(app, listener, reload)
    say("all accepted requests were answered")
    return {"served": list(names), "address": place}


def _settings(args: Arguments) -> tuple[Settings, Batching]:
    limits = Limits(
        round(args.max_body_mb * 2**20),
        args.max_questions,
        args.max_prompt_chars,
        args.max_waiting,
        args.max_new_tokens,
        float(args.timeout),
    )
    settings = Settings(
        limits,
        Guarantees(args.risk, args.coverage),
        read_keys(args.api_key_file),
        tuple(args.origins),
        args.log_prompts,
    )
    return settings, Batching(args.batch_questions, args.batch_wait_ms / 1000, args.max_rows)


def _names(folders: list[Path]) -> dict[str, Path]:
    """Each folder by its own name.

    Raises:
        ConfigError: two have the same.
    """
    names: dict[str, Path] = {}
    for folder in folders:
        name = Path(os.path.abspath(folder)).name
        if name in names:
            raise ConfigError(
                f"{names[name]} and {folder} would both be served as {name!r}; rename one of them"
            )
        names[name] = folder
    return names


def _loaded(args: Arguments, folder: Path) -> LoraEnsemble:
    return load_ensemble(Arguments(**{**vars(args), "ensemble": folder, "members": None}))
