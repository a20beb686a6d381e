"""What commands share: exit codes, missing extras, sizes on the command line, results for a program."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import MissingExtraError
from .schema import MIB
from .storage import public_name

if TYPE_CHECKING:
    from .manifest import Manifest

EXIT_FINE, EXIT_BAD_DATA, EXIT_WRONG_CALL, EXIT_INTERRUPTED = 0, 1, 2, 130

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1024, "MIB": MIB, "GIB": 1024 * MIB}


# Commands whose actions are in several modules and packages, and what `softshard --help` says of them.
_GROUPS = {
    "maps": "make, import, join and check label maps",
    "subset": "choose parts of a data set, and measure what they are worth",
    "tags": "keywords of images, and weights of classes",
}


def actions_of(subparsers: argparse._SubParsersAction, command: str) -> argparse._SubParsersAction:
    """The actions of a command that several modules add to: whichever comes first makes it."""
    parser = subparsers.choices.get(command)
    if parser is None:
        parser = subparsers.add_parser(command, help=_GROUPS[command])
        parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    (actions,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return actions


@contextmanager
def needs_extra(feature: str, extra: str) -> Iterator[None]:
    """Around an import: a missing package becomes the error that names the pip command.

    Raises:
        MissingExtraError: a package is missing, other than softshard's own modules.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "softshard":  # a bug here, not a missing package
            raise
        raise MissingExtraError(feature, extra, error) from error


def byte_size(text: str) -> int:
    """`256MB`, `1GiB` or a number of bytes, for argparse."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B?)", text.strip().upper())
    if not match or match[2] not in _UNITS:
        raise argparse.ArgumentTypeError(f"expected a size such as 256MB or 1GiB, found {text!r}")
    return int(float(match[1]) * _UNITS[match[2]])


def add_max_bad(command: argparse._ActionsContainer, what: str) -> None:
    """The option --max-bad of a command that goes on without bad inputs of a kind."""
    command.add_argument(
        "--max-bad",
        type=float,
        default=0.001,
        metavar="SHARE",
        help=f"share of {what} that stops the run (default: 0.001; ten always may be, with 0 none)",
    )


def print_json(value: object) -> None:
    """A command's result for a program to read."""
    print(json.dumps(value, indent=1))


def print_result(args: argparse.Namespace, value: object, text: str) -> None:
    """What a command found: as JSON where --json asks for it, else as text."""
    if args.json:
        print_json(value)
    else:
        print(text)


def local_path(text: str) -> Path:
    """A path of this machine, for argparse."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"expected a local path, found {public_name(text)!r}; copy it to or from there"
        )
    return Path(text)


def print_data_set(made: Manifest, destination: str | Path) -> None:
    """A data set that a command wrote, for a program: where, and what is in it."""
    print_json(
        {
            "destination": public_name(str(destination)),
            "fingerprint": made.fingerprint,
            "samples": made.num_samples,
            "shards": len(made.shards),
            "bytes": made.num_bytes,
            "components": list(made.components),
        }
    )
