"""The command doctor."""

from __future__ import annotations

import argparse

from ..shards.cli_values import EXIT_BAD_DATA, EXIT_FINE, print_json


def add_doctor(subparsers: argparse._SubParsersAction) -> None:
    """Register doctor."""
    command = subparsers.add_parser(
        "doctor",
        help="check packages, decoders, machine and storage, and say what mends them",
        description="Look at the packages, decode a picture with every decoder that is there, look at the machine's "
        "limits, and with DATASET at how its storage answers. What is wrong comes with what mends it. The exit code "
        "is 1 where something is wrong; a note is no fault.",
    )
    command.add_argument(
        "dataset", nargs="?", metavar="DATASET", help="folder or URL of a data set to look at, too"
    )
    command.add_argument("--json", action="store_true", help="print the findings as JSON")
    command.set_defaults(run=_run_doctor)


def _run_doctor(args: argparse.Namespace) -> int:
    from .doctor import examine, format_report, is_fine, report_json

    report = examine(args.dataset)
    if args.json:
        print_json(report_json(report))
    else:
        print(format_report(report))
    return EXIT_FINE if is_fine(report) else EXIT_BAD_DATA
