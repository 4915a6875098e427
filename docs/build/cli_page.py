"""The page of every flag, made from the command line's own parser."""

from __future__ import annotations

import argparse

from lora_ensembles.cli.program import parsers


def cli_page() -> str:
    """Markdown: a section for each verb, with a table of flags for each of its groups."""
    program, verbs = parsers()
    lines = [
        "# Command-line flags",
        "",
        f"{program.description} The [guide to the command line](../command-line.md) "
        "says what each verb does.",
        "",
    ]
    for verb, parser in verbs.items():
        lines += [f"## {verb}", "", f"{(parser.description or '').strip()}", ""]
        for group in parser._action_groups:
            actions = [one for one in group._group_actions if one.help != argparse.SUPPRESS]
            if not actions:
                continue
            title = group.title or ""
            if title not in ("options", "positional arguments"):
                lines += [f"**{title[:1].upper()}{title[1:]}**", ""]
            if group.description:
                lines += [group.description, ""]
            lines += ["| flag | meaning |", "|---|---|"]
            lines += [f"| {_flag(action)} | {_cell(action.help or '')} |" for action in actions]
            lines += [""]
        examples = (parser.epilog or "").removeprefix("examples:").strip("\n")
        if examples:
            body = "\n".join(line.strip() for line in examples.splitlines())
            lines += ["```text", body, "```", ""]
    return "\n".join(lines)


def _flag(action: argparse.Action) -> str:
    names = action.option_strings or [str(action.metavar or action.dest)]
    value = ""
    if action.option_strings and action.nargs != 0:
        value = f" {{{','.join(map(str, action.choices))}}}" if action.choices else f" {_metavar(action)}"
    return ", ".join(f"`{name}{value}`" for name in names)


def _metavar(action: argparse.Action) -> str:
    metavar = action.metavar or action.dest.upper()
    return " ".join(metavar) if isinstance(metavar, tuple) else str(metavar)


def _cell(text: str) -> str:
    return " ".join(text.replace("%%", "%").split()).replace("|", "\\|").replace("<", "&lt;")
