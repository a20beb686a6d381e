"""The command completion: a script that completes softshard's commands, options and files in bash, zsh and fish."""

from __future__ import annotations

import argparse
from functools import partial

from .cli_help import commands_of
from .cli_values import EXIT_FINE
from .errors import UsageError

SHELLS = ("bash", "zsh", "fish")
_FOLDERS = frozenset({"DATASET", "DIR", "DST", "SIDE", "FULL", "SUBSET"})
_FILES = frozenset(
    {
        "FILE",
        "SRC",
        "TREE",
        "LIST",
        "FILE|LIST",
        "CHECKPOINT",
        "CHECKPOINT|timm:NAME",
        "IMAGE|DATASET",
        "JSON",
    }
)


def add_completion(subparsers: argparse._SubParsersAction, parser: argparse.ArgumentParser) -> None:
    """Register completion; `parser` is the one with all commands, when the command runs."""
    command = subparsers.add_parser(
        "completion",
        help="print a script that completes commands, options and files in a shell",
        description="Print a script for the shell. It holds all commands and options: make it again after an update.",
    )
    command.add_argument("shell", choices=SHELLS, metavar="SHELL", help="bash, zsh or fish")
    command.set_defaults(run=partial(_run_completion, parser))


def _run_completion(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    import shtab

    if args.shell not in shtab.SUPPORTED_SHELLS:  # older ones know no fish
        raise UsageError(
            f"completion: expected a shtab that knows {args.shell}, found one for {', '.join(shtab.SUPPORTED_SHELLS)}. "
            "Run: pip install --upgrade shtab"
        )
    for _, command in commands_of(parser):
        for action in command._actions:
            if action.choices is None and isinstance(action.metavar, str):
                kind = (
                    shtab.DIRECTORY
                    if action.metavar in _FOLDERS
                    else shtab.FILE
                    if action.metavar in _FILES
                    else None
                )
                if kind:
                    action.complete = kind  # type: ignore[attr-defined]
    print(shtab.complete(parser, shell=args.shell))
    return EXIT_FINE
