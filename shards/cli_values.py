"""What commands share: exit codes, sizes on the command line, results for a program."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from .schema import MIB
from .storage import public_name

EXIT_FINE, EXIT_BAD_DATA, EXIT_WRONG_CALL, EXIT_INTERRUPTED = 0, 1, 2, 130

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1024, "MIB": MIB, "GIB": 1024 * MIB}


def byte_size(text: str) -> int:
    """`256MB`, `1GiB` or a number of bytes, for argparse."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B?)", text.strip().upper())
    if not match or match[2] not in _UNITS:
        raise argparse.ArgumentTypeError(f"expected a size such as 256MB or 1GiB, found {text!r}")
    return int(float(match[1]) * _UNITS[match[2]])


def print_json(value: object) -> None:
    """A command's result for a program to read."""
    print(json.dumps(value, indent=1))


def local_path(text: str) -> Path:
    """A path of this machine, for argparse."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"expected a local path, found {public_name(text)!r}; copy it here first"
        )
    return Path(text)
